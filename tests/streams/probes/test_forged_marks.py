"""10,000 marks that are no probes of ours, or not any more, through a real worker that is killed twice meanwhile.

None is accepted as a probe, what is valid but expired or copied is never scored as traffic, every genuine probe is the
same probe however often it is delivered, and each is counted.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from streams.probes import marks
from tests.streams.worker.conftest import MODEL, PROBE_KEY, WIDTH, Deployment

TRIES = 10_000
GENUINE = 600
PARTITIONS = 2
#: Newest records of a partition that a worker looks at before it starts.
KEYED_SAMPLE = 300
#: `mark_ttl_seconds` of the settings.
TTL_MS = 120_000
START_MS = 1_700_000_000_000
STRANGER = bytes(reversed(PROBE_KEY))

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Record:
    """What is sent, and what it must be taken for: scored, expired, replayed (as probe), or traffic."""

    partition: int
    client: str
    value: bytes
    headers: Headers
    expected: str
    issued_ms: int = 0
    invalid_mark: bool = False


@dataclass
class Sender:
    """Sends records with the stamps of its own clock, and remembers what each place of the log must be taken for."""

    site: Deployment
    now_ms: int = START_MS
    places: dict[tuple[int, int], Record] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)

    def send(self, record: Record, back_ms: int = 0) -> None:
        self.site.send(record.value, record.client, record.partition, record.headers, self.now_ms - back_ms)
        self.places[record.partition, self.ends[record.partition]] = record
        self.ends[record.partition] += 1

    def benign(self) -> None:
        """Traffic keyed by client. A worker does not start where the newest records are mixed, as copies make them."""
        for number in range(KEYED_SAMPLE):
            for partition in range(PARTITIONS):
                rows = np.full((1, WIDTH), number % 7 + 0.5)
                self.send(Record(partition, f"client-{partition}-{number % 50}", body("r", rows), (), "traffic"))


def body(name: str, rows: np.ndarray) -> bytes:
    outputs = [[0.2, 0.7, 0.1]] * len(rows)
    return json.dumps({"id": name, "model": MODEL, "inputs": rows.tolist(), "outputs": outputs}).encode()


class Forge:
    """Genuine probes, and everything that can be made of them without the key."""

    def __init__(self, topic: str, rng: np.random.Generator) -> None:
        self.topic, self.rng = topic, rng
        self.campaign = rng.bytes(8)
        self.counter = 0

    def genuine(self, now_ms: int, issued_ms: int | None = None, key: bytes = PROBE_KEY, loose: bool = False) -> Record:
        """A probe as the prober sends it: straight, or as the endpoint's logger writes it."""
        issued = now_ms if issued_ms is None else issued_ms
        partition, client = int(self.rng.integers(PARTITIONS)), f"probe-{self.rng.integers(40)}"
        rows = self.rng.random((int(self.rng.integers(1, 4)), WIDTH)).round(3)
        self.counter += 1
        if self.rng.random() < 0.5 or loose:
            home = marks.ANYWHERE if loose else partition
            name = marks.sign_request(
                key, self.topic, self.campaign, self.counter, issued * 1000, client.encode(), rows, home
            )
            return Record(partition, client, body(name, rows), (), "scored", issued)
        value = body(f"r{self.counter}", rows)
        mark = marks.sign_header(
            key, self.topic, partition, self.campaign, self.counter, issued * 1000, client.encode(), value
        )
        return Record(partition, client, value, ((marks.HEADER, mark),), "scored", issued)

    def forged(self, now_ms: int) -> Record:
        """Signed under another key."""
        return traffic(self.genuine(now_ms, key=STRANGER))

    def expired(self, now_ms: int) -> Record:
        """Ours, but issued too long ago, or too far ahead."""
        distance = int(self.rng.integers(TTL_MS + 1, 100 * TTL_MS)) * int(self.rng.choice([-1, 1]))
        return replaced(self.genuine(now_ms, now_ms + distance), expected="expired")

    def aside(self, now_ms: int) -> Record:
        """Ours, a question that is no probe."""
        return replaced(self.genuine(now_ms, 0, loose=bool(self.rng.random() < 0.5)), expected="expired")

    def altered(self, victim: Record) -> Record:
        """A genuine one with something changed: a byte of the mark, the client, the inputs, the issue time."""
        how = int(self.rng.integers(4))
        event = json.loads(victim.value)
        if how == 0:
            return traffic(replaced(victim, client=f"mallory-{self.rng.integers(40)}"))
        if how == 1:
            event["inputs"][0][int(self.rng.integers(WIDTH))] += 0.001
            return traffic(replaced(victim, value=json.dumps(event).encode()))
        if victim.headers:
            version, name, issued, tag = victim.headers[0][1].split(b".")
            if how == 2:
                issued = b"%d" % (int(issued) + 1)
            else:
                tag = flipped(tag.decode(), self.rng, "0123456789abcdef").encode()
            return traffic(replaced(victim, headers=((marks.HEADER, b".".join((version, name, issued, tag))),)))
        prefix, nonce, tag = event["id"].split(".")
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        nonce, tag = (
            (flipped(nonce, self.rng, alphabet), tag) if how == 2 else (nonce, flipped(tag, self.rng, alphabet))
        )
        event["id"] = ".".join((prefix, nonce, tag))
        return traffic(replaced(victim, value=json.dumps(event).encode()))


def flipped(text: str, rng: np.random.Generator, alphabet: str) -> str:
    place = int(rng.integers(len(text)))
    other = rng.choice([letter for letter in alphabet if letter != text[place]])
    return text[:place] + other + text[place + 1 :]


