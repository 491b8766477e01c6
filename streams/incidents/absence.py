"""That nobody probes any more: said by the correlator, as the prober that would say it is gone."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from redis import Redis

from streams.config import ProbeSettings
from streams.errors import Conflict
from streams.incidents.grouping import VEDETTE
from streams.incidents.ledger import Ledger
from streams.incidents.monitoring import BLIND, open_incident
from streams.probes.schedules import schedules
from streams.store.keys import ModelKeys
from streams.store.messages import ProbeOutcome

log = logging.getLogger("vedette.correlator")

#: Intervals of the most frequent schedule without any outcome, before nobody is said to probe.
INTERVALS = 2.0
#: Seconds, where no schedule has an interval (cron, new versions).
PATIENCE_SECONDS = 3600.0


def patience(settings: ProbeSettings) -> int:
    """Microseconds without prober and outcomes after which monitoring is blind; 0 where no probes are scheduled."""
    planned = schedules(settings)
    if not planned:
        return 0
    every = [schedule.every_seconds for schedule in planned if schedule.every_seconds is not None]
    seconds = INTERVALS * min(every) + settings.timeout_seconds if every else PATIENCE_SECONDS
    return round(seconds * 1e6)


class Absence:
    """Watches whether a prober of one model lives.

    Monitoring is blind when nobody holds the prober's lease and no probe was finished for `patience`, both seen by this
    watch for so long. A site at which no prober was ever active is left alone. The next prober resolves the incident at
    its first outcome that shows that monitoring sees; what a person resolves stays so until a prober has been there.

    Parameters
    ----------
    redis : redis.Redis
        Returns bytes.
    keys : ModelKeys
    patience : int
        Microseconds; 0 watches nothing.
    """

    def __init__(self, redis: Redis, keys: ModelKeys, patience: int) -> None:
        self._redis, self._keys, self._patience = redis, keys, patience
        self._since: int | None = None
        self._said = False

    def look(self, now: int, token: int | None) -> bool:
        """Open the incident when it is time; True when this look did. `token` is that of the correlator's lease.

        Raises
        ------
        Fenced
            Another correlator has taken over.
        """
        if not self._patience:
            return False
        pipe = self._redis.pipeline(transaction=False)
        pipe.exists(self._keys.lease("prober"))
        pipe.exists(self._keys.fence("prober"))
        pipe.xrevrange(self._keys.probe_log, count=1)
        held, known, newest = pipe.execute()
        if held or not known:
            self._since, self._said = None, False
            return False
        finished = _finished(newest)
        if self._since is None or finished > self._since:
            self._since, self._said = max(finished, self._since or now), False
        if self._said or now - self._since < self._patience:
            return False
        if Ledger(self._redis, self._keys).open_incident(BLIND.group) is not None:
            self._said = True
            return False
        reason = f"no prober is active, and no probe was finished for {_words((now - (finished or self._since)) / 1e6)}"
        log.error("monitoring is blind: %s", reason)
        try:
            open_incident(self._redis, self._keys, BLIND, reason, now, token=token, role="correlator", by=VEDETTE)
        except Conflict as busy:
            log.warning("the next look tries again: %s", busy)
            return False
        self._said = True
        return True


def _finished(entries: Any) -> int:
    """When the newest outcome was finished, microseconds; 0 where there is none that can be read."""
    for _, fields in entries:
        try:
            return msgspec.json.decode(fields.get(b"m", b""), type=ProbeOutcome).finished
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("the newest outcome of a probe cannot be read and is passed over: %s", error)
    return 0


def _words(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours" if seconds >= 7200 else f"{seconds / 60:.0f} minutes"
