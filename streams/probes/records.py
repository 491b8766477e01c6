"""Probe records in the model's own wire format, and the producer that sends them straight to the topic."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from numpy.typing import NDArray

from streams.config import KafkaSettings, ModelSettings
from streams.errors import BrokerError, ConfigError, MissingTopic
from streams.probes import marks
from streams.topics import client_options

#: How long the first contact with the broker may take.
BOOTSTRAP_MILLISECONDS = 10_000
#: How long a send may take before the probe is given up.
SEND_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One record as the broker has it."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """A Kafka record before it has a mark."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def encode(model: ModelSettings, client: str, inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> Envelope:
    """One event with all rows of `inputs`, as the model's logger would write it.

    Parameters
    ----------
    model : ModelSettings
        Its `format` (``auto`` is written as native JSON, or as Open Inference Protocol where the client stands in a
        request parameter) and where the client's identity stands.
    client : str
        The probe client.
    inputs : float64 (n, d)
    outputs : float64 (n, k)
        The model's answer.

    Raises
    ------
    ConfigError
        When the declared format has no place for the client's identity, or is one that probes are not written in.
    """
    place, _, name = model.client.partition(":")
    client_bytes = client.encode()
    headers = ((name, client_bytes),) if place == "header" else ()
    form = model.format
    if form == "auto":
        form = "oip" if place == "parameter" else "native"
    if form == "compact":
        raise ConfigError(
            f"models.{model.name}.format: probes are not written as 'compact' records; set 'auto', which reads compact "
            "records as well as the probes' JSON"
        )
    body: dict[str, Any]
    if form == "native":
        if place == "parameter":
            raise ConfigError(
                f"models.{model.name}.client: {model.client!r} needs the format 'oip'; native has no parameters"
            )
        one = len(inputs) == 1
        body = {
            "id": secrets.token_hex(16),
            "model": model.name,
            "inputs": (inputs[0] if one else inputs).tolist(),
            "outputs": (outputs[0] if one else outputs).tolist(),
        }
    else:
        request: dict[str, Any] = {"id": secrets.token_hex(16), "inputs": [_tensor("input", inputs)]}
        if place == "parameter":
            request["parameters"] = {name: client}
        response = {"model_name": model.name, "id": request["id"], "outputs": [_tensor("output", outputs)]}
        body = {"model_name": model.name, "request": request, "response": response}
    if place == "field":
        body[name] = client
    return Envelope(client_bytes, json.dumps(body, separators=(",", ":"), allow_nan=False).encode(), headers)


def _tensor(name: str, rows: NDArray[np.float64]) -> dict[str, Any]:
    return {"name": name, "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key (murmur2, as in the Java client)."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class DirectSender:
    """Sends marked records straight to the event topic with kafka-python.

    Parameters
    ----------
    kafka : KafkaSettings
    model : ModelSettings
    key : bytes
        The probe key.

    Raises
    ------
    BrokerError, MissingTopic
    """

    def __init__(self, kafka: KafkaSettings, model: ModelSettings, key: bytes) -> None:
        self._model = model
        self._key = key
        self._bootstrap = kafka.bootstrap
        self._require_topic(kafka)
        try:
            self._producer = KafkaProducer(
                **client_options(kafka),
                acks="all",
                linger_ms=5,
                max_block_ms=round(SEND_SECONDS * 1000),
                request_timeout_ms=round(SEND_SECONDS * 500),
                delivery_timeout_ms=round(SEND_SECONDS * 1000),
                bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS,
                client_id="vedette-prober",
            )
        except KafkaError as error:
            raise BrokerError(f"no Kafka broker answers at {kafka.bootstrap}: {error}") from None

    def _require_topic(self, kafka: KafkaSettings) -> None:
        """A producer asked about a missing topic waits for it; an admin client answers at once."""
        try:
            admin = KafkaAdminClient(**client_options(kafka), bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS)
            try:
                names = set(admin.list_topics())
            finally:
                admin.close()
        except KafkaError as error:
            raise BrokerError(f"no Kafka broker answers at {kafka.bootstrap}: {error}") from None
        if self._model.topic not in names:
            raise MissingTopic(f"topic {self._model.topic!r} does not exist; create it with `vedette topics`")

    def partitions(self) -> int:
        """Number of partitions of the event topic.

        Raises
        ------
        BrokerError
        """
        try:
            return len(self._producer.partitions_for(self._model.topic))
        except KafkaError as error:
            raise BrokerError(f"no metadata of {self._model.topic!r} from {self._bootstrap}: {error}") from None

    def send(
        self,
        campaign: bytes,
        client: str,
        inputs: NDArray[np.float64],
        outputs: NDArray[np.float64],
        issued_us: int,
        first_counter: int = 0,
    ) -> list[Sent]:
        """Send each row as a record of its own, in order, to the client's partition; returns when all are acknowledged.

        Where the topic lets senders stamp records, they are stamped with the issue time.

        Raises
        ------
        BrokerError
            When one was not acknowledged in time; others may have arrived.
        """
        partition = partition_of(client.encode(), self.partitions())
        waiting = []
        try:
            for row in range(len(inputs)):
                event = encode(self._model, client, inputs[row : row + 1], outputs[row : row + 1])
                mark = marks.sign_header(
                    self._key,
                    self._model.topic,
                    partition,
                    campaign,
                    first_counter + row,
                    issued_us,
                    client.encode(),
                    event.value,
                )
                waiting.append(
                    self._producer.send(
                        self._model.topic,
                        key=event.key,
                        value=event.value,
                        headers=[*event.headers, (marks.HEADER, mark)],
                        partition=partition,
                        timestamp_ms=issued_us // 1000,
                    )
                )
            self._producer.flush(timeout=SEND_SECONDS)
            return [Sent(partition, future.get(timeout=SEND_SECONDS).offset) for future in waiting]
        except KafkaError as error:
            raise BrokerError(f"probe records were not acknowledged by {self._bootstrap}: {error}") from None

    def close(self) -> None:
        """Close the producer without waiting long."""
        self._producer.close(timeout=2)
