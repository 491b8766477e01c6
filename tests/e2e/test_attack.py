"""An attack on a real model, from Kafka to a resolved incident, as the on-call engineer meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet
import pytest
from playwright.sync_api import Page, expect

from streams import tables
from streams.cli import invoke
from streams.demo import digits
from streams.errors import BundleMismatch, UnknownIncident
from streams.incidents.monitoring import open_blind, resolve_blind
from streams.incidents.service import IncidentService
from streams.replay import Replay
from streams.store.keys import ModelKeys
from streams.store.messages import Matcher
from tests.e2e.conftest import CLIENT_KEY, HOSTILE, MODEL, PROBE_KEY, Chain, nothing_ran

pytestmark = pytest.mark.browser

Visit = Callable[..., Page]
#: How the title of the attack's incident ends.
WALK = "seeking a decision boundary"
#: How long an attack may take from Kafka to the page on a busy machine.
LIVE_MILLISECONDS = 60_000


def test_attack_is_seen_live_taken_by_one_of_two_and_resolved_in_three_clicks(chain: Chain, visit: Visit) -> None:
    ada = visit(chain.url)
    expect(ada.locator("#pulse")).to_have_class("pulse live")
    ada.evaluate("window.notReloaded = true")
    chain.traffic()
    expect(ada.locator("#incidents")).to_contain_text("Nothing has crossed a threshold")
    chain.attack()
    page_row = ada.locator("#incidents tr", has=ada.locator(".badge.page")).filter(has_text=WALK)
    expect(page_row).to_have_count(1, timeout=LIVE_MILLISECONDS)
    assert ada.evaluate("window.notReloaded"), "the attack appeared without a reload"
    assert ada.title().startswith("(")

    page_row.locator("a").click()  # 1
    expect(ada.locator("h2", has_text="What made it a page")).to_be_visible()
    expect(ada.locator("#queries svg.plane circle").first).to_be_visible()
    expect(ada.locator("#queries")).not_to_contain_text("no longer kept")
    assert ada.locator("img.pixels").first.evaluate("picture => picture.naturalWidth") == 8
    assert ada.locator(".reasons tbody tr").count() > 0
    bob = visit(ada.url)
    for person, name in ((ada, "ada"), (bob, "bob")):
        person.locator("#by").fill(name)
    for person in (ada, bob):  # click 2; of both before either page can follow
        person.evaluate("document.getElementById('acknowledge').click()")
    # Whoever was second reads who was faster; both see the same owner.
    for person in (ada, bob):
        expect(person.locator("#acknowledge")).to_have_count(0)
    owner = "ada" if "ada has it" in ada.locator(".head").inner_text() else "bob"
    winner, loser = (ada, bob) if owner == "ada" else (bob, ada)
    for person in (ada, bob):
        expect(person.locator(".head")).to_contain_text(f"{owner} has it")
    expect(loser.locator(".notice.bad")).to_contain_text(f"already acknowledged by {owner}")
    winner.locator("#resolve-true").click()  # 3
    expect(winner.locator(".head")).to_contain_text("resolved: real attack")
    expect(loser.locator(".head")).to_contain_text("resolved: real attack")  # it follows its incident

    incident = IncidentService(chain.redis, MODEL).show(ada.url.split("/incidents/")[1].split("?")[0][:16]).incident
    assert (incident.state, incident.verdict, incident.assignee) == ("resolved", "true", owner)
    assert [change.by for change in incident.history if change.what.startswith(("acknowledged", "resolved"))] == [
        owner,
        owner,
    ]


def test_replay_of_the_log_decides_what_the_worker_decided(
    chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = IncidentService(chain.redis, MODEL)
    pages = [one for one in service.list(limit=50) if one.level == "page" and WALK in one.title]
    incident = min(pages, key=lambda one: one.first_seen)
    command = ["--config", str(chain.config), "replay", "--incident", incident.id]
    monkeypatch.setenv("VEDETTE_CLIENT_KEY", CLIENT_KEY)
    monkeypatch.setenv("VEDETTE_PROBE_KEY", PROBE_KEY)
    assert invoke([*command, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Replay)
    recorded = service.show(incident.id).evidence
    assert {(one.offset, one.row, one.rule, one.level, one.statistic) for one in recorded} == {
        (one.offset, one.row, one.rule, one.level, one.statistic)
        for one in found.signals
        if one.technique == incident.technique
    }
    assert (found.would, found.digest, found.notes) == ("page", incident.bundle, [])
    assert found.first_ticket is not None
    assert found.first_page is not None
    assert 1 <= found.first_ticket.query <= found.first_page.query <= found.queries
    assert found.first_page.offset == min(one.offset for one in recorded if one.level == "page")

    assert invoke(command) == 0
    text = capsys.readouterr().out
    assert "this bundle would page" in text
    assert "the one that decided then" in text
    monkeypatch.setenv("VEDETTE_CLIENT_KEY", bytes(16).hex())
    assert invoke([*command, "--json"]) == 0
    stranger = msgspec.json.decode(capsys.readouterr().out, type=Replay)
    assert (stranger.would, stranger.queries) == ("nothing", 0)
    assert "is the client key the one of then?" in stranger.notes[-1]
    assert invoke([*command, "--at-most", "5", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Replay).records == 5
    assert invoke([*command, "--bundle", str(tmp_path / "none")]) == BundleMismatch.exit_code
    assert invoke([*command[:-1], "0" * 16]) == UnknownIncident.exit_code
    blind = open_blind(chain.redis, ModelKeys(MODEL), "no probe was seen", 1)
    assert invoke([*command[:-1], blind.id]) == 2
    assert "no evidence that names records" in capsys.readouterr().err
    resolve_blind(chain.redis, ModelKeys(MODEL), 2)


def test_queries_of_a_real_attack_are_exported_for_training(
    chain: Chain, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "attacks.parquet"
    command = ["--config", str(chain.config), "incidents", "export", "--out", str(out)]
    assert invoke([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["incidents"] == 1
    assert told["queries"] > 20
    assert (told["lost"], told["from_evidence"], told["problems"]) == (0, 0, [])
    table = pyarrow.parquet.read_table(out)
    assert set(table["verdict"].to_pylist()) == {"true"}
    assert set(table["technique"].to_pylist()) == {"AML.T0043.001"}
    rows, _ = tables.read(str(out), digits.schema(), bytes(16))
    model = chain.watched.model
    assert np.array_equal(rows.labels, np.argmax(model.predict(rows.inputs), axis=1)), (
        "rows and answers belong together"
    )
    attack = {row.tobytes() for row in chain.watched.attack(np.random.default_rng(0))}
    assert all(row.tobytes() in attack for row in rows.inputs)
    assert invoke([*command, "--verdict", "benign"]) == 2
    assert "resolved as benign has queries to export" in capsys.readouterr().err
    assert invoke([*command[:-1], str(tmp_path / "no" / "where")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_nothing_hostile_in_an_event_runs(chain: Chain, visit: Visit) -> None:
    """Every field that an attacker can fill: of events, headers and keys; and every text that people write."""
    page = visit(chain.url)
    expect(page.locator("#pulse")).to_have_class("pulse live")
    everything = {"id": HOSTILE, "version": HOSTILE, "latency_ms": 1.0, HOSTILE: HOSTILE}
    chain.attack(HOSTILE, seed=7, **everything)
    plain = {"id": HOSTILE, "model": MODEL, "inputs": [0.5] * 64, "outputs": [0.1] * 10}
    headers = [(HOSTILE, HOSTILE.encode()), ("vedette-probe", HOSTILE.encode())]
    for value in (
        *({**plain, name: HOSTILE} for name in ("model", "inputs", "outputs", "time", "label", "embedding")),
        {**plain, "inputs": [HOSTILE] * 64},
        {HOSTILE: HOSTILE},
    ):
        chain.record(json.dumps(value).encode(), HOSTILE, headers)
    chain.record(HOSTILE.encode(), HOSTILE, headers)
    chain.record(json.dumps({**plain, "model": MODEL}).encode(), None, headers)
    chain.producer.flush()
    row = page.locator("#incidents tr", has=page.locator(".badge.page:not(.done)")).filter(has_text=WALK)
    expect(row).to_have_count(1, timeout=LIVE_MILLISECONDS)
    row.locator("a").click()
    expect(page.locator("#queries svg.plane circle").first).to_be_visible()
    name = page.url.split("/incidents/")[1].split("?")[0]
    service = IncidentService(chain.redis, MODEL)
    service.note(name, HOSTILE[:80], HOSTILE)
    service.assign(name, "ada", HOSTILE[:80])
    service.silence(Matcher(technique=HOSTILE, rule=HOSTILE, client=HOSTILE), HOSTILE[:80], ends=2**52, comment=HOSTILE,
                    starts=2**52 - 10)  # fmt: skip
    for path in (
        "/",
        "/incidents?state=all",
        f"/incidents?q={HOSTILE.replace('&', '%26').replace('#', '%23')}",
        f"/incidents/{name}",
        f"/incidents/{name}/queries",
        "/silences",
        "/probes",
        "/detectors",
        "/accounting",
        "/dead-letters",
    ):
        page.goto(chain.url + path)
        assert nothing_ran(page), path
        if path == "/dead-letters":
            expect(page.locator("main")).to_contain_text("<img src=x onerror=")
        if path == f"/incidents/{name}":
            expect(page.locator(".history")).to_contain_text(HOSTILE[:60])
