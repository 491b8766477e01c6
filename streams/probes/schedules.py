"""When which probes are due: every so often, by a cron expression, on a new version of the model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from cronsim import CronSim

from streams.config import ProbeSettings, ScheduleSettings
from streams.probes.catalogue import CONTROLS

if TYPE_CHECKING:
    from streams.probes.prober import Crafter

#: A cron time that nobody was there for is made up for when it is at most so long ago.
CATCH_UP_SECONDS = 3600


def schedules(settings: ProbeSettings) -> tuple[ScheduleSettings, ...]:
    """The enabled schedules: `burst`, `campaign` and `control` of the plain settings, unless one of that name replaces
    them, then the others."""
    plain = (
        ScheduleSettings(
            name="control",
            attacks=dict.fromkeys(CONTROLS, 1.0),
            every_seconds=settings.control_every_seconds,
            mix="all",
        ),
        ScheduleSettings(
            name="burst",
            attacks={"transfer_pgd": 1.0},
            kind="burst",
            every_seconds=settings.burst_every_seconds,
        ),
        ScheduleSettings(
            name="campaign",
            attacks={"hop_skip_jump": 1.0},
            kind="campaign",
            every_seconds=settings.campaign_every_seconds,
            at_once=settings.concurrent_campaigns,
        ),
    )
    own = {schedule.name: schedule for schedule in settings.schedules}
    every = [own.pop(schedule.name, schedule) for schedule in plain]
    return tuple(schedule for schedule in (*every, *own.values()) if schedule.enabled)


class Timetable:
    """When one schedule is due. What was held up does not catch up: it is due once, then on.

    Parameters
    ----------
    schedule : ScheduleSettings
    crafters : sequence of Crafter
        Of its attacks.
    now, last : int
        Microseconds; the start of its last probe, 0 when there was none.
    version : str
        The version of the model that was probed last, empty when none was.
    """

    def __init__(
        self, schedule: ScheduleSettings, crafters: Sequence[Crafter], now: int, last: int = 0, version: str = ""
    ) -> None:
        self.schedule = schedule
        self._crafters = tuple(crafters)
        self._version = version
        self._due = now
        if schedule.cron is not None:
            self._due = following(
                schedule.cron, min(now, max(last, now - CATCH_UP_SECONDS * 1_000_000)) if last else now
            )

    @property
    def room(self) -> int:
        """Probes that may be under way at once."""
        return self.schedule.at_once * (len(self._crafters) if self.schedule.mix == "all" else 1)

    def due(self, now: int, version: str) -> bool:
        """Whether to start now."""
        if self.schedule.on_new_version:
            return version not in ("", self._version)
        # Where the clock was set back, the next time lies further away than one interval: it is due now.
        every = self.schedule.every_seconds
        return now >= self._due or (every is not None and self._due - now > every * 1e6 + 1)

    def started(self, now: int, version: str) -> None:
        """Note the start."""
        self._version = version
        if self.schedule.cron is not None:
            self._due = following(self.schedule.cron, now)
        elif self.schedule.every_seconds is not None:
            every = round(self.schedule.every_seconds * 1e6)
            self._due = now + every if not 0 <= now - self._due < every else self._due + every

    def draw(self, rng: np.random.Generator) -> tuple[Crafter, ...]:
        """What to start: one of every attack, or one drawn by weight."""
        if self.schedule.mix == "all" or len(self._crafters) < 2:
            return self._crafters
        weights = np.array([self.schedule.attacks.get(crafter.attack, 1.0) for crafter in self._crafters])
        return (self._crafters[int(rng.choice(len(weights), p=weights / weights.sum()))],)


def following(cron: str, after: int) -> int:
    """The next time of a cron expression after a moment, both in microseconds, UTC."""
    moment = datetime.fromtimestamp(after // 1_000_000, UTC)
    return round(next(CronSim(cron, moment)).timestamp()) * 1_000_000
