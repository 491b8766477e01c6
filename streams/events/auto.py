"""Records of every kind, told apart one by one."""

from __future__ import annotations

from collections.abc import Sequence

from streams.events import compact, native, oip
from streams.events.assembly import LENGTH_HEADER, assemble
from streams.events.batch import DecodeOptions, InferenceBatch, Record
from streams.events.document import parse
from streams.events.identity import find_header
from streams.events.kernels import NATIVE, OIP
from streams.events.rows import Layout, Rows


class AutoCodec:
    """Compact by its first bytes, the binary extension by its header, then by the fields of the JSON object."""

    name = "auto"

    def decode(self, records: Sequence[Record], options: DecodeOptions) -> InferenceBatch:
        return assemble(records, options, read, NATIVE | OIP)


def read(record: Record, value: bytes, layout: Layout) -> Rows:
    """The rows of one record.

    Raises
    ------
    Refusal
    """
    if value.startswith(compact.MARKER):
        return compact.read(record, value, layout)
    if find_header(record.headers, LENGTH_HEADER) is not None:
        return oip.read(record, value, layout)
    fields = parse(value)
    if is_oip(fields):
        return oip.read_fields(record, fields, memoryview(b""), layout)
    return native.read_fields(record, fields, layout)


def is_oip(fields: dict[str, object]) -> bool:
    """Whether a JSON object holds a request with its response; a native event has `inputs` of its own."""
    return "request" in fields and "inputs" not in fields
