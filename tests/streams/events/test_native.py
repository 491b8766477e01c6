"""Native JSON events, form by form."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from streams.events import decoder
from streams.events.batch import InferenceBatch, Reason
from tests.streams.events.encoders import Sent, options_for

R = Reason


def read(text: str | bytes | dict[str, Any], width: int = 3, **more: Any) -> InferenceBatch:
    value = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    return decoder("native").decode([Sent(9, value)], options_for(width, 2, **more))


def tensor(values: Any, dtype: str, shape: list[int] | None = None) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    data = base64.b64encode(array.tobytes()).decode()
    return {"shape": list(array.shape) if shape is None else shape, "dtype": dtype, "data": data}


ONE = '"label":0'
REFUSED: list[tuple[str | bytes, Reason]] = [
    (b"\xff\xfe\x00", R.NOT_DECODABLE),
    ("", R.EMPTY),
    (" ", R.NOT_DECODABLE),
    ("nonsense", R.NOT_DECODABLE),
    ('{"inputs":[1,2,3],"label":0', R.NOT_DECODABLE),
    ('{"inputs":[1,2,3],"label":0} {}', R.NOT_DECODABLE),
    ('{"inputs":[1,2,3,],"label":0}', R.NOT_DECODABLE),
    ('{"inputs":[1,2,03],"label":0}', R.NOT_DECODABLE),
    ('{"inputs":[1,2,3],"label":0,"x":"\x01"}', R.NOT_DECODABLE),
    ('\ufeff{"inputs":[1,2,3],"label":0}', R.NOT_DECODABLE),
    ("[1,2,3]", R.WRONG_TYPE),
    ("null", R.WRONG_TYPE),
    ('"text"', R.WRONG_TYPE),
    ("7", R.WRONG_TYPE),
    ('{"inputs":[1,2,3],"label":0,"label":0}', R.DUPLICATE_KEY),
    ('{"inputs":[1,2,3],"label":0,"x":{"a":1,"b":2,"a":3}}', R.DUPLICATE_KEY),
    ('{"inputs":[1,2,3],"inputs":[1,2,3],"label":0}', R.DUPLICATE_KEY),
    ('{"inputs":[1,2,3],"label":0,"a":1,"\\u0061":1}', R.DUPLICATE_KEY),
    (f"{{{ONE}}}", R.MISSING_FIELD),
    (f'{{"inputs":null,{ONE}}}', R.MISSING_FIELD),
    ('{"inputs":[1,2,3]}', R.MISSING_FIELD),
    ('{"inputs":[1,2,3],"label":null,"outputs":null}', R.MISSING_FIELD),
    (f'{{"inputs":"1,2,3",{ONE}}}', R.WRONG_TYPE),
    (f'{{"inputs":true,{ONE}}}', R.WRONG_TYPE),
    (f'{{"inputs":[1,"2",3],{ONE}}}', R.WRONG_TYPE),
    (f'{{"inputs":[1,null,3],{ONE}}}', R.WRONG_TYPE),
    (f'{{"inputs":[1,true,3],{ONE}}}', R.WRONG_TYPE),
    (f'{{"inputs":[1,{{}},3],{ONE}}}', R.WRONG_TYPE),
    (f'{{"inputs":[],{ONE}}}', R.EMPTY),
    (f'{{"inputs":[1,2],{ONE}}}', R.WRONG_SHAPE),
    (f'{{"inputs":[1,2,3,4],{ONE}}}', R.WRONG_SHAPE),
    (f'{{"inputs":[[[1,2,3]]],{ONE}}}', R.WRONG_SHAPE),
    (f'{{"inputs":[1,[2],3],{ONE}}}', R.WRONG_SHAPE),
    (f'{{"inputs":[[1,2,3],4],{ONE}}}', R.WRONG_SHAPE),
    (f'{{"inputs":[[1,2,3],[1,2,3]],{ONE}}}', R.WRONG_SHAPE),
    (f'{{"inputs":[1,2,NaN],{ONE}}}', R.NON_FINITE),
    (f'{{"inputs":[1,2,-Infinity],{ONE}}}', R.NON_FINITE),
    (f'{{"inputs":[1,2,1e999],{ONE}}}', R.NON_FINITE),
    (f'{{"inputs":[1,2,{"9" * 400}],{ONE}}}', R.NON_FINITE),
    (f'{{"inputs":[1,2,{"9" * 9000}],{ONE}}}', R.NON_FINITE),
    ('{"inputs":[1,2,3],"outputs":[0.5]}', R.WRONG_SHAPE),
    ('{"inputs":[1,2,3],"outputs":[]}', R.EMPTY),
    ('{"inputs":[1,2,3],"outputs":[[1,0],[1,0]]}', R.WRONG_SHAPE),
    ('{"inputs":[1,2,3],"outputs":[1,NaN]}', R.NON_FINITE),
    ('{"inputs":[1,2,3],"outputs":"1,0"}', R.WRONG_TYPE),
    ('{"inputs":[1,2,3],"outputs":[1,"0"]}', R.WRONG_TYPE),
    ('{"inputs":[1,2,3],"label":2}', R.LABEL_OUT_OF_RANGE),
    ('{"inputs":[1,2,3],"label":-1}', R.LABEL_OUT_OF_RANGE),
    (f'{{"inputs":[1,2,3],"label":{2**70}}}', R.LABEL_OUT_OF_RANGE),
    ('{"inputs":[1,2,3],"label":"class 2"}', R.LABEL_OUT_OF_RANGE),
    ('{"inputs":[1,2,3],"label":1.0}', R.WRONG_TYPE),
    ('{"inputs":[1,2,3],"label":true}', R.WRONG_TYPE),
    ('{"inputs":[1,2,3],"label":{}}', R.WRONG_TYPE),
    ('{"inputs":[1,2,3],"label":[0,1]}', R.WRONG_SHAPE),
    ('{"inputs":[1,2,3],"label":0,"model":"another"}', R.UNDECLARED_MODEL),
    ('{"inputs":[1,2,3],"label":0,"model":7}', R.WRONG_TYPE),
    ("[" * 100_000, R.NOT_DECODABLE),
    ('{"a":' * 5000 + "1" + "}" * 5000, R.NOT_DECODABLE),
    ('{"inputs":[1,2,3],"label":0,"deep":' + "[" * 70 + "]" * 70 + "}", R.NOT_DECODABLE),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_cannot_be_scored_is_refused_with_its_reason(text: str | bytes, reason: Reason) -> None:
    batch = read(text)
    assert len(batch) == 0
    assert [(letter.offset, letter.reason, letter.rows) for letter in batch.dead] == [(9, reason, None)]
    assert batch.dead[0].detail
    assert len(batch.dead[0].detail) < 200
    assert batch.dead[0].detail.isascii()


def test_reasons_are_given_row_by_row() -> None:
    rows = [[1, 2, 3], [1, 2], [1, "x", 3], [[1], 2, 3], [1, 2, 10**400], [4, 5, 6]]
    batch = read({"inputs": rows, "label": [0, 0, 0, 0, 0, 7]})
    assert batch.rows.tolist() == [0]
    assert {(letter.reason, letter.rows) for letter in batch.dead} == {
        (R.WRONG_SHAPE, (1, 3)),
        (R.WRONG_TYPE, (2,)),
        (R.NON_FINITE, (4,)),
        (R.LABEL_OUT_OF_RANGE, (5,)),
    }


def test_rows_without_scores_need_a_label() -> None:
    batch = read({"inputs": [[1, 2, 3]] * 4, "outputs": [[0, 1], None, None, [1, 0]], "label": [None, 1, None, 1]})
    assert batch.rows.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [1, 1, 1]
    assert batch.outputs is not None
    assert np.isnan(batch.outputs).all(axis=1).tolist() == [False, True, False]
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(R.MISSING_FIELD, (2,))]


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint64"]
)
@pytest.mark.parametrize("shape", [[3], [1, 3], [2, 3], [2, 3, 1]])
def test_tensors_of_every_dtype(dtype: str, shape: list[int]) -> None:
    values = np.arange(int(np.prod(shape))).reshape(shape)
    n = shape[0] if len(shape) > 1 else 1
    batch = read({"inputs": tensor(values, dtype), "outputs": tensor([[0.25, 0.75]] * n, "float32")})
    assert batch.dead == ()
    assert batch.inputs.tolist() == values.reshape(n, 3).tolist()
    assert batch.labels.tolist() == [1] * n


def test_truth_values_are_numbers_in_tensors() -> None:
    batch = read({"inputs": tensor([[True, False, True]], "bool"), "label": [0]})
    assert batch.inputs.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": "@@@@"}, R.NOT_DECODABLE),
        ({"data": "AAA"}, R.NOT_DECODABLE),
        ({"data": "\u00e9"}, R.NOT_DECODABLE),
        ({"data": ""}, R.WRONG_SHAPE),
        ({"data": [1, 2]}, R.WRONG_TYPE),
        ({"data": None}, R.MISSING_FIELD),
        ({"shape": None}, R.MISSING_FIELD),
        ({"dtype": None}, R.MISSING_FIELD),
        ({"dtype": "float128"}, R.WRONG_TYPE),
        ({"dtype": "O"}, R.WRONG_TYPE),
        ({"dtype": 5}, R.WRONG_TYPE),
        ({"shape": "3"}, R.WRONG_TYPE),
        ({"shape": [3.0]}, R.WRONG_TYPE),
        ({"shape": [True, 3]}, R.WRONG_TYPE),
        ({"shape": []}, R.WRONG_SHAPE),
        ({"shape": [-1, -3]}, R.WRONG_SHAPE),
        ({"shape": [0, 3]}, R.EMPTY),
        ({"shape": [3, 1]}, R.WRONG_SHAPE),
        ({"shape": [2**40, 2**40]}, R.WRONG_SHAPE),
        ({"shape": [1] * 9 + [3]}, R.WRONG_SHAPE),
    ],
)
def test_a_wrong_tensor_is_refused(change: dict[str, Any], reason: Reason) -> None:
    whole = tensor([1, 2, 3], "float32") | change
    if change == {"shape": [0, 3]}:
        whole["data"] = ""
    batch = read({"inputs": whole, "label": 0})
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(reason, None)]


def test_the_first_of_equal_scores_is_the_label() -> None:
    assert read({"inputs": [1, 2, 3], "outputs": [0.5, 0.5]}).labels.tolist() == [0]


def test_a_stated_label_goes_before_the_scores() -> None:
    assert read({"inputs": [1, 2, 3], "outputs": [0.9, 0.1], "label": "class 1"}).labels.tolist() == [1]


def test_one_feature_and_one_row_are_told_from_many_rows() -> None:
    assert read({"inputs": [5], "label": 0}, width=1).inputs.tolist() == [[5]]
    assert read({"inputs": [[5], [6]], "label": [0, 1]}, width=1).inputs.tolist() == [[5], [6]]
    assert read({"inputs": [5, 6], "label": 0}, width=1).dead[0].reason == R.WRONG_SHAPE


def test_hostile_names_are_shown_short_and_plain() -> None:
    batch = read({"inputs": [1, 2, 3], "label": 0, "model": "\u202e\x1b[31m" + "x" * 5000})
    assert batch.dead[0].reason == R.UNDECLARED_MODEL
    assert batch.dead[0].detail.isascii()
    assert batch.dead[0].detail.isprintable()
    assert len(batch.dead[0].detail) < 200


def embedded(value: Any, n: int = 3) -> InferenceBatch:
    return read({"inputs": [[1, 2, 3]] * n, "label": [0] * n, "embedding": value}, embedding=2)


def test_rows_without_an_embedding_hold_nan() -> None:
    batch = embedded([[0.5, 1], None, [2, 3]])
    assert batch.embeddings is not None
    assert batch.embeddings[[0, 2]].tolist() == [[0.5, 1], [2, 3]]
    assert np.isnan(batch.embeddings[1]).all()
    assert batch.dead == ()
    assert embedded(None).embeddings is None
    stored = embedded(tensor([[0.5, 1], [1, 2], [2, 3]], "float16")).embeddings
    assert stored is not None
    assert stored.tolist() == [[0.5, 1], [1, 2], [2, 3]]


def test_events_with_and_without_an_embedding_share_a_batch() -> None:
    plain, other = ({"inputs": [1, 2, place], "label": 0} for place in (3, 4))
    values = [json.dumps(fields).encode() for fields in (plain, other | {"embedding": [7, 8]}, plain)]
    sent = [Sent(offset, value) for offset, value in enumerate(values)]
    batch = decoder("native").decode(sent, options_for(3, 2, embedding=2))
    assert batch.inputs[:, 2].tolist() == [3, 4, 3]
    assert batch.embeddings is not None
    assert batch.embeddings[1].tolist() == [7, 8]
    assert np.isnan(batch.embeddings[[0, 2]]).all()
    escaped = b'{"inputs":[1,2,3],"label":0,"\\u0065mbedding":[7,8]}'
    found = decoder("native").decode([Sent(0, escaped)], options_for(3, 2, embedding=2)).embeddings
    assert found is not None
    assert found.tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        ([[1, 2], [3, 4]], R.WRONG_SHAPE, "embeddings have 2 rows, inputs 3"),
        (tensor(np.ones((3, 4)), "float32"), R.WRONG_SHAPE, "3 rows of 2 values are expected"),
        ("1,2", R.WRONG_TYPE, "embeddings are text"),
        ([[1, 2], [3, 4], [5]], R.WRONG_SHAPE, "row 2: embeddings have 1 values in a row; 2 are expected"),
        ([[1, 2], [3, None], [5, 6]], R.WRONG_TYPE, "row 1: embeddings hold null where a number belongs"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(value: Any, reason: Reason, detail: str) -> None:
    (letter,) = embedded(value).dead
    assert letter.reason == reason
    assert detail in letter.detail
