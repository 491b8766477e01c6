"""Setting up topics."""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from streams.config import KafkaSettings
from streams.errors import BrokerError, ConfigError

#: Suffix of the topic that takes what cannot be scored.
DEAD_SUFFIX = ".dead"
#: The first contact with the broker may take so long, and new topics until they have leaders.
BOOTSTRAP_MILLISECONDS, READY_MILLISECONDS = 10_000, 15_000


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection options of kafka-python's clients; TLS and SASL pass through."""
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.sasl_mechanism is not None:
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = _password(kafka)
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        value = getattr(kafka, name)
        if value is not None:
            options[name] = value
    return options


def _password(kafka: KafkaSettings) -> str:
    if kafka.sasl_password_file is None:
        raise ConfigError("kafka.sasl_password_file: not set although kafka.sasl_mechanism is")
    try:
        with open(kafka.sasl_password_file, encoding="utf-8") as stored:
            return stored.read().strip()
    except OSError:
        raise ConfigError(f"kafka.sasl_password_file: cannot read {kafka.sasl_password_file}") from None


def ensure(kafka: KafkaSettings, topic: str, partitions: int, replication: int = 1) -> list[str]:
    """Create the event topic and its dead-letter topic where missing, and wait for them; returns the names created.

    Both use LogAppendTime: broker time is the only clock that senders can't set.
    """
    created = []
    try:
        admin = KafkaAdminClient(**client_options(kafka), bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS)
    except KafkaError as error:
        raise BrokerError(f"no Kafka broker answers at {kafka.bootstrap}: {error}") from None
    try:
        for name, count in ((topic, partitions), (topic + DEAD_SUFFIX, 1)):
            stamped = {"message.timestamp.type": "LogAppendTime"}
            wanted = NewTopic(name=name, num_partitions=count, replication_factor=replication, topic_configs=stamped)
            try:
                admin.create_topics([wanted])
                created.append(name)
            except TopicAlreadyExistsError:
                continue
        admin.wait_for_topics(created, timeout_ms=READY_MILLISECONDS)
    except KafkaError as error:
        raise BrokerError(f"cannot create topics at {kafka.bootstrap}: {error}") from None
    finally:
        admin.close()
    return created
