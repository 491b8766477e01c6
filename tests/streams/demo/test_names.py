"""On servers of others the demo touches its own names only, and leaves nothing."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

from streams.config import KafkaSettings
from streams.demo.names import Names
from streams.store.keys import ModelKeys, PartitionKeys
from streams.topics import ensure


def commit_in(kafka: str, group: str, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka)
    producer.send(topic, b"x").get(10)
    producer.close()
    consumer = KafkaConsumer(topic, bootstrap_servers=kafka, group_id=group, auto_offset_reset="earliest")
    assert next(iter(consumer)).value == b"x"
    consumer.commit()
    consumer.close()


def test_topics_and_groups_of_others_stay(kafka: str) -> None:
    names = Names.among_others()
    settings = KafkaSettings(bootstrap=kafka)
    near = f"{names.group}x.events"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(near, 1, 1)])
    ensure(settings, names.topic, 2)
    try:
        commit_in(kafka, names.group, names.topic)
        commit_in(kafka, f"{names.group}x", near)
        names.clean_broker(settings)
        topics, groups = set(admin.list_topics()), {one["group_id"] for one in admin.list_groups()}
        assert near in topics
        assert f"{names.group}x" in groups
        assert not {name for name in topics if name == names.topic or name.startswith(f"{names.topic}.")}
        assert names.group not in groups
        names.clean_broker(settings)
    finally:
        admin.delete_topics([near])
        admin.delete_groups([f"{names.group}x"])
        admin.close()


def test_keys_of_others_stay(redis: Any) -> None:
    names = Names.among_others()
    others = [
        "vedette:{digits}:alerts",
        PartitionKeys(f"{names.topic}x", 0).totals,
        ModelKeys("digits-other").alerts,
        "k",
    ]
    ours = [ModelKeys(names.model).alerts, PartitionKeys(names.topic, 0).totals, PartitionKeys(names.topic, 17).signals]
    redis.mset(dict.fromkeys([*others, *ours], b"1"))
    names.clean_redis(redis)
    assert {key.decode() for key in redis.scan_iter()} == set(others)


def test_two_demos_have_different_names() -> None:
    first, second = Names.among_others(), Names.among_others()
    assert first.topic != second.topic
    assert first.model != second.model
    assert first.group != second.group


@pytest.mark.parametrize("names", [Names.alone(), Names.among_others()])
def test_names_are_allowed(names: Names) -> None:
    ModelKeys(names.model)
