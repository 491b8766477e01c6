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
    from detectors.kernels.rows import CODE_DIMS
    from detectors.queries import walk
    from detectors.queries.memory import Memory

    none = 0
    columns = walk.Columns(
        inputs=np.empty((none, 1)),
        labels=np.empty(none, dtype=np.int32),
        clients=np.empty(none, dtype=np.uint64),
        offsets=np.empty(none, dtype=np.int64),
        rows=np.empty(none, dtype=np.int32),
        codes=np.empty((none, CODE_DIMS), dtype=np.int8),
        sketches=np.empty(none, dtype=np.uint32),
        simhash=np.empty(none, dtype=np.uint64),
        hashes=np.empty(none, dtype=np.uint64),
        sketch_rank=np.empty(none, dtype=np.int32),
        density=np.empty(none),
        bin=np.empty(none, dtype=np.int32),
        rank=np.empty(none, dtype=np.int32),
    )
    for _ in walk.stops(columns, blank_tables(1.0, 1), Memory(1, 2, 1, 1), walk.empty_trace(none)):
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
