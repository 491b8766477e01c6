"""Who sent an event: where its name stands, and the keyed hash that is all Vedette keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS
from detectors.kernels.siphash import key_words, siphash_slices
from streams.events.batch import Reason, Record
from streams.events.refusal import Refusal, kind_of

#: What a client whose hash happens to be that of nobody gets instead.
_NOT_ANONYMOUS = 1


@dataclass(frozen=True, slots=True)
class ClientPlace:
    """Where the client's name stands: ``key``, or a `name` in ``header``, ``field`` or ``parameter``."""

    kind: str
    name: str

    @classmethod
    def parse(cls, path: str) -> ClientPlace:
        """From the setting's spelling, `DecodeOptions.client_path`."""
        kind, _, name = path.partition(":")
        return cls(kind, name)

    def outside(self, record: Record) -> bytes | None:
        """The name where it stands in the record's key or headers; empty counts as none."""
        if self.kind == "key":
            return record.key or None
        if self.kind == "header":
            return find_header(record.headers, self.name) or None
        return None

    def find(self, record: Record, fields: Mapping[str, Any], parameters: Mapping[str, Any] | None) -> bytes | None:
        """The client's name as it stands in one event, None for an anonymous one.

        Parameters
        ----------
        record : Record
        fields : mapping
            The event's JSON object.
        parameters : mapping or None
            The parameters of an inference request, in formats that have them.

        Raises
        ------
        Refusal
            When it is neither text nor a whole number.
        """
        if self.kind == "field":
            return self._text(fields.get(self.name))
        if self.kind == "parameter":
            return None if parameters is None else self._text(parameters.get(self.name))
        return self.outside(record)

    def _text(self, value: Any) -> bytes | None:
        if value is None:
            return None
        if type(value) is int:
            return b"%d" % value
        if type(value) is not str:
            raise Refusal(Reason.WRONG_TYPE, f"the client's name is {kind_of(value)}, not text or a whole number")
        try:
            return value.encode("utf-8") or None
        except UnicodeEncodeError:
            raise Refusal(Reason.NOT_DECODABLE, "the client's name holds half a surrogate pair") from None


def find_header(headers: Sequence[tuple[str, bytes]], name: str) -> bytes | None:
    """Value of the first header of that name; upper and lower case are not told apart."""
    wanted = name.lower()
    for key, value in headers or ():
        if key.lower() == wanted:
            return value
    return None


def hash_slices(
    data: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64], key: bytes
) -> NDArray[np.uint64]:
    """Client ids of data[starts[i]:stops[i]]; an empty slice is anonymous.

    data (m,) uint8; starts and stops (n,); returns uint64 (n,).
    """
    out = np.empty(len(starts), dtype=np.uint64)
    siphash_slices(data, starts, stops, *key_words(key), out)
    out[out == ANONYMOUS] = _NOT_ANONYMOUS
    out[starts == stops] = ANONYMOUS
    return out


def hash_clients(texts: Sequence[bytes], key: bytes) -> NDArray[np.uint64]:
    """Client ids (n,) of names: SipHash-2-4 under a 16-byte key.

    An empty name is anonymous, 0; a name that hashes to 0 gets 1.
    """
    data = np.frombuffer(bytearray().join(texts), dtype=np.uint8)
    stops = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), dtype=np.int64)
    starts = np.concatenate((np.zeros(1, dtype=np.int64), stops[:-1])) if len(texts) else stops
    return hash_slices(data, starts, stops, key)
