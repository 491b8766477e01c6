"""Malformed records by name, each with what must become of it, and valid controls.

Independent of any test runner: `records` yields what to send and what to expect. Nothing here uses the codecs.
"""

from __future__ import annotations

import base64
import io
import json
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from streams.probes import marks

Headers = Sequence[tuple[str, bytes]]
Rows = tuple[int, ...]

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Target:
    """The deployment that records are made for.

    `max_record_bytes` is its limit, `topic` the one that forged marks name.
    """

    model: str = "digits"
    width: int = 4
    classes: tuple[str, ...] = ("0", "1", "2")
    max_record_bytes: int = 60_000
    topic: str = "events"


@dataclass(frozen=True)
class Expected:
    """What must become of a record.

    Attributes
    ----------
    scored : int
        Rows that are scored.
    refused : tuple of (reasons, rows)
        Each group of refused rows, None for the record as a whole, and the reasons that may be given for it.
    invalid_marks : int
        Claims to be a probe that must be counted as invalid; the rows are scored as traffic.
    undetermined : bool
        Random damage: anything but a crash or a probe.
    """

    scored: int = 0
    refused: tuple[tuple[frozenset[str], Rows | None], ...] = ()
    invalid_marks: int = 0
    undetermined: bool = False


@dataclass(frozen=True)
class Generated:
    """One record to send, and what to expect."""

    name: str
    value: bytes | None
    key: bytes | None
    headers: Headers
    expected: Expected


Parts = tuple[bytes | None, bytes | None, Headers, Expected]
Generator = Callable[[random.Random, Target, int], Parts]

#: Malformed records by name, and valid ones. A generator gets the random source, the target, and the record's number.
GENERATORS: dict[str, Generator] = {}
CONTROLS: dict[str, Generator] = {}
#: Generators whose damage may give rows strange source coordinates, so that later rows count as delivered before.
DISTURBING = frozenset({"arrow_bits_flipped"})


def _register(into: dict[str, Generator]) -> Callable[[Generator], Generator]:
    def add(generator: Generator) -> Generator:
        into[generator.__name__] = generator
        return generator

    return add


malformed, control = _register(GENERATORS), _register(CONTROLS)


def dead(*reasons: str) -> Expected:
    """The record as a whole is refused, for one of these reasons."""
    return Expected(refused=((frozenset(reasons), None),))


def partly(n: int, faults: Mapping[str, Rows]) -> Expected:
    """Of n rows, those named are refused and the others scored."""
    gone = sum(len(rows) for rows in faults.values())
    return Expected(n - gone, tuple((frozenset((reason,)), rows) for reason, rows in faults.items()))


