"""An hour of scheduled probes, compressed: real Kafka, Redis and worker, two probers, and a clock of the test's.

The topic has CreateTime and is stamped by that clock, so marks, minutes and schedules all go by it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition
from redis import Redis

from streams import children
from streams.events import decoder
from streams.events.batch import DecodeOptions
from streams.incidents.ledger import Ledger
from streams.incidents.monitoring import GROUP
from streams.probes import marks
from streams.probes.outcome import wilson
from streams.probes.store import ProbeStore
from streams.store.keys import ModelKeys
from streams.store.messages import ProbeOutcome, ProbeSummary
from streams.worker.scoring import PartitionScoring, ScoringOptions
from tests.streams.probes.hour_main import BURST_EVERY, CAMPAIGN_EVERY, CLOCK, HOLD, TRUTH, prober
from tests.streams.probes.seeing import VISIBLE_ROWS, SeeingScorer
from tests.streams.worker.conftest import CLASSES, CLIENT_KEY, MODEL, PROBE_KEY, WIDTH, Deployment

KEYS = ModelKeys(MODEL)
PARTITIONS = 2
LEASE_SECONDS = 3.0
HOUR = 3600
#: Where the first prober is killed, in the middle of a campaign.
KILLED_AT = 1800
#: Attacks that are started every interval: two bursts, two controls.
EACH_INTERVAL = 4

WaitUntil = Callable[..., Any]


class Hour:
    """The scene, and the test's clock."""

    def __init__(self, site: Deployment, redis: Redis, redis_url: str, wait_until: WaitUntil) -> None:
        self.site, self.redis, self.url, self.wait_until = site, redis, redis_url, wait_until
        self.store = ProbeStore(redis, MODEL, site.topic)
        self.began = (int(time.time()) - HOUR - 300) * 1_000_000
        self.elapsed = 0
        self.rng = np.random.default_rng(4)
        redis.set(CLOCK, self.began)
        self._sent = 0
        self.bundle = site.bundle
        self.write_bundle(off=False)

    def write_bundle(self, off: bool) -> SeeingScorer:
        """A bundle of the detector, switched on or off."""
        path = self.bundle.with_name(f"bundle-{off}.json") if off else self.bundle
        path.write_text(json.dumps({"width": WIDTH, "classes": CLASSES, "off": off}))
        return SeeingScorer(WIDTH, CLASSES, off)

    def advance(self, seconds: float) -> None:
        """Let time pass, with the traffic that belongs to it: benign clients, and one real attacker."""
        for moment in np.linspace(0, seconds, 20, endpoint=False):
            stamp = self.began // 1000 + round((self.elapsed + moment) * 1000)
            client = f"client-{self.rng.integers(30)}"
            self.traffic(client, self.rng.uniform(0, 0.4, WIDTH), stamp)
            if self.rng.random() < 0.15:
                self.traffic("attacker", np.full(WIDTH, 0.9), stamp)
        self.site.producer().flush()
        self.elapsed += round(seconds)
        self.redis.set(CLOCK, self.began + self.elapsed * 1_000_000)

    def traffic(self, client: str, row: Any, stamp: int) -> None:
        self._sent += 1
        body = {"id": f"r{self._sent}", "model": MODEL, "inputs": row.tolist(), "outputs": [0.2, 0.7, 0.1]}
        self.site.send(json.dumps(body).encode(), client, timestamp_ms=stamp)

    def outcomes(self) -> list[ProbeOutcome]:
        return self.store.outcomes()

    def finished(self) -> int:
        return self.redis.xlen(KEYS.probe_log)

    def settle(self, finished: int, what: str = "outcomes") -> None:
        """Until so many probes have been finished or more, and none is under way."""

        def done() -> bool:
            return self.finished() >= finished and not self.redis.hlen(KEYS.probe_plans)

        self.wait_until(done, 60, f"{what} at {self.elapsed} s: {finished} in all")

    def truth(self) -> dict[str, tuple[str, bool]]:
        return {name.decode(): tuple(json.loads(text)) for name, text in self.redis.hgetall(TRUTH).items()}

    def blind(self) -> Any:
        stored = Ledger(self.redis, KEYS).open_incident(GROUP)
        return None if stored is None else stored.incident

    def records(self) -> dict[int, list[Any]]:
        """The whole log, by partition."""
        consumer = KafkaConsumer(bootstrap_servers=self.site.kafka, group_id=None)
        places = [TopicPartition(self.site.topic, partition) for partition in range(PARTITIONS)]
        ends = consumer.end_offsets(places)
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        found: dict[int, list[Any]] = defaultdict(list)
        while any(consumer.position(place) < ends[place] for place in places):
            for place, records in consumer.poll(timeout_ms=200).items():
                found[place.partition] += records
        consumer.close()
        return found


