"""The escalation tier: asks the watched model again about rows that raised something, as evidence of their incident.

It runs beside the correlator, in a thread of its own. Incidents never wait for it, and nothing is decided by it: rows
wait in a bounded queue, what finds no room is dropped and counted, and so is what the model does not answer.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from redis import Redis
from redis.exceptions import RedisError

from detectors.bundle import load_escalation
from detectors.errors import DetectorError
from detectors.responses.escalation import Escalation
from streams.config import EscalationSettings, ModelSettings, Settings, secret
from streams.errors import BundleMismatch, ConfigError, EndpointError, VedetteError
from streams.incidents.ledger import EVIDENCE_TTL_SECONDS, as_text
from streams.models import named
from streams.models.contract import Model
from streams.models.marked import CLIENT, Marks
from streams.store.keys import ModelKeys
from streams.store.messages import QUESTIONS, InquiryAnswer, InquiryMessage, SignalMessage, row_of

log = logging.getLogger("vedette.escalation")

#: Rows of one incident that are asked about, at most; tickets leave room for a page.
MOST_TICKETS, MOST_ROWS = 16, 32
#: Seconds between two lines in the log about failures, or about what was dropped.
COMPLAINT_SECONDS = 60.0
#: A model that could not be loaded is tried again so many seconds later, at the next row.
RELOAD_SECONDS = 60.0
#: How long the thread waits for a row before it looks whether to stop.
IDLE_SECONDS = 0.5


class _Complaints:
    """A line in the log about rows that got lost, once in a while. For one thread."""

    def __init__(self, text: str) -> None:
        self._text, self._rows, self._said = text, 0, -math.inf

    def add(self, why: str) -> None:
        """Another row."""
        self._rows += 1
        if time.monotonic() - self._said >= COMPLAINT_SECONDS:
            log.warning(self._text, self._rows, why)
            self._rows, self._said = 0, time.monotonic()


class Inquirer:
    """Asks about rows and writes what the inquiries say beside the evidence of the incident.

    Nothing is read or loaded before `run`, whose thread does it: where the model or the inquiries are missing, rows
    count as failed until they are there.

    Parameters
    ----------
    redis : redis.Redis
        A client that returns bytes.
    keys : ModelKeys
    bundle : str
        Path of the bundle, unless Redis names another.
    model : callable
        Loads the watched model; it and the model's `predict` are called by the thread of `run`.
    settings : EscalationSettings
    clock : callable, optional
        Microseconds since the epoch.
    """

    def __init__(
        self,
        redis: Redis,
        keys: ModelKeys,
        bundle: str,
        model: Callable[[], Model],
        settings: EscalationSettings,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._redis, self._keys, self._bundle, self._load_model = redis, keys, bundle, model
        self._settings = settings
        self._clock = clock or (lambda: time.time_ns() // 1000)
        self._waiting: queue.Queue[tuple[str, str]] = queue.Queue(settings.waiting_rows)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._next = 0.0
        """When the next question may be asked, `time.monotonic`."""
        self._failures = _Complaints("%d rows could not be asked about, the last one because: %s")
        self._drops = _Complaints("%d rows were dropped: %s")
        self._model: Model | None = None
        self._reload = 0.0
        """When a model that could not be loaded is tried again, `time.monotonic`."""
        self._no_model = self._no_tier = ""
        """Why the model, or the bundle that was read last, is of no use; empty where it is."""
        self._tier: Escalation | None = None
        self._digest = ""
        self._read: tuple[str, int | None] = ("", None)
        """Path of the bundle that was read last, and when that file was changed; None where it was missing."""

    def offer(self, incident: str, signal: str) -> None:
        """Hand a signal, as JSON, over to be asked about; never waits."""
        try:
            self._waiting.put_nowait((incident, signal))
        except queue.Full:
            self._count("dropped")
            self._drops.add(f"{self._settings.waiting_rows} others waited to be asked about")

    def tell(self) -> None:
        """Add what happened since the last call to the totals in Redis.

        Raises
        ------
        redis.exceptions.RedisError
            The counts are kept then, for the next call.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        pipe = self._redis.pipeline(transaction=True)
        for outcome, count in counts.items():
            pipe.hincrby(self._keys.inquiry_totals, outcome, count)
        try:
            pipe.execute()
        except RedisError:
            with self._lock:
                self._counts += counts
            raise

    def run(self, stop: threading.Event) -> None:
        """Ask about what is offered, until `stop` is set."""
        for prepare in (lambda: self._tier_for(""), self._model_loaded):
            try:
                prepare()
            except (Exception, SystemExit) as failed:  # as below: it is tried again for rows
                log.warning("rows cannot be asked about: %s", _said(failed))
        while not stop.is_set():
            try:
                incident, text = self._waiting.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                continue
            try:
                self._ask_about(incident, msgspec.json.decode(text, type=SignalMessage), stop)
            # The last boundary of this thread: whatever a model raises, the row counts as failed, the next is taken.
            except (Exception, SystemExit) as failed:
                self._count("failed")
                self._failures.add(_said(failed))

    def _ask_about(self, incident: str, signal: SignalMessage, stop: threading.Event) -> None:
        key, row = self._keys.inquiries(incident), row_of(signal.id)
        if self._redis.hexists(key, row):
            return
        if self._redis.hlen(key) >= (MOST_ROWS if signal.level == "page" else MOST_TICKETS):
            self._count("passed_over")
            return
        tier, model = self._tier_for(signal.bundle), self._model_loaded()
        if stop.wait(max(0.0, self._next - time.monotonic())):
            return
        self._next = max(self._next, time.monotonic()) + tier.questions / self._settings.questions_per_second
        self._count(QUESTIONS, tier.questions)
        rows, labels = np.array([signal.input], dtype=np.float64), np.array([signal.label], dtype=np.int32)
        said = [
            InquiryAnswer(
                inquiry=one.inquiry,
                score=float(one.scores[0]),
                p=float(one.pvalues[0]),
                rows=int(one.rows[0]),
                questions=one.questions,
            )
            for one in tier.judge(rows, labels, model.predict)
        ]
        message = InquiryMessage(signal=signal.id, at=self._clock(), bundle=self._digest, answers=said)
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(key, row, msgspec.json.encode(message))
        pipe.expire(key, EVIDENCE_TTL_SECONDS)
        pipe.execute()
        self._count("answered")

    def _tier_for(self, digest: str) -> Escalation:
        """The inquiries; read anew where a signal comes of another bundle and the file is another one by now.

        Raises
        ------
        BundleMismatch, ConfigError
            When they are missing; the file is not read again before it or the bundle in force changes.
        """
        if self._tier is None or digest != self._digest:
            path = self._path()
            there = path, _changed(path)
            if there != self._read:
                self._read, self._no_tier = there, f"bundle {path} cannot be read"
                try:
                    self._tier, self._digest = _inquiries(path)
                    self._no_tier = ""
                except (BundleMismatch, ConfigError) as wrong:
                    self._no_tier = str(wrong)
                else:
                    log.info("inquiries of bundle %s are in use", self._digest[:12])
            if self._tier is None or self._no_tier:
                raise BundleMismatch(self._no_tier or f"bundle {path} cannot be read")
        return self._tier

    def _model_loaded(self) -> Model:
        if self._model is None:
            if time.monotonic() < self._reload:
                raise EndpointError(self._no_model)
            try:
                self._model = self._load_model()
            except (Exception, SystemExit) as failed:
                self._no_model = _said(failed)
                self._reload = time.monotonic() + RELOAD_SECONDS
                raise
        return self._model

    def _path(self) -> str:
        return as_text(self._redis.hget(self._keys.bundle, "path")) or self._bundle

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by


