"""The compiled reader gives what the library path gives, to the bit, and takes the usual events."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numba import njit

from streams.events import auto, decimals, decoder, native, oip
from streams.events.assembly import assemble
from streams.events.kernels import NATIVE, OIP
from streams.events.rows import Layout
from streams.events.scan import scan
from tests.streams.events.encoders import LENGTH, Sent, assert_same, options_for

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=300)


@njit
def number(data: Any) -> Any:
    return decimals.number(data.ctypes.data, 0)


def compiled(text: str) -> tuple[float, int, bool]:
    data = np.frombuffer(bytearray(text.encode() + bytes(decimals.PADDING)), dtype=np.uint8)
    found: tuple[float, int, bool] = number(data)
    return found


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def assert_as_python(text: str, *, must: bool) -> None:
    """The compiled number is Python's; with `must` it may not be left to the library."""
    value, stop, whole = compiled(text)
    if stop == decimals.NOT_READ:
        assert not must, text
        return
    expected = json.loads(text)
    assert stop == len(text)
    assert whole == (type(expected) is int)
    assert bits(value) == bits(float(expected)), text


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(2.2250738585072014e-308)
@example(1.7976931348623157e308)
@relaxed
def test_every_float_at_full_length_is_read_at_once(value: float) -> None:
    assert_as_python(repr(value), must=True)
    assert_as_python(f"{value:.16e}", must=True)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 12))
@relaxed
def test_short_floats_are_read_at_once(value: float, places: int) -> None:
    assert_as_python(repr(float(value)), must=True)
    assert_as_python(f"{value:.{places}e}", must=True)


@given(st.integers(-(10**19) + 1, 10**19 - 1))
@relaxed
def test_whole_numbers_of_nineteen_digits_are_read_at_once(value: int) -> None:
    assert_as_python(str(value), must=True)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 60), st.booleans())
@relaxed
def test_long_numbers_are_right_or_left(value: float, digits: int, plain: bool) -> None:
    if plain:
        assert_as_python(f"{value % 1e6:.{digits}f}", must=False)
    else:
        assert_as_python(f"{value:.{digits}e}", must=False)


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False), st.integers(-1, 1))
@relaxed
def test_numbers_halfway_between_two_floats_are_right_or_left(value: float, nudge: int) -> None:
    above = math.nextafter(value, math.inf)
    if above == math.inf:
        return
    middle = (Decimal(value) + Decimal(above)) / 2
    digits = f"{middle:.18e}"
    mantissa, _, exponent = digits.partition("e")
    nudged = str(int(mantissa.replace(".", "")) + nudge)
    assert_as_python(f"{nudged[0]}.{nudged[1:]}e{exponent}", must=False)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "+1", "01", "-01", "1.", ".5", "-.5", "1e", "1e+", "1.e5", "NaN", "Infinity", "-Infinity", "1e309"),
        *("1" * 500, "0." + "0" * 500, "1e99999999999999999999"),
    ],
)
def test_what_is_no_finite_number_is_left(text: str) -> None:
    assert compiled(text)[1] == decimals.NOT_READ


@pytest.mark.parametrize(("text", "sign"), [("-0", 1.0), ("0", 1.0), ("-0.0", -1.0), ("-0e7", -1.0), ("-1e-999", -1.0)])
def test_the_sign_of_zero_is_python_s(text: str, sign: float) -> None:
    value, _, _ = compiled(text)
    assert value == 0.0
    assert np.copysign(1.0, value) == sign
    assert bits(value) == bits(float(json.loads(text)))


# --- events --------------------------------------------------------------------------------------------------------

WIDTH, CLASSES = 3, 2
ROW = "[1, 2.5, -3e-2]"
USUAL = [
    '{"inputs":[1,2,3],"outputs":[0.1,0.9]}',
    '{"inputs":[1,2,3],"label":1}',
    '{"inputs":[1,2,3],"label":"class 1"}',
    '{"inputs":[1,2,3],"label":null,"outputs":[1,0]}',
    '{"inputs":[[1,2,3]],"outputs":[[1,0]],"label":[0]}',
    f'{{"inputs":[{ROW},{ROW}],"outputs":[[1,0],[0,1]]}}',
    f'{{"label":["class 0", 1],"inputs":[{ROW},{ROW}]}}',
    ' { "id" : "abc" , "model":"digits", "client":"Zo\u00eb \U0001f600", "inputs" : [ 1 ,\n2 ,\t3 ] , "label":1 } ',
    '{"id":"vp1.a","client":12345678901234567890,"inputs":[1,2,3],"label":0}',
    '{"features":{"a":{"b":[1,"x",true,false,null,{}]},"c":[]},"embedding":[0.1,0.2],"inputs":[1,2,3],"label":0}',
    '{"inputs":[0.12345678901234567,1.7976931348623157e308,5e-324],"outputs":[0.30000000000000004,1e-300]}',
    '{"client":null,"id":7,"version":null,"time":1700000000.123,"latency_ms":3,"inputs":[1,2,3],"label":0}',
    '{"client":"","model":null,"inputs":[1,2,3],"outputs":[2,2]}',
]


