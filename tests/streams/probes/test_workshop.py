"""Everything of the catalogue made and sent, against a model over HTTP whose faults the test chooses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from attacks import registry
from attacks.errors import AttackError
from attacks.threat import Domain, ThreatModel
from detectors.schema import FeatureSchema
from streams.config import ProbeSettings, ScheduleSettings, parse
from streams.errors import ConfigError, EndpointError
from streams.models.oip import OIPModel
from streams.probes import marks
from streams.probes.catalogue import entries
from streams.probes.craft import Desk
from streams.probes.data import Deck, ProbeData
from streams.probes.fuzzing import FuzzRun, request, sound_rows
from streams.probes.outcome import faults
from streams.probes.pace import Stopped
from streams.probes.prober import Probe
from streams.probes.workshop import Bench, VersionWatch, crafters, declared_threats, own_threat

KEY = bytes(range(32))
WIDTH, CLASSES = 6, 3
WEIGHTS = np.random.default_rng(0).normal(size=(WIDTH, CLASSES))
SCHEMA = FeatureSchema.from_dict(
    {
        "features": [{"name": f"f{i}", "low": 0.0, "high": 1.0} for i in range(WIDTH)],
        "classes": [str(i) for i in range(CLASSES)],
    }
)


class Served:
    """An Open Inference Protocol endpoint that answers, or fails as `fault` says."""

    def __init__(self) -> None:
        self.fault = ""
        self.version = "1"
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                self.answer(200, {"name": "m", "versions": ["0", outer.version]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    asked = json.loads(body)
                    tensor = asked["inputs"][0]
                    rows = np.asarray(tensor["data"], dtype=np.float64).reshape(tensor["shape"])
                    sound = rows.ndim == 2 and rows.shape[1] == WIDTH and bool(np.isfinite(rows).all())
                except (ValueError, TypeError, KeyError):
                    sound = False
                if not sound:
                    if outer.fault == "answers anything":
                        self.answer(200, {"outputs": []})
                    else:
                        self.answer(500 if outer.fault == "crashes" else 400, {"error": "no"})
                    return
                outer.asked.append(asked)
                if outer.fault == "hangs up":
                    self.close_connection = True
                    return
                scores = np.exp(np.clip(rows, -50, 50) @ WEIGHTS)
                scores = scores / scores.sum(axis=1, keepdims=True)
                if outer.fault == "NaN":
                    scores[:] = np.nan
                output = {"name": "p", "datatype": "FP64", "shape": list(scores.shape), "data": scores.ravel().tolist()}
                self.answer(200, {"outputs": [output]})

            def answer(self, status: int, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Sent:
    """Takes what goes straight to the topic."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def send(self, campaign: bytes, client: str, inputs: np.ndarray, outputs: np.ndarray, issued: int) -> None:
        assert len(inputs) == len(outputs)
        self.rows.append(inputs)


def legal() -> Domain:
    flags = np.ones(WIDTH, dtype=bool)
    return Domain(np.zeros(WIDTH), np.ones(WIDTH), ~flags, flags)


def bench(served: Served, **changes: Any) -> tuple[Bench, Sent]:
    plain = {
        "burst_size": 5,
        "campaign_queries": 60,
        "extraction_queries": 80,
        "queries_per_second": 1e6,
        "cpu_share": 1,
    }
    settings = ProbeSettings(**{**plain, **changes})
    sent: Any = Sent()

    def connect(client: str, request_id: Any) -> OIPModel:
        return OIPModel(served.url, "m", client_id=client, request_id=request_id)

    rng = np.random.default_rng(1)
    desk = Desk(settings, "events", KEY, connect, sent, rng)
    rows = rng.uniform(size=(200, WIDTH))
    labels = np.argmax(rows @ WEIGHTS, axis=1)
    data = parse(
        {
            "models": [{"name": "m", "topic": "events", "bundle": "b"}],
            "threats": {"near": {"eps": 0.1, "knowledge": "transfer"}, "far": {"norm": "l2", "budget": 40}},
        },
        "test",
    )
    declared = declared_threats(data, SCHEMA, ProbeData(rows, labels=labels), legal())
    return Bench(desk, Deck(rows[:100], rng), Deck(rows[100:], rng), (rows, labels), legal(), declared), sent


