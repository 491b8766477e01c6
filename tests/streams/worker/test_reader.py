"""What the reader makes of a consumer that cannot read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import UnsupportedCodecError

from streams.config import KafkaSettings
from streams.errors import UnreadableRecord
from streams.worker.peers import Peer
from streams.worker.reader import EventReader


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
