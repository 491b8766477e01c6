"""Kafka: broker, topic, record times, whose the events are, whether they fit the bundle, and how far workers came."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import BrokerResponseError, KafkaError, RetriableError
from redis import Redis

from detectors.kernels.siphash import KEY_BYTES, hash_bytes
from streams import config
from streams.config import ModelSettings, Settings
from streams.doctor import sampling
from streams.doctor.finding import Finding, Findings, many, ok, problem, warning
from streams.doctor.redis_side import CLOCK_WARNING_SECONDS, compare_clocks
from streams.doctor.sampling import Clients, SampledRecord
from streams.errors import (
    BrokerError,
    BundleMismatch,
    ConfigError,
    MissingTopic,
    NotKeyedByClient,
    TopicRecreated,
    WatermarkMissing,
)
from streams.store.keys import PartitionKeys
from streams.topics import DEAD_SUFFIX, client_options
from streams.worker.keyed import ALLOWED_SHARE

if TYPE_CHECKING:
    from detectors.contract import Scorer

#: The first contact with the broker may take so long.
BOOTSTRAP_MILLISECONDS = 5_000
#: A group's coordinator may need so long to be there.
COORDINATOR_SECONDS, POLL_SECONDS = 10.0, 0.1
#: Oldest broker that Vedette is meant for.
OLDEST_KAFKA = (3, 9)
#: One id with at least this share of the rows is probably a gateway, not a client.
DOMINANT_SHARE = 0.25
#: Rows that a sample needs before shares mean anything.
LEAST_ROWS = 200
#: Records that are decoded with the bundle's schema, over all partitions.
DECODED_RECORDS = 500
#: A partition whose time is farther ahead of this machine's clock has met a record from a wrong clock.
AHEAD_SECONDS = 3600.0
#: What rows without a client go without.
LOST_WITHOUT_CLIENT = (
    "such rows are scored one by one and compared in the index of all accounts, but have no history, no sequential "
    "test, no query clusters and no page of their own, and the drift watch does not count them"
)


def examine(
    settings: Settings,
    model: ModelSettings,
    scorer: Scorer | None,
    store: Redis | None,
    environ: Mapping[str, str],
    clock: Callable[[], float],
) -> list[Finding]:
    """All findings; one that makes the rest pointless ends them."""
    kafka = settings.kafka
    try:
        options = client_options(kafka)
    except ConfigError as error:
        return [problem("kafka", str(error), "correct the settings under [kafka]", ConfigError)]
    options.update(bootstrap_timeout_ms=BOOTSTRAP_MILLISECONDS, client_id="vedette-doctor")
    findings: list[Finding] = []
    admin = consumer = None
    try:
        admin = KafkaAdminClient(**options)
        consumer = KafkaConsumer(**options, group_id=None, enable_auto_commit=False)
        findings += server(admin, settings, clock)
        told, partitions = topic(admin, settings, model)
        findings += told
        if partitions:
            sample = sampling.newest(consumer, model.topic, partitions)
            findings += times(sample, settings, clock)
            findings += clients(sample, len(partitions), settings, model, environ)
            if scorer is not None and sample:
                findings.append(decodable(sample, scorer, settings, model))
            if store is not None:
                topic_id = str(admin.describe_topics([model.topic])[0].get("topic_id") or "")
                findings.append(progress(admin, consumer, store, settings, model, topic_id, partitions))
    except BrokerResponseError as error:
        text = f"the broker at {kafka.bootstrap} refuses: {error}"
        findings.append(
            problem("kafka", text, "give Vedette's user the rights that docs/operations.md lists", BrokerError)
        )
    except KafkaError as error:
        text = f"no Kafka broker answers at {kafka.bootstrap}: {error}"
        remedy = "start the broker, or correct kafka.bootstrap and the security settings"
        findings.append(problem("kafka", text, remedy, BrokerError))
    finally:
        for client in (admin, consumer):
            if client is not None:
                client.close()
    return findings


def server(admin: KafkaAdminClient, settings: Settings, clock: Callable[[], float]) -> Findings:
    """Version by protocol, number of brokers, and the controller's clock where it tells."""
    cluster = admin.describe_cluster()
    version = tuple(admin.get_broker_version_data(cluster["brokers"][0]["broker_id"]).broker_version[:2])
    text = f"Kafka {'.'.join(map(str, version))} (by its protocol) answers, {many(len(cluster['brokers']), 'broker')}"
    if version < OLDEST_KAFKA:
        oldest = ".".join(map(str, OLDEST_KAFKA))
        yield warning("kafka", f"{text}; Vedette is meant for {oldest} and later", "upgrade it")
    else:
        yield ok("kafka", text)
    try:
        voters = admin.describe_metadata_quorum()["topics"][0]["partitions"][0]["current_voters"]
        told = max(voter["last_fetch_timestamp"] or 0 for voter in voters)
    except (KafkaError, LookupError, TypeError):
        return
    if told > 0:
        yield compare_clocks("kafka clock", "the controller's clock", told / 1000 - clock(), settings)