@pytest.mark.parametrize("kind", ["burst", "campaign", "extraction", "control"])
def test_everything_of_the_catalogue_can_be_made_and_sent(served: Served, kind: str) -> None:
    made, sent = bench(served)
    asked_by = {}
    for entry in entries():
        if kind not in entry.kinds:
            continue
        crafter = made.crafter(entry.attack, kind)
        assert (crafter.attack, crafter.kind) == (entry.attack, kind)
        assert crafter.threat
        probe = Probe(b"campaign", f"client-{entry.attack}", number=1, seed=5, homeless=True)
        served.asked.clear()
        try:
            crafter.run(probe)
        except Stopped:
            assert kind in ("campaign", "extraction"), "its queries are spent"
        assert probe.inputs > 0, entry.attack
        asked_by[entry.attack] = len(served.asked)
        said = probe.tally.message()
        assert said.calls == len(served.asked)
        assert faults(said) == 0
        if kind == "burst":
            assert probe.fooled is not None
            assert (sent.rows[-1] >= 0).all()
            assert (sent.rows[-1] <= 1).all()
            assert int(probe.fooled_rows, 16).bit_count() == probe.fooled
        if kind == "extraction":
            assert probe.agreement is not None
            assert probe.agreement > 0.5
    assert len(asked_by) >= {"burst": 15, "campaign": 9, "extraction": 3, "control": 2}[kind]


def test_equal_numbers_start_from_equal_rows_and_seeds_and_others_do_not(served: Served) -> None:
    made, sent = bench(served)
    crafter = made.crafter("transfer_pgd")
    for number in (1, 1, 2):
        crafter.run(Probe(b"campaign", "c", number=number, seed=number))
    np.testing.assert_array_equal(sent.rows[0], sent.rows[1])
    assert not np.array_equal(sent.rows[0], sent.rows[2])
    served.asked.clear()
    campaign = made.crafter("square")
    traces = []
    for number in (1, 1, 2):
        with pytest.raises(Stopped):
            campaign.run(Probe(b"campaign", "c", number=number, seed=number, homeless=True))
        traces.append([one["inputs"][0]["data"] for one in served.asked])
        served.asked.clear()
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


def test_threat_models_are_named_kept_and_checked(served: Served) -> None:
    made, sent = bench(served)
    near = made.crafter("pgd", "burst", "near")
    assert near.threat == "near"
    near.run(Probe(b"campaign", "c", number=1, seed=1))
    starts = Deck.lot(made.hostile, "pgd", 1, 5)
    assert np.abs(sent.rows[-1] - starts).max() <= 0.1 + 1e-9
    assert made.crafter("hop_skip_jump", "", "far").threat == "far"
    assert made.crafter("transfer_pgd").threat == "Linf 0.2, transfer"
    assert made.crafter("hop_skip_jump").threat == "L2, black-box, 60 queries"
    for attack, kind, threat, said in (
        ("deepfool", "burst", "far", "bursts are crafted on a surrogate; set knowledge = 'transfer'"),
        ("carlini_wagner", "", "near", "its norm is linf, the attack keeps l2"),
        ("square", "campaign", "far", "needs a bound on the distance"),
        ("pgd", "", "nowhere", "no threat model 'nowhere'"),
        ("control_direct", "", "near", "knows no threat model"),
        ("leaf_search", "", "", "no attack 'leaf_search' can be sent"),
    ):
        with pytest.raises(ConfigError, match=said):
            made.crafter(attack, kind, threat)


@pytest.mark.parametrize("attack", ["transfer_pgd", "hop_skip_jump"])
def test_a_schema_in_which_nothing_can_change_is_a_refusal(served: Served, attack: str) -> None:
    """A request for such a probe is refused; it must not end the prober, and then the next one."""
    made, _ = bench(served)
    flags = np.zeros(WIDTH, dtype=bool)
    made.legal = Domain(np.zeros(WIDTH), np.ones(WIDTH), flags, flags)
    with pytest.raises(ConfigError, match=f"{attack} cannot be sent: .* no feature can be changed"):
        made.crafter(attack)


def test_every_attack_has_a_threat_model_of_its_own_that_it_can_keep() -> None:
    for entry in entries():
        for kind in set(entry.kinds) & {"burst", "campaign"}:
            attack = registry.kind(entry.attack)()
            threat = own_threat(attack, kind, legal(), ProbeSettings())
            assert isinstance(threat, ThreatModel)
            assert threat.norm in attack.norms
            assert threat.eps is not None or not attack.needs_eps


def test_schedules_name_what_they_lack(served: Served) -> None:
    made, _ = bench(served)
    mixed = ScheduleSettings(
        name="mix", attacks={"transfer_pgd": 1.0, "fuzz": 1.0, "random_extraction": 2.0}, threat="near", every_seconds=9
    )
    found = crafters(made, ProbeSettings(schedules=(mixed,)))
    assert [crafter.kind for crafter in found["mix"]] == ["burst", "fuzz", "extraction"]
    assert found["mix"][0].threat == "near"
    assert set(found) == {"burst", "campaign", "control", "mix"}
    wrong = ScheduleSettings(name="w", attacks={"pgdd": 1.0}, every_seconds=9)
    with pytest.raises(ConfigError, match=r"probes.schedules\[w\].attacks: no attack 'pgdd'"):
        crafters(made, ProbeSettings(schedules=(wrong,)))


