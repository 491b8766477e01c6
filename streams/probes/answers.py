"""How the watched model's endpoint bears the questions of one probe."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from streams.errors import EndpointError, EndpointFault
from streams.probes.outcome import BUCKETS_A_DECADE
from streams.store.messages import Answers

Value = TypeVar("Value")

#: Fault of a call -> its counter.
_COUNTERS: dict[EndpointFault, str] = {
    "refused": "refused",
    "crash": "crashes",
    "timeout": "timeouts",
    "not-finite": "not_finite",
    "unusable": "unusable",
}


class AnswerTally:
    """Counts calls, their faults and their times.

    Parameters
    ----------
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._times: Counter[int] = Counter()

    def call(self, ask: Callable[[], Value]) -> Value:
        """Ask, and count how that went.

        Raises
        ------
        EndpointError
            As `ask` did.
        """
        began = self._clock()
        try:
            return ask()
        except EndpointError as error:
            self.fault(error.fault)
            raise
        finally:
            self._counts["calls"] += 1
            self._times[bucket(self._clock() - began)] += 1

    def fault(self, fault: EndpointFault) -> None:
        """Count a fault of the last call."""
        self._counts[_COUNTERS[fault]] += 1

    def wrong(self) -> None:
        """Count an answer that should have been a refusal, or the other way round."""
        self._counts["wrong"] += 1

    def message(self) -> Answers:
        """Everything so far."""
        return Answers(**self._counts, times=dict(sorted(self._times.items())))


def bucket(seconds: float) -> int:
    """The bucket of a time, see `Answers.times`; what is faster than a microsecond falls in the first one."""
    return math.floor(BUCKETS_A_DECADE * math.log10(max(seconds * 1e6, 1.0)))
