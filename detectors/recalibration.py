"""New thresholds for a fitted ensemble from its own pilot: detectors and tables stay, what decides is set anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import repeaters
from detectors.calibration.alarms import FalseAlarm, admitted
from detectors.calibration.decision import THRESHOLD_NAMES, Decision, Yardstick, decide, excuses, proposed
from detectors.calibration.examination import FUSED, Examination, uniformities
from detectors.calibration.history import History, measure
from detectors.calibration.prospects import prospects
from detectors.calibration.report import FitReport
from detectors.calibration.residual import between_share
from detectors.calibration.weeks import LEAST_CLIENTS, LEAST_ROWS
from detectors.contract import ANONYMOUS, Batch, Progress
from detectors.embeddings.space import check_embeddings, rarely_embedded
from detectors.errors import FitError
from detectors.queries.walk import PLAIN, Columns
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
    alarms: Sequence[FalseAlarm] = (),
    excused: Sequence[int] = (),
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
    alarms : sequence of FalseAlarm
        False alarms of this very ensemble that two people vouch for. What `alarms.admitted` lets through counts as
        client-weeks: paging thresholds rise by them, never beyond the pilot's largest client-week, and never fall.
    excused : sequence of int
        Hashes of clients that are approved as repeaters. Their near-duplicates never page, so they don't raise what the
        intent test must say of others, and false alarms about them are left out; their single inputs count as ever.
        What is promised is about clients that are not approved.

    Raises
    ------
    FitError
        When the pilot has no clients, or too few, its events stand out of order, or carry no embedding where a detector
        asks for them.
    SchemaError
        When its rows don't fit the ensemble.
    """
    if budget < 0 or week_us < 1 or partitions < 1:
        raise FitError(f"budget {budget} must be >= 0, week {week_us} us and partitions {partitions} >= 1")
    clients = len(np.unique(pilot.clients[pilot.clients != ANONYMOUS]))
    if not clients:
        raise FitError("the pilot names no clients, and what is promised counts clients a week")
    if clients < LEAST_CLIENTS or len(pilot) < LEAST_ROWS:
        raise FitError(
            f"a pilot of {len(pilot)} events of {clients} clients is too small; let it run until there are "
            f"{LEAST_ROWS} of {LEAST_CLIENTS}"
        )
    if np.any(np.diff(pilot.times) < 0):
        raise FitError("the pilot's events must stand in the order of their times")
    check_embeddings(ensemble.single.detectors, ensemble.schema, pilot)
    parts, remembered = [], ensemble.single.new_past(len(np.unique(pilot.clients)))
    pvalues = np.empty((len(pilot), len(ensemble.detectors) + 1))
    for start in range(0, len(pilot), CHUNK_ROWS):
        progress("scoring the pilot", 0.3 * start / len(pilot))
        scored = ensemble.single.score(pilot.take(slice(start, start + CHUNK_ROWS)), remembered)
        pvalues[start : start + CHUNK_ROWS] = np.column_stack([scored.pvalues, scored.fused])
        parts.append(scored.columns)
    columns = Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    progress("replaying client-weeks", 0.3)
    silent = ensemble.tables._replace(thresholds=np.full_like(ensemble.tables.thresholds, np.inf))
    trace = measure(columns, silent, ensemble.index_rows)
    evidence = (trace["kind"] == PLAIN) & (pilot.clients != ANONYMOUS)
    between = between_share(ensemble.tables.normal[columns.rows["rank"][evidence]], pilot.clients[evidence])
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
    yardstick = Yardstick.known(ensemble.tables.thresholds, ensemble.policy)

    def decided(history: History, done: float) -> Decision:
        return decide(
            history,
            yardstick,
            silent,
            ensemble.intent,
            real=True,
            budget=budget,
            clients_per_week=clients_per_week,
            partitions=partitions,
            progress=lambda what, share: progress(what, done + 0.2 * share),
            excused=excused,
        )

    decision = decided(past, 0.6)
    told: tuple[str, ...] = ()
    alarms = [alarm for alarm in alarms if alarm.client not in excused]
    if alarms:
        past, decision, told = _with_alarms(past, decision, alarms, yardstick, budget, lambda more: decided(more, 0.8))
    made = ensemble.with_policy(decision.thresholds, decision.policy)
    pages = decision.policy.mode != "tickets"
    thresholds = decision.thresholds
    distinct = len(np.unique(past.weeks.clients))
    notes = [
        f"thresholds are those of a pilot of {distinct} clients in {past.weeks_seen} weeks",
        "the promise holds for client-weeks that are exchangeable with these; clients of a new kind are outside it",
    ]
    notes += excuses(decision, past, week_us)
    notes += rarely_embedded(ensemble.single.detectors, ensemble.schema.embedding_width, pilot, "events of the pilot")
    if len(excused):
        seen = int(np.isin(np.array(list(excused), dtype=np.uint64), past.weeks.clients).sum())
        notes.append(
            f"approved repeaters: {len(excused)}, {seen} of them in the pilot; "
            + (
                "what pages is not set by their near-duplicates, and the promise is about clients that are not approved"
                if pages
                else "nothing pages yet, so they change nothing"
            )
        )
    report = replace(
        known,
        mode=decision.policy.mode,
        reason=decision.reason,
        budget=budget,
        budget_clients=decision.split.clients,
        budget_index=decision.split.index,
        budget_population=decision.split.population,
        risk=decision.split.clients_risk + decision.split.index_risk,
        client_weeks=past.counted,
        clients_per_week=decision.coming,
        client_weeks_needed=decision.needed,
        rank=decision.count.rank if pages else 0,
        expected_pages=decision.count.expected if pages else 0.0,
        excess=decision.count.excess if pages else 0.0,
        expected_tickets=decision.expected_tickets,
        partition_weeks=len(past.index),
        partition_weeks_needed=decision.index_needed,
        thresholds={
            **dict(zip(THRESHOLD_NAMES, thresholds.tolist(), strict=True)),
            "page_score": decision.policy.page_score,
        },
        fastest=decision.fastest,
        repeaters=tuple(client_name(int(name)) for name in np.unique(past.weeks.clients[past.repeating])),
        proposed_repeaters=proposed(past, decision) if pages else (),
        would_page=int(np.count_nonzero(decision.beyond)),
        between_clients=between,
        rows={**known.rows, "thresholds": len(pilot)},
        notes=(*notes, *told),
        examination=_examined(known.examination, ensemble, pvalues, pilot.labels),
        more=prospects(decision, past.counted, len(past.index), partitions, 1.0),
        calibrated=True,
        data_digest=_digest(known.data_digest, pilot, alarms, excused),
    )
    progress("done", 1.0)
    return made, report