# Fuzz -----------------------------------------------------------------------------------------------------------------


def fuzzed(served: Served, fault: str) -> Any:
    made, _ = bench(served, fuzz_requests=60)
    served.fault = fault
    crafter = made.crafter("fuzz")
    assert isinstance(crafter, FuzzRun)
    probe = Probe(b"campaign", "fuzzer", number=1, seed=3)
    crafter.run(probe)
    assert (probe.sent, probe.inputs) == (0, 0)
    return probe.tally.message()


def test_a_sound_endpoint_bears_fuzz_and_what_it_logs_is_excluded(served: Served) -> None:
    said = fuzzed(served, "")
    assert (said.calls, faults(said)) == (60, 0)
    assert said.refused > 20
    assert len(served.asked) > 10
    for asked in served.asked:  # answered, so perhaps logged: an aside of ours, valid and long expired
        tensor = asked["inputs"][0]
        rows = np.asarray(tensor["data"], dtype=np.float64).reshape(tensor["shape"])
        candidate = marks.ProbeCandidate(0, None, asked["id"], b"fuzzer")
        mark = marks.verify(candidate, "events", 0, time.time_ns() // 1000, 10**9, KEY, rows)
        assert mark is not None
        assert mark.expired


@pytest.mark.parametrize(
    ("fault", "counter"),
    [("crashes", "crashes"), ("answers anything", "wrong"), ("NaN", "not_finite"), ("hangs up", "crashes")],
)
def test_faults_of_the_endpoint_are_counted_for_what_they_are(served: Served, fault: str, counter: str) -> None:
    said = fuzzed(served, fault)
    assert said.calls == 60
    assert getattr(said, counter) > 5
    assert faults(said) == getattr(said, counter)


def test_odd_inputs_become_requests_as_odd() -> None:
    assert json.loads(request("a", np.array([[1.0, np.nan]])))["inputs"][0]["shape"] == [1, 2]
    assert b'"data":[1.0,NaN,Infinity,-Infinity]' in request("a", np.array([[1.0, np.nan, np.inf, -np.inf]]))
    assert b'"data":[["x",null]]' in request("a", [["x", None]])
    assert b'"shape":[],"datatype":"FP64","data":[2.0]' in request("a", np.array(2.0))
    assert sound_rows(np.ones((2, 3), dtype=np.float32), 3) is not None
    for odd in (np.ones((1, 4)), np.ones((1, 1, 3)), np.array([[np.nan] * 3]), 1.0, [[1, 2, 3]], b"x"):
        assert sound_rows(odd, 3) is None


# The model's version, and bounds --------------------------------------------------------------------------------------


def test_a_new_version_is_seen_and_an_endpoint_that_is_away_changes_nothing(served: Served, wait_until: Any) -> None:
    watch = VersionWatch(OIPModel(served.url, "m"), 0.05)
    assert watch.version() == ""
    watch.start()
    assert watch.version() == "1"
    served.version = "2"
    wait_until(lambda: watch.version() == "2", 10, "the new version")
    watch.stop()
    away = VersionWatch(OIPModel("http://127.0.0.1:1", "m"), 60)
    away.start()
    assert away.version() == ""
    away.stop()
    with pytest.raises(EndpointError) as refused:
        OIPModel("http://127.0.0.1:1", "m").version()
    assert refused.value.fault == "crash"


def test_an_endpoint_that_fails_ends_the_probe_and_is_counted(served: Served) -> None:
    made, _ = bench(served)
    served.fault = "NaN"
    probe = Probe(b"campaign", "c", number=1, seed=1, homeless=True)
    with pytest.raises(EndpointError, match="Open Inference") as wrong:
        made.crafter("hop_skip_jump").run(probe)
    assert wrong.value.fault == "not-finite"
    assert probe.tally.message().not_finite == 1


def test_a_probe_that_needs_too_much_memory_fails_alone() -> None:
    program = """
import numpy as np
from streams.probes.prober import bound_memory
bound_memory(512)
try:
    np.ones(200_000_000)
except MemoryError:
    print("refused", np.ones(1000).sum())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "refused 1000.0\n"


def test_attack_errors_are_not_swallowed() -> None:
    with pytest.raises(AttackError):
        registry.kind("no such")
