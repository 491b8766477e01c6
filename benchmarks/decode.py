"""What decoding costs: cpu microseconds a row for each wire format, and seconds to compile.

``python -m benchmarks.decode --json`` (and ``--check``). Whole fetches of records as aiokafka hands them out, 64 inputs
and 10 outputs a row, clients by key; cpu time of the calling thread, median of repeated fetches.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from aiokafka.structs import ConsumerRecord

from benchmarks.report import Figure, Target, arguments, finish, median_figure, progress
from detectors.schema import FeatureSchema
from streams.events import decoder, warm_up
from streams.events.batch import Codec, DecodeOptions, InferenceBatch, Record

WIDTH, CLASSES = 64, 10
MODEL, CLIENT_KEY = "digits", bytes(range(16))
SCHEMA = FeatureSchema.image((8, 8), [str(c) for c in range(CLASSES)])
#: Records of one fetch: single rows, and records of many rows.
FETCH_RECORDS, MANY_ROWS = 2000, 256
#: Decodes before the first that is measured, so that memory is not fresh from the system.
WARM_DECODES = 20
LENGTH_HEADER = "Inference-Header-Content-Length"

TARGETS = (
    Target("native_us_a_row", "<=", 3.0),
    Target("native_full_floats_us_a_row", "<=", 4.5),
    Target("native_field_us_a_row", "<=", 3.0),
    Target("oip_json_one_row_us_a_row", "<=", 4.0),
    Target("oip_binary_us_a_row", "<=", 0.5),
    Target("compact_us_a_row", "<=", 1.0),
    Target("warm_up_auto_cached_seconds", "<=", 2.0),
)


def record(offset: int, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> Record:
    """A record as aiokafka hands it out."""
    key = b"client-%d" % (offset % 977)
    made: Record = ConsumerRecord(
        "t", 0, offset, 1_700_000_000_000 + offset, 1, key, value, None, len(key), len(value), headers
    )
    return made


def rows(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Inputs and outputs at full length."""
    return rng.random((n, WIDTH)), rng.dirichlet(np.ones(CLASSES), n)


def native(rng: np.random.Generator, digits: int | None, pretty: bool = False) -> list[Record]:
    """Single-row native events; `digits` rounds the numbers, None leaves them at full length."""
    inputs, outputs = rows(rng, FETCH_RECORDS)
    if digits is not None:
        inputs, outputs = np.round(inputs, digits), np.round(outputs, digits + 2)
    made = []
    for i in range(FETCH_RECORDS):
        event = {
            "id": f"{rng.integers(2**63):032x}",
            "time": 1_700_000_000.25 + i,
            "model": MODEL,
            "version": "7",
            "trace": f"{rng.integers(2**63):058x}",
            "client": f"client-{i % 977}",
            "inputs": inputs[i].tolist(),
            "outputs": outputs[i].tolist(),
        }
        text = json.dumps(event, indent=1 if pretty else None, separators=None if pretty else (",", ":"))
        made.append(record(i, text.encode()))
    return made


def escaped(rng: np.random.Generator) -> list[Record]:
    """Native events that the compiled reader leaves to the library: each has an escape in a string."""
    return [record(r.offset, (r.value or b"").replace(b'"version":"7"', b'"version":"\\n"')) for r in native(rng, 5)]


