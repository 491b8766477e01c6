"""Whether the calibration of the bundle in force still describes the traffic: the mark `stale`.

The correlator looks now and then, at what workers and incidents left in Redis. Hours are broker time and are counted by
the workers with every batch, so what is said does not depend on when it looks, as long as it looks once a day. The mark
stays until another bundle is in force, or until people resolve, in the same week, so many incidents as real attacks
that the count which raised it is as usual.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from redis import Redis

from detectors.calibration.drift import (
    BLOCKS,
    MARTINGALE_RISK,
    PAGE_RISK,
    RISK,
    TICKET_RISK,
    DriftWatch,
    crossing_limit,
    log10_wealth,
    warm_up,
)
from detectors.calibration.report import FitReport
from detectors.errors import DetectorError
from detectors.manifest import read_report
from streams.errors import Fenced
from streams.incidents.grouping import CAMPAIGN
from streams.store.hours import HOURS_KEPT, hour_field, unpack_hour
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import CalibrationStatus, Incident

log = logging.getLogger("vedette.correlator")

HOUR_US = 3_600_000_000
#: A partition without traffic holds an hour open for so long.
LATE_HOURS = 2
#: Incidents of a week that are looked at, newest first.
MOST_INCIDENTS = 5_000

ReadReport = Callable[[str], FitReport]


@dataclass(frozen=True, slots=True)
class Limits:
    """Most clients of a week with a ticket, and that page; None where the calibration cannot tell."""

    tickets: int | None = None
    pages: int | None = None

    @classmethod
    def of(cls, report: FitReport) -> Limits:
        """From what the calibration counted."""
        units, coming = report.client_weeks, report.clients_per_week
        if units < 1 or coming < 1:
            return cls()
        crossed = min(units, round(report.expected_tickets / coming * units))
        tickets = crossing_limit(coming, crossed, units, TICKET_RISK)
        if not report.pages or report.rank < 1:
            return cls(tickets)
        return cls(tickets, crossing_limit(coming, report.rank - 1, units, PAGE_RISK))


class CalibrationWatch:
    """The calibration of one model.

    Parameters
    ----------
    redis : redis.Redis
        A client that returns bytes.
    keys : ModelKeys
    topic : str
    bundle : str
        Path of the settings' bundle; the one in force may be another.
    week_us : int
        Length of the period that the budget is for.
    read : callable, optional
        Path of a bundle -> report of its calibration; raises DetectorError or OSError.
    """

    def __init__(
        self, redis: Redis, keys: ModelKeys, topic: str, bundle: str, week_us: int, read: ReadReport | None = None
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._topic = topic
        self._bundle = bundle
        self._week_us = week_us
        self._read = read or read_report
        self._watch = DriftWatch()
        self._written = b""
        self._limits: tuple[str, str, Limits] = ("", "", Limits())
        warm_up()
        self._script = redis.register_script(Path(__file__).with_name("calibration.lua").read_text(encoding="utf-8"))
        self.status: CalibrationStatus | None = None
        """As it stands in Redis."""

    def load(self) -> None:
        """Go on from what Redis holds; what another version wrote is begun anew."""
        self.status, self._watch, self._written = None, DriftWatch(), b""
        stored: Any = self._redis.hgetall(self._keys.calibration)
        if not stored:
            return
        try:
            self._watch = unpack_watch(stored[b"watch"])
            self.status = msgspec.json.decode(stored[b"m"], type=CalibrationStatus)
            self._written = stored[b"m"]
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
            log.warning("%s cannot be read, and begins anew: %s", self._keys.calibration, error)
            self._watch = DriftWatch()

    def stale(self, bundle: str) -> bool:
        """Whether the mark stands for that bundle."""
        return self.status is not None and self.status.stale and self.status.bundle == bundle

    def look(self, partitions: Iterable[int], incidents: Callable[[float], Iterable[Incident]], token: int) -> None:
        """Take in whole hours and count the week's clients; write what has changed.

        Parameters
        ----------
        partitions : iterable of int
        incidents : callable
            Incidents last seen since a moment (seconds).
        token : int
            Fencing token of the correlator's lease.

        Raises
        ------
        Fenced
            Another correlator has taken over.
        """
        places = [PartitionKeys(self._topic, partition) for partition in partitions]
        bundles, times = self._standing(places)
        if len(bundles) != 1 or not times:
            return  # nothing has been scored, or workers are switching
        bundle, newest = bundles.pop(), max(times)
        status = self.status
        if status is None or status.bundle != bundle:
            self._watch = DriftWatch()
            first = (newest // HOUR_US + 1) * HOUR_US
            status = CalibrationStatus(bundle=bundle, since=first, at=newest, risk=RISK)
        next_hour = int(self._watch.hours[-1]) + 1 if len(self._watch.hours) else status.since // HOUR_US
        closed = max(min(times) // HOUR_US, newest // HOUR_US - LATE_HOURS)
        if closed > next_hour:
            self._take_in(places, range(max(next_hour, closed - HOURS_KEPT), closed))
        self._write(self._judged(status, newest, incidents), token)

    def _standing(self, places: list[PartitionKeys]) -> tuple[set[str], list[int]]:
        """Bundles in force and times of partitions that have recorded anything."""
        pipe = self._redis.pipeline(transaction=False)
        for place in places:
            pipe.hmget(place.watermark, "bundle", "time")
        bundles, times = set(), []
        for bundle, at in pipe.execute():
            if bundle and at and int(at) > 0:
                bundles.add(bundle.decode())
                times.append(int(at))
        return bundles, times

    def _take_in(self, places: list[PartitionKeys], hours: range) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for place in places:
            pipe.hmget(place.histograms, [hour_field(hour) for hour in hours])
        answers: list[list[bytes | None]] = pipe.execute()
        for column, hour in enumerate(hours):
            counts = np.zeros((2, BLOCKS), dtype=np.int64)
            for answer in answers:
                found = unpack_hour(answer[column] or b"")
                if found is not None and found[0] == hour:
                    counts += found[1]
            self._watch.observe(hour, counts[0], counts[1])

    def _judged(
        self, status: CalibrationStatus, newest: int, incidents: Callable[[float], Iterable[Incident]]
    ) -> CalibrationStatus:
        week = max(0, newest - status.since) // self._week_us
        begins = status.since + week * self._week_us
        ticketed: set[str] = set()
        paged: set[str] = set()
        for incident in incidents(begins / 1e6):
            if incident.verdict == "true" or incident.bundle != status.bundle:
                continue
            if incident.entity == "client" or incident.entity_id.startswith(CAMPAIGN):
                clients = set(incident.clients)
                ticketed |= clients
                if incident.level == "page" or incident.pilot:
                    paged |= clients
        limits = self._limits_of(status.bundle)
        hours, wealth = len(self._watch.hours), round(log10_wealth(self._watch), 2)
        reasons = {
            "martingale": self._watch.speaks
            and f"rows of many clients look odder than before (chance below {MARTINGALE_RISK:.0%} a week)",
            "tickets": limits.tickets is not None
            and len(ticketed) > limits.tickets
            and f"more than {limits.tickets} clients opened tickets in a week (chance below {TICKET_RISK:.0%})",
            "pages": limits.pages is not None
            and len(paged) > limits.pages
            and f"more than {limits.pages} clients paged in a week (chance below {PAGE_RISK:.0%})",
        }
        # A count of this week falls when people resolve real attacks: what it said is then taken back.
        this_week = status.stale_at is not None and status.stale_at >= begins
        kept = {name: text for name, text in status.reasons.items() if name == "martingale" or not this_week}
        told = {name: text for name, text in reasons.items() if text} | kept
        stale = bool(told)
        if stale and not status.stale:
            log.warning("calibration of bundle %s is stale: %s", status.bundle[:12], "; ".join(told.values()))
        breadth = self._watch.breadth()
        return msgspec.structs.replace(
            status,
            at=newest // HOUR_US * HOUR_US,
            week_from=begins,
            stale=stale,
            stale_at=status.stale_at or newest if stale else None,
            reasons=told,
            kind=status.kind or self._watch.kind(),
            breadth=None if breadth is None else round(breadth, 3),
            hours=hours,
            log10_wealth=wealth,
            ticketed=len(ticketed),
            ticket_limit=limits.tickets,
            paged=len(paged),
            page_limit=limits.pages,
        )

    def _limits_of(self, digest: str) -> Limits:
        """Limits of the bundle in force; none where its file cannot be read here."""
        stored: Any = self._redis.hmget(self._keys.bundle, "digest", "path")
        named = stored[0] is not None and stored[0].decode() == digest
        path = stored[1].decode() if named and stored[1] else self._bundle
        if self._limits[:2] != (path, digest):
            try:
                found = Limits.of(self._read(path))
            except (DetectorError, OSError) as error:
                log.warning("the calibration of bundle %s cannot be read, counts are not judged: %s", path, error)
                found = Limits()
            self._limits = (path, digest, found)
        return self._limits[2]

    def _write(self, status: CalibrationStatus, token: int) -> None:
        body = msgspec.json.encode(status)
        self.status = status
        if body == self._written:
            return
        keys = [self._keys.fence("correlator"), self._keys.calibration]
        if not self._script(keys=keys, args=[token, body, pack_watch(self._watch)]):
            raise Fenced(f"another correlator holds the lease of model {self._keys.model!r}")
        self._written = body


def read_calibration(redis: Redis, keys: ModelKeys) -> CalibrationStatus | None:
    """What is known of a model's calibration; None where nothing is, or another version wrote it."""
    stored: Any = redis.hget(keys.calibration, "m")
    try:
        return None if stored is None else msgspec.json.decode(stored, type=CalibrationStatus)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def pack_watch(watch: DriftWatch) -> bytes:
    """The watch as MessagePack: name -> type, shape, bytes."""
    return msgspec.msgpack.encode(
        {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in watch.arrays().items()}
    )


def unpack_watch(content: bytes) -> DriftWatch:
    """The inverse of `pack_watch`.

    Raises
    ------
    msgspec.MsgspecError, KeyError, ValueError, TypeError
    """
    stored = msgspec.msgpack.decode(content, type=dict[str, tuple[str, tuple[int, ...], bytes]])
    arrays: Mapping[str, NDArray[Any]] = {
        name: np.frombuffer(data, dtype=kind).reshape(shape).copy() for name, (kind, shape, data) in stored.items()
    }
    return DriftWatch.restore(arrays)