def records(seed: int, count: int, target: Target, *, disturbing: bool = True) -> Iterator[Generated]:
    """`count` records: malformed ones, every generator equally often, with a valid control after each third."""
    rng = random.Random(seed)
    names = [name for name in GENERATORS if disturbing or name not in DISTURBING]
    controls = list(CONTROLS)
    waiting: list[str] = []
    for number in range(count):
        if number % 4 == 3:
            name = controls[(number // 4) % len(controls)]
            generator = CONTROLS[name]
        else:
            if not waiting:
                waiting = rng.sample(names, len(names))
            name = waiting.pop()
            generator = GENERATORS[name]
        yield Generated(name, *generator(rng, target, number))


# --- valid parts ---------------------------------------------------------------------------------------------------


def _numbers(rng: random.Random, n: int) -> list[float]:
    return [round(rng.uniform(-3, 3), rng.choice((2, 5, 17))) for _ in range(n)]


def _scores(rng: random.Random, target: Target) -> list[float]:
    raw = [rng.random() + 0.01 for _ in target.classes]
    return [value / sum(raw) for value in raw]


def _event(rng: random.Random, target: Target, rows: int | None = None) -> dict[str, Any]:
    """A valid native event; with `rows` a list of that many."""
    event: dict[str, Any] = {"id": f"{rng.getrandbits(64):016x}", "model": target.model}
    if rows is None:
        event |= {"inputs": _numbers(rng, target.width), "outputs": _scores(rng, target)}
    else:
        event["inputs"] = [_numbers(rng, target.width) for _ in range(rows)]
        event["outputs"] = [_scores(rng, target) for _ in range(rows)]
    return event


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _key(rng: random.Random) -> bytes:
    return b"client-%d" % rng.randrange(40)


def _native(rng: random.Random, document: Any, expected: Expected, headers: Headers = ()) -> Parts:
    return _json(document), _key(rng), headers, expected


def _text(rng: random.Random, event: Mapping[str, Any], old: str, new: str) -> bytes:
    """The JSON of an event in which one text was replaced by another that JSON writers don't write."""
    whole = json.dumps(event, separators=(",", ":"))
    assert old in whole
    return whole.replace(old, new, 1).encode()


def _oip(rng: random.Random, target: Target, rows: int, raw: bool = False) -> tuple[dict[str, Any], list[bytes]]:
    """A valid request with its response, and the raw bytes of its tensors."""
    values = np.array([_numbers(rng, target.width) for _ in range(rows)], dtype="<f4")
    scores = np.array([_scores(rng, target) for _ in range(rows)], dtype="<f4")
    tensors, tails = [], []
    for name, array in (("x", values), ("p", scores)):
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": "FP32"}
        if raw:
            tails.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            tensor["data"] = array.tolist() if rng.random() < 0.5 else array.ravel().tolist()
        tensors.append(tensor)
    document = {
        "model_name": target.model,
        "request": {"id": f"{rng.getrandbits(64):016x}", "inputs": [tensors[0]]},
        "response": {"model_name": target.model, "outputs": [tensors[1]]},
    }
    return document, tails


def _oip_record(rng: random.Random, document: Any, tails: Sequence[bytes], expected: Expected) -> Parts:
    text = _json(document)
    return text + b"".join(tails), _key(rng), ((LENGTH, b"%d" % len(text)),), expected


def _columns(rng: random.Random, target: Target, number: int, rows: int) -> dict[str, Any]:
    """Valid columns of a compact record; source coordinates grow with the record's number."""
    inputs = pa.array([value for _ in range(rows) for value in _numbers(rng, target.width)], pa.float32())
    outputs = pa.array([value for _ in range(rows) for value in _scores(rng, target)], pa.float32())
    return {
        "source_partition": pa.array([0] * rows, pa.int32()),
        "source_offset": pa.array([number] * rows, pa.int64()),
        "source_row": pa.array(range(rows), pa.int32()),
        "time": pa.array([1_700_000_000_000_000 + number] * rows, pa.timestamp("us", "UTC")),
        "client": pa.array([rng.choice((None, rng.getrandbits(64))) for _ in range(rows)], pa.uint64()),
        "inputs": pa.FixedSizeListArray.from_arrays(inputs, target.width),
        "outputs": pa.FixedSizeListArray.from_arrays(outputs, len(target.classes)),
    }


def _stream(columns: Mapping[str, Any], metadata: Mapping[str, str], compression: Any = None) -> bytes:
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=dict(metadata))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
    return sink.getvalue()


def _metadata(target: Target) -> dict[str, str]:
    return {"vedette.version": "1", "model": target.model}


# --- controls ------------------------------------------------------------------------------------------------------


@control
def native_row(rng: random.Random, target: Target, number: int) -> Parts:
    return _native(rng, _event(rng, target), Expected(1))


@control
def native_rows(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(1, 5)
    return _native(rng, _event(rng, target, n), Expected(n))


@control
def native_anonymous(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target) | {"label": rng.randrange(len(target.classes))}
    return _json(event), None, (), Expected(1)


@control
def native_tensor(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(1, 5)
    event = _event(rng, target, n)
    return _native(rng, event | {"inputs": _tensor(event["inputs"])}, Expected(n))


@control
def oip_json(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(1, 5)
    return _native(rng, _oip(rng, target, n)[0], Expected(n))


@control
def oip_binary(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(1, 5)
    return _oip_record(rng, *_oip(rng, target, n, raw=True), Expected(n))


@control
def compact(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(1, 5)
    return _stream(_columns(rng, target, number, n), _metadata(target)), None, (), Expected(n)


# --- bytes that are no event ---------------------------------------------------------------------------------------

_JUNK = ("not-decodable", "wrong-type", "missing-field", "duplicate-key")


@malformed
def no_value(rng: random.Random, target: Target, number: int) -> Parts:
    return rng.choice((None, b"")), _key(rng), (), dead("empty")


@malformed
def random_bytes(rng: random.Random, target: Target, number: int) -> Parts:
    return rng.randbytes(rng.randint(1, 400)), _key(rng), (), dead(*_JUNK)


@malformed
def random_json_characters(rng: random.Random, target: Target, number: int) -> Parts:
    text = "".join(rng.choices('{}[]:,"\\0123456789.eE+- \tntfalsrue', k=rng.randint(1, 200)))
    return text.encode(), _key(rng), (), dead(*_JUNK)


@malformed
def truncated_json(rng: random.Random, target: Target, number: int) -> Parts:
    value = _json(rng.choice((_event(rng, target), _event(rng, target, 3), _oip(rng, target, 2)[0])))
    return value[: rng.randrange(1, len(value))], _key(rng), (), dead("not-decodable")


@malformed
def text_behind_the_object(rng: random.Random, target: Target, number: int) -> Parts:
    value = _json(_event(rng, target)) + rng.choice((b"{}", b"x", b"\0", b",", b"]", b"\xff"))
    return value, _key(rng), (), dead("not-decodable")


@malformed
def other_encodings(rng: random.Random, target: Target, number: int) -> Parts:
    text = _json(_event(rng, target)).decode()
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-16-be", "utf-8-sig"))), _key(rng), (), dead("not-decodable")


@malformed
def broken_utf8(rng: random.Random, target: Target, number: int) -> Parts:
    bad = rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"))
    value = _json(_event(rng, target) | {"note": "NOTE"}).replace(b"NOTE", bad)
    return value, _key(rng), (), dead("not-decodable")


@malformed
def control_characters(rng: random.Random, target: Target, number: int) -> Parts:
    value = _json(_event(rng, target) | {"note": "NOTE"}).replace(b"NOTE", bytes([rng.randrange(0x20)]))
    return value, _key(rng), (), dead("not-decodable")


@malformed
def not_an_object(rng: random.Random, target: Target, number: int) -> Parts:
    document = rng.choice(([], [1, 2], "text", 7, -0.5, None, True, [_event(rng, target)]))
    return _native(rng, document, dead("wrong-type"))


@malformed
def too_large(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target) | {"padding": "x" * target.max_record_bytes}
    return _native(rng, event, dead("too-large"))


@malformed
def too_large_junk(rng: random.Random, target: Target, number: int) -> Parts:
    return rng.randbytes(8) * (target.max_record_bytes // 8 + 1), _key(rng), (), dead("too-large")


@malformed
def deep_nesting(rng: random.Random, target: Target, number: int) -> Parts:
    depth = rng.choice((100, 1000, 20_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    inside = opening * depth + "1" + closing * depth
    value = inside if rng.random() < 0.3 else json.dumps(_event(rng, target))[:-1] + ',"deep":' + inside + "}"
    if len(value) > target.max_record_bytes:
        return value.encode(), _key(rng), (), dead("too-large")
    return value.encode(), _key(rng), (), dead("not-decodable")


@malformed
def unclosed_nesting(rng: random.Random, target: Target, number: int) -> Parts:
    value = rng.choice((b"[", b'{"a":', b'{"inputs":[', b'[{"a":')) * rng.randint(30, 5000)
    return value, _key(rng), (), dead("not-decodable", "too-large")


@malformed
def duplicate_keys(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    name = rng.choice(("inputs", "outputs", "id", "model"))
    spelled = "".join(f"\\u{ord(c):04x}" for c in name) if rng.random() < 0.3 else name
    again = f',"{spelled}":{json.dumps(event[name])}}}'
    return (json.dumps(event)[:-1] + again).encode(), _key(rng), (), dead("duplicate-key")


@malformed
def duplicate_keys_inside(rng: random.Random, target: Target, number: int) -> Parts:
    inside = rng.choice(('{"a":1,"b":2,"a":1}', '[{"a":[{"":0,"":0}]}]', '{"x":{"y":{"z":1,"z":2}}}'))
    value = _text(rng, _event(rng, target) | {"features": "HERE"}, '"HERE"', inside)
    return value, _key(rng), (), dead("duplicate-key")


# --- native events -------------------------------------------------------------------------------------------------


@malformed
def missing_inputs(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    if rng.random() < 0.5:
        event["inputs"] = None
    else:
        event["Inputs"] = event.pop("inputs")
    return _native(rng, event, dead("missing-field"))


@malformed
def missing_answer(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    event.pop("outputs")
    return _native(rng, event | rng.choice(({}, {"label": None}, {"outputs": None})), dead("missing-field"))


@malformed
def wrong_field_types(rng: random.Random, target: Target, number: int) -> Parts:
    field, value = rng.choice(
        (
            ("inputs", "1,2,3"),
            ("inputs", 5),
            ("inputs", True),
            ("outputs", "high"),
            ("outputs", 0.5),
            ("model", 7),
            ("model", ["digits"]),
            ("label", 1.0),
            ("label", True),
            ("label", {"class": 1}),
        )
    )
    return _native(rng, _event(rng, target) | {field: value}, dead("wrong-type"))


_NO_NUMBERS: tuple[Any, ...] = ("1", "", None, True, False, {}, {"a": 1}, "NaN")


@malformed
def no_number_in_a_row(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    event["inputs"][rng.randrange(target.width)] = rng.choice(_NO_NUMBERS)
    return _native(rng, event, dead("wrong-type"))


@malformed
def no_number_in_some_rows(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(2, 6)
    event, bad = _event(rng, target, n), tuple(sorted(rng.sample(range(n), rng.randint(1, n))))
    for row in bad:
        where = event[rng.choice(("inputs", "outputs"))][row]
        where[rng.randrange(len(where))] = rng.choice(_NO_NUMBERS)
    return _native(rng, event, partly(n, {"wrong-type": bad}))


@malformed
def wrong_width(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    length = rng.choice([length for length in (1, 2, target.width - 1, target.width + 1, 50) if length != target.width])
    event["inputs"] = _numbers(rng, max(length, 1))
    return _native(rng, event, dead("wrong-shape"))


@malformed
def wrong_number_of_scores(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    event["outputs"] = event["outputs"] * 2 if rng.random() < 0.5 else event["outputs"][1:]
    return _native(rng, event, dead("wrong-shape"))


@malformed
def ragged_rows(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(2, 6)
    event, bad = _event(rng, target, n), tuple(sorted(rng.sample(range(n), rng.randint(1, n))))
    for row in bad:
        event["inputs"][row] = rng.choice(([], event["inputs"][row][1:], event["inputs"][row] + [0.0]))
    return _native(rng, event, partly(n, {"wrong-shape": bad}))


@malformed
def rows_nested_too_deep(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    event["inputs"] = rng.choice(
        ([[event["inputs"]]], [[[event["inputs"]]]], [[[value] for value in event["inputs"]]], [[[]] * target.width])
    )
    return _native(rng, event, dead("wrong-shape"))


@malformed
def rows_and_values_mixed(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target, 3)
    event["inputs"][rng.randrange(3)] = rng.choice((1.5, None, "row", {}))
    return _native(rng, event, dead("wrong-shape"))


@malformed
def no_rows(rng: random.Random, target: Target, number: int) -> Parts:
    return _native(rng, _event(rng, target) | {"inputs": [], "outputs": []}, dead("empty"))


@malformed
def rows_and_answers_differ(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target, rng.randint(2, 5))
    field = rng.choice(("inputs", "outputs"))
    event[field] = event[field][1:]
    return _native(rng, event, dead("wrong-shape"))


@malformed
def not_a_number(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    where = event[rng.choice(("inputs", "outputs"))]
    where[rng.randrange(len(where))] = rng.choice((float("nan"), float("inf"), float("-inf")))
    return _native(rng, event, dead("non-finite"))


@malformed
def huge_numbers(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    event["inputs"][rng.randrange(target.width)] = "HUGE"
    huge = rng.choice(("1e999", "-1e309", "1.8e308", "9" * 310, "-" + "9" * 400, "1" + "0" * 5000, "1e" + "9" * 50))
    return _text(rng, event, '"HUGE"', huge), _key(rng), (), dead("non-finite")


@malformed
def not_finite_in_some_rows(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(2, 6)
    event, bad = _event(rng, target, n), tuple(sorted(rng.sample(range(n), rng.randint(1, n))))
    for row in bad:
        where = event[rng.choice(("inputs", "outputs"))][row]
        where[rng.randrange(len(where))] = rng.choice((float("nan"), float("inf"), -(10**400)))
    return _native(rng, event, partly(n, {"non-finite": bad}))


@malformed
def almost_numbers(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target)
    event["inputs"][rng.randrange(target.width)] = "HERE"
    text = rng.choice(("01", "+1", ".5", "1.", "1e", "1e+", "0x1F", "1_000", "--1", "1,", "nan", "inf", "-", "١"))
    return _text(rng, event, '"HERE"', text), _key(rng), (), dead("not-decodable")


@malformed
def label_out_of_range(rng: random.Random, target: Target, number: int) -> Parts:
    k = len(target.classes)
    label = rng.choice((-1, k, k + 5, 2**31, 2**64, -(2**70), "no such class", "", "__proto__"))
    return _native(rng, _event(rng, target) | {"label": label}, dead("label-out-of-range"))


@malformed
def labels_out_of_range_in_some_rows(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(2, 6)
    bad = tuple(sorted(rng.sample(range(n), rng.randint(1, n))))
    labels = [rng.choice((-1, len(target.classes), 2**40)) if row in bad else 0 for row in range(n)]
    return _native(rng, _event(rng, target, n) | {"label": labels}, partly(n, {"label-out-of-range": bad}))


@malformed
def several_faults_in_one_record(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target, 6) | {"label": [0, 0, 0, 0, -3, None]}
    event["inputs"][1][0] = "x"
    event["inputs"][2] = event["inputs"][2][1:]
    event["outputs"][3][0] = float("nan")
    event["outputs"][5] = None
    faults = {"wrong-type": (1,), "wrong-shape": (2,), "non-finite": (3,)}
    return _native(rng, event, partly(6, faults | {"label-out-of-range": (4,), "missing-field": (5,)}))


def _tensor(values: Any, dtype: str = "float32") -> dict[str, Any]:
    array = np.array(values, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": dtype, "data": base64.b64encode(array.tobytes()).decode()}


@malformed
def bad_base64(rng: random.Random, target: Target, number: int) -> Parts:
    tensor = _tensor([_numbers(rng, target.width)])
    data = tensor["data"]
    tensor["data"] = rng.choice(
        (data[:-1], "%" + data[1:], data + "=", data[:4] + "\n" + data[4:], "\u00fc" * 8, "====")
    )
    return _native(rng, _event(rng, target, 1) | {"inputs": tensor}, dead("not-decodable"))


@malformed
def tensor_of_wrong_length(rng: random.Random, target: Target, number: int) -> Parts:
    tensor = _tensor([_numbers(rng, target.width)])
    raw = base64.b64decode(tensor["data"])
    raw = rng.choice((b"", raw[:-1], raw[:-4], raw + b"\0", raw * 2))
    tensor["data"] = base64.b64encode(raw).decode()
    return _native(rng, _event(rng, target, 1) | {"inputs": tensor}, dead("wrong-shape"))


@malformed
def tensor_of_wrong_shape(rng: random.Random, target: Target, number: int) -> Parts:
    d = target.width
    tensor = _tensor([_numbers(rng, d)])
    shape, reason = rng.choice(
        (
            ([d, 1], "wrong-shape"),
            ([1, d + 1], "wrong-shape"),
            ([-1, -d], "wrong-shape"),
            ([], "wrong-shape"),
            ([2**62, 2**62, d], "wrong-shape"),
            ([1] * 40 + [d], "wrong-shape"),
            ("1x4", "wrong-type"),
            ([1.0, d], "wrong-type"),
            ([True, d], "wrong-type"),
            ([[1], d], "wrong-type"),
            (None, "missing-field"),
        )
    )
    return _native(rng, _event(rng, target, 1) | {"inputs": tensor | {"shape": shape}}, dead(reason))


@malformed
def tensor_of_unknown_dtype(rng: random.Random, target: Target, number: int) -> Parts:
    dtype = rng.choice(("object", "O", "float128", "complex64", "<f4", "str", "", "U10", 5, ["float32"]))
    tensor = _tensor([_numbers(rng, target.width)]) | {"dtype": dtype}
    return _native(rng, _event(rng, target, 1) | {"inputs": tensor}, dead("wrong-type"))


@malformed
def tensor_that_is_not_finite(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(2, 5)
    rows, bad = [_numbers(rng, target.width) for _ in range(n)], rng.randrange(n)
    rows[bad][0] = rng.choice((float("nan"), float("inf")))
    event = _event(rng, target, n) | {"inputs": _tensor(rows, rng.choice(("float16", "float32", "float64")))}
    return _native(rng, event, partly(n, {"non-finite": (bad,)}))


# --- names ---------------------------------------------------------------------------------------------------------

_HOSTILE = (
    "<script>alert(1)</script>",
    "'; DROP TABLE clients; --",
    "../../etc/passwd",
    "a\r\nSET x y\r\n",
    "{vedette}:alerts",
    "\u202eevil",
    "\0\0\0",
    "A" * 5000,
    "%s%n%x",
    "${jndi:ldap://x}",
    "\U0001f4a3" * 50,
    "model\ud800",
)


@malformed
def hostile_model_names(rng: random.Random, target: Target, number: int) -> Parts:
    name = rng.choice((*_HOSTILE, target.model.upper(), target.model + " ", "", target.model + "\0"))
    event = _event(rng, target) | {"model": name}
    if rng.random() < 0.3:
        event = _oip(rng, target, 1)[0] | {"model_name": name}
    return _native(rng, event, dead("undeclared-model"))


@malformed
def hostile_client_names(rng: random.Random, target: Target, number: int) -> Parts:
    key = rng.choice((*(name.encode("utf-8", "replace") for name in _HOSTILE), rng.randbytes(40), b"\xff" * 20_000))
    return _json(_event(rng, target)), key, (), Expected(1)


@malformed
def hostile_ids_and_fields(rng: random.Random, target: Target, number: int) -> Parts:
    event = _event(rng, target) | {"id": rng.choice((*_HOSTILE, 7, None, [1], {"a": 1}, True))}
    event |= {rng.choice(_HOSTILE): rng.choice((*_HOSTILE, 1e300, [[]], {})), "time": "yesterday", "version": 10**300}
    return _native(rng, event, Expected(1))


@malformed
def hostile_headers(rng: random.Random, target: Target, number: int) -> Parts:
    name = rng.choice(("", "x" * 2000, "Vedette-Probe ", "\u00e9", "ce_id", "vedette-source", "vedette-rows"))
    headers = [(name, rng.randbytes(rng.randint(0, 60))) for _ in range(rng.randint(1, 20))]
    return _native(rng, _event(rng, target), Expected(1), headers)


# --- forged marks --------------------------------------------------------------------------------------------------


def _forged_header(rng: random.Random, target: Target, client: bytes, value: bytes) -> bytes:
    key, campaign = rng.randbytes(32), rng.randbytes(8)
    issued = rng.choice((0, 1_700_000_000_000_000, 10**17))
    partition = rng.randrange(4)
    mark = marks.sign_header(key, target.topic, partition, campaign, rng.randrange(9), issued, client, value)
    junk = bytes(rng.choices(string.printable.encode(), k=rng.randint(0, 300)))
    other = rng.randrange(len(mark))
    flipped = mark[:other] + bytes([mark[other] ^ (1 << rng.randrange(7))]) + mark[other + 1 :]
    return rng.choice((mark, flipped, mark[:-2], mark + b"0", mark.upper(), junk, b"", b"v1." * 4000, b"\xff" * 155))


@malformed
def forged_header_mark(rng: random.Random, target: Target, number: int) -> Parts:
    value, client = _json(_event(rng, target)), _key(rng)
    mark = _forged_header(rng, target, client, value)
    return value, client, ((marks.HEADER, mark),), Expected(1, invalid_marks=1)


@malformed
def forged_header_mark_on_many_rows(rng: random.Random, target: Target, number: int) -> Parts:
    n, client = rng.randint(2, 5), _key(rng)
    columns = _columns(rng, target, number, n)
    forms = (_json(_event(rng, target, n)), _json(_oip(rng, target, n)[0]), _stream(columns, _metadata(target)))
    value = rng.choice(forms)
    mark = _forged_header(rng, target, client, value)
    return value, client, ((marks.HEADER, mark),), Expected(n, invalid_marks=1)


def _forged_request(rng: random.Random, target: Target, client: bytes | None, inputs: Any) -> str:
    rows = np.array(inputs, dtype=np.float64).reshape(-1, target.width)
    key, campaign, issued = rng.randbytes(32), rng.randbytes(8), rng.choice((0, 1_700_000_000_000_000))
    name = marks.sign_request(key, target.topic, campaign, rng.randrange(9), issued, client, rows)
    other = rng.randrange(4, len(name))
    junk = "".join(rng.choices(string.ascii_letters + string.digits + "-_.", k=rng.randint(0, 200)))
    return rng.choice(
        (name, name[:-1], name[:other] + "A" + name[other:], "vp1." + junk, "vp1.\u00e9", "vp1." + "A" * 9000)
    )


@malformed
def forged_front_door_id(rng: random.Random, target: Target, number: int) -> Parts:
    client, expected = _key(rng), Expected(1, invalid_marks=1)
    event = _event(rng, target)
    event["id"] = _forged_request(rng, target, client, event["inputs"])
    if rng.random() < 0.4:
        document, tails = _oip(rng, target, 1, raw=True)
        document["request"]["id"] = event["id"]
        text = _json(document)
        return text + b"".join(tails), client, ((LENGTH, b"%d" % len(text)),), expected
    return _json(event), client, (), expected


@malformed
def forged_marks_of_both_kinds(rng: random.Random, target: Target, number: int) -> Parts:
    event, client = _event(rng, target), _key(rng)
    event["id"] = _forged_request(rng, target, client, event["inputs"])
    value = _json(event)
    mark = _forged_header(rng, target, client, value)
    return value, client, ((marks.HEADER, mark), (marks.HEADER, b"second")), Expected(1, invalid_marks=1)


@malformed
def forged_front_door_ids_in_a_compact_record(rng: random.Random, target: Target, number: int) -> Parts:
    n = rng.randint(2, 5)
    columns = _columns(rng, target, number, n)
    name = _forged_request(rng, target, None, [_numbers(rng, target.width)])
    columns["request_id"] = pa.array([None, *[name] * (n - 1)], pa.string())
    return _stream(columns, _metadata(target)), None, (), Expected(n, invalid_marks=1)


@malformed
def forged_mark_on_a_broken_record(rng: random.Random, target: Target, number: int) -> Parts:
    mark = _forged_header(rng, target, b"c", b"{")
    return b'{"inputs":', _key(rng), ((marks.HEADER, mark),), dead("not-decodable")


# --- Open Inference Protocol ---------------------------------------------------------------------------------------


@malformed
def oip_missing_parts(rng: random.Random, target: Target, number: int) -> Parts:
    document, _ = _oip(rng, target, 2)
    where, name = rng.choice(
        (
            (document, "response"),
            (document["request"], "inputs"),
            (document["response"], "outputs"),
            (document["request"]["inputs"][0], "shape"),
            (document["request"]["inputs"][0], "datatype"),
            (document["request"]["inputs"][0], "data"),
            (document["response"]["outputs"][0], "data"),
        )
    )
    del where[name]
    return _native(rng, document, dead("missing-field"))


@malformed
def oip_wrong_types(rng: random.Random, target: Target, number: int) -> Parts:
    document, _ = _oip(rng, target, 2)
    tensor = document["request"]["inputs"][0]
    where, name, value = rng.choice(
        (
            (document, "request", [1]),
            (document, "response", "ok"),
            (document["request"], "inputs", {"x": 1}),
            (document["request"], "inputs", [[1]]),
            (document["request"], "parameters", 5),
            (document, "model_name", 5),
            (tensor, "datatype", 5),
            (tensor, "datatype", "FLOAT"),
            (tensor, "datatype", "BYTES"),
            (tensor, "shape", "2,4"),
            (tensor, "shape", [2.0, float(target.width)]),
            (tensor, "data", "AAAA"),
            (tensor, "parameters", []),
        )
    )
    where[name] = value
    return _native(rng, document, dead("wrong-type"))


@malformed
def oip_wrong_shapes(rng: random.Random, target: Target, number: int) -> Parts:
    d = target.width
    document, _ = _oip(rng, target, 2)
    tensor = document["request"]["inputs"][0]
    change = rng.choice(
        (
            {"shape": [2, d + 1]},
            {"shape": [3, d]},
            {"shape": [2 * d]},
            {"shape": []},
            {"shape": [-2, -d]},
            {"shape": [2, d, 10**20]},
            {"data": [[0.0] * d, [0.0] * (d - 1)]},
            {"data": [[[0.0] * d] * 2]},
            {"data": [[0.0] * d, 1.0]},
            {"data": [0.0] * (2 * d - 1) + [[0.0]]},
            {"data": []},
        )
    )
    return _native(rng, _replaced(document, tensor, change), dead("wrong-shape"))


def _replaced(document: dict[str, Any], tensor: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    tensor.update(change)
    return document


@malformed
def oip_answer_of_wrong_shape(rng: random.Random, target: Target, number: int) -> Parts:
    k = len(target.classes)
    document, _ = _oip(rng, target, 2)
    tensor = document["response"]["outputs"][0]
    change = rng.choice(
        (
            {"shape": [1, k], "data": [0.5] * k},
            {"shape": [2, k + 1], "data": [0.5] * (2 * k + 2)},
            {"shape": [2], "data": [0.5, 0.5]},
            {"shape": [2 * k], "data": [0.5] * 2 * k},
        )
    )
    return _native(rng, _replaced(document, tensor, change), dead("wrong-shape"))


@malformed
def oip_values_beyond_the_datatype(rng: random.Random, target: Target, number: int) -> Parts:
    document, _ = _oip(rng, target, 2)
    tensor, bad = document["request"]["inputs"][0], rng.randrange(2)
    datatype, value = rng.choice(
        (
            ("UINT8", 256),
            ("INT8", -129),
            ("UINT64", -1),
            ("INT32", 2**31),
            ("INT64", 2**63),
            ("INT16", 1.5),
            ("BOOL", 2),
            ("UINT16", "7"),
            ("FP32", "7"),
            ("FP64", None),
            ("FP16", True),
        )
    )
    data: list[Any] = [1] * (2 * target.width)
    data[bad * target.width + rng.randrange(target.width)] = value
    change = {"datatype": datatype, "data": data}
    return _native(rng, _replaced(document, tensor, change), partly(2, {"wrong-type": (bad,)}))


@malformed
def oip_wrong_length_header(rng: random.Random, target: Target, number: int) -> Parts:
    document, tails = _oip(rng, target, 2, raw=True)
    text = _json(document)
    whole = text + b"".join(tails)
    lengths = (0, 1, len(text) - 1, len(text) + 1, len(whole), len(whole) + 1, 10**30)
    texts = [b"%d" % length for length in lengths] + [b"", b"-1", b"0x10", b" 5", b"5.0", b"\xff", b"9" * 6000]
    return whole, _key(rng), ((LENGTH, rng.choice(texts)),), dead("not-decodable")


@malformed
def oip_without_its_length_header(rng: random.Random, target: Target, number: int) -> Parts:
    document, tails = _oip(rng, target, 2, raw=True)
    return _json(document) + b"".join(tails), _key(rng), (), dead("not-decodable")


@malformed
def oip_raw_tensors_cut_or_prolonged(rng: random.Random, target: Target, number: int) -> Parts:
    document, tails = _oip(rng, target, 2, raw=True)
    tails[1] = rng.choice((b"", tails[1][:-1], tails[1] + b"\0", tails[1] * 3))
    return _oip_record(rng, document, tails, dead("not-decodable"))


@malformed
def oip_raw_size_and_shape_differ(rng: random.Random, target: Target, number: int) -> Parts:
    document, tails = _oip(rng, target, 2, raw=True)
    tensor = document["request"]["inputs"][0]
    change = rng.choice(({"datatype": "FP64"}, {"datatype": "INT8"}, {"shape": [3, target.width]}, {"shape": [2]}))
    return _oip_record(rng, _replaced(document, tensor, change), tails, dead("wrong-shape"))


@malformed
def oip_raw_size_of_wrong_type(rng: random.Random, target: Target, number: int) -> Parts:
    document, tails = _oip(rng, target, 2, raw=True)
    tensor = document["request"]["inputs"][0]
    change = {"parameters": {"binary_data_size": rng.choice((-1, 1.5, "32", True, [32], 10.0))}}
    return _oip_record(rng, _replaced(document, tensor, change), tails, dead("wrong-type"))


@malformed
def oip_raw_tensor_that_is_not_finite(rng: random.Random, target: Target, number: int) -> Parts:
    document, tails = _oip(rng, target, 2, raw=True)
    values = np.frombuffer(tails[0], dtype="<f4").copy()
    bad = rng.randrange(2)
    values[bad * target.width + rng.randrange(target.width)] = rng.choice((np.nan, np.inf, -np.inf))
    tails[0] = values.tobytes()
    return _oip_record(rng, document, tails, partly(2, {"non-finite": (bad,)}))


@malformed
def oip_labels_out_of_range(rng: random.Random, target: Target, number: int) -> Parts:
    document, _ = _oip(rng, target, 2)
    tensor: dict[str, Any] = {"name": "class", "shape": [2], "datatype": "INT64", "data": [0, len(target.classes)]}
    if rng.random() < 0.5:
        tensor |= {"datatype": "BYTES", "data": [target.classes[0], "no such class"]}
    document["response"]["outputs"].append(tensor)
    return _native(rng, document, partly(2, {"label-out-of-range": (1,)}))


# --- compact records -----------------------------------------------------------------------------------------------


@malformed
def arrow_marker_and_junk(rng: random.Random, target: Target, number: int) -> Parts:
    return b"\xff\xff\xff\xff" + rng.randbytes(rng.randint(0, 300)), _key(rng), (), dead("not-decodable")


@malformed
def arrow_truncated(rng: random.Random, target: Target, number: int) -> Parts:
    value = _stream(_columns(rng, target, number, 3), _metadata(target))
    return value[: rng.randrange(4, len(value))], _key(rng), (), dead("not-decodable")


@malformed
def arrow_prolonged(rng: random.Random, target: Target, number: int) -> Parts:
    value = _stream(_columns(rng, target, number, 3), _metadata(target))
    return value + rng.choice((b"\0", b"\0" * 8, value)), _key(rng), (), dead("not-decodable")


@malformed
def arrow_with_broken_metadata(rng: random.Random, target: Target, number: int) -> Parts:
    value = bytearray(_stream(_columns(rng, target, number, 3), _metadata(target)))
    value[8:40] = rng.choice((bytes(32), b"\xff" * 32))
    return bytes(value), _key(rng), (), dead("not-decodable")


@malformed
def arrow_bits_flipped(rng: random.Random, target: Target, number: int) -> Parts:
    value = bytearray(_stream(_columns(rng, target, number, 3), _metadata(target)))
    for _ in range(rng.randint(1, 8)):
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    return bytes(value), _key(rng), (), Expected(undetermined=True)


@malformed
def arrow_compressed(rng: random.Random, target: Target, number: int) -> Parts:
    columns = _columns(rng, target, number, 3)
    value = _stream(columns, _metadata(target), rng.choice(("lz4", "zstd")))
    return value, _key(rng), (), dead("not-decodable")


@malformed
def arrow_of_another_version(rng: random.Random, target: Target, number: int) -> Parts:
    metadata = _metadata(target) | {"vedette.version": rng.choice(("0", "2", "", "1.0", " 1", "A" * 500))}
    return _stream(_columns(rng, target, number, 2), metadata), _key(rng), (), dead("unknown-version")


@malformed
def arrow_of_another_model(rng: random.Random, target: Target, number: int) -> Parts:
    name = rng.choice(_HOSTILE).encode("utf-8", "replace").decode()
    metadata = _metadata(target) | {"model": name}
    return _stream(_columns(rng, target, number, 2), metadata), _key(rng), (), dead("undeclared-model")


@malformed
def arrow_without_metadata(rng: random.Random, target: Target, number: int) -> Parts:
    metadata = {"model": target.model} if rng.random() < 0.5 else {"vedette.version": "1"}
    return _stream(_columns(rng, target, number, 2), metadata), _key(rng), (), dead("missing-field")


@malformed
def arrow_without_a_column(rng: random.Random, target: Target, number: int) -> Parts:
    columns = _columns(rng, target, number, 2)
    del columns[rng.choice([name for name in columns if name != "outputs"])]
    return _stream(columns, _metadata(target)), _key(rng), (), dead("missing-field")


@malformed
def arrow_columns_of_wrong_type(rng: random.Random, target: Target, number: int) -> Parts:
    columns = _columns(rng, target, number, 2)
    name = rng.choice(list(columns))
    columns[name] = rng.choice((pa.array(["a", "b"]), pa.array([[1.0], [2.0]]), pa.array([True, False]), pa.nulls(2)))
    return _stream(columns, _metadata(target)), _key(rng), (), dead("wrong-type")


@malformed
def arrow_vectors_of_wrong_length(rng: random.Random, target: Target, number: int) -> Parts:
    columns = _columns(rng, target, number, 2)
    name = rng.choice(("inputs", "outputs"))
    size = columns[name].type.list_size + rng.choice((1, 5, 1000))
    columns[name] = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2 * size, pa.float32()), size)
    return _stream(columns, _metadata(target)), _key(rng), (), dead("wrong-shape")


@malformed
def arrow_without_rows(rng: random.Random, target: Target, number: int) -> Parts:
    columns = {name: column.slice(0, 0) for name, column in _columns(rng, target, number, 1).items()}
    return _stream(columns, _metadata(target)), _key(rng), (), dead("empty")


@malformed
def arrow_nulls_and_no_numbers(rng: random.Random, target: Target, number: int) -> Parts:
    n, d = 4, target.width
    columns = _columns(rng, target, number, n)
    values: list[Any] = columns["inputs"].values.to_pylist()
    values[0] = float("nan")
    values[d] = None
    mask = pa.array([False, False, True, False])
    columns["inputs"] = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), d, mask=mask)
    faults = {"non-finite": (0,), "wrong-type": (1,), "missing-field": (2,)}
    return _stream(columns, _metadata(target)), _key(rng), (), partly(n, faults)
