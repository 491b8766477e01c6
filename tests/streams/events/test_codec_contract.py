"""Every registered codec keeps the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import ConfigError
from streams.events import decoder, formats, kernels, warm_up
from streams.events.batch import Codec, Reason
from tests.streams.events.encoders import (
    CLIENT_PATHS,
    ENCODERS,
    MODEL,
    Encode,
    Event,
    Sent,
    assert_same,
    assert_sound,
    hashed,
    joined,
    options_for,
)

FORMATS = formats()
WRITTEN = [(name, encode) for name in FORMATS for encode in ENCODERS[name]]
NAMES = [f"{name}-{encode.__name__}" for name, encode in WRITTEN]
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)
finite = st.floats(allow_nan=False, allow_infinity=False)
EMBEDDING_WIDTH = 2


def events(rows: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Event]:
    @st.composite
    def make(draw: st.DrawFn) -> Event:
        n = draw(rows or st.integers(1, 4))
        d, k = 3, 2
        inputs = np.array(draw(st.lists(finite, min_size=n * d, max_size=n * d))).reshape(n, d)
        scores = np.array(draw(st.lists(finite, min_size=n * k, max_size=n * k))).reshape(n, k)
        labels = np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)), dtype=np.int32)
        which = draw(st.sampled_from(["scores", "labels", "both"]))
        e = EMBEDDING_WIDTH
        layer = draw(st.none() | st.lists(finite, min_size=n * e, max_size=n * e))
        return Event(
            inputs,
            None if which == "labels" else scores,
            None if which == "scores" else labels,
            draw(st.sampled_from([None, "", "somebody", "Zoë \U0001f600", 'quo"te', "x" * 300])),
            draw(st.sampled_from([None, "r1", "vp1.x", "vp1.y"])),
            embeddings=None if layer is None else np.array(layer).reshape(n, e),
        )

    return make()


def test_every_codec_is_registered_under_its_name() -> None:
    assert {"auto", "native", "oip", "compact"} <= set(FORMATS)
    for name in FORMATS:
        codec = decoder(name)
        assert isinstance(codec, Codec)
        assert codec.name == name


def test_an_unknown_format_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'xml'.*compact.*native"):
        decoder("xml")


@pytest.mark.parametrize("embedding", [None, EMBEDDING_WIDTH])
@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_compiled_after_the_warm_up(name: str, embedding: int | None) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name], embedding=embedding)
    warm_up(name, options.schema)
    before = len(kernels.records.signatures), len(kernels.embeddings.signatures)
    records = []
    for offset, encode in enumerate(ENCODERS[name]):
        value, headers = encode(Event(np.ones((2, 3)), np.ones((2, 2)), embeddings=np.ones((2, EMBEDDING_WIDTH))))
        records.append(Sent(offset, value, headers=headers))
    decoder(name).decode(records, options)
    assert (len(kernels.records.signatures), len(kernels.embeddings.signatures)) == before


@pytest.mark.parametrize("name", FORMATS)
def test_no_record_is_an_empty_batch(name: str) -> None:
    options = options_for(3, 2)
    batch = decoder(name).decode([], options)
    assert_sound(batch, options)
    assert (len(batch), batch.outputs, batch.records, batch.dead) == (0, None, 0, ())


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
@given(event=events(), times=st.integers(0, 2**42))
@relaxed
def test_what_was_written_is_read(name: str, encode: Encode, event: Event, times: int) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name], embedding=EMBEDDING_WIDTH)
    if encode.__name__ == "oip_binary" and event.labels is not None and event.outputs is None:
        event = replace(event, labels=event.labels[:, None])
    value, headers = encode(event)
    key = event.client.encode() if event.client else None
    batch = decoder(name).decode([Sent(77, value, times, key, headers)], options)
    assert batch.dead == ()
    assert_sound(batch, options)
    n = len(event.inputs)
    assert batch.inputs.tobytes() == np.ascontiguousarray(event.inputs).tobytes()
    if event.outputs is None:
        assert batch.outputs is None
    else:
        assert batch.outputs is not None
        assert batch.outputs.tobytes() == np.ascontiguousarray(event.outputs).tobytes()
    if event.embeddings is None:
        assert batch.embeddings is None
    else:
        assert batch.embeddings is not None
        assert batch.embeddings.tobytes() == event.embeddings.tobytes()
        assert batch.to_batch().embeddings is batch.embeddings
    expected = np.argmax(event.outputs, axis=1) if event.labels is None else event.labels.ravel()
    assert batch.labels.tolist() == expected.tolist()
    assert set(batch.clients.tolist()) == {hashed(event.client)}
    assert batch.times.tolist() == [times * 1000] * n
    assert batch.offsets.tolist() == [77] * n
    assert batch.rows.tolist() == list(range(n))
    claimed = (event.request_id or "").startswith("vp1.")
    assert batch.marks.tolist() == [0 if claimed and encode.__name__[:4] != "comp" else -1] * n or claimed
    assert [c.request_id for c in batch.requests] == ([event.request_id] * len(batch.requests) if claimed else [])
    assert bool(batch.requests) == claimed
    assert batch.records == 1


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@relaxed
def test_decode_of_a_and_b_is_decode_of_a_then_of_b(name: str, data: st.DataObject) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name], embedding=EMBEDDING_WIDTH)
    records = []
    for offset in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["event", "event", "event", "broken", "partly", "empty", "marked"]))
        event = data.draw(events())
        if kind == "partly":
            event.inputs[-1, 0] = np.inf
        value, headers = data.draw(st.sampled_from(ENCODERS[name]))(event)
        if kind == "broken":
            value = value[: len(value) // 2]
        if kind == "marked":
            headers = [*headers, ("vedette-probe", b"v1.forged")]
        key = event.client.encode() if event.client else None
        records.append(Sent(10 * offset, b"" if kind == "empty" else value, offset, key, headers))
    codec = decoder(name)
    whole = codec.decode(records, options)
    assert_sound(whole, options)
    assert whole.records == len(records)
    seen = set(whole.offsets.tolist()) | {letter.offset for letter in whole.dead}
    assert seen == {record.offset for record in records}
    cut = data.draw(st.integers(0, len(records)))
    first, second = codec.decode(records[:cut], options), codec.decode(records[cut:], options)
    assert_same(whole, joined(first, second, 2, EMBEDDING_WIDTH))
    assert_same(whole, codec.decode(records, options))


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_bad_rows_alone_are_refused(name: str, encode: Encode) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name])
    inputs, scores = np.arange(12.0).reshape(4, 3), np.tile([0.25, 0.75], (4, 1))
    inputs[1, 2] = np.nan
    scores[3, 0] = -np.inf
    value, headers = encode(Event(inputs, scores))
    batch = decoder(name).decode([Sent(5, value, headers=headers)], options)
    assert_sound(batch, options)
    assert batch.rows.tolist() == [0, 2]
    assert batch.inputs.tolist() == inputs[[0, 2]].tolist()
    assert [(letter.offset, letter.reason, letter.rows) for letter in batch.dead] == [(5, Reason.NON_FINITE, (1, 3))]


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_embeddings_are_left_out_where_the_schema_states_none(name: str, encode: Encode) -> None:
    event = Event(np.arange(12.0).reshape(4, 3), np.tile([0.25, 0.75], (4, 1)))
    plain, _ = encode(event)
    value, headers = encode(replace(event, embeddings=np.full((4, 5), np.nan)))
    assert len(value) > len(plain)
    batch = decoder(name).decode([Sent(5, value, headers=headers)], options_for(3, 2, CLIENT_PATHS[name]))
    assert (len(batch), batch.embeddings, batch.dead) == (4, None, ())


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_bad_embeddings_are_refused(name: str, encode: Encode) -> None:
    embeddings = np.arange(8.0).reshape(4, 2)
    embeddings[2, 1] = np.inf
    event = Event(np.arange(12.0).reshape(4, 3), np.tile([0.25, 0.75], (4, 1)), embeddings=embeddings)
    value, headers = encode(event)
    sent = [Sent(5, value, headers=headers)]
    options = options_for(3, 2, CLIENT_PATHS[name], embedding=EMBEDDING_WIDTH)
    batch = decoder(name).decode(sent, options)
    assert_sound(batch, options)
    assert batch.rows.tolist() == [0, 1, 3]
    assert batch.embeddings is not None
    assert batch.embeddings.tolist() == embeddings[[0, 1, 3]].tolist()
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(Reason.NON_FINITE, (2,))]
    assert "embeddings hold a value that is not finite" in batch.dead[0].detail
    wider = decoder(name).decode(sent, options_for(3, 2, CLIENT_PATHS[name], embedding=3))
    assert len(wider) == 0
    assert {letter.reason for letter in wider.dead} == {Reason.WRONG_SHAPE}
    assert "embedding" in wider.dead[0].detail


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_a_label_out_of_range_is_refused(name: str, encode: Encode) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name])
    value, headers = encode(Event(np.ones((3, 3)), np.ones((3, 2)), np.array([[0], [2], [-1]], np.int32)[:, 0]))
    batch = decoder(name).decode([Sent(5, value, headers=headers)], options)
    assert batch.labels.tolist() == [0]
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(Reason.LABEL_OUT_OF_RANGE, (1, 2))]


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_the_record_of_another_model_is_refused_whole(name: str, encode: Encode) -> None:
    value, headers = encode(Event(np.ones((3, 3)), np.ones((3, 2)), model="<script>"))
    batch = decoder(name).decode([Sent(5, value, headers=headers)], options_for(3, 2))
    assert len(batch) == 0
    assert [(letter.reason, letter.rows) for letter in batch.dead] == [(Reason.UNDECLARED_MODEL, None)]
    assert MODEL in batch.dead[0].detail
    assert len(decoder(name).decode([Sent(5, value, headers=headers)], options_for(3, 2, model=""))) == 3


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_a_wrong_number_of_features_is_refused(name: str, encode: Encode) -> None:
    value, headers = encode(Event(np.ones((2, 3)), np.ones((2, 2))))
    batch = decoder(name).decode([Sent(5, value, headers=headers)], options_for(4, 2))
    assert len(batch) == 0
    assert {letter.reason for letter in batch.dead} == {Reason.WRONG_SHAPE}


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_too_large_and_empty_records_are_refused_unread(name: str, encode: Encode) -> None:
    value, headers = encode(Event(np.ones((2, 3)), np.ones((2, 2))))
    options = options_for(3, 2, max_record_bytes=len(value))
    records = [Sent(i, v, headers=headers) for i, v in enumerate((value, value + b" ", None, b"", value))]
    batch = decoder(name).decode(records, options)
    assert [(letter.offset, letter.reason) for letter in batch.dead] == [
        (1, Reason.TOO_LARGE),
        (2, Reason.EMPTY),
        (3, Reason.EMPTY),
    ]
    assert batch.offsets.tolist() == [0, 0, 4, 4]
    assert batch.records == 5


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_records_of_too_many_rows_are_refused_as_a_whole(name: str, encode: Encode) -> None:
    def sent(offset: int, rows: int) -> Sent:
        inputs = np.arange(rows * 3.0).reshape(rows, 3) + offset
        value, headers = encode(Event(inputs, np.ones((rows, 2)), client=f"client {offset}"))
        return Sent(offset, value, headers=headers)

    options = options_for(3, 2, max_record_rows=4)
    few = [sent(0, 4), sent(2, 3)]
    batch = decoder(name).decode([few[0], sent(1, 5), few[1], sent(3, 40)], options)
    assert [(letter.offset, letter.reason, letter.rows) for letter in batch.dead] == [
        (1, Reason.TOO_LARGE, None),
        (3, Reason.TOO_LARGE, None),
    ]
    assert batch.dead[1].detail == "the record has 40 rows; 4 are allowed"
    without = decoder(name).decode(few, options)
    assert_same(batch, replace(without, dead=batch.dead, records=4))
    assert len(batch) == 7


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
@given(data=st.data())
@relaxed
def test_damaged_records_never_raise(name: str, encode: Encode, data: st.DataObject) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name])
    value, headers = encode(data.draw(events()))
    damaged = bytearray(value)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(damaged)))]
    batch = decoder(name).decode([Sent(1, bytes(damaged), headers=headers), Sent(2, value, headers=headers)], options)
    assert_sound(batch, options)
    assert batch.records == 2


@pytest.mark.parametrize(("name", "encode"), WRITTEN, ids=NAMES)
def test_a_probe_header_marks_every_row(name: str, encode: Encode) -> None:
    options = options_for(3, 2, CLIENT_PATHS[name])
    value, headers = encode(Event(np.ones((2, 3)), np.ones((2, 2))))
    marked = [*headers, ("vedette-probe", b"v1.something")]
    records = [Sent(1, value, headers=headers), Sent(2, value, headers=marked), Sent(3, value, headers=marked)]
    batch = decoder(name).decode(records, options)
    assert batch.marks.tolist() == [-1, -1, 0, 0, 1, 1]
    for offset, candidate in zip((2, 3), batch.requests, strict=True):
        assert (candidate.offset, candidate.header, candidate.payload) == (offset, b"v1.something", value)
        if not encode.__name__.startswith("compact"):
            assert candidate.client == b"somebody"


def any_rows(rng: np.random.Generator, n: int) -> Any:
    return Event(rng.normal(size=(n, 3)), rng.random((n, 2)))


@pytest.mark.parametrize("name", FORMATS)
def test_records_of_many_sizes_keep_their_order(name: str) -> None:
    rng = np.random.default_rng(5)
    options = options_for(3, 2, CLIENT_PATHS[name])
    sizes = [1, 400, 1, 7, 1, 1, 90, 2]
    sent = [any_rows(rng, n) for n in sizes]
    records = []
    for offset, event in enumerate(sent):
        value, headers = ENCODERS[name][offset % len(ENCODERS[name])](event)
        records.append(Sent(offset, value, headers=headers))
    batch = decoder(name).decode(records, options)
    assert batch.inputs.tobytes() == np.concatenate([event.inputs for event in sent]).tobytes()
    assert batch.offsets.tolist() == [offset for offset, n in enumerate(sizes) for _ in range(n)]
    assert batch.rows.tolist() == [row for n in sizes for row in range(n)]
