"""Attackers ask the endpoint and nothing else; their journal tells every query that stands in the topic."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks import registry
from streams import children
from streams.demo.attackers import ATTACKERS, Attacker, Door, Journal, _benign, read_journal
from streams.demo.digits import Pools
from streams.probes.pace import Stopped
from tests.streams.demo.test_server import read_all


def test_the_five_attackers_are_those_that_the_demo_promises() -> None:
    kinds = {attacker.attack for attacker in ATTACKERS}
    assert {"hop_skip_jump", "nes", "simba"} <= kinds
    assert [a.diluted for a in ATTACKERS if a.diluted] == [4]
    assert [a.accounts for a in ATTACKERS if a.accounts > 1] == [10]
    accounts = [name for attacker in ATTACKERS for name in attacker.account_names()]
    assert len(set(accounts)) == len(accounts) == 14
    for attacker in ATTACKERS:
        assert attacker.norm in registry.kind(attacker.attack).norms


@pytest.mark.parametrize(
    "attacker",
    [
        Attacker("mixed", "nes", "linf", diluted=4, per_second=400.0),
        Attacker("many", "nes", "linf", accounts=3, per_second=400.0),
    ],
)
def test_every_query_is_journalled_diluted_and_spread_as_told(
    served: Any, kafka: str, pools: Pools, tmp_path: Path, attacker: Attacker
) -> None:
    own = pools.hostile.inputs[:30]
    stop = threading.Event()
    with (tmp_path / "journal").open("ab") as out:
        rng = np.random.default_rng(1)
        door = Door(attacker, served.url, served.name, Journal(out), _benign(pools.live, rng), rng, stop)
        answers = door.predict(own)
        stop.set()
        with pytest.raises(Stopped):
            door.predict(own)
    assert answers.shape == (30, 10)
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(10)
    lines = read_journal(tmp_path / "journal")[attacker.name]
    assert len(lines) == 30 * (1 + attacker.diluted)
    assert sum(line.own for line in lines) == 30
    records = {json.loads(record.value)["request"]["id"]: record for record in read_all(kafka, served.topic)}
    assert set(records) == {line.request for line in lines}
    sent_own = [records[line.request] for line in lines if line.own]
    rows = np.array([json.loads(record.value)["request"]["inputs"][0]["data"] for record in sent_own])
    assert np.array_equal(rows, own), "the answers belong to the attack's own rows, in order"
    by_account = Counter(record.key.decode() for record in records.values())
    assert set(by_account) == set(attacker.account_names())
    assert max(by_account.values()) - min(by_account.values()) <= 1
    if attacker.diluted:
        places = [n % 5 for n, line in enumerate(lines) if line.own]
        assert len(set(places)) > 1, "nothing in the order tells which query is the attack's own"


def test_attackers_begin_when_told_and_end_when_told(
    served: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    go, journal, log = tmp_path / "go", tmp_path / "journal", tmp_path / "log"
    command = [sys.executable, "-m", "streams.demo.attackers", "--url", served.url, "--name", served.name]
    command += ["--seed", "20", "--journal", str(journal), "--after", str(go)]
    process: subprocess.Popen[bytes] = children.spawn(command, log)
    try:
        assert not read_journal(journal)
        go.touch()
        wait_until(lambda: len(read_journal(journal)) == len(ATTACKERS), 60, "all attackers")
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        children.stop([process])
