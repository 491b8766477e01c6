"""Marks: what was signed is recognised, and nothing else is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streams.events.batch import ProbeCandidate
from streams.probes import marks

KEY = bytes(range(32))
TTL = 60_000_000
NOW = 1_800_000_000_000_000

topics = st.text("abcdefghijklmnopqrstuvwxyz.-_0123456789", min_size=1, max_size=30)
clients = st.one_of(st.none(), st.binary(max_size=40))
campaigns = st.binary(min_size=8, max_size=8)
counters = st.integers(0, 2**32 - 1)
times = st.integers(0, 10**18 - 1)
rows = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
)


def header_candidate(header: bytes, client: bytes | None, payload: bytes) -> ProbeCandidate:
    return ProbeCandidate(offset=0, header=header, request_id=None, client=client, payload=payload)


def request_candidate(request: str, client: bytes | None) -> ProbeCandidate:
    return ProbeCandidate(offset=0, header=None, request_id=request, client=client)


@given(topics, st.integers(0, 10_000), campaigns, counters, times, clients, st.binary(max_size=200))
def test_signed_header_is_recognised(topic, partition, campaign, counter, issued, client, payload):
    header = marks.sign_header(KEY, topic, partition, campaign, counter, issued, client, payload)
    mark = marks.verify(header_candidate(header, client, payload), topic, partition, issued, TTL, KEY, None)
    assert mark == marks.Mark(marks.probe_id(campaign, counter), campaign.hex(), issued, expired=False)


@given(topics, campaigns, counters, times, clients, rows)
def test_signed_request_is_recognised(topic, campaign, counter, issued, client, inputs):
    request = marks.sign_request(KEY, topic, campaign, counter, issued, client, inputs)
    mark = marks.verify(request_candidate(request, client), topic, 3, issued, TTL, KEY, inputs)
    assert mark == marks.Mark(marks.probe_id(campaign, counter), campaign.hex(), issued, expired=False)


@given(rows)
def test_request_survives_single_precision_and_the_sign_of_zero(inputs):
    request = marks.sign_request(KEY, "t", bytes(8), 1, NOW, b"c", inputs)
    logged = np.where(inputs == 0, -0.0, inputs).astype(np.float32).astype(np.float64)
    assert marks.verify(request_candidate(request, b"c"), "t", 0, NOW, TTL, KEY, logged) is not None


@settings(max_examples=300)
@given(st.data())
def test_altered_header_is_no_mark(data):
    client, payload = data.draw(clients), data.draw(st.binary(min_size=1, max_size=60))
    header = marks.sign_header(KEY, "topic", 4, data.draw(campaigns), data.draw(counters), NOW, client, payload)
    place = data.draw(st.integers(0, len(header) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != header[place]))
    altered = header[:place] + bytes([byte]) + header[place + 1 :]
    assert marks.verify(header_candidate(altered, client, payload), "topic", 4, NOW, TTL, KEY, None) is None
    cut = header[: data.draw(st.integers(0, len(header) - 1))]
    assert marks.verify(header_candidate(cut, client, payload), "topic", 4, NOW, TTL, KEY, None) is None
    longer = header + data.draw(st.binary(min_size=1, max_size=3))
    assert marks.verify(header_candidate(longer, client, payload), "topic", 4, NOW, TTL, KEY, None) is None
    flipped = bytes([payload[0] ^ data.draw(st.integers(1, 255))]) + payload[1:]
    assert marks.verify(header_candidate(header, client, flipped), "topic", 4, NOW, TTL, KEY, None) is None


@settings(max_examples=300)
@given(st.data())
def test_altered_request_is_no_mark(data):
    client, inputs = data.draw(clients), data.draw(rows)
    request = marks.sign_request(KEY, "topic", data.draw(campaigns), data.draw(counters), NOW, client, inputs)
    place = data.draw(st.integers(0, len(request) - 1))
    character = data.draw(
        st.one_of(
            st.characters(codec="utf-8"),
            st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
        ).filter(lambda c: c != request[place])
    )
    altered = request[:place] + character + request[place + 1 :]
    assert marks.verify(request_candidate(altered, client), "topic", 4, NOW, TTL, KEY, inputs) is None
    cut = request[: data.draw(st.integers(0, len(request) - 1))]
    assert marks.verify(request_candidate(cut, client), "topic", 4, NOW, TTL, KEY, inputs) is None


def test_every_spelling_of_the_last_base64_character_but_one_is_refused():
    inputs = np.ones((1, 2))
    request = marks.sign_request(KEY, "t", bytes(8), 0, NOW, b"c", inputs)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for place in (35, len(request) - 1):
        accepted = [
            c
            for c in alphabet
            if marks.verify(
                request_candidate(request[:place] + c + request[place + 1 :], b"c"), "t", 0, NOW, TTL, KEY, inputs
            )
        ]
        assert accepted == [request[place]]


@given(topics, topics, st.integers(0, 99), st.integers(0, 99), clients, clients)
def test_header_is_bound_to_its_place_and_client(topic, other_topic, partition, other_partition, client, other_client):
    header = marks.sign_header(KEY, topic, partition, bytes(8), 7, NOW, client, b"payload")
    found = marks.verify(
        header_candidate(header, other_client, b"payload"), other_topic, other_partition, NOW, TTL, KEY, None
    )
    same = (topic, partition, client) == (other_topic, other_partition, other_client)
    assert (found is not None) == same


@given(topics, topics, clients, clients, rows, rows)
def test_request_is_bound_to_topic_client_and_body(topic, other_topic, client, other_client, inputs, other_inputs):
    request = marks.sign_request(KEY, topic, bytes(8), 7, NOW, client, inputs)
    found = marks.verify(request_candidate(request, other_client), other_topic, 0, NOW, TTL, KEY, other_inputs)
    same_rows = np.array_equal(inputs.astype(np.float32), other_inputs.astype(np.float32))
    assert (found is not None) == (topic == other_topic and client == other_client and same_rows)


@given(rows, st.data())
def test_request_is_bound_to_every_input(inputs, data):
    request = marks.sign_request(KEY, "t", bytes(8), 7, NOW, b"c", inputs)
    altered = inputs.astype(np.float32)
    place = tuple(data.draw(st.integers(0, side - 1)) for side in inputs.shape)
    altered[place] = np.nextafter(altered[place], np.float32(np.inf))
    candidate = request_candidate(request, b"c")
    if altered[place] != inputs.astype(np.float32)[place]:
        assert marks.verify(candidate, "t", 0, NOW, TTL, KEY, altered.astype(np.float64)) is None
    if inputs.shape != (1, 1):
        assert marks.verify(candidate, "t", 0, NOW, TTL, KEY, inputs.reshape(-1)) is None


def test_another_key_knows_no_mark():
    inputs = np.zeros((1, 3))
    header = marks.sign_header(KEY, "t", 0, bytes(8), 0, NOW, b"c", b"x")
    request = marks.sign_request(KEY, "t", bytes(8), 0, NOW, b"c", inputs)
    other = bytes(32)
    assert marks.verify(header_candidate(header, b"c", b"x"), "t", 0, NOW, TTL, other, None) is None
    assert marks.verify(request_candidate(request, b"c"), "t", 0, NOW, TTL, other, inputs) is None


@pytest.mark.parametrize(
    ("distance", "expired"), [(0, False), (TTL, False), (TTL + 1, True), (-TTL, False), (-TTL - 1, True)]
)
def test_expiry_is_judged_by_broker_time(distance, expired):
    inputs = np.zeros((1, 3))
    header = marks.sign_header(KEY, "t", 0, bytes(8), 0, NOW, b"c", b"x")
    request = marks.sign_request(KEY, "t", bytes(8), 0, NOW, b"c", inputs)
    for candidate in (header_candidate(header, b"c", b"x"), request_candidate(request, b"c")):
        mark = marks.verify(candidate, "t", 0, NOW + distance, TTL, KEY, inputs)
        assert mark is not None
        assert mark.expired is expired


def test_true_request_id_counts_beside_a_forged_header():
    inputs = np.zeros((1, 3))
    request = marks.sign_request(KEY, "t", bytes(8), 5, NOW, b"c", inputs)
    both = dataclasses.replace(request_candidate(request, b"c"), header=b"v1.forged")
    assert marks.verify(both, "t", 0, NOW, TTL, KEY, inputs) is not None


def test_oversized_records_are_refused_without_a_digest():
    header = marks.sign_header(KEY, "t", 0, bytes(8), 0, NOW, b"c", b"x")
    huge = bytes(marks.MAX_PAYLOAD_BYTES + 1)
    assert marks.verify(header_candidate(header, b"c", huge), "t", 0, NOW, TTL, KEY, None) is None
    with pytest.raises(ValueError, match="at most"):
        marks.sign_header(KEY, "t", 0, bytes(8), 0, NOW, b"c", huge)
    with pytest.raises(ValueError, match="rows"):
        marks.sign_request(KEY, "t", bytes(8), 0, NOW, b"c", np.zeros((marks.MAX_REQUEST_ROWS + 1, 1)))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="8 bytes, not 3"):
        marks.probe_id(b"abc", 0)
    with pytest.raises(ValueError, match="counter"):
        marks.probe_id(bytes(8), 2**32)
    with pytest.raises(ValueError, match="probe key has 32 bytes, not 5"):
        marks.sign_header(b"short", "t", 0, bytes(8), 0, NOW, None, b"")
    with pytest.raises(ValueError, match="microseconds"):
        marks.sign_request(KEY, "t", bytes(8), 0, -1, None, np.zeros((1, 1)))


@given(st.integers(0, 10_000), st.integers(0, 10_000), rows)
def test_request_names_the_partition_it_arrives_in(partition, other, inputs):
    bound = marks.sign_request(KEY, "t", bytes(8), 1, NOW, b"c", inputs, partition)
    loose = marks.sign_request(KEY, "t", bytes(8), 1, NOW, b"c", inputs)
    for place in (partition, other):
        found = marks.verify(request_candidate(bound, b"c"), "t", place, NOW, TTL, KEY, inputs)
        assert found is not None
        assert found.elsewhere == (place != partition)
        found = marks.verify(request_candidate(loose, b"c"), "t", place, NOW, TTL, KEY, inputs)
        assert found is not None
        assert not found.elsewhere
