"""Compiles the worker's longest kernels into the cache while other processes train and fit.

Compiling is a third of a cold start, and it holds one core. The longest by far is the walk over client histories, which
fitting needs last: so it is compiled here from the first second on, then what decodes events.

    python -m streams.demo.kernels
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class _Record:
    """A record as a codec reads it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def compile_walk() -> None:
    """Compile the walk by walking over no rows."""
    from detectors.calibration.clusters import blank_tables
    from detectors.queries import walk
    from detectors.queries.memory import Memory

    columns = walk.Columns(np.empty((0, 1)), np.empty(0, dtype=walk.ROW))
    for _ in walk.stops(columns, blank_tables(1.0, 1).packed(), Memory(1, 2, 1, 1), walk.empty_trace(0)):
        raise AssertionError("nothing can happen at no row")


def compile_codec() -> None:
    """Compile what decodes the demo's events by decoding two."""
    from streams.demo.digits import CLASSES, schema
    from streams.demo.traffic import encode
    from streams.events import decoder
    from streams.events.batch import DecodeOptions

    seen = schema()
    row = np.round(np.linspace(0.0, 1.0, seen.width), 5)
    scores = ",".join(["0.1"] * CLASSES)
    answer = (
        '{"model_name":"digits","outputs":[{"name":"probabilities","datatype":"FP64",'
        f'"shape":[1,{CLASSES}],"data":[{scores}]}}]}}'
    )
    value = b'{"request":' + encode("r", row) + b',"response":' + answer.encode() + b"}"
    records = [_Record(offset, 1_700_000_000_000, b"client", value) for offset in range(2)]
    batch = decoder("oip").decode(records, DecodeOptions("digits", seen, "key", bytes(16)))
    if batch.dead:
        raise AssertionError(f"the demo's own events cannot be decoded: {batch.dead[0]}")


def main() -> int:
    """Entry point of the process."""
    compile_walk()
    compile_codec()
    return 0


if __name__ == "__main__":
    sys.exit(main())