def both(values: Sequence[bytes], **more: Any) -> None:
    options = options_for(WIDTH, CLASSES, "field:client", **more)
    records = [Sent(i, value) for i, value in enumerate(values)]
    assert_same(decoder("native").decode(records, options), assemble(records, options, native.read))


@pytest.mark.parametrize("text", USUAL)
def test_usual_events_take_the_fast_way(text: str) -> None:
    found = scan([text.encode()], None, NATIVE, Layout(options_for(WIDTH, CLASSES, "field:client")))
    assert found.counts[0] > 0
    both([text.encode()])


def test_fields_may_stand_in_any_order_and_be_the_client() -> None:
    event = {"id": "vp1.abc", "model": "digits", "label": 1, "outputs": [0.5, 0.25], "inputs": [1, 2, 3], "n": 9}
    rng = random.Random(3)
    values = []
    for _ in range(50):
        items = list(event.items())
        rng.shuffle(items)
        values.append(json.dumps(dict(items)).encode())
    for path in (
        "key",
        "field:id",
        "field:model",
        "field:n",
        "field:label",
        "field:inputs",
        "field:outputs",
        "header:a",
    ):
        options = options_for(WIDTH, CLASSES, path)
        records = [Sent(i, value) for i, value in enumerate(values)]
        assert_same(decoder("native").decode(records, options), assemble(records, options, native.read))


_X = '"shape":[2,3],"datatype":"FP32","data":[1,2.5,3,4,5,-6e-2]'
_P = '"shape":[2,2],"datatype":"FP64","data":[0.25,0.75,0.5,0.5]'


def exchange(inputs: str, outputs: str, request: str = "", top: str = "") -> str:
    """A record of one input tensor and some output tensors, with more fields in front."""
    return f'{{{top}"request":{{{request}"inputs":[{{{inputs}}}]}},"response":{{"outputs":[{outputs}]}}}}'


EXCHANGES = [
    exchange(_X, f"{{{_P}}}"),
    exchange(_X, f"{{{_P}}}", '"id":"vp1.x",', '"model_name":"digits","time":1.5,'),
    exchange(_X, f"{{{_P}}}").replace(",", " ,\n").replace(":", " : ").replace("{", "{ ").replace("]", " ]\t") + " ",
    exchange(f'"name":"x",{_X},"parameters":{{"content_type":"np"}}', f'{{"name":"p","parameters":{{}},{_P}}}'),
    exchange(_X, f"{{{_P}}}", '"parameters":{"x":[1],"client":"ann"},'),
    exchange(_X, '{"shape":[2,1],"datatype":"INT32","data":[[1],[0]]}', '"parameters":{"client":77},'),
    exchange(_X, '{"shape":[2],"datatype":"INT64","data":[1,0]}', '"parameters":null,"id":null,', '"client":"bob",'),
    exchange('"shape":[2,3],"datatype":"UINT8","data":[[0,255,3],[4,5,6]]', f"{{{_P}}}"),
    exchange(
        '"shape":[1,3,1],"datatype":"INT8","data":[-128,127,0]', '{"shape":[1,2],"datatype":"UINT64","data":[3,1]}'
    ),
    exchange(_X, f'{{"shape":[2],"datatype":"INT64","data":[1,0]}},{{{_P}}}'),
    '{"response":{"model_name":null,"model_version":"1","id":"7","outputs":[{%P%}]},"request":{"inputs":[{%X%}]}}'.replace(
        "%P%", _P
    ).replace("%X%", _X),
]
RAW_DATATYPES = [
    *(("FP32", "<f4"), ("FP64", "<f8"), ("UINT8", "u1")),
    *(("INT16", "<i2"), ("INT64", "<i8"), ("UINT64", "<u8")),
]


def raw_exchange(rng: np.random.Generator, n: int) -> tuple[bytes, bytes]:
    """JSON and raw tensors of a valid record; some tensors stand in the JSON."""
    tails = []

    def tensor(values: Any, datatype: str, dtype: str) -> dict[str, Any]:
        array = np.asarray(values).astype(dtype)
        head: dict[str, Any] = {"name": "t", "shape": list(array.shape), "datatype": datatype}
        if rng.random() < 0.2:
            return head | {"data": array.tolist()}
        tails.append(array.tobytes())
        return head | {"parameters": {"binary_data_size": array.nbytes, "more": None}}

    inputs = [tensor(rng.integers(0, 100, (n, WIDTH)), *RAW_DATATYPES[rng.integers(len(RAW_DATATYPES))])]
    outputs = [tensor(rng.random((n, CLASSES)), "FP32", "<f4"), tensor(rng.integers(0, 2, n), "INT32", "<i4")]
    if rng.random() < 0.5:
        outputs.pop(rng.integers(len(outputs)))
        tails = tails[:1] if "data" not in inputs[0] else []
        outputs = [tensor(rng.random((n, CLASSES)), *RAW_DATATYPES[rng.integers(2)])]
    document = {"request": {"inputs": inputs}, "response": {"outputs": outputs}}
    return json.dumps(document).encode(), b"".join(tails)