def topic(admin: KafkaAdminClient, settings: Settings, model: ModelSettings) -> tuple[list[Finding], list[int]]:
    """The event topic and its dead letters; and the partitions, if all of them can be read."""
    name, dead = model.topic, model.topic + DEAD_SUFFIX
    known = {one["name"]: one for one in admin.describe_topics([name, dead]) if not one["error_code"]}
    letters = ok("dead letters", f"topic {dead}")
    if dead not in known:
        text = f"no topic {dead}: what cannot be scored has nowhere to go"
        letters = problem("dead letters", text, "vedette topics", MissingTopic)
    if name not in known:
        remedy = "vedette topics, or correct models.topic"
        return [problem("topic", f"no topic {name} at the broker", remedy, MissingTopic), letters], []
    parts = known[name]["partitions"]
    copies = min(len(part["replica_nodes"]) for part in parts)
    text = f"{name}: {many(len(parts), 'partition')}, {many(copies, 'replica')}"
    away = [part["partition_index"] for part in parts if part["leader_id"] < 0]
    if away:
        text += f"; no leader for partition {', '.join(map(str, away[:8]))}"
        return [problem("topic", text, "bring the missing brokers back", BrokerError), letters], []
    held = admin.describe_configs([ConfigResource("topic", name)], config_filter="all")["topic"][name]
    values = {key: str(entry["value"]) for key, entry in held.items()}
    return [ok("topic", text), letters, *topic_settings(values, settings, name)], sorted(
        part["partition_index"] for part in parts
    )


def topic_settings(held: Mapping[str, str], settings: Settings, name: str) -> Findings:
    """Timestamps, retention and record size."""
    stamped = held.get("message.timestamp.type")
    if stamped == "LogAppendTime":
        yield ok("topic time", "LogAppendTime: the broker stamps records")
    else:
        text = f"{stamped}: records carry the sender's clock, which may jump or lie; LogAppendTime is better"
        remedy = f"kafka-configs.sh --alter --topic {name} --add-config message.timestamp.type=LogAppendTime"
        yield warning("topic time", text, remedy)
    if "compact" in held.get("cleanup.policy", ""):
        text = "cleanup.policy has `compact`: Kafka removes all but a client's newest event"
        yield problem("topic retention", text, "set cleanup.policy=delete", ConfigError)
    else:
        kept = int(held.get("retention.ms", -1))
        yield ok("topic retention", "for ever" if kept < 0 else f"{kept / 3_600_000:,.1f} hours")
    largest, accepted = int(held.get("max.message.bytes", 0)), settings.worker.max_record_bytes
    if largest > accepted:
        text = f"the topic takes records of {largest:,} bytes; above {accepted:,} they become dead letters"
        yield warning("record size", text, "raise worker.max_record_bytes, or lower the topic's max.message.bytes")