@pytest.fixture
def hour(deploy: Callable[..., Deployment], redis: Redis, redis_url: str, wait_until: WaitUntil) -> Iterator[Hour]:
    site = deploy(PARTITIONS)
    scene = Hour(site, redis, redis_url, wait_until)
    keys = {"VEDETTE_CLIENT_KEY": CLIENT_KEY.hex(), "VEDETTE_PROBE_KEY": PROBE_KEY.hex()}
    command = [sys.executable, "-m", "tests.streams.probes.seeing", str(site.config_file())]
    worker = children.spawn(command, site.directory / "worker-1.log", keys)
    yield scene
    children.signal_session(worker, signal.SIGKILL)
    worker.wait(10)


@pytest.fixture
def standby(hour: Hour) -> Iterator[threading.Thread]:
    """A second prober, which waits for the lease once it is started."""
    stop = threading.Event()
    with prober(hour.site.kafka, hour.site.topic, Redis.from_url(hour.url, socket_timeout=5), LEASE_SECONDS) as second:
        thread = threading.Thread(target=second.run, args=(stop,), daemon=True)
        yield thread
        stop.set()
        if thread.ident is not None:
            thread.join(10)


def first_prober(hour: Hour) -> subprocess.Popen[bytes]:
    arguments = [hour.site.kafka, hour.site.topic, hour.url, str(LEASE_SECONDS)]
    command = [sys.executable, "-m", "tests.streams.probes.hour_main", *arguments]
    return children.spawn(command, hour.site.directory / "worker-prober.log", {})


def is_real(name: str) -> bool:
    """Whether an array of the state belongs to real traffic."""
    return name.startswith(("real.", "sources."))


def is_probe(record: Any) -> bool:
    name = json.loads(record.value)["id"]
    return any(header == marks.HEADER for header, _ in record.headers) or name.startswith(marks.REQUEST_PREFIX)


def without_probes(hour: Hour, partition: int, records: list[Any], topic_id: str) -> dict[str, Any]:
    """What the worker would have recorded and remembered of a partition without the probes in it."""
    scorer = SeeingScorer(WIDTH, CLASSES)
    options = ScoringOptions(
        topic=hour.site.topic,
        model=MODEL,
        decode=DecodeOptions(MODEL, scorer.schema, "key", CLIENT_KEY),
        codec=decoder("native"),
        probe_key=PROBE_KEY,
        probe_ttl_us=120_000_000,
        clients=hour.site.settings().worker.clients_per_partition,
        index_rows=10,
        max_rows=1000,
    )
    scoring = PartitionScoring(scorer, options, partition, topic_id, 0)
    traffic = [record for record in records if not is_probe(record)]
    outcome = scoring.step(traffic, 0, pilot=False)
    return {
        "arrays": {name: array.tobytes() for name, array in scoring.arrays().items() if is_real(name)},
        "histograms": {name.encode(): packed for name, packed in scoring.histograms.packed().items()},
        "signals": [msgspec.structs.replace(signal, at=0) for signal in outcome.signals],
        "minutes": outcome.plan.minutes,
        "clock": scoring.clock.traffic,
    }


