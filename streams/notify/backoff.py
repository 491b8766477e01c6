"""How long to wait before the next attempt: exponential, with jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between `first_seconds` and `most_seconds`; each is drawn from the upper half of its step.

    Jitter keeps several notifiers, and several notices of one, from coming back at the same moment.
    """

    first_seconds: float = 1.0
    most_seconds: float = 300.0

    def seconds(self, failures: int, rng: random.Random) -> float:
        """The wait after so many failures in a row, at least one."""
        step = min(self.first_seconds * 2.0 ** min(failures - 1, 32), self.most_seconds)
        return step * (0.5 + 0.5 * rng.random())
