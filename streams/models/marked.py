"""Marks on questions to the watched model, so that workers know the logged copies and learn nothing from them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from streams.probes.marks import CAMPAIGN_BYTES, HELLO, sign_request

#: Who an endpoint is told is asking.
CLIENT = "vedette-escalation"


class Marks:
    """Request ids of questions: front-door marks of probes (`streams.probes.marks`) that no prober waits for.

    Workers score what carries such a mark beside the stream, as they do probes: it is in no client's history, in no
    index and in no count, and raises nothing.

    Parameters
    ----------
    key : bytes
        The probe key.
    topic : str
        Topic that the endpoint's events go to.
    client : str
        Identity that the endpoint is told.
    clock : callable, optional
        Microseconds since the epoch.
    """

    def __init__(self, key: bytes, topic: str, client: str = CLIENT, clock: Callable[[], int] | None = None) -> None:
        self._key, self._topic, self._client = key, topic, client.encode()
        self._clock = clock or (lambda: time.time_ns() // 1000)
        self._campaign, self._counter = secrets.token_bytes(CAMPAIGN_BYTES), 0

    def __call__(self, rows: NDArray[np.float64]) -> str:
        """Id of one request; called by one thread at a time."""
        if self._counter == HELLO:
            self._campaign, self._counter = secrets.token_bytes(CAMPAIGN_BYTES), 0
        made = sign_request(self._key, self._topic, self._campaign, self._counter, self._clock(), self._client, rows)
        self._counter += 1
        return made