def assert_no_trace(hour: Hour) -> int:
    """State, histograms, counters and signals in Redis are those of the same log without its probes; returns pages."""
    of_probes = {"records", "rows", "probes", "probes_excluded", "probes_expired", "probes_replayed"}
    pages = 0
    hour.site.wait_snapshot()
    for partition, records in hour.records().items():
        keys = hour.site.keys(partition)
        topic_id = hour.redis.hget(keys.watermark, "topic_id").decode()
        wanted = without_probes(hour, partition, records, topic_id)
        probes = sum(is_probe(record) for record in records)
        assert probes > 100
        _, arrays = hour.site.snapshot(partition)
        kept = {
            name: b"".join(hour.redis.get(keys.chunk(digest)) for digest in entry[-1])
            for name, entry in arrays.items()
            if is_real(name)
        }
        assert kept == wanted["arrays"]
        assert hour.redis.hgetall(keys.histograms) == wanted["histograms"]
        said = [msgspec.structs.replace(one, at=0) for one in hour.site.signals(partition)]
        assert said == wanted["signals"]
        pages += sum(one.level == "page" for one in said)
        minutes = range(hour.began // 60_000_000, hour.began // 60_000_000 + 70)
        for minute in minutes:
            counts = {name.decode(): int(n) for name, n in hour.redis.hgetall(keys.minute(minute)).items()}
            plain = wanted["minutes"].get(minute, {})
            for name in (counts.keys() | plain.keys()) - of_probes:
                assert counts.get(name, 0) == plain.get(name, 0), (minute, name)
    return pages


@pytest.mark.timeout(280)
def test_an_hour_of_probes(hour: Hour, standby: threading.Thread, wait_until: WaitUntil) -> None:
    hour.advance(1)
    hour.site.wait_recorded(20)
    first = first_prober(hour)
    try:
        wait_until(lambda: hour.redis.exists(KEYS.lease("prober")), 60, "the first prober")
        standby.start()
        finished, campaigns = EACH_INTERVAL + 1, 1
        hour.settle(finished)
        while hour.elapsed + BURST_EVERY < KILLED_AT:
            hour.advance(BURST_EVERY)
            campaign = hour.elapsed // CAMPAIGN_EVERY >= campaigns
            campaigns += campaign
            finished += EACH_INTERVAL + campaign
            hour.settle(finished)

        # The prober is killed in the middle of a campaign; the standby abandons that one and goes on.
        hour.redis.set(HOLD, 1)
        hour.advance(BURST_EVERY)
        held = wait_until(
            lambda: [p for p in hour.store.plans() if p.attack == "hop_skip_jump"] and hour.finished(), 60, "it"
        )
        wait_until(lambda: hour.finished() == finished + EACH_INTERVAL, 60, "the other probes")
        assert held
        (cut,) = hour.store.plans()
        holder = hour.redis.hget(KEYS.lease("prober"), "holder")
        os.kill(first.pid, signal.SIGKILL)
        killed = time.monotonic()
        hour.redis.delete(HOLD)
        wait_until(lambda: hour.redis.hget(KEYS.lease("prober"), "holder") not in (None, holder), 30, "the takeover")
        took = time.monotonic() - killed
        # A standby looks four times in the life of a lease; the rest is what a busy machine takes.
        assert took <= LEASE_SECONDS * 1.25 + 5.0, f"the standby took over after {took:.1f} s"
        finished += EACH_INTERVAL + 1  # the abandoned one
        finished += EACH_INTERVAL + 1  # what the standby starts at once
        hour.settle(finished)
        (abandoned,) = [outcome for outcome in hour.outcomes() if outcome.abandoned]
        assert abandoned.campaign == cut.campaign
        started = hour.elapsed
        campaigns = 1
        while hour.elapsed < HOUR:
            hour.advance(BURST_EVERY)
            campaign = (hour.elapsed - started) // CAMPAIGN_EVERY >= campaigns
            campaigns += campaign
            finished += EACH_INTERVAL + campaign
            hour.settle(finished)

        # Recall is the injected ground truth, probe by probe and in every summary.
        truth = hour.truth()
        judged = [outcome for outcome in hour.outcomes() if not outcome.abandoned]
        assert len(judged) == finished - 1 >= 50
        expected: dict[str, list[bool]] = defaultdict(list)
        for outcome in judged:
            assert outcome.arrived == outcome.inputs, outcome
            assert outcome.excluded == 0
            attack, visible = truth.get(outcome.campaign, (outcome.attack, False))
            assert outcome.detected == visible, outcome
            assert outcome.ticketed == visible
            assert outcome.queries_to_page == (VISIBLE_ROWS if visible else None)
            expected[attack].append(visible)
        assert {a: len(v) for a, v in expected.items()} == Counter(outcome.attack for outcome in judged)
        assert 0 < sum(expected["square"]) < len(expected["square"])
        stored = hour.redis.hgetall(KEYS.probe_results).items()
        summaries = {name.decode(): msgspec.json.decode(text, type=ProbeSummary) for name, text in stored}
        assert summaries.keys() == expected.keys()
        for attack, seen in expected.items():
            summary = summaries[attack]
            assert summary.units == len(seen)
            assert summary.recall == pytest.approx(np.mean(seen), abs=1e-12), attack
            assert (summary.low, summary.high) == wilson(sum(seen), len(seen))
            assert summary.detectors["eye"].detected == sum(seen)
        assert summaries["hop_skip_jump"].threat == "injected"

        # Nobody was paged because of a probe, no incident was opened, no statistic moved.
        assert hour.blind() is None
        assert hour.redis.zcard(KEYS.incidents) == 0
        assert assert_no_trace(hour) == 1, "the real attacker's page, and no other"

        # The detector is switched off: two intervals later monitoring is known to be blind.
        off = hour.write_bundle(off=True)
        hour.redis.hset(
            KEYS.bundle, mapping={"path": str(hour.bundle.with_name("bundle-True.json")), "digest": off.digest}
        )
        wait_until(lambda: all(s.bundle == off.digest for s in hour.site.statuses()), 60, "the other bundle")
        for interval in (1, 2):
            hour.advance(BURST_EVERY)
            hour.settle(hour.finished() + EACH_INTERVAL, f"the probes of interval {interval}")
        incident = wait_until(hour.blind, 10, "monitoring to be known as blind")
        assert incident.level == "page"
        assert "missed" in incident.title
    finally:
        children.signal_session(first, signal.SIGKILL)
        first.wait(10)
