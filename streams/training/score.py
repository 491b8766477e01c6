"""`vedette score`: a file of events through a bundle, without Kafka or Redis."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detectors import bundle as bundles
from detectors.contract import ANONYMOUS, Batch, Level, Signal, Verdicts
from detectors.embeddings.space import rarely_embedded
from detectors.errors import BundleError, DetectorError
from detectors.kernels import limit_blas_threads
from detectors.scorer import Ensemble
from streams import tables
from streams.cli import print_json
from streams.errors import BundleMismatch, ConfigError
from streams.training.fit import writable, writing
from streams.training.sources import Session, client_key, settings_of, untimed
from streams.training.telling import Telling

#: Rows that are scored at once.
CHUNK_ROWS = 4096
#: Entities whose signals are listed at most.
SHOWN_ENTITIES = 20
#: Shares of rows that look odd are told for these p-values.
ODD = (0.05, 0.01, 0.001)


@dataclass(slots=True)
class Scored:
    """What a file's events made of a bundle, in the order of their times.

    Attributes
    ----------
    batch : Batch
    order : int64 (n,)
        Place of each event in the file.
    verdicts : list of Verdicts
    signals : list of (int, Signal)
        Row of the batch, and the signal.
    """

    ensemble: Ensemble
    batch: Batch
    order: NDArray[np.int64]
    verdicts: list[Verdicts] = field(default_factory=list)
    signals: list[tuple[int, Signal]] = field(default_factory=list)
    seconds: float = 0.0

    def column(self, name: str) -> NDArray[Any]:
        """An attribute of the verdicts, for all rows."""
        return np.concatenate([getattr(verdict, name) for verdict in self.verdicts])


def run(session: Session, file: str, bundle: str | None, out: str | None, as_json: bool) -> int:
    """Score, print a summary, optionally write a row of verdicts for each event; returns 0.

    Raises
    ------
    ConfigError
        The file, or an option.
    BundleMismatch
        The bundle is missing, damaged, or for other rows.
    """
    limit_blas_threads()
    target = None if out is None else writable(out, sources=(file, bundle))
    settings = settings_of(session)
    if bundle is None:
        if settings is None:
            raise ConfigError("--bundle: not given, and there are no settings that name one")
        bundle = session.model_settings.bundle
    key, notes = client_key(settings)
    try:
        ensemble = bundles.load(bundle)
    except BundleError as refusal:
        raise BundleMismatch(str(refusal)) from None
    rows, _ = tables.read(file, ensemble.schema, key)
    width = ensemble.schema.embedding_width
    notes = (*notes, *rarely_embedded(ensemble.single.detectors, width, rows.reference(), "rows"))
    found = Scored(ensemble, rows.batch(), np.argsort(rows.times, kind="stable"))
    with Telling() as telling:
        _score(found, telling)
    if target is not None:
        _write(found, target)
    if as_json:
        print_json(_summary(found, file, bundle, notes))
    else:
        _show(_summary(found, file, bundle, notes), Console())
    return 0


def _score(found: Scored, telling: Telling) -> None:
    batch = found.batch
    state = found.ensemble.new_state(clients=max(2, len(np.unique(batch.clients))))
    telling("compiling kernels", 0.0)
    found.ensemble.warm_up()
    began = time.monotonic()
    for start in range(0, len(batch), CHUNK_ROWS):
        telling("scoring", start / len(batch))
        try:
            verdicts = found.ensemble.score(batch.take(slice(start, start + CHUNK_ROWS)), state)
        except DetectorError as refusal:
            raise BundleMismatch(f"rows from {start} on don't fit the bundle: {refusal}") from None
        found.verdicts.append(verdicts)
        found.signals += [(start + signal.row, signal) for signal in verdicts.signals]
    found.seconds = time.monotonic() - began


def _summary(found: Scored, file: str, bundle: str, notes: tuple[str, ...]) -> dict[str, Any]:
    batch, fused = found.batch, found.column("fused")
    known = batch.clients[batch.clients != ANONYMOUS]
    told: dict[str, Counter[str]] = {}
    loud: dict[str, set[int]] = {"page": set(), "ticket": set()}
    for row, signal in found.signals:
        level = signal.level.name.lower()
        told.setdefault(level, Counter())[signal.rule] += 1
        if level in loud and batch.clients[row] != ANONYMOUS:
            loud[level].add(int(batch.clients[row]))
    return {
        "file": file,
        "bundle": bundle,
        "digest": found.ensemble.digest,
        "rows": len(batch),
        "clients": len(np.unique(known)),
        "anonymous_rows": int((batch.clients == ANONYMOUS).sum()),
        "microseconds_a_row": round(1e6 * found.seconds / max(1, len(batch)), 2),
        "pages": dict(told.get("page", {})),
        "tickets": dict(told.get("ticket", {})),
        "clients_paged": len(loud["page"]),
        "clients_ticketed": len(loud["ticket"] - loud["page"]),
        "odd_rows": {f"p <= {p:g}": round(float((fused <= p).mean()), 5) for p in ODD},
        "signals": [_told(found, row, signal) for row, signal in found.signals],
        "notes": list(notes),
    }


def _told(found: Scored, row: int, signal: Signal) -> dict[str, Any]:
    return {
        "row": int(found.order[row]),
        "level": signal.level.name.lower(),
        "rule": signal.rule,
        "entity": f"{signal.entity} {signal.entity_id}",
        "client": _hash(int(found.batch.clients[row])),
        "statistic": float(signal.statistic),
        "threshold": float(signal.threshold),
        "label": found.ensemble.schema.classes[signal.label],
        "reasons": [reason.text for reason in signal.reasons],
    }


def _hash(client: int) -> str | None:
    return None if client == ANONYMOUS else f"{client:016x}"


def _show(said: dict[str, Any], console: Console) -> None:
    def counted(rules: dict[str, int]) -> str:
        return ", ".join(f"{count} {rule}" for rule, count in rules.items()) or "none"

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    clients = f"{said['clients']:,} clients" + (
        f", {said['anonymous_rows']:,} rows of nobody" if said["anonymous_rows"] else ""
    )
    for name, value in (
        ("events", f"{said['rows']:,} of {clients}"),
        ("bundle", f"{said['bundle']}  ({said['digest']})"),
        ("pages", f"{counted(said['pages'])}; {said['clients_paged']} clients"),
        ("tickets", f"{counted(said['tickets'])}; {said['clients_ticketed']} clients that did not page"),
        ("odd rows", ", ".join(f"{share:.2%} with {p}" for p, share in said["odd_rows"].items())),
        ("cost", f"{said['microseconds_a_row']} us a row"),
        *(("note", note) for note in said["notes"]),
    ):
        table.add_row(name, Text(value))
    console.print(table)
    for told in _by_entity(said["signals"])[:SHOWN_ENTITIES]:
        first, last = told[0], max(told, key=lambda signal: signal["level"] == "page")
        rows = f"row {first['row']}" if len(told) == 1 else f"rows {first['row']} ... {told[-1]['row']}"
        crossed = f"{last['statistic']:.3g} > {last['threshold']:.3g}"
        line = f"{last['level']:6}  {last['rule']}  {first['entity']}  {rows}  {crossed}"
        console.print(Text(line, style="bold" if last["level"] == "page" else ""))
        for reason in last["reasons"]:
            console.print(Text(f"        {reason}", style="dim"))
    more = len(_by_entity(said["signals"])) - SHOWN_ENTITIES
    if more > 0:
        console.print(f"and {more} more (--json lists all)")


def _by_entity(signals: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Signals of one entity and rule together; those that page come first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for signal in signals:
        found.setdefault((signal["entity"], signal["rule"]), []).append(signal)
    return sorted(found.values(), key=lambda told: all(signal["level"] != "page" for signal in told))


def _write(found: Scored, target: Path) -> None:
    """A row for each event in the file's order: place, time, client, label, level, fused p, and all that made it.

    The time is null where the file has none.
    """
    batch, ensemble = found.batch, found.ensemble
    pvalues, scores, statistics = (found.column(name) for name in ("pvalues", "scores", "statistics"))
    tests = found.verdicts[0].tests
    stamps = pa.timestamp("us", "UTC")
    columns: dict[str, Any] = {
        "row": found.order,
        "time": pa.nulls(len(batch), stamps) if untimed(batch) else pa.array(batch.times, stamps),
        "client": pa.array([_hash(int(client)) for client in batch.clients], pa.string()),
        "label": pa.array([ensemble.schema.classes[label] for label in batch.labels], pa.string()),
        "level": pa.array([Level(int(level)).name.lower() for level in found.column("levels")], pa.string()),
        "p": found.column("fused"),
        **{f"p_{name}": pvalues[:, place] for place, name in enumerate(ensemble.detectors)},
        **{f"score_{name}": scores[:, place] for place, name in enumerate(ensemble.detectors)},
        **{f"statistic_{name}": statistics[:, place] for place, name in enumerate(tests)},
    }
    table = pa.table(columns).take(pa.array(np.argsort(found.order, kind="stable")))
    with writing(target):
        pyarrow.parquet.write_table(table, target)
