"""What the demo is called on a broker and in Redis, and how all of it is taken away again."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from redis import Redis
from redis.exceptions import RedisError

from streams.config import KafkaSettings
from streams.errors import BrokerError, StoreError
from streams.store.keys import ModelKeys, PartitionKeys
from streams.topics import client_options

#: Keys that one step of a scan looks at.
SCAN_COUNT = 1_000
#: How long the broker is asked to remove what is ours, and how often.
REMOVE_SECONDS, REMOVE_PAUSE_SECONDS = 20.0, 0.3


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one demo; on servers that others use too they hold a random part, so that nothing of others is touched.

    Attributes
    ----------
    model, topic, group : str
    """

    model: str
    topic: str
    group: str

    @classmethod
    def alone(cls) -> Names:
        """For servers of our own."""
        return cls("digits", "digits.events", "vedette-digits")

    @classmethod
    def among_others(cls) -> Names:
        """For servers that others use too."""
        name = f"vedette-demo-{secrets.token_hex(4)}"
        return cls(f"digits-{name}", f"{name}.events", name)

    def clean_broker(self, kafka: KafkaSettings) -> None:
        """Delete our topics and consumer groups.

        Raises
        ------
        BrokerError
        """
        try:
            admin = KafkaAdminClient(**client_options(kafka))
            try:
                left = self._remove(admin)
            finally:
                admin.close()
        except KafkaError as error:
            raise BrokerError(f"what belongs to {self.topic} could not be removed: {error}") from None
        if left:
            raise BrokerError(f"could not be removed from the broker at {kafka.bootstrap}: {', '.join(left)}")

    def _remove(self, admin: KafkaAdminClient) -> list[str]:
        """Ask until the broker has nothing of ours any more; a group can go when its last member has."""
        until = time.monotonic() + REMOVE_SECONDS
        while True:
            topics = [name for name in admin.list_topics() if self._ours(name)]
            groups = [one["group_id"] for one in admin.list_groups() if self._ours(one["group_id"])]
            if (not topics and not groups) or time.monotonic() >= until:
                return topics + groups
            if topics:
                admin.delete_topics(topics, raise_errors=False)
            if groups:
                admin.delete_groups(groups)
            time.sleep(REMOVE_PAUSE_SECONDS)

    def clean_redis(self, redis: Redis) -> None:
        """Delete our keys.

        Raises
        ------
        StoreError
        """
        prefixes = (ModelKeys(self.model).tag, PartitionKeys(self.topic, 0).tag.removesuffix("0}"))
        try:
            for prefix in prefixes:
                for key in redis.scan_iter(match=f"{prefix}*", count=SCAN_COUNT):
                    redis.unlink(key)
        except RedisError as error:
            raise StoreError(f"keys of {self.model} could not be removed: {error}") from None

    def _ours(self, name: str) -> bool:
        return any(name == one or name.startswith((f"{one}.", f"{one}-")) for one in (self.topic, self.group))
