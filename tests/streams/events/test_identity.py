"""Clients are kept as keyed hashes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.kernels.siphash import hash_bytes
from streams.events import decoder, identity
from streams.events.batch import Reason
from streams.events.identity import hash_clients
from tests.streams.events.encoders import CLIENT_KEY, Sent, hashed, options_for

EVENT = {"inputs": [1, 2, 3], "label": 0}


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_many_are_hashed_as_each_alone(texts: list[bytes]) -> None:
    found = hash_clients(texts, CLIENT_KEY)
    assert found.dtype == np.uint64
    assert found.tolist() == [hash_bytes(CLIENT_KEY, text) if text else 0 for text in texts]


def test_the_key_changes_every_hash() -> None:
    assert hash_clients([b"a"], bytes(16))[0] != hash_clients([b"a"], CLIENT_KEY)[0]


def test_a_name_that_hashes_to_nobody_is_not_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_zero(data: object, starts: object, stops: object, k0: object, k1: object, out: np.ndarray) -> None:
        out[:] = 0

    monkeypatch.setattr(identity, "siphash_slices", all_zero)
    assert hash_clients([b"a", b"", b"b"], CLIENT_KEY).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("path", "fields", "key", "headers", "expected"),
    [
        ("key", {}, b"ann", (), "ann"),
        ("key", {"client": "bob"}, None, (), None),
        ("key", {}, b"", (), None),
        ("header:X-Client-Id", {}, b"k", (("x-client-id", b"ann"),), "ann"),
        ("header:X-Client-Id", {}, b"k", (("other", b"ann"),), None),
        ("header:X-Client-Id", {}, b"k", (("X-Client-Id", b"first"), ("X-Client-Id", b"second")), "first"),
        ("field:who", {"who": "ann"}, b"k", (), "ann"),
        ("field:who", {"who": "Zo\u00eb"}, b"k", (), "Zo\u00eb"),
        ("field:who", {"who": 'a"\\b'}, b"k", (), 'a"\\b'),
        ("field:who", {"who": 17}, b"k", (), "17"),
        ("field:who", {"who": -17}, b"k", (), "-17"),
        ("field:who", {"who": 10**30}, b"k", (), str(10**30)),
        ("field:who", {"who": None}, b"k", (), None),
        ("field:who", {"who": ""}, b"k", (), None),
        ("field:who", {}, b"k", (), None),
        ("parameter:who", {"who": "ann"}, b"k", (), None),
    ],
)
def test_a_native_event_s_client_is_where_the_setting_says(
    path: str,
    fields: dict[str, object],
    key: bytes | None,
    headers: tuple[tuple[str, bytes], ...],
    expected: str | None,
) -> None:
    for name in ("native", "auto"):
        for indent in (None, 2):
            value = json.dumps(EVENT | fields, indent=indent).encode()
            batch = decoder(name).decode([Sent(0, value, 0, key, headers)], options_for(3, 2, path))
            assert batch.dead == ()
            assert batch.clients.tolist() == [hashed(expected)]


@pytest.mark.parametrize("client", [True, 1.5, [], ["ann"], {"name": "ann"}])
def test_a_client_that_is_no_name_is_refused(client: object) -> None:
    value = json.dumps(EVENT | {"who": client}).encode()
    batch = decoder("native").decode([Sent(0, value)], options_for(3, 2, "field:who"))
    assert [letter.reason for letter in batch.dead] == [Reason.WRONG_TYPE]


def test_half_a_surrogate_pair_is_no_name() -> None:
    value = b'{"inputs":[1,2,3],"label":0,"who":"\\ud800"}'
    batch = decoder("native").decode([Sent(0, value)], options_for(3, 2, "field:who"))
    assert [letter.reason for letter in batch.dead] == [Reason.NOT_DECODABLE]
    assert len(decoder("native").decode([Sent(0, value)], options_for(3, 2, "key"))) == 1