def inquirer(settings: Settings, model: ModelSettings, redis: Redis) -> Inquirer | None:
    """What the settings of a model ask for; None where they ask for no escalation.

    Raises
    ------
    ConfigError
        When the settings name no model or, for an endpoint, the probe key is missing. Whether the model and the
        inquiries are there, is found out by `Inquirer.run`: no incident waits for them.
    """
    if model.escalation is None:
        return None
    asked = model_to_ask(settings, model, model.escalation)
    return Inquirer(redis, ModelKeys(model.name), model.bundle, asked, model.escalation)


def model_to_ask(
    settings: Settings, model: ModelSettings, wanted: EscalationSettings, environ: Mapping[str, str] | None = None
) -> Callable[[], Model]:
    """Loads the model that the settings of escalation name; questions to an endpoint carry a mark.

    Raises
    ------
    ConfigError
        When the name is none or, for an endpoint, the probe key is missing. What it returns raises what `named.load`
        does.
    """
    option = f"models.{model.name}.escalation.model"
    spec = wanted.model or f"{(model.endpoint or '').rstrip('/')}/v2/models/{model.name}"
    named.understood(spec, option)
    if not named.is_url(spec):
        return lambda: named.load(spec, option=option, client=CLIENT)
    try:
        marks = Marks(secret(settings, "probe", environ), model.topic)
    except ConfigError as missing:
        raise ConfigError(f"{option}: questions to an endpoint carry a mark of probes: {missing}") from None
    asked = named.endpoint(
        spec, option, CLIENT, settings.probes.client_header, request_id=marks, timeout_seconds=wanted.timeout_seconds
    )
    return lambda: asked


def _inquiries(path: str) -> tuple[Escalation, str]:
    try:
        found, digest = load_escalation(path)
    except (DetectorError, OSError) as wrong:
        raise BundleMismatch(f"escalation: {wrong}") from None
    if found is None:
        raise ConfigError(f"escalation: bundle {path} has no inquiries; fit it with `vedette fit --inquiries all`")
    return found, digest


def _changed(path: str) -> int | None:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return None


def _said(failed: BaseException) -> str:
    """An error as a sentence; those that are not ours with their class."""
    known = isinstance(failed, VedetteError | DetectorError | RedisError | OSError)
    return str(failed) if known else f"{type(failed).__name__}: {failed}"
