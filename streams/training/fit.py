"""`vedette fit`: reference rows and benign events in, a calibrated bundle and a report out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from detectors import bundle as bundles
from detectors import ensemble, registry
from detectors.calibration.scheme import Fusion, Scheme, Spread
from detectors.contract import Reference
from detectors.errors import DetectorError
from detectors.kernels import limit_blas_threads
from detectors.manifest import MAX_TEXT, named
from detectors.schema import FeatureSchema
from streams import tables
from streams.cli import print_json
from streams.config import Settings
from streams.errors import ConfigError
from streams.training.choice import ask_of, detectors_of, inquiries_of, model_of
from streams.training.findings import Findings, show
from streams.training.page import render
from streams.training.sources import PARTITIONS, Events, Session, Span, client_key, events_of, schema_of, settings_of
from streams.training.telling import Telling

#: What is said where nothing needs the watched model.
UNREAD = "--model was not read: no detector that was named reads the model (oc_score does), and no inquiry asks it"
#: Length of the budget's period where neither an option nor settings say.
WEEK_SECONDS = 604_800.0
#: No longer period is cut from events: thirty years and more.
LONGEST_WEEK = 1e9


def run(
    session: Session,
    *,
    reference: str,
    benign: str | None,
    schema_path: str | None,
    crafted: Sequence[str] = (),
    probes: str | None = None,
    detectors: str | None = None,
    model_object: str | None = None,
    model_version: str | None = None,
    spread: Spread = "median",
    fusion: Fusion = "product",
    inquiries: str | None = None,
    out: str,
    report_to: str | None = None,
    no_report: bool = False,
    budget: int,
    clients_per_week: int | None,
    week_seconds: float | None,
    partitions: int | None,
    seed: int,
    as_json: bool,
    span: Span | None = None,
) -> int:
    """Fit, calibrate, write bundle and page, print the report; returns 0.

    Raises
    ------
    ConfigError
        A file, a setting, or what the data can't support, in a sentence.
    BrokerError, MissingTopic
        When benign events are to come from the topic.
    EndpointError
        When the watched model, whom inquiries ask, does not answer.
    """
    began = time.monotonic()
    limit_blas_threads()
    sources = (reference, benign, schema_path, probes, *crafted)
    target = writable(out, sources=sources)
    shown = page_of(target, report_to, no_report, sources)
    if model_version is not None and not named(model_version):
        raise ConfigError(f"--model-version: write at most {MAX_TEXT} printable characters in one line")
    chosen, wanted = detectors_of(detectors), inquiries_of(inquiries, model_object)
    watched = model_of(model_object)
    settings = settings_of(session)
    key, notes = client_key(settings)
    ask = None
    if wanted and model_object is not None:
        ask, told = ask_of(model_object, settings, lambda: session.model_settings.topic)
        notes = (*notes, *told)
    if watched is not None and not wanted and not any(registry.reads_model(name) for name in chosen):
        notes = (*notes, UNREAD)
    with Telling() as telling:
        telling("reading the reference", 0.0)
        rows, schema = tables.read(reference, schema_of(schema_path), key)
        odd = _crafted(crafted, schema, key) if crafted else None
        held = tables.read(probes, schema, key)[0].reference() if probes is not None else None
        events = None
        if benign is not None:
            telling("reading benign events", 0.0)
            events = events_of(benign, session, schema, key, span or Span(), telling)
            notes = (*notes, *events.notes)
        length = period(week_seconds, None if settings is None else settings.week_seconds)
        try:
            fitted, report = ensemble.fit(
                rows.reference(),
                schema,
                None if events is None else events.batch,
                crafted=odd,
                budget=budget,
                clients_per_week=clients_per_week,
                week_us=round(length * 1e6),
                partitions=partition_count(partitions, events),
                rng=np.random.default_rng(seed),
                progress=telling,
                detectors=chosen,
                model=watched,
                scheme=Scheme(spread, fusion),
                probes=held,
                inquiries=wanted,
                ask=ask,
            )
        except DetectorError as refusal:
            raise ConfigError(f"cannot fit: {refusal}") from None
        made = bundles.origin(fitted, _model_name(session, settings), model_version or "")
        with writing(target):
            bundles.save(target, fitted, report, made)
    found = Findings(
        bundle=str(target),
        digest=fitted.digest,
        report=report,
        week_seconds=length,
        events=0 if events is None else len(events.batch),
        clients=0 if events is None else len(np.unique(events.batch.clients)),
        seconds=time.monotonic() - began,
        notes=notes,
        origin=made,
        classes=schema.classes,
        page=None if shown is None else str(shown),
    )
    if shown is not None:
        with writing(shown):
            shown.write_text(render(found), encoding="utf-8")
    if as_json:
        print_json(found.to_dict())
    else:
        show(found, Console())
    return 0


def _model_name(session: Session, settings: Settings | None) -> str:
    """The watched model's name, as far as an option or the settings tell."""
    if settings is None or (session.model is None and len(settings.models) != 1):
        return session.model or ""
    return session.model_settings.name


