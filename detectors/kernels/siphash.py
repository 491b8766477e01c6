"""SipHash-2-4 (Aumasson & Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012), over slices of a byte buffer.

Client ids are stored only as this keyed hash.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: Length of a key, in bytes.
KEY_BYTES = 16

_INITIAL = tuple(
    np.uint64(word) for word in (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
)
_V0, _V1, _V2, _V3 = _INITIAL
_13, _16, _17, _21, _32 = (np.uint64(bits) for bits in (13, 16, 17, 21, 32))
_43, _47, _48, _51 = (np.uint64(bits) for bits in (43, 47, 48, 51))
_8, _56 = np.uint64(8), np.uint64(56)
_FINAL = np.uint64(0xFF)


@njit(cache=True, nogil=True, inline="always")
def _round(v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
    v0 = v0 + v1
    v1 = (v1 << _13) | (v1 >> _51)
    v1 = v1 ^ v0
    v0 = (v0 << _32) | (v0 >> _32)
    v2 = v2 + v3
    v3 = (v3 << _16) | (v3 >> _48)
    v3 = v3 ^ v2
    v0 = v0 + v3
    v3 = (v3 << _21) | (v3 >> _43)
    v3 = v3 ^ v0
    v2 = v2 + v1
    v1 = (v1 << _17) | (v1 >> _47)
    v1 = v1 ^ v2
    v2 = (v2 << _32) | (v2 >> _32)
    return v0, v1, v2, v3


@njit(cache=True, nogil=True)
def siphash(data: Any, start: int, stop: int, k0: Any, k1: Any) -> Any:
    """The hash (uint64) of data[start:stop].

    data (m,) uint8; k0 and k1 uint64, the halves of the key (`key_words`). For use inside kernels.
    """
    v0, v1, v2, v3 = _V0 ^ k0, _V1 ^ k1, _V2 ^ k0, _V3 ^ k1
    at = np.uint64(start)
    length = np.uint64(stop - start)
    words = length >> np.uint64(3)
    for _ in range(words):
        word = np.uint64(0)
        for b in range(np.uint64(8)):
            word |= np.uint64(data[at + b]) << (b << np.uint64(3))
        at += _8
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
    word = length << _56
    for b in range(length & np.uint64(7)):
        word |= np.uint64(data[at + b]) << (b << np.uint64(3))
    v3 ^= word
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= word
    v2 ^= _FINAL
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@njit(cache=True, nogil=True)
def siphash_slices(data: Any, starts: Any, stops: Any, k0: Any, k1: Any, out: Any) -> None:
    """out[i] = the hash of data[starts[i]:stops[i]].

    data (m,) uint8, starts and stops (n,) int64, out (n,) uint64.
    """
    for i in range(starts.shape[0]):
        out[i] = siphash(data, starts[i], stops[i], k0, k1)


def key_words(key: bytes) -> tuple[np.uint64, np.uint64]:
    """The two halves of a 16-byte key; ValueError names another length."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a SipHash key has {KEY_BYTES} bytes, got {len(key)}")
    return np.uint64(int.from_bytes(key[:8], "little")), np.uint64(int.from_bytes(key[8:], "little"))


def hash_bytes(key: bytes, data: bytes) -> int:
    """The hash of one byte string under a 16-byte key."""
    k0, k1 = key_words(key)
    buffer: NDArray[np.uint8] = np.frombuffer(bytearray(data), dtype=np.uint8)
    return int(siphash(buffer, 0, len(buffer), k0, k1))


def warm_up() -> None:
    """Compile, or load from the cache."""
    out = np.empty(1, dtype=np.uint64)
    data, zero = np.zeros(8, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    k0, k1 = key_words(bytes(KEY_BYTES))
    siphash_slices(data, zero, zero + 8, k0, k1, out)
    hash_bytes(bytes(KEY_BYTES), b"")