def times(sample: Sequence[SampledRecord], settings: Settings, clock: Callable[[], float]) -> Findings:
    """Whether record times can be believed."""
    if not sample:
        return
    ahead = max(record.timestamp for record in sample) / 1000 - clock()
    steps = (a.timestamp - b.timestamp for a, b in itertools.pairwise(sample) if a.partition == b.partition)
    back = max(steps, default=0) / 1000
    if ahead > CLOCK_WARNING_SECONDS:
        yield compare_clocks("record times", "the newest record's time", ahead, settings)
    elif back > CLOCK_WARNING_SECONDS:
        text = f"records of one partition go back by up to {back:,.1f} s"
        yield warning("record times", text, "use LogAppendTime, or mend the senders' clocks")
    else:
        yield ok("record times", f"the newest record is {age(-ahead)} old; none goes back in time")


def clients(
    sample: Sequence[SampledRecord],
    partitions: int,
    settings: Settings,
    model: ModelSettings,
    environ: Mapping[str, str],
) -> Findings:
    """Whether the topic is keyed by client, whose the rows are, and what is lost where nobody's."""
    path = model.client
    if not sample:
        text = "the topic is empty: whether it is keyed by client is unknown"
        yield warning("clients", text, "look again when events flow")
        return
    found = sampling.whose(sample, path)
    if not found.total:
        yield problem(
            "clients", f"none of {len(sample):,} newest records is an event", "see docs/formats.md", BundleMismatch
        )
        return
    if not found.identified:
        text = f"none of {found.total:,} sampled rows has a client at {path!r}: {LOST_WITHOUT_CLIENT}"
        yield warning("clients", text, "set models.client to where the client's identity stands")
        return
    seen = f"{many(len(found.rows), 'client')} in {found.identified:,} sampled rows of {many(partitions, 'partition')}"
    if found.split:
        worst = found.split[0]
        text = (
            f"{len(found.split):,} of {found.repeating:,} clients with several rows lie in several partitions, "
            f"{client_name(worst, settings, environ)} in {len(found.partitions[worst])}; their history is cut in pieces"
        )
        if len(found.split) > ALLOWED_SHARE * found.repeating:
            remedy = "key the topic by client id, or write it anew, keyed by client; workers refuse it"
            yield problem("clients", f"the topic is not keyed by client: {text}", remedy, NotKeyedByClient)
        else:
            yield warning("clients", text, "no matter after a change of the number of partitions; else mend the sender")
    elif not found.repeating and partitions > 1:
        text = f"{seen}, none of them twice: whether the topic is keyed by client cannot be told"
        yield warning("clients", text, f"make sure that {path!r} names a client, not a request")
    else:
        yield ok("clients", f"{seen}, each in one partition")
    if found.anonymous:
        text = f"{found.anonymous / found.total:.1%} of sampled rows have no client: {LOST_WITHOUT_CLIENT}"
        yield warning("anonymous", text, f"log the client's identity at {path!r}")
    yield from busy(found, settings, environ)


def busy(found: Clients, settings: Settings, environ: Mapping[str, str]) -> Findings:
    """Ids that own so much of the traffic that they are hardly one client."""
    if found.identified < LEAST_ROWS:
        return
    shares = [(client, rows / found.identified) for client, rows in found.rows.most_common()]
    owners = [(client, share) for client, share in shares if share >= DOMINANT_SHARE]
    if owners:
        named = ", ".join(f"{client_name(client, settings, environ)} {share:.0%}" for client, share in owners)
        text = (
            f"{many(len(owners), 'id')} with most of the traffic ({named}): one id for a whole gateway looks like one "
            "busy client, and everybody behind it dilutes an attacker's queries"
        )
        yield warning("busy ids", text, "log the end user's id instead of the gateway's")


def client_name(client: bytes | int, settings: Settings, environ: Mapping[str, str]) -> str:
    """A client as incidents show it: its keyed hash, never the raw id."""
    if isinstance(client, int):
        return f"client {client:016x}"
    try:
        key = config.secret(settings, "client", environ)
    except ConfigError:
        return "a client (no key to hash its id with)"
    return f"client {hash_bytes(key, client) or 1:016x}"