def writable(out: str, option: str = "--out", sources: Sequence[str | None] = ()) -> Path:
    """The path of what is to be written, before any work is done for it; `sources` are files that must stay."""
    target = Path(out)
    if target.is_dir() or not target.parent.is_dir():
        raise ConfigError(f"{option}: {out} can't be written: {target.parent} is no folder, or {target.name} is one")
    for source in sources:
        if source is not None and target.exists() and Path(source).exists() and target.samefile(source):
            raise ConfigError(f"{option}: {out} is what is read, and would be written over; name another file")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            return target
    except OSError as wrong:
        raise ConfigError(f"{option}: {out} can't be written: {wrong.strerror or wrong}") from None


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """`ConfigError` of what goes wrong while a file is written, as where no space is left."""
    try:
        yield
    except OSError as wrong:
        raise ConfigError(f"{target} can't be written: {wrong.strerror or wrong}") from None


def page_of(bundle: Path, report_to: str | None, no_report: bool, sources: Sequence[str | None] = ()) -> Path | None:
    """Where the HTML page goes: beside the bundle unless an option says otherwise; None for nowhere."""
    if no_report:
        if report_to is not None:
            raise ConfigError("--report and --no-report: give one of them")
        return None
    page = writable(report_to or f"{bundle}.html", "--report", sources)
    if page == bundle:
        raise ConfigError(f"--report: {page} is where the bundle goes; name another file")
    return page


def period(option: float | None, setting: float | None) -> float:
    """Length of what is called a week, in seconds."""
    length = option if option is not None else setting if setting is not None else WEEK_SECONDS
    if not 1e-6 <= length <= LONGEST_WEEK:
        raise ConfigError(f"--week-seconds: {length:g} must lie between 0.000001 and {LONGEST_WEEK:g}")
    return length


def partition_count(option: int | None, events: Events | None) -> int:
    """Partitions of the event topic, as told, as read, or as `vedette topics` makes them."""
    if option is not None:
        return option
    return PARTITIONS if events is None or events.partitions is None else events.partitions


def _crafted(paths: Sequence[str], schema: FeatureSchema, key: bytes) -> dict[str, Reference]:
    """Crafted rows by their attack: as the rows say, else by the file's name."""
    parts: dict[str, list[Reference]] = {}
    for path in paths:
        found, _ = tables.read(path, schema, key)
        named = np.full(len(found), Path(path).stem) if found.families is None else found.families
        rows = found.reference()
        for name in np.unique(named):
            chosen = named == name
            outputs = None if rows.outputs is None else rows.outputs[chosen]
            embeddings = None if rows.embeddings is None else rows.embeddings[chosen]
            part = Reference(rows.inputs[chosen], rows.labels[chosen], outputs, embeddings=embeddings)
            parts.setdefault(str(name) or Path(path).stem, []).append(part)
    return {name: _joined(several) for name, several in parts.items()}


def _joined(parts: Sequence[Reference]) -> Reference:
    """Rows one after another; scores only where all have them, embeddings where any has."""
    outputs = [part.outputs for part in parts if part.outputs is not None]
    return Reference(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(outputs) if len(outputs) == len(parts) else None,
        embeddings=tables.stacked([part.embeddings for part in parts], [len(part) for part in parts]),
    )
