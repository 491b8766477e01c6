"""Open Inference Protocol v2: request and response in one record, JSON or with the binary extension.

Follows the protocol's ``rest_predict_v2`` and its extension for binary tensors; how the two messages stand in one
record is ours (docs/formats.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.events.assembly import LENGTH_HEADER, assemble, json_length
from streams.events.batch import DecodeOptions, InferenceBatch, Reason, Record
from streams.events.document import parse, text_field
from streams.events.identity import find_header
from streams.events.kernels import OIP
from streams.events.native import class_numbers
from streams.events.numbers import flatten, matrix, raw_values, shape_of
from streams.events.refusal import Refusal, kind_of, quoted
from streams.events.rows import EMBEDDING, Faults, Layout, Rows, add_faults, settle
from streams.events.scan import BINARY_SIZE

#: Bytes of the length in front of each element of a raw BYTES tensor.
BYTES_PREFIX = 4

#: Datatypes of numbers, as little-endian dtypes.
DATATYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_TEXT = "BYTES"


class OipCodec:
    """Open Inference Protocol v2, one record a question with its answer, many rows a record."""

    name = "oip"

    def decode(self, records: Sequence[Record], options: DecodeOptions) -> InferenceBatch:
        return assemble(records, options, read, OIP)


def read(record: Record, value: bytes, layout: Layout) -> Rows:
    """The rows of one record.

    Raises
    ------
    Refusal
    """
    stated = find_header(record.headers, LENGTH_HEADER)
    if stated is None:
        return read_fields(record, parse(value), memoryview(b""), layout)
    length = json_length(stated, value)
    if length < 0:
        raise Refusal(Reason.NOT_DECODABLE, f"{LENGTH_HEADER} is no length within the record's {len(value)} bytes")
    return read_fields(record, parse(value[:length]), memoryview(value)[length:], layout)


def read_fields(record: Record, fields: dict[str, Any], raw: memoryview, layout: Layout) -> Rows:
    """The rows of one record whose JSON object is known already; `raw` are the bytes behind it.

    Raises
    ------
    Refusal
    """
    request, response = _message(fields, "request"), _message(fields, "response")
    layout.check_model(text_field(fields, "model_name"))
    layout.check_model(text_field(response, "model_name"))
    tail = _Tail(raw)
    asked = [_Tensor.read(item, "input", tail) for item in _tensors(request, "inputs", "request")]
    answered = [_Tensor.read(item, "output", tail) for item in _tensors(response, "outputs", "response")]
    tail.close()
    faults: Faults = {}
    layout.check_rows(asked[0].n)
    inputs = _inputs(asked, layout.width, faults)
    embeddings, answered = _embedding(answered, len(inputs), layout, faults)
    outputs, labels, stated = _answer(answered, len(inputs), layout, faults)
    parameters = request.get("parameters")
    if parameters is not None and type(parameters) is not dict:
        raise Refusal(Reason.WRONG_TYPE, f"the request's parameters are {kind_of(parameters)}, not an object")
    request_id = request.get("id")
    client = layout.place.find(record, fields, parameters)
    rows = settle(layout, inputs, outputs, None, labels, stated, faults, embeddings)
    rows.client = client
    rows.request_id = request_id if type(request_id) is str else None
    return rows


def _message(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    message = fields.get(name)
    if message is None:
        raise Refusal(Reason.MISSING_FIELD, f"the record has no {name!r}")
    if type(message) is not dict:
        raise Refusal(Reason.WRONG_TYPE, f"{name!r} is {kind_of(message)}, not an object")
    return message


def _tensors(message: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    tensors = message.get(name)
    if not tensors and (tensors is None or type(tensors) is list):
        raise Refusal(Reason.MISSING_FIELD, f"the {where} has no {name!r}")
    if type(tensors) is not list or any(type(tensor) is not dict for tensor in tensors):
        raise Refusal(Reason.WRONG_TYPE, f"the {where}'s {name!r} are not a list of tensors")
    return tensors


class _Tail:
    """The raw bytes behind the JSON, taken tensor by tensor."""

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self._at = 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self._raw) - self._at:
            left = len(self._raw) - self._at
            raise Refusal(Reason.NOT_DECODABLE, f"{what} should have {size} raw bytes, but the record has {left} left")
        self._at += size
        return self._raw[self._at - size : self._at]

    def close(self) -> None:
        left = len(self._raw) - self._at
        if left:
            raise Refusal(Reason.NOT_DECODABLE, f"{left} bytes remain behind the last raw tensor")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor: its values are a flat array when they came raw, else a flat list."""

    name: str | None
    what: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[Any]

    @property
    def n(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        return math.prod(self.shape[1:])

    @classmethod
    def read(cls, fields: Mapping[str, Any], kind: str, tail: _Tail) -> _Tensor:
        given = fields.get("name")
        name = given if type(given) is str else None
        what = kind if name is None else f"{kind} {quoted(name)}"
        for field in ("shape", "datatype"):
            if fields.get(field) is None:
                raise Refusal(Reason.MISSING_FIELD, f"{what} lacks {field!r}")
        shape = shape_of(fields["shape"], what)
        datatype = fields["datatype"]
        if type(datatype) is not str or (datatype not in DATATYPES and datatype != _TEXT):
            shown = quoted(datatype) if type(datatype) is str else kind_of(datatype)
            raise Refusal(Reason.WRONG_TYPE, f"the datatype of {what} is {shown}, which the protocol lacks")
        if shape[0] == 0:
            raise Refusal(Reason.EMPTY, f"{what} holds no row")
        size = _raw_size(fields, what)
        if size is None:
            data = fields.get("data")
            if data is None:
                raise Refusal(Reason.MISSING_FIELD, f"{what} has no data")
            return cls(name, what, datatype, shape, flatten(data, shape, what))
        if fields.get("data") is not None:
            raise Refusal(Reason.WRONG_SHAPE, f"{what} has data both in the JSON and behind it")
        raw = tail.take(size, what)
        if datatype == _TEXT:
            return cls(name, what, datatype, shape, _texts(raw, math.prod(shape), what))
        return cls(name, what, datatype, shape, raw_values(raw, DATATYPES[datatype], shape, what))

    def numbers(self, faults: Faults) -> NDArray[Any]:
        """The values (n, width) of a numeric tensor; rows with a value that the datatype lacks stand in `faults`."""
        if isinstance(self.values, np.ndarray):
            return self.values.reshape(self.n, self.width)
        dtype = DATATYPES[self.datatype]
        values = self.values
        if dtype.kind == "f":
            rows = [values[at : at + self.width] for at in range(0, len(values), self.width)]
            return matrix(rows, self.width, self.what, faults)
        low, high = _bounds(dtype)
        legal = {int, bool} if dtype.kind == "b" else {int}
        if not legal.issuperset(map(type, values)) or min(values) < low or max(values) > high:
            bad = [at for at, value in enumerate(values) if type(value) not in legal or not low <= value <= high]
            add_faults(
                faults,
                [at // self.width for at in bad],
                Reason.WRONG_TYPE,
                f"{self.what} holds a value that is no {self.datatype}",
            )
            values = values.copy()
            for at in bad:
                values[at] = 0
        return np.array(values, dtype=np.uint8 if dtype.kind == "b" else dtype).reshape(self.n, self.width)


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Least and greatest value of a datatype of whole numbers."""
    if dtype.kind == "b":
        return 0, 1
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _raw_size(fields: Mapping[str, Any], what: str) -> int | None:
    parameters = fields.get("parameters")
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise Refusal(Reason.WRONG_TYPE, f"the parameters of {what} are {kind_of(parameters)}, not an object")
    size = parameters.get(BINARY_SIZE)
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise Refusal(Reason.WRONG_TYPE, f"binary_data_size of {what} is not a whole number of bytes")
    return size


def _texts(raw: memoryview, count: int, what: str) -> list[Any]:
    """Elements of a raw BYTES tensor: each a little-endian uint32 length and so many bytes."""
    texts: list[Any] = []
    at = 0
    while at < len(raw):
        stop = at + BYTES_PREFIX
        length = int.from_bytes(raw[at:stop], "little")
        if stop + length > len(raw):
            raise Refusal(Reason.NOT_DECODABLE, f"an element of {what} ends behind the tensor")
        try:
            texts.append(str(raw[stop : stop + length], "utf-8"))
        except UnicodeDecodeError:
            raise Refusal(Reason.NOT_DECODABLE, f"an element of {what} is not UTF-8") from None
        at = stop + length
    if len(texts) != count:
        raise Refusal(Reason.WRONG_SHAPE, f"{what} holds {len(texts)} elements; its shape needs {count}")
    return texts


def _inputs(tensors: Sequence[_Tensor], width: int, faults: Faults) -> NDArray[Any]:
    """Inputs (n, d): the tensors side by side, in order."""
    for tensor in tensors:
        if tensor.datatype == _TEXT:
            raise Refusal(Reason.WRONG_TYPE, f"{tensor.what} is of BYTES; features are numbers")
        if tensor.n != tensors[0].n:
            raise Refusal(Reason.WRONG_SHAPE, f"{tensor.what} has {tensor.n} rows, {tensors[0].what} {tensors[0].n}")
    found = sum(tensor.width for tensor in tensors)
    if found != width:
        raise Refusal(Reason.WRONG_SHAPE, f"a row of the inputs has {found} values; {width} are expected")
    if len(tensors) == 1:
        return tensors[0].numbers(faults)
    parts = [tensor.numbers(faults).astype(np.float64) for tensor in tensors if tensor.width]
    return np.concatenate(parts, axis=1)


def _embedding(
    tensors: list[_Tensor], n: int, layout: Layout, faults: Faults
) -> tuple[NDArray[Any] | None, list[_Tensor]]:
    """The embeddings (n, e) of the output tensor of that name, where the schema states their width; the other tensors.

    The tensor stands for all rows or for none.
    """
    width = layout.embedding_width
    tensor = None if width is None else next((t for t in tensors if t.name == EMBEDDING), None)
    if tensor is None:
        return None, tensors
    if tensor.datatype == _TEXT:
        raise Refusal(Reason.WRONG_TYPE, f"{tensor.what} is of BYTES; embeddings are numbers")
    if tensor.n != n or tensor.width != width:
        detail = f"{tensor.what} has shape {list(tensor.shape)}; {n} rows of {width} values are expected"
        raise Refusal(Reason.WRONG_SHAPE, detail)
    return tensor.numbers(faults), [other for other in tensors if other is not tensor]


def _answer(
    tensors: Sequence[_Tensor], n: int, layout: Layout, faults: Faults
) -> tuple[NDArray[Any] | None, NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Outputs (n, k), labels (n,) and which rows have one, if not all.

    Scores are the first tensor of numbers with k values a row; the label is the first tensor of whole numbers or of
    class names with one value a row. Other tensors are left out.
    """
    for tensor in tensors:
        if tensor.n != n:
            raise Refusal(Reason.WRONG_SHAPE, f"{tensor.what} has {tensor.n} rows, the inputs {n}")
    scores = next((t for t in tensors if t.datatype != _TEXT and t.width == layout.k), None)
    answers = next((t for t in tensors if t.width == 1 and not t.datatype.startswith("FP")), None)
    if scores is None and answers is None:
        detail = f"no output holds {layout.k} scores a row, or one class a row"
        raise Refusal(Reason.WRONG_SHAPE, detail)
    outputs = None if scores is None else scores.numbers(faults)
    if answers is None:
        return outputs, None, None
    if answers.datatype == _TEXT:
        for row, value in enumerate(answers.values):
            if type(value) is not str:
                add_faults(faults, [row], Reason.WRONG_TYPE, f"{answers.what} holds {kind_of(value)}, not a class name")
        return outputs, *class_numbers(list(answers.values), layout, faults)
    numbers = answers.numbers(faults)[:, 0]
    legal = (numbers >= 0) & (numbers < layout.k)
    return outputs, np.where(legal, numbers, -1).astype(np.int64), None