@pytest.mark.parametrize("text", EXCHANGES)
@pytest.mark.parametrize("path", ["key", "field:client", "parameter:client", "field:time", "field:request"])
def test_usual_exchanges_take_the_fast_way(text: str, path: str) -> None:
    layout = Layout(options_for(WIDTH, CLASSES, path))
    found = scan([text.encode()], None, OIP, layout)
    assert found.counts[0] > 0 or path in ("field:time", "field:request")
    all_ways([Sent(0, text.encode())], path)


def test_exchanges_with_raw_tensors_take_the_fast_way() -> None:
    rng = np.random.default_rng(4)
    records = []
    for offset in range(400):
        document, raw = raw_exchange(rng, int(rng.integers(1, 5)))
        records.append(Sent(offset, document + raw, headers=[(LENGTH, b"%d" % len(document))]))
        found = scan([document + raw], np.array([len(document)]), OIP, Layout(options_for(WIDTH, CLASSES)))
        assert found.counts[0] > 0, document
    all_ways(records, "key")


def all_ways(records: Sequence[Sent], path: str, **more: Any) -> None:
    """Compiled or not, in the codec of the format and in the one for all, everything is the same."""
    options = options_for(WIDTH, CLASSES, path, **more)
    assert_same(decoder("oip").decode(records, options), assemble(records, options, oip.read))
    assert_same(decoder("auto").decode(records, options), assemble(records, options, auto.read))
    assert_same(decoder("native").decode(records, options), assemble(records, options, native.read))


@pytest.mark.parametrize("path", ["key", "field:client", "parameter:client"])
def test_edited_records_fare_the_same_on_every_way(path: str) -> None:
    rng = random.Random(path)
    all_ways([Sent(i, mutated(rng, EXCHANGES if i % 3 else USUAL)) for i in range(4000)], path)


def test_edited_raw_records_fare_the_same_on_every_way() -> None:
    rng, edits = np.random.default_rng(8), random.Random(8)
    records = []
    for offset in range(4000):
        document, raw = raw_exchange(rng, 2)
        length = len(document) + edits.choice([0, 0, 0, 0, 0, 1, -1, len(raw)])
        if edits.random() < 0.3:
            document = mutated(edits, [document.decode()])
        elif edits.random() < 0.5:
            damaged = bytearray(raw or b"?")
            damaged[edits.randrange(len(damaged))] = edits.choice([0, 0x7F, 0x80, 0xFF, 0x20])
            raw = bytes(damaged)
        if edits.random() < 0.1:
            raw = edits.choice([b"", raw[:-1], raw + b"\0", b" " + raw])
        if edits.random() < 0.05:
            document, raw, length = USUAL[0].encode(), b"", len(USUAL[0])
        records.append(Sent(offset, document + raw, headers=[(LENGTH, b"%d" % max(length, 0))]))
    all_ways(records, "key")


_PIECES = ["[", "]", "{", "}", ",", ":", '"', "\\", "0", "-", "1e999", "NaN", "null", "true", " ", "\n", "\0", "\x7f"]
_PIECES += [
    '"id":1,',
    '"inputs":',
    "[1,2,3]",
    "[[1,2,3]]",
    '"\\u00e9"',
    "\u00e9",
    "\ud7ff",
    "1e5",
    "-0",
    "-0.0",
    "2.50",
]
_PIECES += ['"shape":[1,6],', '"datatype":"INT8",', '"data":[1],', '"inputs":[],', '"parameters":null,', "256", "2.0"]
_RAW = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xef\xbb\xbf", b"\x80"]


def mutated(rng: random.Random, texts: Sequence[str] = USUAL) -> bytes:
    """A usual event with some random edits."""
    value = bytearray(rng.choice(texts).encode())
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at, end = sorted((rng.randrange(len(value) + 1), rng.randrange(len(value) + 1)))
        what = rng.randrange(6)
        if what == 0:
            value[at:at] = rng.choice(_PIECES).encode()
        elif what == 1:
            value[at:at] = rng.choice(_RAW)
        elif what == 2:
            value[at : at + rng.randrange(3)] = rng.choice(_PIECES).encode()
        elif what == 3:
            del value[at : min(end, at + rng.randrange(1, 6))]
        elif what == 4:
            value[at:at] = value[at : min(end, at + 12)]
        elif value:
            value[rng.randrange(len(value))] = rng.randrange(256)
        if not value:
            value = bytearray(b"{}")
    return bytes(value)