def _examined(
    known: Examination | None, ensemble: Ensemble, pvalues: NDArray[np.float64], labels: NDArray[np.int32]
) -> Examination:
    """The fit's examination with the p-values (n, D + 1) of the pilot."""
    found = uniformities([*ensemble.detectors, FUSED], pvalues, labels, ensemble.single.calibrated)
    return replace(known or Examination((), (), 0, 0), uniformity=found, benign=len(labels))


def _with_alarms(
    past: History,
    plain: Decision,
    alarms: Sequence[FalseAlarm],
    yardstick: Yardstick,
    budget: int,
    decided: Callable[[History], Decision],
) -> tuple[History, Decision, tuple[str, ...]]:
    """History and decision with the false alarms that count, and what they moved."""
    if plain.policy.mode == "tickets":
        return past, plain, (f"{len(alarms)} approved false alarms change nothing: nothing pages yet",)
    rank = plain.count.rank
    fresh = [alarm for alarm in alarms if not past.holds(alarm.client, alarm.time)]
    asked = plain.policy.mode == "intent"
    taken = admitted(fresh, yardstick.scales, past.start, past.week_us, budget, rank, intent=asked)
    told = [_counted(len(taken), len(alarms), len(alarms) - len(fresh), budget, rank)]
    if taken:
        past = past.with_alarms(taken)
        decision = replace(decided(past), count=plain.count)
        told.append(f"they moved {_moved(plain, decision) or 'no threshold'}")
        plain = decision
    return past, plain, tuple(told)


def _counted(taken: int, given: int, replayed: int, budget: int, rank: int) -> str:
    """How many false alarms count, and why not more."""
    known = f" ({replayed} lie in the pilot itself, and count as what it replays)" if replayed else ""
    return (
        f"{taken} of {given} approved false alarms count as client-weeks{known}, the weakest first: at most "
        f"N = {budget} a week and j - 1 = {max(0, rank - 1)} in all, so no threshold passes the pilot's largest "
        "client-week"
    )


def _moved(before: Decision, after: Decision) -> str:
    """Thresholds that differ, in words."""
    pairs = [*zip(THRESHOLD_NAMES, before.thresholds.tolist(), after.thresholds.tolist(), strict=True)]
    pairs.append(("page_score", before.policy.page_score, after.policy.page_score))
    return ", ".join(f"{name} from {old:.4g} to {new:.4g}" for name, old, new in pairs if old != new)


def _digest(known: str, pilot: Batch, alarms: Sequence[FalseAlarm], excused: Sequence[int]) -> str:
    """32 hex digits over what the fit saw, the pilot's rows, false alarms and excused clients."""
    total = hashlib.blake2b(known.encode(), digest_size=16)
    for part in (pilot.inputs, pilot.labels, pilot.clients, pilot.times):
        total.update(f"{part.dtype.str}{part.shape}".encode())
        total.update(np.ascontiguousarray(part).data)
    for alarm in alarms:
        total.update(repr(alarm).encode())
    if len(excused):
        total.update(repr(sorted(int(client) for client in excused)).encode())
    return total.hexdigest()
