"""Malformed and odd requests to the watched model's endpoint: does it refuse what it cannot answer, and live on?

Nothing of it is to be detected. Requests whose rows could be logged as events go under ids of asides, so that whatever
the endpoint logs of them is excluded everywhere; of others the logged copy is a dead letter, if there is one at all.
"""

from __future__ import annotations

import base64
import secrets
from functools import partial
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from attacks import fuzz
from attacks.fuzz import FuzzCase
from attacks.threat import Domain
from streams.errors import ConfigError, EndpointError
from streams.models.oip import scores
from streams.probes import marks
from streams.probes.craft import Desk
from streams.probes.data import Deck
from streams.probes.prober import Kind, Probe

#: Rows that cases are made of.
FUZZ_ROWS = 50


@runtime_checkable
class Postbox(Protocol):
    """An endpoint that takes requests as they are."""

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""


class FuzzRun:
    """`fuzz_requests` requests, every kind in turn. "Detected" means that the endpoint failed one of them."""

    attack = "fuzz"
    kind: Kind = "fuzz"
    threat = "malformed requests"

    def __init__(self, desk: Desk, rows: Deck, legal: Domain) -> None:
        self._desk = desk
        self._rows = rows
        self._legal = legal

    def seconds(self) -> float:
        return self._desk.seconds_for(self._desk.settings.fuzz_requests)

    def run(self, probe: Probe) -> None:
        rng = probe.rng()
        rows = self._rows.lot(self.attack, probe.number, FUZZ_ROWS)
        for number, case in enumerate(fuzz.cases(rows, self._legal, self._desk.settings.fuzz_requests, rng)):
            self._desk.cpu.pay(probe.stop)
            self._desk.pace.take(1, probe.stop)
            self._send(probe, number, case)

    def _send(self, probe: Probe, number: int, case: FuzzCase) -> None:
        row = sound_rows(case.inputs, self._legal.width)
        name = f"fuzz-{secrets.token_hex(8)}"
        if row is not None:
            name = self._desk.aside_id(probe.client, probe.campaign, number, row)
        endpoint = self._desk.connect(probe.client, lambda _: name)
        if not isinstance(endpoint, Postbox):
            raise ConfigError("fuzz needs an endpoint that is asked over HTTP")
        try:
            status, body = probe.tally.call(partial(endpoint.post, request(name, case.inputs)))
        except EndpointError:
            return  # counted; the next request shows whether it lives
        if status >= 500:
            probe.tally.fault("crash")
        elif status >= 400:
            probe.tally.fault("refused")
            if case.expected == "scored":
                probe.tally.wrong()
        elif case.expected == "refused":
            probe.tally.wrong()
        elif row is not None:
            try:
                scores(body, len(row), "the endpoint")
            except EndpointError as error:
                probe.tally.fault(error.fault)


def sound_rows(inputs: Any, width: int) -> NDArray[np.float64] | None:
    """The rows (n, d) of a case that any endpoint could answer and log; None where it is malformed."""
    if not isinstance(inputs, np.ndarray) or inputs.ndim != 2 or inputs.shape[1] != width or not len(inputs):
        return None
    if inputs.dtype.kind not in "iuf" or not np.isfinite(inputs).all() or len(inputs) > marks.MAX_REQUEST_ROWS:
        return None
    return np.ascontiguousarray(inputs, dtype=np.float64)


def request(name: str, inputs: Any) -> bytes:
    """The JSON of an inference request with these inputs, however odd they are; NaN and infinity as JavaScript's names.

    Arrays go with their shape, anything else as it is with the shape of one row.
    """
    cells: Any
    if isinstance(inputs, np.ndarray):
        shape, data = list(inputs.shape), inputs.ravel()
        cells = [[x.real, x.imag] for x in data.tolist()] if inputs.dtype.kind == "c" else data.tolist()
    elif isinstance(inputs, bytes):
        shape, cells = [1, len(inputs)], base64.b64encode(inputs).decode()
    else:
        shape, cells = [1, len(inputs) if isinstance(inputs, list) else 1], inputs
    tensor = {"name": "input", "shape": shape, "datatype": "FP64", "data": _named(cells)}
    text = msgspec.json.encode({"id": name, "inputs": [tensor]})
    for spelled, bare in _BARE.items():
        text = text.replace(spelled, bare)
    return text


#: Names that JSON lacks, as strings and as what sloppy clients write.
_BARE = {b'"\\u0001NaN"': b"NaN", b'"\\u0001Infinity"': b"Infinity", b'"\\u0001-Infinity"': b"-Infinity"}


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return "\x01NaN" if value != value else ("\x01Infinity" if value > 0 else "\x01-Infinity")
    return value
