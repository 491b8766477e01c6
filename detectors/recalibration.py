"""New thresholds for a fitted ensemble from its own pilot: detectors and tables stay, what decides is set anew."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np

from detectors.calibration import repeaters
from detectors.calibration.decision import Yardstick, decide, proposed
from detectors.calibration.history import History, measure
from detectors.calibration.report import FitReport
from detectors.contract import ANONYMOUS, Batch, Progress
from detectors.errors import FitError
from detectors.queries.walk import Columns
from detectors.scorer import Ensemble
from detectors.signals import client_name

#: Rows that are scored at a time.
CHUNK_ROWS = 8192


def recalibrate(
    ensemble: Ensemble,
    known: FitReport,
    pilot: Batch,
    *,
    budget: int,
    clients_per_week: int | None,
    week_us: int,
    partitions: int,
    progress: Progress,
) -> tuple[Ensemble, FitReport]:
    """Set thresholds and policy by the client-weeks of a pilot.

    No row of the pilot was seen by the fit, so every client of it sets thresholds: the count of false pages is exact
    for client-weeks that are exchangeable with the pilot's, whatever the detectors were fitted on.

    Parameters
    ----------
    ensemble : Ensemble
    known : FitReport
        Of the fit that made it.
    pilot : Batch
        Benign events in the order of the stream, with clients and times.
    budget, clients_per_week, week_us, partitions, progress
        As for `detectors.ensemble.fit`.

    Raises
    ------
    FitError
        When the pilot has no clients, or its events stand out of order.
    SchemaError
        When its rows don't fit the ensemble.
    """
    if budget < 0 or week_us < 1 or partitions < 1:
        raise FitError(f"budget {budget} must be >= 0, week {week_us} us and partitions {partitions} >= 1")
    if not (pilot.clients != ANONYMOUS).any():
        raise FitError("the pilot names no clients, and what is promised counts clients a week")
    if np.any(np.diff(pilot.times) < 0):
        raise FitError("the pilot's events must stand in the order of their times")
    parts = []
    for start in range(0, len(pilot), CHUNK_ROWS):
        progress("scoring the pilot", 0.3 * start / len(pilot))
        parts.append(ensemble.single.score(pilot.take(slice(start, start + CHUNK_ROWS))).columns)
    columns = Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    progress("replaying client-weeks", 0.3)
    silent = ensemble.tables._replace(thresholds=np.full_like(ensemble.tables.thresholds, np.inf))
    trace = measure(columns, silent, ensemble.index_rows)
    past = History.replay(
        columns,
        pilot.times,
        np.ones(len(pilot), dtype=np.bool_),
        silent,
        ensemble.index_rows,
        week_us,
        partitions,
        repeaters.near(pilot.clients, trace["near"]),
    )
    decision = decide(
        past,
        Yardstick.known(ensemble.tables.thresholds),
        silent,
        ensemble.intent,
        real=True,
        budget=budget,
        clients_per_week=clients_per_week,
        partitions=partitions,
        progress=lambda what, share: progress(what, 0.6 + 0.4 * share),
    )
    made = ensemble.with_policy(decision.thresholds, decision.policy)
    pages = decision.policy.mode != "tickets"
    thresholds = decision.thresholds
    distinct = len(np.unique(past.weeks.clients))
    notes = [
        f"thresholds are those of a pilot of {distinct} clients in {past.weeks.whole_weeks} weeks",
        "the promise holds for client-weeks that are exchangeable with these; clients of a new kind are outside it",
    ]
    if not pages:
        notes.append(f"a pilot of {math.ceil(decision.needed)} client-weeks would do")
    report = replace(
        known,
        mode=decision.policy.mode,
        reason=decision.reason,
        budget=budget,
        budget_clients=decision.split.clients,
        budget_index=decision.split.index,
        budget_population=decision.split.population,
        risk=decision.split.clients_risk + decision.split.index_risk,
        client_weeks=len(past.weeks),
        clients_per_week=decision.coming,
        client_weeks_needed=decision.needed,
        rank=decision.count.rank if pages else 0,
        expected_pages=decision.count.expected if pages else 0.0,
        excess=decision.count.excess if pages else 0.0,
        expected_tickets=decision.expected_tickets,
        partition_weeks=len(past.index),
        partition_weeks_needed=decision.index_needed,
        thresholds={
            **dict(
                zip(
                    ("client-cluster", "client-opposite", "index-cluster", "input-sequence"),
                    (float(value) for value in thresholds),
                    strict=True,
                )
            ),
            "page_factor": decision.policy.page_factor,
        },
        fastest=decision.fastest,
        repeaters=tuple(client_name(int(name)) for name in np.unique(past.weeks.clients[past.repeating])),
        proposed_repeaters=proposed(past, decision) if pages else (),
        would_page=int(np.count_nonzero(decision.beyond)),
        rows={**known.rows, "thresholds": len(pilot)},
        notes=tuple(notes),
        data_digest=_digest(known.data_digest, pilot),
    )
    progress("done", 1.0)
    return made, report


def _digest(known: str, pilot: Batch) -> str:
    """32 hex digits over what the fit saw and the pilot's rows."""
    total = hashlib.blake2b(known.encode(), digest_size=16)
    for part in (pilot.inputs, pilot.labels, pilot.clients, pilot.times):
        total.update(f"{part.dtype.str}{part.shape}".encode())
        total.update(np.ascontiguousarray(part).data)
    return total.hexdigest()
