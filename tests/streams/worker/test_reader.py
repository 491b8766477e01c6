"""What the reader makes of a consumer that cannot read."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import UnsupportedCodecError

from streams.config import KafkaSettings
from streams.errors import UnreadableRecord
from streams.worker.peers import Peer
from streams.worker.reader import EventReader
from streams.worker.watchdog import Watchdog


class WithoutLibrary:
    """A consumer without the library of a codec; that one cannot be taken away from a running interpreter."""

    async def getmany(self, *_: object, **__: object) -> Any:
        raise UnsupportedCodecError("Libraries for zstd compression codec not found")


def test_a_codec_without_its_library_is_told_and_not_waited_for() -> None:
    async def run() -> None:
        nothing: Any = None
        reader = EventReader(KafkaSettings(), "events", nothing, nothing, Peer("the broker"))
        consumer: Any = WithoutLibrary()
        reader._consumer = consumer
        crew: Any = SimpleNamespace(options=SimpleNamespace(max_rows=10))
        reader.crew = crew
        await reader._fetch()

    with pytest.raises(UnreadableRecord, match=r"records of events are compressed .*zstd.* pip install cramjam"):
        asyncio.run(run())


def test_what_was_recorded_since_the_ends_were_seen_is_no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that goes away then leaves the ends as they were: the watchdog must not take that for a stall."""

    async def made() -> EventReader:
        return EventReader(KafkaSettings(), "digits", None, cast("Any", None), Peer("the broker"))

    reader = asyncio.run(made())
    partition = SimpleNamespace(recorded=265, moved_at=time.monotonic() - 60.0, where="digits/0")
    reader.joined_at = time.monotonic()
    reader.partitions = cast("Any", {0: partition})
    monkeypatch.setattr(reader, "_ends", {0: 500, 1: 7})
    watchdog = Watchdog(reader, (), 3.0)
    monkeypatch.setattr(watchdog, "_excused", 0.0)
    assert reader.lag == {0: 235}
    assert "235 records of lag" in str(watchdog.reason(watchdog.beat))
    partition.recorded = 500
    assert reader.lag == {0: 0}
    assert watchdog.reason(watchdog.beat) is None
    partition.recorded = -1
    assert reader.lag == {}, "not known before the partition is taken"
