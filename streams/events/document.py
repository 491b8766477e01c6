"""Strict JSON: one object, UTF-8, no key twice, bounded nesting.

Stricter than RFC 8259 asks where readers differ (a key twice), and laxer in one point: ``NaN`` and ``Infinity``, which
some writers emit, are read, so that they can be refused as what they are, row by row.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from streams.events.batch import Reason
from streams.events.json_bytes import nesting
from streams.events.refusal import Refusal, kind_of, quoted

#: Objects and lists may stand so deep in one another.
MAX_NESTING = 64


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise Refusal(Reason.DUPLICATE_KEY, f"the key {quoted(name)} stands twice in one object")
            seen.add(name)
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(value: bytes) -> dict[str, Any]:
    """The JSON object that a record's bytes hold.

    Raises
    ------
    Refusal
        Not decodable, duplicate key, wrong type (no object), or non finite (a whole number of thousands of digits).
    """
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise Refusal(Reason.NOT_DECODABLE, f"not UTF-8 at byte {wrong.start}") from None
    if value.count(b"[") + value.count(b"{") > MAX_NESTING:
        depth = nesting(np.frombuffer(bytearray(value), dtype=np.uint8))
        if depth > MAX_NESTING:
            raise Refusal(Reason.NOT_DECODABLE, f"nested {depth} deep; at most {MAX_NESTING} is read")
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as wrong:
        raise Refusal(Reason.NOT_DECODABLE, f"not JSON: {wrong.msg} at character {wrong.pos}") from None
    except ValueError:
        raise Refusal(Reason.NON_FINITE, "a whole number has thousands of digits") from None
    if type(document) is not dict:
        raise Refusal(Reason.WRONG_TYPE, f"the record is {kind_of(document)}, not a JSON object")
    return document


def text_field(fields: dict[str, Any], name: str) -> str | None:
    """A field that is text, null or missing.

    Raises
    ------
    Refusal
        Wrong type.
    """
    value = fields.get(name)
    if value is None or type(value) is str:
        return value
    raise Refusal(Reason.WRONG_TYPE, f"{name!r} is {kind_of(value)}, not text")
