"""Open Inference Protocol v2, question and answer in one record."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streams.audit import count_rows
from streams.config import ModelSettings
from streams.events import decoder
from streams.events.batch import InferenceBatch, Reason
from streams.probes.records import encode
from tests.streams.events.encoders import LENGTH, Event, Sent, hashed, oip_binary, options_for

R = Reason
BASE: dict[str, Any] = {
    "model_name": "digits",
    "request": {
        "id": "r-1",
        "parameters": {"client": "ann"},
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}],
    },
    "response": {
        "model_name": "digits",
        "outputs": [{"name": "p", "shape": [2, 2], "datatype": "FP32", "data": [0.1, 0.9, 0.8, 0.2]}],
    },
}


def read(document: Any, path: str = "parameter:client", raw: bytes = b"", **more: Any) -> InferenceBatch:
    value = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = [(LENGTH, str(len(value)).encode())] if raw else []
    return decoder("oip").decode([Sent(9, value + raw, headers=headers)], options_for(3, 2, path, **more))


def changed(**parts: Any) -> dict[str, Any]:
    """BASE with one place changed: path with double underscores -> value."""
    document = copy.deepcopy(BASE)
    for path, value in parts.items():
        at: Any = document
        *steps, last = path.split("__")
        for step in steps:
            at = at[int(step)] if step.isdigit() else at[step]
        if value is KeyError:
            del at[last]
        else:
            at[last] = value
    return document


def asked(**tensor: Any) -> dict[str, Any]:
    return changed(request__inputs=[{"name": "x", "shape": [2, 3], "datatype": "FP32"} | tensor])


def answered(*tensors: dict[str, Any]) -> dict[str, Any]:
    return changed(response__outputs=[{"name": "y", "datatype": "FP64"} | tensor for tensor in tensors])


SIX = [1, 2, 3, 4, 5, 6]


def test_question_and_answer() -> None:
    batch = read(BASE)
    assert batch.dead == ()
    assert batch.inputs.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch.labels.tolist() == [1, 0]
    assert set(batch.clients.tolist()) == {hashed("ann")}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("client", ["parameter:who", "header:X-Client", "key", "field:who"])
def test_what_the_prober_writes_is_read(rows: int, client: str) -> None:
    rng = np.random.default_rng(1)
    inputs, outputs = rng.random((rows, 3)), rng.random((rows, 2))
    model = ModelSettings(name="digits", topic="t", bundle="b", format="oip", client=client)
    event = encode(model, "ann", inputs, outputs)
    for name in ("oip", "auto"):
        record = Sent(1, event.value, 0, event.key, event.headers)
        batch = decoder(name).decode([record], options_for(3, 2, client))
        assert batch.dead == ()
        assert batch.inputs.tolist() == inputs.tolist()
        assert batch.outputs is not None
        assert batch.outputs.tolist() == outputs.tolist()
        assert set(batch.clients.tolist()) == {hashed("ann")}


@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("BOOL", "bool"),
        *((f"UINT{b}", f"uint{b}") for b in (8, 16, 32, 64)),
        *((f"INT{b}", f"int{b}") for b in (8, 16, 32, 64)),
        *((f"FP{b}", f"float{b}") for b in (16, 32, 64)),
    ],
)
def test_every_datatype_in_every_form(datatype: str, dtype: str, form: str) -> None:
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.array([[limits.min, limits.max, 1], [0, 1, 2]], dtype=dtype)
    else:
        values = np.array([[0, 1, 1], [1, 0, 1.5]]).astype(dtype)
    tensor: dict[str, Any] = {"datatype": datatype}
    raw = b""
    if form == "binary":
        raw = values.astype(kind.newbyteorder("<")).tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = values.ravel().tolist() if form == "flat" else values.tolist()
    batch = read(asked(**tensor), raw=raw)
    assert batch.dead == ()
    assert batch.inputs.tolist() == values.astype(np.float64).tolist()


def test_tensors_with_more_sides_are_flattened_row_by_row() -> None:
    batch = read(asked(shape=[2, 1, 3, 1], data=[[[[1], [2], [3]]], [[[4], [5], [6]]]]))
    assert batch.inputs.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_several_inputs_stand_side_by_side() -> None:
    document = changed(
        request__inputs=[
            {"name": "a", "shape": [2, 1], "datatype": "INT64", "data": [1, 4]},
            {"name": "b", "shape": [2, 2], "datatype": "FP64", "data": [[2.5, 3], [5, 6]]},
        ]
    )
    assert read(document).inputs.tolist() == [[1, 2.5, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("tensors", "labels", "scored"),
    [
        ([{"shape": [2], "datatype": "INT64", "data": [1, 0]}], [1, 0], False),
        ([{"shape": [2, 1], "datatype": "INT32", "data": [[1], [0]]}], [1, 0], False),
        ([{"shape": [2, 1], "datatype": "BYTES", "data": ["class 1", "class 0"]}], [1, 0], False),
        ([{"shape": [2], "datatype": "BOOL", "data": [True, False]}], [1, 0], False),
        (
            [{"shape": [2, 2], "data": [0.9, 0.1, 0.9, 0.1]}, {"shape": [2], "datatype": "INT8", "data": [1, 0]}],
            [1, 0],
            True,
        ),
        ([{"shape": [2], "data": [0.5, 0.5]}, {"shape": [2, 2], "data": [0.9, 0.1, 0.1, 0.9]}], [0, 1], True),
        ([{"shape": [2, 2], "datatype": "INT32", "data": [3, 1, 1, 3]}], [0, 1], True),
    ],
)
def test_scores_and_labels_are_found_by_their_shape(
    tensors: list[dict[str, Any]], labels: list[int], scored: bool
) -> None:
    batch = read(answered(*tensors))
    assert batch.dead == ()
    assert batch.labels.tolist() == labels
    assert (batch.outputs is not None) == scored


def test_raw_bytes_tensors_name_classes() -> None:
    raw = b"".join(len(t).to_bytes(4, "little") + t for t in (b"class 1", b"class 0"))
    document = answered(
        {"shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}},
    )
    assert read(document, raw=raw).labels.tolist() == [1, 0]
    for broken, reason in (
        (raw[:-1], R.NOT_DECODABLE),
        (raw[:11], R.WRONG_SHAPE),
        (raw + raw, R.WRONG_SHAPE),
        (b"\x01\0\0\0\xff" * 2, R.NOT_DECODABLE),
        (b"\xff\xff\xff\xff", R.NOT_DECODABLE),
        (b"\0", R.NOT_DECODABLE),
    ):
        document = answered({"shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(broken)}})
        assert [letter.reason for letter in read(document, raw=broken).dead] == [reason], broken


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, R.MISSING_FIELD),
        (changed(request=KeyError), R.MISSING_FIELD),
        (changed(response=KeyError), R.MISSING_FIELD),
        (changed(request=None), R.MISSING_FIELD),
        (changed(request=[]), R.WRONG_TYPE),
        (changed(response="no"), R.WRONG_TYPE),
        (changed(request__inputs=KeyError), R.MISSING_FIELD),
        (changed(request__inputs=[]), R.MISSING_FIELD),
        (changed(request__inputs={}), R.WRONG_TYPE),
        (changed(request__inputs=[1]), R.WRONG_TYPE),
        (changed(response={"error": "out of memory"}), R.MISSING_FIELD),
        (changed(response__outputs=[]), R.MISSING_FIELD),
        (changed(model_name="other"), R.UNDECLARED_MODEL),
        (changed(response__model_name="other"), R.UNDECLARED_MODEL),
        (changed(model_name=3), R.WRONG_TYPE),
        (changed(request__parameters=[1]), R.WRONG_TYPE),
        (changed(request__parameters={"client": 1.5}), R.WRONG_TYPE),
        (asked(), R.MISSING_FIELD),
        (asked(data=None), R.MISSING_FIELD),
        (asked(data=SIX, shape=None), R.MISSING_FIELD),
        (asked(data=SIX, datatype=None), R.MISSING_FIELD),
        (asked(data=SIX, datatype="FP8"), R.WRONG_TYPE),
        (asked(data=SIX, datatype=32), R.WRONG_TYPE),
        (asked(data=SIX, shape=[2, 3.0]), R.WRONG_TYPE),
        (asked(data=SIX, shape="2x3"), R.WRONG_TYPE),
        (asked(data=SIX, shape=[]), R.WRONG_SHAPE),
        (asked(data=SIX, shape=[-2, -3]), R.WRONG_SHAPE),
        (asked(data=[], shape=[0, 3]), R.EMPTY),
        (asked(data=SIX, shape=[6]), R.WRONG_SHAPE),
        (asked(data=SIX, shape=[3, 2]), R.WRONG_SHAPE),
        (asked(data=SIX, shape=[1, 6]), R.WRONG_SHAPE),
        (asked(data=[1, 2, 3]), R.WRONG_SHAPE),
        (asked(data=[[1, 2, 3]]), R.WRONG_SHAPE),
        (asked(data=[[1, 2, 3], [4, 5]]), R.WRONG_SHAPE),
        (asked(data=[[1, 2, 3], 4]), R.WRONG_SHAPE),
        (asked(data=[1, 2, 3, 4, 5, [6]]), R.WRONG_SHAPE),
        (asked(data=[[[1], [2], [3]], [[4], [5], [6]]]), R.WRONG_SHAPE),
        (asked(data=SIX, shape=[2, 3, 10**30]), R.WRONG_SHAPE),
        (asked(data="AAAA"), R.WRONG_TYPE),
        (asked(data=SIX, parameters=4), R.WRONG_TYPE),
        (asked(data=["a"] * 6, datatype="BYTES"), R.WRONG_TYPE),
        (asked(parameters={"binary_data_size": 24}), R.NOT_DECODABLE),
        (asked(parameters={"binary_data_size": 24.0}), R.WRONG_TYPE),
        (asked(parameters={"binary_data_size": -24}), R.WRONG_TYPE),
        (asked(parameters={"binary_data_size": 0}), R.WRONG_SHAPE),
        (asked(data=SIX, parameters={"binary_data_size": 0}), R.WRONG_SHAPE),
        (answered({"shape": [1, 2], "data": [0.5, 0.5]}), R.WRONG_SHAPE),
        (answered({"shape": [2, 3], "data": SIX}), R.WRONG_SHAPE),
        (answered({"shape": [2, 1], "data": [0.5, 0.5]}), R.WRONG_SHAPE),
        (b'{"request":{},"request":{}}', R.DUPLICATE_KEY),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_reason(document: Any, reason: Reason) -> None:
    batch = read(document)
    assert len(batch) == 0
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(reason, None)]
    assert batch.dead[0].detail.isascii()
    assert len(batch.dead[0].detail) < 250


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (asked(data=[1, 2, 3, 4, None, 6]), R.WRONG_TYPE),
        (asked(data=[1, 2, 3, 4, "5", 6]), R.WRONG_TYPE),
        (asked(data=[1, 2, 3, 4, True, 6]), R.WRONG_TYPE),
        (asked(data=[1, 2, 3, 4, float("nan"), 6]), R.NON_FINITE),
        (asked(data=[1, 2, 3, 4, 10**400, 6]), R.NON_FINITE),
        (asked(data=[1, 2, 3, 4, 256, 6], datatype="UINT8"), R.WRONG_TYPE),
        (asked(data=[1, 2, 3, 4, -1, 6], datatype="UINT64"), R.WRONG_TYPE),
        (asked(data=[1, 2, 3, 4, 5.0, 6], datatype="INT32"), R.WRONG_TYPE),
        (asked(data=[1, 0, 1, 0, 2, 1], datatype="BOOL"), R.WRONG_TYPE),
        (answered({"shape": [2, 2], "data": [0.5, 0.5, 0.5, float("inf")]}), R.NON_FINITE),
        (answered({"shape": [2], "datatype": "INT64", "data": [0, 2]}), R.LABEL_OUT_OF_RANGE),
        (answered({"shape": [2], "datatype": "INT64", "data": [0, 0.5]}), R.WRONG_TYPE),
        (answered({"shape": [2], "datatype": "UINT64", "data": [0, 2**64 - 1]}), R.LABEL_OUT_OF_RANGE),
        (answered({"shape": [2], "datatype": "BYTES", "data": ["class 0", "class 9"]}), R.LABEL_OUT_OF_RANGE),
        (answered({"shape": [2], "datatype": "BYTES", "data": ["class 0", 0]}), R.WRONG_TYPE),
        (answered({"shape": [2], "datatype": "BYTES", "data": ["class 0", None]}), R.WRONG_TYPE),
    ],
)
def test_bad_values_refuse_their_row_alone(document: dict[str, Any], reason: Reason) -> None:
    batch = read(document)
    assert batch.rows.tolist() == [0]
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(reason, (1,))]


Break = Callable[[bytes, int], tuple[bytes, bytes]]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda value, length: (value[:-1], b"%d" % length), R.NOT_DECODABLE),
        (lambda value, length: (value + b"\0", b"%d" % length), R.NOT_DECODABLE),
        (lambda value, length: (value, b"%d" % (length + 1)), R.NOT_DECODABLE),
        (lambda value, length: (value, b"%d" % (length - 1)), R.NOT_DECODABLE),
        (lambda value, length: (value, b"%d" % (len(value) + 1)), R.NOT_DECODABLE),
        (lambda value, length: (value, b"-1"), R.NOT_DECODABLE),
        (lambda value, length: (value, b""), R.NOT_DECODABLE),
        (lambda value, length: (value, b"9" * 5000), R.NOT_DECODABLE),
        (lambda value, length: (value, "\u00b2".encode()), R.NOT_DECODABLE),
        (lambda value, length: (value, b"0"), R.NOT_DECODABLE),
        (lambda value, length: (value[:length], b"%d" % length), R.NOT_DECODABLE),
    ],
)
def test_a_wrong_length_is_refused(damage: Break, reason: Reason) -> None:
    value, headers = oip_binary(Event(np.ones((2, 3)), np.ones((2, 2))))
    broken, length = damage(value, int(headers[0][1]))
    for name in ("oip", "auto"):
        batch = decoder(name).decode([Sent(0, broken, headers=[(LENGTH, length)])], options_for(3, 2))
        assert [(letter.reason, letter.rows) for letter in batch.dead] == [(reason, None)]


def test_the_length_header_is_known_in_any_case() -> None:
    value, headers = oip_binary(Event(np.ones((2, 3)), np.ones((2, 2))))
    for name in (LENGTH.lower(), LENGTH.upper()):
        assert len(decoder("auto").decode([Sent(0, value, headers=[(name, headers[0][1])])], options_for(3, 2))) == 2


def test_json_and_raw_tensors_mix() -> None:
    raw = np.array([0.25, 0.75, 1, 0], dtype="<f2").tobytes()
    tensor = {"shape": [2, 2], "datatype": "FP16", "parameters": {"binary_data_size": len(raw)}}
    batch = read(answered(tensor), raw=raw)
    assert batch.outputs is not None
    assert batch.outputs.tolist() == [[0.25, 0.75], [1, 0]]


def test_raw_truth_values_are_0_or_1() -> None:
    tensor = {"datatype": "BOOL", "parameters": {"binary_data_size": 6}}
    assert read(asked(**tensor), raw=b"\0\1\0\1\1\1").inputs.tolist() == [[0, 1, 0], [1, 1, 1]]
    assert read(asked(**tensor), raw=b"\0\1\0\1\2\1").dead[0].reason == R.WRONG_TYPE


@pytest.mark.parametrize("document", [BASE, asked(data=[[1, 2, 3], [4, 5, 6]]), asked(data=[1, 2, 3, 4, None, 6])])
def test_the_audit_counts_the_same_rows(document: dict[str, Any]) -> None:
    batch = read(document)
    dead = sum(len(letter.rows or (0,)) for letter in batch.dead)
    assert count_rows(json.dumps(document).encode(), ())[0] == len(batch) + dead
    value, headers = oip_binary(Event(np.ones((7, 3)), np.ones((7, 2))))
    assert count_rows(value, headers)[0] == len(
        decoder("oip").decode([Sent(0, value, headers=headers)], options_for(3, 2))
    )


def test_the_output_tensor_called_embedding_is_never_taken_for_the_scores() -> None:
    layer = {"name": "embedding", "shape": [2, 2], "data": [9, 1, 9, 1]}
    scores = {"name": "p", "shape": [2, 2], "data": [0.1, 0.9, 0.8, 0.2]}
    for order in ((layer, scores), (scores, layer)):
        batch = read(answered(*order), embedding=2)
        assert batch.dead == ()
        assert batch.labels.tolist() == [1, 0]
        assert batch.embeddings is not None
        assert batch.embeddings.tolist() == [[9, 1], [9, 1]]
    (letter,) = read(answered(layer | {"datatype": "BYTES", "data": list("abcd")}, scores), embedding=2).dead
    assert (letter.reason, letter.detail) == (R.WRONG_TYPE, "output 'embedding' is of BYTES; embeddings are numbers")
    (letter,) = read(answered(layer | {"shape": [1, 2], "data": [9, 1]}, scores), embedding=2).dead
    assert letter.reason == R.WRONG_SHAPE
