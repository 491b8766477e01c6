"""`vedette incidents export`: the inputs of incidents that a person has judged, as Parquet, for adversarial training.

One row a query: the features under the schema's names, `label` (the model's answer), `client`, `time`, and what it
belongs to. `vedette score` and the other commands that read rows take the file as it is. Queries are read again from
Kafka by their coordinates; of records that are no longer kept, those stay that stand in the evidence itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from detectors.errors import DetectorError
from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.console.queries import Coordinates, read
from streams.errors import BrokerError, BundleMismatch, ConfigError, UnknownIncident
from streams.incidents.grouping import known_clients
from streams.incidents.service import IncidentService, IncidentView
from streams.store.messages import Incident, SignalMessage, Verdict

#: Incidents that are looked through at most, newest first.
MOST_INCIDENTS = 100_000
#: Queries that are read from Kafka at once.
READ_QUERIES = 2_000

#: What a file says of itself.
FORMAT = {b"vedette.export": b"1"}


@dataclass(slots=True)
class Exported:
    """What an export holds."""

    incidents: int = 0
    queries: int = 0
    from_evidence: int = 0
    """Queries whose record is no longer kept, taken from the evidence."""
    lost: int = 0
    """Queries that could not be had."""
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Columns:
    inputs: list[list[float]] = field(default_factory=list)
    plain: dict[str, list[Any]] = field(
        default_factory=lambda: {
            name: []
            for name in (
                "label",
                "client",
                "time",
                "incident",
                "technique",
                "verdict",
                "level",
                "partition",
                "offset",
                "row",
            )
        }
    )

    def add(self, query: Sequence[float], **values: Any) -> None:
        self.inputs.append(list(query))
        for name, column in self.plain.items():
            column.append(values[name])


def export(
    settings: Settings, model: ModelSettings, service: IncidentService, verdict: Verdict, out: Path, bundle: str
) -> Exported:
    """Write the queries of every incident that was resolved with a verdict.

    Parameters
    ----------
    bundle : str
        Bundle whose schema names features and classes.

    Raises
    ------
    ConfigError
        The file cannot be written, or there is nothing to write.
    BundleMismatch
    """
    try:
        schema = _schema(bundle)
    except DetectorError as refusal:
        raise BundleMismatch(str(refusal)) from None
    columns, told = _Columns(), Exported()
    for incident in service.list("resolved", limit=MOST_INCIDENTS):
        if incident.verdict != verdict or incident.entity == "monitoring":  # which holds no queries
            continue
        try:
            view = service.show(incident.id)
        except UnknownIncident as gone:  # reading the ones before takes seconds
            told.problems.append(str(gone))
            continue
        _add(settings, model, schema, view, columns, told)
    if not columns.inputs:
        raise ConfigError(f"no incident of model {model.name!r} that was resolved as {verdict} has queries to export")
    _write(out, schema, columns)
    told.queries = len(columns.inputs)
    return told


def _schema(bundle: str) -> FeatureSchema:
    from detectors.bundle import load

    return load(bundle).schema


def _add(
    settings: Settings,
    model: ModelSettings,
    schema: FeatureSchema,
    view: IncidentView,
    columns: _Columns,
    told: Exported,
) -> None:
    by_place = _by_place(view.evidence)
    wanted = sorted(by_place)
    seen: set[Coordinates] = set()
    for start in range(0, len(wanted), READ_QUERIES):
        part = wanted[start : start + READ_QUERIES]
        try:
            found = read(settings, model, schema, part)
        except BrokerError as error:
            told.problems.append(str(error))
            break
        if found.problem:
            told.problems.append(f"{view.incident.id}: {found.problem}")
        for place, row, label, when in zip(
            found.where, found.inputs.tolist(), found.labels.tolist(), found.times.tolist(), strict=True
        ):
            seen.add(place)
            _put(columns, schema, view.incident, by_place[place], place, row, label, when)
    for signal in view.evidence:
        place = (signal.partition, signal.offset, signal.row)
        if place not in seen and len(signal.input) == schema.width:
            seen.add(place)
            told.from_evidence += 1
            _put(columns, schema, view.incident, signal, place, signal.input, signal.label, signal.time)
    told.lost += len(set(wanted) - seen)
    told.incidents += bool(seen)


def _by_place(signals: Iterable[SignalMessage]) -> dict[Coordinates, SignalMessage]:
    """Where each query stands, and a signal that speaks of it."""
    found: dict[Coordinates, SignalMessage] = {}
    for signal in signals:
        for offset, row in [*signal.members, (signal.offset, signal.row)]:
            found.setdefault((signal.partition, offset, row), signal)
    return found


def _put(
    columns: _Columns,
    schema: FeatureSchema,
    incident: Incident,
    signal: SignalMessage,
    place: Coordinates,
    row: Sequence[float],
    label: int,
    when: int,
) -> None:
    known = known_clients(signal)
    one = known[0] if len(signal.clients) == len(known) == 1 else None  # of a cluster, nobody in particular
    columns.add(
        row,
        label=schema.classes[label] if 0 <= label < len(schema.classes) else str(label),
        client=one,
        time=when,
        incident=incident.id,
        technique=incident.technique,
        verdict=incident.verdict,
        level=incident.level,
        partition=place[0],
        offset=place[1],
        row=place[2],
    )


def _write(out: Path, schema: FeatureSchema, columns: _Columns) -> None:
    inputs = np.array(columns.inputs, dtype=np.float64)
    arrays: dict[str, Any] = {one.name: inputs[:, place] for place, one in enumerate(schema.features)}
    for name, values in columns.plain.items():
        kind = {"time": pa.timestamp("us", "UTC"), "partition": pa.int32(), "offset": pa.int64(), "row": pa.int32()}
        arrays[f"_{name}" if name in arrays else name] = pa.array(values, kind.get(name, pa.string()))
    table = pa.table(arrays).replace_schema_metadata(FORMAT)
    part = out.with_name(f".{out.name}.part")
    try:
        pyarrow.parquet.write_table(table, part)
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror or error}") from None