def replaced(record: Record, **changes: object) -> Record:
    return Record(**{**{name: getattr(record, name) for name in Record.__dataclass_fields__}, **changes})  # type: ignore[arg-type]  # the fields' own values


def traffic(record: Record) -> Record:
    """It is an ordinary event whose mark is wrong."""
    return replaced(record, expected="traffic", invalid_mark=True)


def elsewhere(victim: Record) -> Record:
    """A copy in the other partition: a header mark is wrong there, a front-door id names another place."""
    moved = replaced(victim, partition=1 - victim.partition)
    return traffic(moved) if victim.headers else replaced(moved, expected="replayed")


def waves(forge: Forge, sender: Sender) -> Iterator[str]:
    """Everything that is sent, in three waves; between them the worker is killed."""
    rng, victims = forge.rng, [forge.genuine(sender.now_ms) for _ in range(GENUINE)]
    tries = Counter[str]()
    for place, victim in enumerate(victims):
        sender.now_ms += int(rng.integers(0, 60))
        sender.send(victim)
        for _ in range(int(rng.integers(3, 8))):
            older = victims[int(rng.integers(place + 1))]
            kind = str(rng.choice(["forged", "altered", "elsewhere", "copy", "expired", "aside"]))
            tries[kind] += 1
            sender.send(
                {
                    "forged": lambda: forge.forged(sender.now_ms),
                    "altered": lambda older=older: forge.altered(older),
                    "elsewhere": lambda older=older: elsewhere(older),
                    "copy": lambda older=older: replaced(older, expected="replayed"),
                    "expired": lambda: forge.expired(sender.now_ms),
                    "aside": lambda: forge.aside(sender.now_ms),
                }[kind]()
            )
    sender.benign()
    yield "copies before the crash"
    assert sender.now_ms - START_MS < TTL_MS - 10_000, "marks of the first wave are still valid"
    for _ in range((TRIES - tries.total()) // 2):
        victim = victims[int(rng.integers(GENUINE))]
        again = elsewhere(victim) if rng.random() < 0.4 else replaced(victim, expected="replayed")
        tries["after the crash"] += 1
        sender.send(again)
    sender.benign()
    yield "copies after the crash"
    sender.now_ms += TTL_MS
    sender.benign()  # and what time it is
    while tries.total() < TRIES:
        victim = victims[int(rng.integers(GENUINE))]
        late = replaced(victim, expected="expired")
        if rng.random() < 0.3:
            late = traffic(replaced(victim, partition=1 - victim.partition)) if victim.headers else elsewhere(victim)
        tries["later"] += 1
        # Half of them pretend to be old: a stamp of the sender's own choosing.
        sender.send(late, back_ms=int(rng.choice([0, TTL_MS])))
    assert tries.total() == TRIES
    assert len(tries) == 8
    sender.benign()
    yield "copies when the marks have expired"


@pytest.mark.timeout(240)
def test_no_forged_copied_altered_or_expired_mark_is_a_probe(deploy: Callable[..., Deployment]) -> None:
    site = deploy(PARTITIONS)
    rng = np.random.default_rng(3)
    sender = Sender(site)
    worker, before = None, 0
    for number, wave in enumerate(waves(Forge(site.topic, rng), sender)):
        site.producer().flush()
        assert sender.ends.total() - before > 1_000, wave
        worker = worker or site.start()
        if number < 2:  # kill it in the middle of the wave; what it had not recorded is delivered again
            site.wait_recorded(before + (sender.ends.total() - before) // 3)
            site.stop(worker, signal.SIGKILL)
            worker = site.start()
        before = sender.ends.total()
        site.wait_recorded(before)

    taken: dict[tuple[int, int], str] = {}
    for partition in range(PARTITIONS):
        for verdict in site.verdicts(partition):
            assert (partition, verdict.offset) not in taken, "one verdict a record, however often it was delivered"
            taken[partition, verdict.offset] = verdict.status
    wrong = {
        place: (record.expected, taken.get(place, "traffic"))
        for place, record in sender.places.items()
        if taken.get(place, "traffic") != record.expected
    }
    assert not wrong
    rows, records = Counter[str](), Counter[str]()
    for record in sender.places.values():
        records[record.expected] += 1
        records["invalid marks"] += record.invalid_mark
        rows[record.expected] += len(msgspec.json.decode(record.value)["inputs"])
    assert records["scored"] == GENUINE
    assert records.total() - records["invalid marks"] == GENUINE + TRIES + 4 * KEYED_SAMPLE * PARTITIONS
    assert min(records["expired"], records["replayed"], records["invalid marks"]) > 1_500
    totals = site.totals()
    assert totals["probes"] == rows["scored"]
    assert totals["probes_expired"] == rows["expired"]
    assert totals["probes_replayed"] == rows["replayed"]
    assert totals["probes_excluded"] == rows["expired"] + rows["replayed"]
    assert totals["scored"] == rows["traffic"], "nothing but traffic and wrong marks was scored as traffic"
    assert totals["invalid_marks"] == records["invalid marks"]
    assert totals["rows"] == rows.total()
    genuine = [v for partition in range(PARTITIONS) for v in site.verdicts(partition) if v.status == "scored"]
    assert len({verdict.probe for verdict in genuine}) == len(genuine) == GENUINE
    assert all(v.pvalues == {} and v.level == 0 for v in site.verdicts() if v.status != "scored")
