"""Marks on questions to the watched model, so that workers know the logged copies and learn nothing from them."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from streams.probes.marks import ASIDE_ISSUED, CAMPAIGN_BYTES, HELLO, sign_request

#: Who an endpoint is told is asking.
CLIENT = "vedette-escalation"


class Marks:
    """Request ids of questions: those of asides, as the prober asks them (`streams.probes.marks`).

    Workers exclude what carries such a mark everywhere: it is in no client's history, in no index and in no score, and
    raises nothing.

    Parameters
    ----------
    key : bytes
        The probe key.
    topic : str
        Topic that the endpoint's events go to.
    client : str
        Identity that the endpoint is told.
    """

    def __init__(self, key: bytes, topic: str, client: str = CLIENT) -> None:
        self._key, self._topic, self._client = key, topic, client.encode()
        self._campaign, self._counter = secrets.token_bytes(CAMPAIGN_BYTES), 0

    def __call__(self, rows: NDArray[np.float64]) -> str:
        """Id of one request; called by one thread at a time."""
        if self._counter == HELLO:
            self._campaign, self._counter = secrets.token_bytes(CAMPAIGN_BYTES), 0
        made = sign_request(self._key, self._topic, self._campaign, self._counter, ASIDE_ISSUED, self._client, rows)
        self._counter += 1
        return made
