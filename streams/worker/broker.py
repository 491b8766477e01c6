"""The broker's side of a worker: connection options of aiokafka's clients, the topic's identity, start checks."""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka.helpers import create_ssl_context
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from streams.config import KafkaSettings
from streams.errors import BrokerError, ConfigError, MissingTopic
from streams.topics import DEAD_SUFFIX, client_options

#: How long the first contact with the broker may take.
BOOTSTRAP_MILLISECONDS = 10_000
#: Kafka's error code of a topic that does not exist.
_UNKNOWN_TOPIC = 3
#: Kafka's spelling of "no topic id".
_NO_ID = "00000000-0000-0000-0000-000000000000"


def async_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection options of aiokafka's clients; TLS and SASL pass through.

    Raises
    ------
    ConfigError
    """
    known = client_options(kafka)
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        try:
            options["ssl_context"] = create_ssl_context(
                cafile=kafka.ssl_cafile, certfile=kafka.ssl_certfile, keyfile=kafka.ssl_keyfile
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"kafka.ssl_*: the certificates cannot be loaded: {error}") from None
    if kafka.sasl_mechanism is not None:
        for name in ("sasl_mechanism", "sasl_plain_username", "sasl_plain_password"):
            options[name] = known[name]
    return options


def topic_id(kafka: KafkaSettings, topic: str) -> str:
    """The broker's id of an event topic; empty where the broker has none.

    Raises
    ------
    BrokerError
        No broker answers.
    MissingTopic
        It, or its dead-letter topic, does not exist.
    """
    try:
        admin = KafkaAdminClient(**client_options(kafka), bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS)
        try:
            found = {said["name"]: said for said in admin.describe_topics([topic, topic + DEAD_SUFFIX])}
        finally:
            admin.close()
    except KafkaError as error:
        raise BrokerError(f"no Kafka broker answers at {kafka.bootstrap}: {error}") from None
    for name in (topic, topic + DEAD_SUFFIX):
        code = found[name]["error_code"] if name in found else _UNKNOWN_TOPIC
        if code == _UNKNOWN_TOPIC:
            raise MissingTopic(f"topic {name!r} does not exist; create it with `vedette topics`")
        if code:
            raise BrokerError(f"the broker at {kafka.bootstrap} refuses to describe topic {name!r} (error {code})")
    identity = str(found[topic].get("topic_id") or "")
    return "" if identity == _NO_ID else identity
