from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from redis import Redis

from streams.store.keys import PartitionKeys
from streams.store.messages import ReasonMessage, SignalMessage

MINUTE = 60_000_000
START = 1_700_000_000_000_000 // MINUTE * MINUTE

SignalFactory = Callable[..., SignalMessage]


def signal(
    offset: int = 0,
    partition: int = 0,
    client: str = "3fa1" * 4,
    model: str = "digits",
    topic: str = "events",
    **changes: Any,
) -> SignalMessage:
    """A ticket of the rule `query-cluster` for one client; the broker time grows by a millisecond an offset."""
    plain = SignalMessage(
        id=f"{topic}/{partition}/{offset}/0/query-cluster",
        model=model,
        topic=topic,
        partition=partition,
        offset=offset,
        row=0,
        time=START + offset * 1000,
        at=START + offset * 1000 + 500,
        rule="query-cluster",
        level="ticket",
        technique="AML.T0043.001",
        entity="client",
        entity_id=client,
        statistic=12.0,
        threshold=10.0,
        reasons=[ReasonMessage(detector="trust_ratio", p=0.01, text="nearer to another class")],
        members=[(offset - place, 0) for place in range(min(offset + 1, 20), 0, -1)],
        clients=[client],
        input=[0.0, 1.0],
        nearest=[0.5, float(int(client, 16) % 2**50)],
        label=1,
        nearest_label=1,
        measures={"size": 20.0},
        bundle="b1",
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture(scope="session")
def make_signal() -> SignalFactory:
    return signal


@pytest.fixture
def send(redis: Redis) -> Callable[[SignalMessage], None]:
    """Append a signal to its partition's stream, as a worker does."""

    def append(message: SignalMessage) -> None:
        keys = PartitionKeys(message.topic, message.partition)
        name = f"{message.offset + 1}-{message.row * 16}"
        redis.xadd(keys.signals, {"m": msgspec.json.encode(message)}, id=name)

    return append
