"""Thousands of malformed records through the codecs: each becomes what its generator says, each control is scored."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import dataclass

import pytest

from detectors.schema import Feature, FeatureSchema
from streams.events import decoder
from streams.events.batch import DecodeOptions, InferenceBatch
from streams.probes import marks
from tests.fuzz.generators import CONTROLS, GENERATORS, Generated, Headers, Target, records
from tests.streams.events.encoders import assert_same, assert_sound, joined

COUNT = 100_000 if os.environ.get("VEDETTE_FAULTS") == "full" else 10_000
#: Records that are decoded in one call.
FETCH = 250
TARGET = Target()
CLIENT_KEY, PROBE_KEY = bytes(16), bytes(range(32))
SCHEMA = FeatureSchema(tuple(Feature(f"f{i}") for i in range(TARGET.width)), TARGET.classes)
OPTIONS = DecodeOptions(TARGET.model, SCHEMA, "key", CLIENT_KEY, TARGET.max_record_bytes)
NOW_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Sent:
    offset: int
    value: bytes | None
    key: bytes | None
    headers: Headers
    timestamp: int = NOW_MS


def check(made: Generated, batch: InferenceBatch, where: str) -> None:
    """That one record became what it should."""
    assert batch.records == 1, where
    assert_sound(batch, OPTIONS)
    for candidate in batch.requests:
        mark = marks.verify(candidate, TARGET.topic, 0, NOW_MS * 1000, 10**15, PROBE_KEY, batch.inputs)
        assert mark is None, where
    expected = made.expected
    if expected.undetermined:
        return
    assert len(batch) == expected.scored, (where, batch.dead)
    refused = {letter.rows: letter.reason.value for letter in batch.dead}
    assert len(refused) == len(batch.dead), where
    assert set(refused) == {rows for _, rows in expected.refused}, (where, batch.dead)
    for reasons, rows in expected.refused:
        assert refused[rows] in reasons, (where, batch.dead)
    assert len(batch.requests) == expected.invalid_marks, where
    for letter in batch.dead:
        assert 0 < len(letter.detail) < 300 and letter.detail.isprintable() and letter.detail.isascii(), where


@pytest.mark.timeout(1800)
def test_every_record_becomes_what_its_generator_says() -> None:
    codec = decoder("auto")
    seen: Counter[str] = Counter()
    numbered = enumerate(records(7, COUNT, TARGET))
    while fetch := list(itertools.islice(numbered, FETCH)):
        sent = [Sent(offset, made.value, made.key, made.headers) for offset, made in fetch]
        whole: InferenceBatch | None = None
        for (offset, made), record in zip(fetch, sent, strict=True):
            seen[made.name] += 1
            alone = codec.decode([record], OPTIONS)
            check(made, alone, f"record {offset}, {made.name}")
            whole = alone if whole is None else joined(whole, alone, len(TARGET.classes))
        assert whole is not None
        assert_same(codec.decode(sent, OPTIONS), whole)
    assert set(seen) == set(GENERATORS) | set(CONTROLS)
    assert sum(seen[name] for name in CONTROLS) == COUNT // 4


def test_generators_give_the_same_records_for_a_seed() -> None:
    assert list(records(3, 400, TARGET)) == list(records(3, 400, TARGET))
    assert list(records(3, 400, TARGET)) != list(records(4, 400, TARGET))