@pytest.mark.parametrize("seed", range(4))
def test_edited_events_fare_the_same_on_both_ways(seed: int) -> None:
    rng = random.Random(seed)
    both([mutated(rng) for _ in range(5000)])


EMBEDDED = [
    '{"embedding":[0.1,-2e-3],"inputs":[1,2,3],"label":0}',
    '{"inputs":[[1,2,3]],"embedding":[[5,6]],"outputs":[[1,0]],"time":7}',
    f'{{"inputs":[{ROW},{ROW}],"outputs":[[1,0],[0,1]], "embedding" : [ [ 1 , 2 ],[3,4] ] }}',
    '{"inputs":[1,2,3],"x":{"embedding":[1]},"label":0,"embedding":null}',
]
LEFT = [
    f'{{"inputs":[{ROW},{ROW}],"label":[0,1],"embedding":[[1,2],null]}}',
    f'{{"inputs":[{ROW},{ROW}],"label":[0,1],"embedding":[1,2]}}',
    f'{{"inputs":[{ROW},{ROW}],"label":[0,1],"embedding":[[1,2],[3,4],[5,6]]}}',
    '{"inputs":[1,2,3],"label":0,"embedding":[1]}',
    '{"inputs":[1,2,3],"label":0,"embedding":[1,NaN]}',
    '{"inputs":[1,2,3],"label":0,"client":"embedding"}',
    exchange(_X, f'{{{_P}}},{{"name":"embedding",{_P}}}'),
    exchange(_X, f'{{"name":"embedding",{_P}}},{{"shape":[2],"datatype":"INT64","data":[1,0]}}'),
    exchange(_X, f"{{{_P}}}", top='"embedding":[[1,2],[3,4]],'),
]


def test_usual_events_with_an_embedding_take_the_fast_way() -> None:
    layout = Layout(options_for(WIDTH, CLASSES, embedding=2))
    found = scan([text.encode() for text in EMBEDDED], None, NATIVE, layout)
    assert found.counts.tolist() == [1, 1, 2, 1]
    assert found.embeddings is not None
    assert found.embeddings[:4].tolist() == [[0.1, -2e-3], [5, 6], [1, 2], [3, 4]]
    assert np.isnan(found.embeddings[4]).all()
    plain = scan([USUAL[0].encode()], None, NATIVE, layout)
    assert (plain.counts[0], plain.embeddings) == (1, None)


def test_other_records_with_an_embedding_are_left() -> None:
    found = scan([text.encode() for text in LEFT], None, NATIVE | OIP, Layout(options_for(WIDTH, CLASSES, embedding=2)))
    assert found.counts.tolist() == [0] * len(LEFT)
    all_ways([Sent(i, text.encode()) for i, text in enumerate([*LEFT, *EMBEDDED, *USUAL])], "key", embedding=2)


@pytest.mark.parametrize("seed", range(2))
def test_edited_records_with_an_embedding_fare_the_same_on_every_way(seed: int) -> None:
    rng = random.Random(seed)
    texts = [*EMBEDDED, *EMBEDDED, *LEFT, *USUAL]
    all_ways([Sent(i, mutated(rng, texts)) for i in range(4000)], "field:client", embedding=2)


def test_the_room_for_rows_grows() -> None:
    rng = np.random.default_rng(2)
    values = []
    for n in (1, 1000, 1, 3000, 2):
        event = {"inputs": rng.normal(size=(n, WIDTH)).tolist(), "outputs": rng.random((n, CLASSES)).tolist()}
        values.append(json.dumps(event).encode())
    values.append(b'{"label":[' + b",".join([b"1"] * 9000) + b'],"inputs":[' + b",".join([b"[1,2,3]"] * 9000) + b"]}")
    found = scan(values, None, NATIVE, Layout(options_for(WIDTH, CLASSES)))
    assert found.counts.tolist() == [1, 1000, 1, 3000, 2, 9000]
    both(values)


def test_keys_and_nesting_beyond_the_reader_are_left() -> None:
    many = {f"k{i}": i for i in range(200)} | {"inputs": [1, 2, 3], "label": 0}
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    values = [json.dumps(many).encode(), json.dumps({"x": deep, "inputs": [1, 2, 3], "label": 0}).encode()]
    assert scan(values, None, NATIVE, Layout(options_for(WIDTH, CLASSES))).counts.tolist() == [0, 0]
    both(values)
    assert len(decoder("native").decode([Sent(0, value) for value in values], options_for(WIDTH, CLASSES))) == 2