def decodable(sample: Sequence[SampledRecord], scorer: Scorer, settings: Settings, model: ModelSettings) -> Finding:
    """Whether the newest events become rows under the bundle's schema."""
    from streams.events import decoder, options_for

    options = options_for(model, settings.worker, scorer.schema, bytes(KEY_BYTES))
    codec = decoder(model.format)
    by_partition: dict[int, list[SampledRecord]] = defaultdict(list)
    for record in sample:
        by_partition[record.partition].append(record)
    share = max(1, DECODED_RECORDS // len(by_partition))
    records = rows = refused = 0
    reasons: Counter[str] = Counter()
    example: dict[str, str] = {}
    for partition, held in sorted(by_partition.items()):
        batch = codec.decode(held[-share:], options)
        records += batch.records
        rows += len(batch)
        for letter in batch.dead:
            refused += 1 if letter.rows is None else len(letter.rows)
            reasons[letter.reason] += 1
            example.setdefault(letter.reason, f"partition {partition}, offset {letter.offset}: {letter.detail}")
    if not reasons:
        return ok("events", f"{many(rows, 'row')} of the {records:,} newest records fit the bundle's schema")
    told = "; ".join(f"{count:,} x {reason} ({example[reason]})" for reason, count in reasons.most_common(3))
    if not rows:
        text = f"not one of the {records:,} newest records can be scored: {told}"
        return problem("events", text, "check models.name, models.format and the bundle's schema", BundleMismatch)
    text = f"{refused:,} rows beside {rows:,} good ones become dead letters: {told}"
    return warning("events", text, "see docs/formats.md")


def progress(
    admin: KafkaAdminClient,
    consumer: KafkaConsumer,
    store: Redis,
    settings: Settings,
    model: ModelSettings,
    topic_id: str,
    partitions: Sequence[int],
) -> Finding:
    """Whether every partition's watermark lies within the topic, and belongs to it."""
    places = [TopicPartition(model.topic, partition) for partition in partitions]
    starts, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
    committed = committed_places(admin, settings.kafka.group, places)
    behind = 0
    fast: list[str] = []
    for place in places:
        held: Any = store.hmget(PartitionKeys(model.topic, place.partition).watermark, "w", "topic_id", "time")
        stored, owner, stamped = held
        where = f"{model.topic}/{place.partition}"
        if stored is None and place in committed:
            text = f"{where}: Kafka holds a committed offset, Redis no watermark: Redis has lost its data"
            return problem("progress", text, "restore Redis, or begin anew (docs/operations.md)", WatermarkMissing)
        mark, start, end = int(stored or starts[place]), starts[place], ends[place]
        anew = "stop the workers and begin anew (docs/operations.md)"
        if owner and topic_id and owner.decode() != topic_id:
            text = f"{where}: the watermark belongs to an older topic of that name: the topic was created anew"
            return problem("progress", text, anew, TopicRecreated)
        if mark > end:
            text = f"{where}: the watermark {mark:,} lies beyond the topic's end {end:,}: the topic was created anew"
            return problem("progress", text, anew, TopicRecreated)
        if mark < start:
            text = f"{where}: records {mark:,} to {start:,} expired before they were scored"
            return problem("progress", text, "lengthen the topic's retention, run more workers", BrokerError)
        behind += end - mark
        ahead = int(stamped or 0) / 1e6 - time.time()
        if ahead > AHEAD_SECONDS:
            fast.append(f"{where} by {age(ahead)}")
    if fast:
        text = f"the time of records runs ahead of this machine's clock: {', '.join(fast)}"
        advice = "correct the loggers' clocks, or use LogAppendTime; see Time in docs/operations.md"
        return warning("progress", text, advice)
    return ok("progress", f"{many(behind, 'record')} not scored yet")


def committed_places(admin: KafkaAdminClient, group: str, places: Sequence[TopicPartition]) -> set[TopicPartition]:
    """Partitions with a committed offset. A broker that is asked for the first time has to make its own topic first."""
    deadline = time.monotonic() + COORDINATOR_SECONDS
    while True:
        try:
            offsets = admin.list_group_offsets({group: places})[group]
        except RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return {place for place, held in offsets.items() if held.offset >= 0}


def age(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{max(0.0, seconds):.1f} s"
    return f"{seconds / 60:,.0f} min" if round(seconds / 60) < 120 else f"{seconds / 3600:,.1f} h"
