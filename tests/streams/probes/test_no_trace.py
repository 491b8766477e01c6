"""Probes leave no trace: everything that real traffic leaves behind is the same, byte for byte, with and without them.

The ensemble is the real one, the log holds benign clients, a sensor, attackers, and probes of every sort: straight and
by the front door, asides, copies, from a prober whose clock is ahead of the loggers'.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.contract import Level
from detectors.scorer import Ensemble
from streams.events import decoder
from streams.events.batch import DecodeOptions
from streams.probes import marks
from streams.worker.scoring import PartitionScoring, ScoringOptions

pytestmark = pytest.mark.usefixtures("hasty")

TOPIC, PARTITION, MODEL = "events", 1, "digits"
KEY, CLIENT_KEY = bytes(range(32)), bytes(16)
TTL_US = 120_000_000
START_MS = 1_700_000_000_000
#: How far the prober's clock is ahead.
AHEAD_MS = 20_000
#: Counters that speak of the whole log, or of probes.
OF_PROBES = {"probes", "probes_excluded", "probes_expired", "probes_replayed"}
OF_THE_LOG = {"records", "rows"}


@dataclass(frozen=True)
class Rec:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_type: int = 0
    probe: bool = False


@pytest.fixture(scope="module")
def home() -> ModuleType:
    """The small world of the detectors' tests."""
    path = Path(__file__).parents[2] / "detectors" / "world.py"
    spec = importlib.util.spec_from_file_location("vedette_tests_world", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("vedette_tests_world", importlib.util.module_from_spec(spec))
    if not hasattr(module, "world"):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ensemble(home: ModuleType) -> Ensemble:
    from detectors.ensemble import fit

    world = home.world()
    traffic = home.benign(world, np.random.default_rng(5), clients=30, weeks=5, a_week=30)
    found, _ = fit(
        world.reference,
        home.SCHEMA,
        traffic,
        budget=1,
        clients_per_week=20,
        week_us=home.WEEK_US,
        partitions=2,
        rng=np.random.default_rng(1),
    )
    return found


def event(world: Any, name: str, rows: NDArray[np.float64]) -> bytes:
    outputs = world.probabilities(rows)
    return json.dumps({"id": name, "model": MODEL, "inputs": rows.tolist(), "outputs": outputs.tolist()}).encode()


def whole_log(home: ModuleType, rng: np.random.Generator) -> list[Rec]:
    """Traffic with probes in it, in the order in which the broker got it."""
    world = home.world()
    base = home.benign(world, rng, clients=12, weeks=1, a_week=15)
    drafts: list[tuple[float, bytes, NDArray[np.float64], str]] = []  # moment, client, rows, sort of record
    for row, client, at in zip(base.inputs, base.clients.tolist(), base.times.tolist(), strict=True):
        drafts.append((at / home.WEEK_US, f"client-{client}".encode(), row[None], "real"))
    for number, craft in enumerate((home.boundary_walk, home.score_descent)):
        for who, sort in ((b"attacker-%d" % number, "real"), (b"probe-%d" % number, "front door")):
            for at, row in zip(np.sort(rng.random(110)), craft(world, rng, 110), strict=False):
                drafts.append((at, who, row[None], sort))
    shared = home.boundary_walk(world, rng, 110)
    for at, row in zip(np.linspace(0.2, 0.9, len(shared)), shared, strict=True):
        drafts.append((at, b"client-1", row[None], "header"))  # a probe client of the name of a real one
    drafts += [(at, b"aside", world.fresh(int(rng.integers(1, 5)), rng), "aside") for at in rng.random(30)]
    drafts += [(at, b"probe-0", world.fresh(1, rng), "copy") for at in rng.random(30)]
    drafts.sort(key=lambda draft: draft[0])
    records: list[Rec] = []
    for number, (moment, client, rows, sort) in enumerate(drafts):
        offset, at = 10 + number, START_MS + round(moment * 240_000)
        headers: tuple[tuple[str, bytes], ...] = ()
        name, sender = f"r{number}", at * 1000
        if sort in ("front door", "aside"):
            issued = 0 if sort == "aside" else sender + AHEAD_MS * 1000
            name = marks.sign_request(KEY, TOPIC, b"campaign", number, issued, client, rows, PARTITION)
        value = event(world, name, rows)
        if sort == "header":
            at += AHEAD_MS
            mark = marks.sign_header(KEY, TOPIC, PARTITION, b"campaign", number, at * 1000, client, value)
            headers = ((marks.HEADER, mark),)
        elif sort == "copy":
            at += AHEAD_MS
            earlier = [one for one in records if one.probe]
            if not earlier:
                continue
            copied = earlier[int(rng.integers(len(earlier)))]
            client, value, headers = copied.key or b"", copied.value, copied.headers
        records.append(Rec(offset, at, client, value, headers, probe=sort != "real"))
    return records


def scored(ensemble: Ensemble, records: Sequence[Rec], rng: np.random.Generator, pieces: int) -> dict[str, Any]:
    """Everything that a worker records and remembers of a log, cut anywhere."""
    options = ScoringOptions(
        topic=TOPIC,
        model=MODEL,
        decode=DecodeOptions(MODEL, ensemble.schema, "key", CLIENT_KEY),
        codec=decoder("native"),
        probe_key=KEY,
        probe_ttl_us=TTL_US,
        clients=64,
        index_rows=256,
        max_rows=100,
    )
    scoring = PartitionScoring(ensemble, options, PARTITION, "topic-id", 0)
    edges = [0, *sorted(rng.choice(np.arange(1, len(records)), pieces, replace=False).tolist()), len(records)]
    minutes: dict[int, Counter[str]] = {}
    signals, verdicts = [], []
    base = records[0].offset
    for first, last in itertools.pairwise(edges):
        outcome = scoring.step(list(records[first:last]), base, pilot=False)
        base = outcome.plan.next
        for minute, counts in outcome.plan.minutes.items():
            minutes.setdefault(minute, Counter()).update(counts)
        signals += outcome.signals
        verdicts += [verdict for _, verdict in outcome.verdicts]
    return {
        "arrays": scoring.arrays(),
        "minutes": minutes,
        "histograms": scoring.histograms.packed(),
        "signals": signals,
        "verdicts": verdicts,
    }


def test_state_statistics_and_signals_are_the_same_to_the_byte(home: ModuleType, ensemble: Ensemble) -> None:
    rng = np.random.default_rng(8)
    log = whole_log(home, rng)
    traffic = [record for record in log if not record.probe]
    probes = [record for record in log if record.probe]
    with_probes, without = scored(ensemble, log, rng, 40), scored(ensemble, traffic, rng, 25)

    assert len(probes) > 300
    assert max(verdict.level for verdict in with_probes["verdicts"]) == Level.PAGE, "the probes themselves are seen"
    assert {verdict.status for verdict in with_probes["verdicts"]} == {"scored", "expired", "replayed"}
    assert any(signal.level == "page" for signal in without["signals"]), "real attackers are paged"

    assert with_probes["signals"] == without["signals"]
    assert with_probes["histograms"] == without["histograms"]
    mine, theirs = with_probes["arrays"], without["arrays"]
    assert mine.keys() == theirs.keys()
    for name in mine:
        if name.partition(".")[0] in ("real", "sources"):
            assert mine[name].dtype == theirs[name].dtype
            assert mine[name].tobytes() == theirs[name].tobytes(), name
    assert mine["clock"][1] == theirs["clock"][1], "probes do not move the clock of traffic"
    assert mine["clock"][0] > theirs["clock"][0]
    assert not theirs["uses.ids"].size
    assert mine["overlay.clients" if "overlay.clients" in mine else next(n for n in mine if n[:7] == "overlay")].any()

    def kept(minutes: dict[int, Counter[str]], gone: set[str]) -> dict[int, dict[str, int]]:
        found = {m: {name: n for name, n in counts.items() if name not in gone} for m, counts in minutes.items()}
        return {minute: counts for minute, counts in found.items() if counts}

    assert kept(with_probes["minutes"], OF_PROBES | OF_THE_LOG) == kept(without["minutes"], OF_THE_LOG)
    totals, plain = (sum(each["minutes"].values(), Counter()) for each in (with_probes, without))
    assert not OF_PROBES & plain.keys()
    assert totals["records"] - plain["records"] == len(probes)
    assert totals["rows"] - plain["rows"] == totals["probes"] + totals["probes_excluded"]
    assert totals["probes_excluded"] == totals["probes_expired"] + totals["probes_replayed"]
    assert totals["probes"] == sum(v.rows for v in with_probes["verdicts"] if v.status == "scored")


def test_a_probe_that_is_scored_as_traffic_would_be_found_out(home: ModuleType, ensemble: Ensemble) -> None:
    """The comparison above can fail: one probe without its mark is enough."""
    rng = np.random.default_rng(8)
    log = whole_log(home, rng)
    straight = next(place for place, record in enumerate(log) if record.headers)
    bare = Rec(log[straight].offset, log[straight].timestamp, log[straight].key, log[straight].value)
    traffic = [record for record in log if not record.probe]
    leaked = scored(ensemble, sorted([*traffic, bare], key=lambda record: record.offset), rng, 25)
    without = scored(ensemble, traffic, rng, 25)
    assert leaked["histograms"] != without["histograms"]
    mine, theirs = leaked["arrays"], without["arrays"]
    assert any(mine[name].tobytes() != theirs[name].tobytes() for name in mine if name.startswith("real."))
