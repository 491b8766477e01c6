"""`vedette calibrate`: a bundle and the events of its pilot in, the same bundle with thresholds of its own out."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import numpy as np
from rich.console import Console

from detectors import bundle as bundles
from detectors.calibration.alarms import FalseAlarm
from detectors.errors import BundleError, DetectorError
from detectors.kernels import limit_blas_threads
from detectors.manifest import read_origin, read_report
from detectors.recalibration import recalibrate
from detectors.scorer import Ensemble
from streams.cli import print_json
from streams.errors import BundleMismatch, ConfigError
from streams.incidents.false_alarms import approved
from streams.incidents.repeaters import Repeaters, standing
from streams.incidents.service import IncidentService
from streams.store.client import connect
from streams.store.keys import ModelKeys
from streams.store.messages import Repeater
from streams.training.findings import Findings, show
from streams.training.fit import page_of, partition_count, period, writable, writing
from streams.training.page import render
from streams.training.sources import Session, Span, client_key, events_of, settings_of
from streams.training.telling import Telling


def run(
    session: Session,
    *,
    pilot: str,
    bundle: str | None,
    out: str,
    report_to: str | None = None,
    no_report: bool = False,
    budget: int,
    clients_per_week: int | None,
    week_seconds: float | None,
    partitions: int | None,
    as_json: bool,
    span: Span,
    false_alarms: bool = False,
    repeaters: bool = False,
) -> int:
    """Replay the pilot, set thresholds, write bundle and page, print the findings; returns 0.

    Raises
    ------
    ConfigError
        A file, a setting, or what the pilot can't support, in a sentence.
    BundleMismatch
        The bundle is missing, damaged, or for other rows.
    BrokerError, MissingTopic
        When the pilot's events are to come from the topic.
    StoreError
        When false alarms or repeaters are to come from Redis.
    """
    began = time.monotonic()
    limit_blas_threads()
    target = writable(out, sources=(pilot,))
    shown = page_of(target, report_to, no_report, (pilot, bundle))
    settings = settings_of(session)
    if bundle is None:
        if settings is None:
            raise ConfigError("--bundle: not given, and there are no settings that name one")
        bundle = session.model_settings.bundle
    key, notes = client_key(settings)
    try:
        ensemble, known, origin = bundles.load(bundle), read_report(bundle), read_origin(bundle)
    except BundleError as refusal:
        raise BundleMismatch(str(refusal)) from None
    length = period(week_seconds, None if settings is None else settings.week_seconds)
    with Telling() as telling:
        alarms: list[FalseAlarm] = []
        known_ones: list[Repeater] = []
        if false_alarms:
            alarms, told = _false_alarms(session, ensemble)
            notes = (*notes, *told)
        if repeaters:
            known_ones = _repeaters(session)
            notes = (*notes, *_until(known_ones))
        telling("reading the pilot", 0.0)
        events = events_of(pilot, session, ensemble.schema, key, span, telling)
        try:
            made, report = recalibrate(
                ensemble,
                known,
                events.batch,
                budget=budget,
                clients_per_week=clients_per_week,
                week_us=round(length * 1e6),
                partitions=partition_count(partitions, events),
                progress=telling,
                alarms=alarms,
                excused=[int(one.client, 16) for one in known_ones],
            )
        except DetectorError as refusal:
            raise ConfigError(f"cannot calibrate: {refusal}") from None
        with writing(target):
            bundles.save(target, made, report, origin)
    found = Findings(
        bundle=str(target),
        digest=made.digest,
        report=report,
        week_seconds=length,
        events=len(events.batch),
        clients=len(np.unique(events.batch.clients)),
        seconds=time.monotonic() - began,
        notes=(*notes, *events.notes),
        origin=origin,
        classes=made.schema.classes,
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


def _false_alarms(session: Session, ensemble: Ensemble) -> tuple[list[FalseAlarm], tuple[str, ...]]:
    """What two people call false alarms, of the model that the session names, and what else a person should know."""
    model = session.model_settings.name
    found, others = approved(IncidentService(connect(session.settings.redis), model), ensemble)
    if others:
        said = f"{others} approved false alarms of {model} are left out: another bundle than the given one decided them"
        return found, (said,)
    return found, () if found else (f"there are no approved false alarms of {model} in Redis, so none count",)


def _repeaters(session: Session) -> list[Repeater]:
    """The clients that are approved as repeaters of that model now."""
    now = time.time_ns() // 1000
    every = Repeaters(connect(session.settings.redis), ModelKeys(session.model_settings.name)).all()
    return [one for one in every if standing(one, now) == "approved"]


def _until(known: list[Repeater]) -> tuple[str, ...]:
    """When the first approval ends, and what then."""
    if not known:
        return ("no client is approved as a repeater in Redis now, so --repeaters changes nothing",)
    ends = datetime.fromtimestamp(min(one.ends for one in known) / 1e6, UTC)
    said = (
        f"the first of these approvals ends at {ends:%Y-%m-%d %H:%M} UTC; from then on that client pages as anybody: "
        "approve it again before, or calibrate without --repeaters"
    )
    return (said,)
