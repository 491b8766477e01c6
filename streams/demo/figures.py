"""From what happened in a demo to its report: who was seen, after how many queries, and who was wronged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from streams.config import KafkaSettings
from streams.demo.attackers import Attacker, Line
from streams.demo.report import AttackerFigures, LatencyFigures, RecallFigures
from streams.demo.watch import SignalSeen, Watch
from streams.errors import BrokerError
from streams.store.messages import ProbeSummary
from streams.topics import client_options

Place = tuple[int, int]
"""(partition, offset) of a record."""

#: Milliseconds that one poll of the broker may take.
POLL_MILLISECONDS = 500
#: Polls without a record before reading ends with an error.
IDLE_POLLS = 40


class _Asked(msgspec.Struct):
    id: str | None = None


class _Event(msgspec.Struct):
    """What is read of a record that the model's logger wrote; probes that went straight to the topic have an id too."""

    request: _Asked = msgspec.field(default_factory=_Asked)


class Who(msgspec.Struct, frozen=True):
    """The demo's people: client hash (16 hex digits) -> name of the attacker, the benign client, or the sensor."""

    attackers: dict[str, str]
    benign: dict[str, str]
    sensors: dict[str, str]


def places(kafka: KafkaSettings, topic: str, wanted: frozenset[str]) -> dict[str, Place]:
    """Where the records of these request ids stand.

    Raises
    ------
    BrokerError
    """
    decoder = msgspec.json.Decoder(_Event)
    found: dict[str, Place] = {}
    try:
        consumer = KafkaConsumer(**client_options(kafka), group_id=None, enable_auto_commit=False)
        try:
            parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
            ends = consumer.end_offsets(parts)
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            idle = 0
            while any(consumer.position(part) < ends[part] for part in parts):
                polled = consumer.poll(timeout_ms=POLL_MILLISECONDS, max_records=5_000)
                idle = 0 if polled else idle + 1
                if idle > IDLE_POLLS:
                    raise BrokerError(f"{topic}: the broker gives no more records")
                for part, records in polled.items():
                    for record in records:
                        name = decoder.decode(record.value).request.id
                        if name in wanted:
                            found.setdefault(name, (part.partition, record.offset))
        finally:
            consumer.close()
    except KafkaError as error:
        raise BrokerError(f"cannot read {topic} at {kafka.bootstrap}: {error}") from None
    return found


def attackers(
    who: Sequence[Attacker],
    journal: Mapping[str, Sequence[Line]],
    where: Mapping[str, Place],
    signals: Iterable[SignalSeen],
    evidence: Iterable[SignalSeen],
) -> list[AttackerFigures]:
    """How soon each attacker was seen.

    Parameters
    ----------
    who : sequence of Attacker
    journal : mapping of attacker to lines
        Its queries in the order in which it sent them.
    where : mapping of request id to place
    signals : iterable of SignalSeen
        All signals of the demo.
    evidence : iterable of SignalSeen
        The evidence of all incidents that are open at the end.
    """
    said, proof = list(signals), list(evidence)
    figures = []
    for attacker in who:
        lines = journal.get(attacker.name, ())
        own = np.cumsum([line.own for line in lines])
        numbers = {where[line.request]: n for n, line in enumerate(lines) if line.request in where}
        speaking = [(signal, about(signal, numbers)) for signal in said]
        first: dict[str, int | None] = {"ticket": None, "page": None}
        for signal, number in speaking:
            if number is None or signal.pilot:
                continue
            queries = int(own[number])
            for level in ("ticket", "page") if signal.level == "page" else ("ticket",):
                before = first[level]
                first[level] = queries if before is None else min(before, queries)
        figures.append(
            AttackerFigures(
                attack=attacker.name,
                accounts=attacker.accounts,
                diluted=attacker.diluted,
                paged=any(s.level == "page" and not s.pilot and about(s, numbers) is not None for s in proof),
                queries_before_ticket=first["ticket"],
                queries_before_page=first["page"],
            )
        )
    return figures


def about(signal: SignalSeen, numbers: Mapping[Place, int]) -> int | None:
    """The newest query of an attacker that a signal speaks of; None when it is not about him.

    It is about him when most of its members are his queries.
    """
    members = {(signal.partition, offset) for offset, _ in signal.members} | {(signal.partition, signal.offset)}
    his = [numbers[place] for place in members if place in numbers]
    return max(his) if 2 * len(his) > len(members) else None


def wronged(signals: Iterable[SignalSeen], who: Who) -> tuple[set[str], set[str]]:
    """Benign clients and sensors that a page named.

    A cluster in which an attacker takes part is a true one, and names no single client.
    """
    benign: set[str] = set()
    sensors: set[str] = set()
    for signal in signals:
        if signal.level != "page" or signal.pilot:
            continue
        named = {signal.entity_id} if signal.entity == "client" else set(signal.clients)
        if signal.entity == "cluster" and any(client in who.attackers for client in named):
            continue
        benign |= {who.benign[client] for client in named if client in who.benign}
        sensors |= {who.sensors[client] for client in named if client in who.sensors}
    return benign, sensors


def recall(summaries: Iterable[ProbeSummary]) -> dict[str, RecallFigures]:
    """Recall of each attack; controls are none."""
    return {
        one.attack: RecallFigures(n=one.n, detected=one.detected, low=one.low, high=one.high)
        for one in summaries
        if one.kind != "control"
    }


def latency(watch: Watch) -> LatencyFigures:
    """Quantiles of the time from an event to its incident."""
    if not watch.latencies_ms:
        return LatencyFigures(None, None)
    p50, p99 = np.quantile(watch.latencies_ms, [0.5, 0.99], method="higher")
    return LatencyFigures(float(p50), float(p99))