def oip_json(rng: np.random.Generator, n: int) -> list[Record]:
    """Open Inference Protocol in JSON, n rows a record."""
    made = []
    for i in range(max(1, FETCH_RECORDS // n)):
        inputs, outputs = rows(rng, n)
        tensors = [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP64",
                "data": np.round(values, 5).ravel().tolist(),
            }
            for name, values in (("x", inputs), ("p", outputs))
        ]
        document = {
            "model_name": MODEL,
            "request": {"id": f"{i:032x}", "inputs": tensors[:1]},
            "response": {"model_name": MODEL, "id": f"{i:032x}", "outputs": tensors[1:]},
        }
        made.append(record(i, json.dumps(document, separators=(",", ":")).encode()))
    return made


def oip_binary(rng: np.random.Generator, n: int) -> list[Record]:
    """Open Inference Protocol with raw FP32 tensors, n rows a record."""
    made = []
    for i in range(max(1, 40 * MANY_ROWS // n)):
        raw = [values.astype("<f4") for values in rows(rng, n)]
        tensors = [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": values.nbytes},
            }
            for name, values in zip(("x", "p"), raw, strict=True)
        ]
        document = {
            "model_name": MODEL,
            "request": {"id": f"{i:032x}", "inputs": tensors[:1]},
            "response": {"model_name": MODEL, "outputs": tensors[1:]},
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        tail = b"".join(values.tobytes() for values in raw)
        made.append(record(i, text + tail, ((LENGTH_HEADER, b"%d" % len(text)),)))
    return made


def native_tensor(rng: np.random.Generator, n: int) -> list[Record]:
    """Native events with base64 tensors, n rows a record."""
    made = []
    for i in range(max(1, 40 * MANY_ROWS // n)):
        event: dict[str, Any] = {"id": f"{i:032x}", "model": MODEL}
        for name, values in zip(("inputs", "outputs"), rows(rng, n), strict=True):
            data = base64.b64encode(values.astype("<f4").tobytes()).decode()
            event[name] = {"shape": list(values.shape), "dtype": "float32", "data": data}
        made.append(record(i, json.dumps(event).encode()))
    return made


def compact(rng: np.random.Generator, n: int) -> list[Record]:
    """Compact records of n rows."""
    made = []
    for i in range(max(1, 40 * MANY_ROWS // n)):
        inputs, outputs = rows(rng, n)
        columns = {
            "source_partition": pa.array(np.zeros(n), pa.int32()),
            "source_offset": pa.array(np.arange(n) + i * n, pa.int64()),
            "source_row": pa.array(np.zeros(n), pa.int32()),
            "time": pa.array(np.arange(n), pa.timestamp("us", "UTC")),
            "client": pa.array(rng.integers(1, 2**63, n), pa.uint64()),
            "request_id": pa.array([f"{j:032x}" for j in range(n)]),
            "inputs": pa.FixedSizeListArray.from_arrays(pa.array(inputs.ravel(), pa.float32()), WIDTH),
            "outputs": pa.FixedSizeListArray.from_arrays(pa.array(outputs.ravel(), pa.float32()), CLASSES),
        }
        known = {"vedette.version": "1", "model": MODEL}
        schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=known)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
        made.append(record(i, sink.getvalue()))
    return made


def measure(codec: Codec, records: Sequence[Record], options: DecodeOptions, seconds: float) -> list[float]:
    """cpu microseconds a row of each repeated decode, for about so many seconds."""
    for _ in range(WARM_DECODES):
        batch: InferenceBatch = codec.decode(records, options)
    if batch.dead or not len(batch):
        raise SystemExit(f"the benchmark's own records are refused: {batch.dead[:1]}")
    found: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found) < 5:
        began = time.thread_time()
        codec.decode(records, options)
        found.append((time.thread_time() - began) / len(batch) * 1e6)
    return found


_WARM_UP = (
    "import sys, time, streams.events as events; began = time.process_time(); events.warm_up(sys.argv[1]); "
    "print(time.process_time() - began)"
)


def compile_seconds(form: str) -> tuple[float, float]:
    """cpu seconds of the warm-up for a format without and with the kernels' cache, each in a fresh process."""
    command = [sys.executable, "-c", _WARM_UP, form]
    with tempfile.TemporaryDirectory() as directory:
        environ = os.environ | {"NUMBA_CACHE_DIR": directory}
        told = [subprocess.run(command, env=environ, check=True, capture_output=True, text=True) for _ in range(2)]
    return float(told[0].stdout), float(told[1].stdout)


def main() -> int:
    """Measure, print, compare with the targets."""
    options = arguments(__doc__.partition("\n")[0]).parse_args()
    seconds = 0.5 if options.quick else 3.0
    rng = np.random.default_rng(options.seed)
    for form in ("native", "oip", "auto"):
        warm_up(form)
    key = DecodeOptions(MODEL, SCHEMA, "key", CLIENT_KEY)
    field = DecodeOptions(MODEL, SCHEMA, "field:client", CLIENT_KEY)
    cases: list[tuple[str, str, DecodeOptions, Callable[[], list[Record]]]] = [
        ("native", "native", key, lambda: native(rng, 5)),
        ("native_auto", "auto", key, lambda: native(rng, 5)),
        ("native_field", "native", field, lambda: native(rng, 5)),
        ("native_full_floats", "native", key, lambda: native(rng, None)),
        ("native_indented", "native", key, lambda: native(rng, 5, pretty=True)),
        ("native_library_path", "native", key, lambda: escaped(rng)),
        ("native_tensor", "native", key, lambda: native_tensor(rng, MANY_ROWS)),
        ("oip_json_one_row", "oip", key, lambda: oip_json(rng, 1)),
        ("oip_json", "oip", key, lambda: oip_json(rng, MANY_ROWS)),
        ("oip_binary_one_row", "oip", key, lambda: oip_binary(rng, 1)),
        ("oip_binary", "oip", key, lambda: oip_binary(rng, MANY_ROWS)),
        ("compact_ten_rows", "compact", key, lambda: compact(rng, 10)),
        ("compact", "compact", key, lambda: compact(rng, MANY_ROWS)),
    ]
    figures: list[Figure] = []
    sizes: dict[str, float] = {}
    for name, form, decode, make in cases:
        progress(f"{name} ...")
        records = make()
        sizes[name] = round(float(np.mean([len(r.value or b"") for r in records])), 1)
        figures.append(median_figure(f"{name}_us_a_row", measure(decoder(form), records, decode, seconds), rng, "us"))
    progress("compiling ...")
    for form in ("native", "oip", "auto"):
        cold, cached = compile_seconds(form)
        figures.append(Figure(f"warm_up_{form}_cold_seconds", cold, unit="s"))
        figures.append(Figure(f"warm_up_{form}_cached_seconds", cached, unit="s"))
    context = {
        "bytes_a_record": sizes,
        "rows_a_record": MANY_ROWS,
        "features": WIDTH,
        "classes": CLASSES,
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    return finish(options, figures, TARGETS, context)


if __name__ == "__main__":
    sys.exit(main())
