"""The escalation tier: asks the watched model again about rows that raised something, as evidence of their incident.

It runs beside the correlator, in a thread of its own. Incidents never wait for it, and nothing is decided by it: rows
wait in a bounded queue, what finds no room is dropped and counted, and so is what the model does not answer.
"""

from __future__ import annotations

import logging
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
from streams.errors import BundleMismatch, ConfigError, EndpointError
from streams.incidents.ledger import EVIDENCE_TTL_SECONDS, as_text
from streams.models import named
from streams.models.contract import Model
from streams.models.marked import CLIENT, Marks
from streams.store.keys import ModelKeys
from streams.store.messages import QUESTIONS, InquiryAnswer, InquiryMessage, SignalMessage

log = logging.getLogger("vedette.escalation")

#: Rows of one incident that are asked about, at most; tickets leave room for a page.
MOST_TICKETS, MOST_ROWS = 16, 32
#: Seconds between two lines in the log about failures.
COMPLAINT_SECONDS = 60.0
#: How long the thread waits for a row before it looks whether to stop.
IDLE_SECONDS = 0.5


class Inquirer:
    """Asks about rows and writes what the inquiries say beside the evidence of the incident.

    Parameters
    ----------
    redis : redis.Redis
        A client that returns bytes.
    keys : ModelKeys
    bundle : str
        Path of the bundle, unless Redis names another.
    model : Model
        The watched model; its `predict` is called by one thread.
    settings : EscalationSettings
    clock : callable, optional
        Microseconds since the epoch.

    Raises
    ------
    BundleMismatch
        When the bundle can't be read.
    ConfigError
        When it has no inquiries.
    """

    def __init__(
        self,
        redis: Redis,
        keys: ModelKeys,
        bundle: str,
        model: Model,
        settings: EscalationSettings,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._redis, self._keys, self._bundle, self._model = redis, keys, bundle, model
        self._settings = settings
        self._clock = clock or (lambda: time.time_ns() // 1000)
        self._waiting: queue.Queue[tuple[str, str]] = queue.Queue(settings.waiting_rows)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._next = 0.0
        """When the next question may be asked, `time.monotonic`."""
        self._failures, self._complained = 0, -COMPLAINT_SECONDS
        self._read = ("", 0)
        """Path of the bundle that was read last, and when that file was changed."""
        self._tier, self._digest = self._load()

    def offer(self, incident: str, signal: str) -> None:
        """Hand a signal, as JSON, over to be asked about; never waits."""
        try:
            self._waiting.put_nowait((incident, signal))
        except queue.Full:
            self._count("dropped")

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
        while not stop.is_set():
            try:
                incident, text = self._waiting.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                continue
            try:
                self._ask_about(incident, msgspec.json.decode(text, type=SignalMessage), stop)
            except (EndpointError, DetectorError, RedisError, OSError) as failed:
                self._fail(str(failed))
            except Exception as failed:  # the last boundary of this thread: the row counts as failed, the next is taken
                self._fail(f"{type(failed).__name__}: {failed}")

    def _ask_about(self, incident: str, signal: SignalMessage, stop: threading.Event) -> None:
        key = self._keys.inquiries(incident)
        if self._redis.hexists(key, signal.id):
            return
        if self._redis.hlen(key) >= (MOST_ROWS if signal.level == "page" else MOST_TICKETS):
            self._count("passed_over")
            return
        tier = self._tier_for(signal.bundle)
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
            for one in tier.judge(rows, labels, self._model.predict)
        ]
        message = InquiryMessage(signal=signal.id, at=self._clock(), bundle=self._digest, answers=said)
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(key, signal.id, msgspec.json.encode(message))
        pipe.expire(key, EVIDENCE_TTL_SECONDS)
        pipe.execute()
        self._count("answered")

    def _tier_for(self, digest: str) -> Escalation:
        """The inquiries; read anew where a signal comes of another bundle and the file is another one by now."""
        if digest != self._digest:
            path = self._path()
            if (path, _changed(path)) != self._read:
                self._tier, self._digest = self._load()
                log.info("inquiries of bundle %s are in use", self._digest[:12])
        return self._tier

    def _load(self) -> tuple[Escalation, str]:
        path = self._path()
        try:
            changed = _changed(path)
            found, digest = load_escalation(path)
        except (DetectorError, OSError) as wrong:
            raise BundleMismatch(f"escalation: {wrong}") from None
        if found is None:
            raise ConfigError(f"escalation: bundle {path} has no inquiries; fit it with `vedette fit --inquiries all`")
        self._read = path, changed
        return found, digest

    def _path(self) -> str:
        return as_text(self._redis.hget(self._keys.bundle, "path")) or self._bundle

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by

    def _fail(self, why: str) -> None:
        self._count("failed")
        self._failures += 1
        if time.monotonic() - self._complained >= COMPLAINT_SECONDS:
            log.warning("%d rows could not be asked about, the last one because: %s", self._failures, why)
            self._failures, self._complained = 0, time.monotonic()


def inquirer(settings: Settings, model: ModelSettings, redis: Redis) -> Inquirer | None:
    """What the settings of a model ask for; None where they ask for no escalation.

    Raises
    ------
    ConfigError, BundleMismatch, EndpointError
        When the model, its bundle or, for an endpoint, the probe key is missing or unusable.
    """
    if model.escalation is None:
        return None
    asked = model_to_ask(settings, model, model.escalation)
    return Inquirer(redis, ModelKeys(model.name), model.bundle, asked, model.escalation)


def model_to_ask(
    settings: Settings, model: ModelSettings, wanted: EscalationSettings, environ: Mapping[str, str] | None = None
) -> Model:
    """The model that the settings of escalation name; questions to an endpoint carry a mark.

    Raises
    ------
    ConfigError, EndpointError
        When the model or, for an endpoint, the probe key is missing or unusable.
    """
    option = f"models.{model.name}.escalation.model"
    spec = wanted.model or f"{(model.endpoint or '').rstrip('/')}/v2/models/{model.name}"
    marks = None
    if named.is_url(spec):
        try:
            marks = Marks(secret(settings, "probe", environ), model.topic)
        except ConfigError as missing:
            raise ConfigError(f"{option}: questions to an endpoint carry a mark of probes: {missing}") from None
    return named.load(
        spec,
        option=option,
        client=CLIENT,
        client_header=settings.probes.client_header,
        request_id=marks,
        timeout_seconds=wanted.timeout_seconds,
    )


def _changed(path: str) -> int:
    return Path(path).stat().st_mtime_ns
