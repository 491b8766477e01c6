"""Probes, detectors, dead letters and accounting: pages over real Redis and real Kafka."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from kafka import KafkaProducer
from redis import Redis

from detectors.bundle import save
from detectors.contract import Reference, Verdicts
from detectors.ensemble import fit
from detectors.schema import Feature, FeatureSchema
from streams.config import KafkaSettings
from streams.console import tokens
from streams.console.dead_letter_room import read
from streams.console.detector_room import look_at, merged
from streams.console.probe_room import SPEAKS_AT, courses, matrix
from streams.errors import BrokerError
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.probes.outcome import break_down, summarise
from streams.probes.store import ProbeStore
from streams.store.keys import PartitionKeys
from streams.store.messages import Answers, CalibrationStatus, ProbeOutcome, ProbePlan, ProbeVerdict
from streams.topics import DEAD_SUFFIX
from streams.worker.tally import BUCKETS, Histograms

Fixture = Any
SECOND = 1_000_000


def outcome(number: int, /, attack: str = "transfer_pgd", **changes: Any) -> ProbeOutcome:
    plain = ProbeOutcome(
        campaign=f"{number:016x}", attack=attack, kind="burst", threat="Linf 0.2", inputs=20, arrived=20, detected=True,
        ticketed=True, queries_to_ticket=5, queries_to_page=12, latency_ms=120.0, finished=number * SECOND, fooled=5,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def verdict(campaign: str, offset: int = 0, partition: int = 0, **changes: Any) -> ProbeVerdict:
    plain = ProbeVerdict(
        probe=f"{campaign}-{offset:08d}", status="scored", partition=partition, offset=offset, rows=1, time=1, at=1,
        issued=1, level=0, ratio=0.1, pvalues={"trust_ratio": 0.001, "pca_residual": 0.5}, fused=0.004,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def finish(redis: Redis, scene: Fixture, outcomes: list[ProbeOutcome]) -> None:
    """Record outcomes through the prober's own script."""
    lease = Lease(redis, scene.keys, "prober")
    assert lease.acquire()
    store = ProbeStore(redis, scene.model, scene.topic)
    for each in outcomes:
        plan = ProbePlan(each.campaign, each.attack, each.kind, each.threat, "c", 1, each.inputs, 1, 2)
        store.put_plan(plan, lease.token)
        store.finish(each, summarise(outcomes, each.finished), lease.token)
    lease.release()


def test_probe_page_shows_matrix_course_and_outcomes(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker(partitions=(0,))
    outcomes = [outcome(number, detected=number % 3 > 0, ticketed=number % 3 > 0) for number in range(1, 31)]
    outcomes += [
        outcome(100 + number, "control_direct", kind="control", detected=False, fooled=None) for number in range(3)
    ]
    outcomes += [outcome(200, "hop_skip_jump", kind="campaign", abandoned="the endpoint is away")]
    finish(redis, scene, outcomes)
    for number in range(1, 31):
        message = verdict(f"{number:016x}", number)
        redis.xadd(PartitionKeys("events", 0).probes, {"m": msgspec.json.encode(message)})
    answer = serve().get("/probes")
    text = " ".join(answer.text.split())
    assert answer.status_code == 200
    assert "67 %" in text  # 20 of 30 bursts
    assert re.search(r'title="30 records, [^"]*">100 %</td>', text)  # trust ratio
    assert re.search(r'title="30 records, [^"]*">0 %</td>', text)  # residual
    assert "robust accuracy" in text
    assert "abandoned: the endpoint is away" in text
    assert "quiet, as it should be" in text
    assert text.count('<svg class="course"') == 3
    assert "20 of 20" in text


def test_probe_page_shows_threat_models_versions_and_regressions(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    outcomes = []
    for version, fooled, first in (("1", 0, 1), ("2", 12, 101)):
        rows = f"{(1 << 24) - (1 << (24 - fooled)):06x}"
        for number in range(10):
            answers = Answers(calls=40, crashes=int(version == "2"), times={60: 40})
            outcomes.append(
                outcome(
                    first + number, number=number + 1, model_version=version, fooled=fooled, fooled_rows=rows,
                    threat="image-linf", answers=answers, records=20, spoke={"trust_ratio": 9, "pca_residual": 0},
                )
            )  # fmt: skip
    fuzz = outcome(500, "fuzz", kind="fuzz", inputs=0, arrived=0, fooled=None, answers=Answers(calls=50, crashes=2))
    outcomes.append(msgspec.structs.replace(fuzz, threat="malformed requests"))
    lease = Lease(redis, scene.keys, "prober", holder="probing-host:7")
    assert lease.acquire()
    store = ProbeStore(redis, scene.model, scene.topic)
    for each in outcomes:
        plan = ProbePlan(each.campaign, each.attack, each.kind, each.threat, "c", 1, each.inputs, 1, 2)
        store.put_plan(plan, lease.token)
        store.finish(each, summarise(outcomes, 1), lease.token, break_down(outcomes, 1))
    text = " ".join(serve().get("/probes").text.split())
    lease.release()
    assert "probing-host:7" in text
    assert text.count('<td data-name="threat model">image-linf</td>') == 2
    assert "robust accuracy under transfer_pgd (image-linf) went from 100 % to 40 %" in html.unescape(text).replace(
        "100%", "100 %"
    ).replace("40%", "40 %")
    assert "<strong>Regression.</strong>" in text
    assert "trust ratio: 10 of 10" in text
    assert "pca residual: 0 of 10" in text
    assert "10 of 400" in text  # calls that version 2 failed
    assert "the endpoint failed 2 of 50" in text
    assert "No prober is active" not in text


def test_probes_are_asked_for_by_form(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    served, session = serve(), requests.Session()
    mark = form_mark(served, session, "/probes")

    def ask(**fields: str) -> requests.Response:
        data = {"csrf": mark, "by": "ada", "attack": "fuzz", "count": "2", **fields}
        return session.post(served.url + "/probes", data=data, timeout=20)

    page = " ".join(ask().text.split())
    assert "2 of fuzz asked for by ada" in page
    assert "No prober is active" in page
    (request,) = ProbeStore(redis, scene.model, scene.topic).requests()
    assert (request.attack, request.count, request.by) == ("fuzz", 2, "ada")
    for fields, status, sentence in (
        ({"attack": "<b>"}, 422, "no attack '<b>' can be sent"),
        ({"threat": "image-l2"}, 422, "fuzz knows no threat model"),
        ({"count": "many"}, 422, "0 probes: ask for 1 to 50"),
        ({"by": ""}, 422, "say who asks"),
        ({"csrf": "0" * 64}, 403, ""),
    ):
        answer = ask(**fields)
        assert (answer.status_code, sentence in html.unescape(answer.text)) == (status, True), fields
        assert "<b>" not in answer.text or "attack" not in fields
    assert redis.hlen(scene.keys.probe_requests) == 1


def test_probe_page_without_probes_says_so(scene: Fixture, serve: Fixture) -> None:
    text = serve().get("/probes").text
    assert "No probe has finished yet" in text
    assert "No verdicts of finished probes are kept yet." in text


def test_matrix_counts_records_and_corrects_for_their_rows() -> None:
    outcomes = [outcome(1), outcome(2, "control_direct", kind="control")]
    one, two = outcomes[0].campaign, outcomes[1].campaign
    verdicts = [
        verdict(one, 0),
        verdict(one, 1, pvalues={"trust_ratio": 0.02}),
        verdict(one, 2, rows=20, pvalues={"trust_ratio": 0.001}),  # 1 - .999 ** 20 = .02
        verdict(one, 3, status="replayed"),
        verdict(two, 0, pvalues={"trust_ratio": 0.9}),
        verdict("f" * 16, 0),
    ]
    found = matrix(outcomes, verdicts)
    assert found.detectors == ["pca_residual", "trust_ratio", "fused"]
    (attack, _, cells), (control, kind, others) = found.rows
    assert (attack, control, kind) == ("transfer_pgd", "control_direct", "control")
    assert cells[1] is not None
    assert (cells[1].n, cells[1].share) == (3, pytest.approx(1 / 3))
    assert cells[0] is not None
    assert cells[0].n == 1
    assert others[0] is None
    assert SPEAKS_AT == 0.01


def test_courses_look_back_over_the_last_units_and_leave_abandoned_probes_out() -> None:
    units = [outcome(number, detected=number < 50) for number in range(1, 101)]
    units.append(outcome(500, abandoned="away"))
    (course,) = courses(units[::-1])
    assert len(course.recall) == 50
    assert [point.at for point in course.recall] == sorted(point.at for point in course.recall)
    assert course.recall[-1].at == 100 * SECOND
    assert (course.recall[0].value, course.recall[-1].value) == (1.0, 0.0)
    middle = next(point for point in course.recall if point.at == 54 * SECOND)
    assert (middle.value, middle.n) == (0.5, 10)
    assert all(0 <= point.low <= point.value <= point.high <= 1 for point in course.recall)
    assert course.robust[-1].value == pytest.approx(0.75)
    assert courses([]) == []
    (single,) = courses([outcome(5, fooled=None)])
    assert (len(single.recall), single.robust) == (1, [])


def histograms(pvalues: np.ndarray, names: tuple[str, ...]) -> dict[str, bytes]:
    """As the worker packs them."""
    n = len(pvalues)
    empty = np.zeros((n, 0))
    found = Histograms({})
    found.add(
        Verdicts(
            detectors=names, scores=pvalues[:, :-1], pvalues=pvalues[:, :-1], fused=pvalues[:, -1], tests=(),
            statistics=empty, levels=np.zeros(n, dtype=np.uint8), signals=(),
        )
    )  # fmt: skip
    return found.packed()


def test_detector_page_says_whether_the_calibration_is_stale_and_who_moved(
    scene: Fixture, serve: Fixture, redis: Redis
) -> None:
    scene.worker()
    console = serve()
    page = " ".join(console.get("/detectors").text.split())
    assert "No correlator has looked yet" in page
    assert "Calibration stale" not in console.get("/").text
    status = CalibrationStatus(
        bundle="b1", since=1_700_000_000_000_000, at=1_700_600_000_000_000, risk=0.04, stale=True,
        stale_at=1_700_600_000_000_000, reasons={"martingale": "rows look <odd>"}, kind="drift", breadth=0.62,
        hours=160, log10_wealth=5.4, ticketed=3, ticket_limit=9,
    )  # fmt: skip
    redis.hset(scene.keys.calibration, "m", msgspec.json.encode(status))
    console = serve()
    page = " ".join(console.get("/detectors").text.split())
    assert "calibration stale</span>" in page
    assert "rows look &lt;odd&gt;. Many clients moved: drift." in page
    assert "more than 9 raise the mark" in page
    assert "62" in page.partition("carried by")[2][:60]
    assert "Calibration stale" in console.get("/").text
    told = console.get("/metrics").text
    assert re.search(r'vedette_calibration_stale\{model="\w+"\} 1', told)
    assert re.search(r'vedette_calibration_drift_evidence\{model="\w+"\} 5.4', told)
    redis.hset(scene.keys.calibration, "m", b"of another version")
    assert serve().get("/detectors").status_code == 200


def test_detector_page_tells_uniform_from_odd_pvalues(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker(partitions=(0, 1))
    rng = np.random.default_rng(4)
    for partition in (0, 1):
        pvalues = rng.uniform(size=(10_000, 3))
        pvalues[:, 1] **= 2  # P(p <= a) = sqrt(a)
        packed = histograms(pvalues, ("trust_ratio", "pca_residual"))
        redis.hset(PartitionKeys("events", partition).histograms, mapping=packed)
    redis.hset(PartitionKeys("events", 0).histograms, "other_version", b"123")
    text = " ".join(serve().get("/detectors").text.split())
    assert text.count("20,000 rows") == 3
    assert text.count('<svg class="survival"') == 3
    parts = dict(re.findall(r"<h3>([\w ]+) <span.*?</h3>(.*?)</table>", text))
    assert list(parts) == ["pca residual", "trust ratio", "fused"]
    assert parts["pca residual"].count("too many") == 3
    assert parts["trust ratio"].count("as promised") == parts["fused"].count("as promised") == 3
    assert "the console cannot read it" in text


def test_histograms_of_partitions_add_up() -> None:
    counts = np.zeros(BUCKETS, dtype="<u4")
    counts[[0, 8, 16]] = [900, 90, 10]
    found = merged([{b"a": counts.tobytes()}, {b"a": counts.tobytes(), b"fused": counts.tobytes(), b"x": b"short"}])
    assert list(found) == ["a", "fused"]
    look = look_at("a", found["a"])
    assert look.rows == 2_000
    assert [level.share for level in look.levels] == [0.1, 0.01, 0.0]
    assert [level.verdict for level in look.levels] == ["usual", "usual", ""]
    assert look_at("a", np.array([1000] + [0] * (BUCKETS - 1))).levels[0].verdict == "few"


def test_detector_page_shows_what_the_bundle_promises(
    scene: Fixture, serve: Fixture, redis: Redis, tmp_path: Any
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 6))
    labels = (rows[:, 0] > 0).astype(np.int32)
    schema = FeatureSchema(tuple(Feature(f"f{place}") for place in range(6)), ("a", "b"))
    ensemble, report = fit(
        Reference(rows, labels),
        schema,
        None,
        budget=1,
        clients_per_week=None,
        week_us=3600 * SECOND,
        partitions=1,
        rng=rng,
    )
    path = tmp_path / "bundle.vedette"
    save(path, ensemble, report)
    redis.hset(scene.keys.bundle, "path", str(path))
    text = serve().get("/detectors").text
    assert str(path) in text
    assert "What its calibration says" in text
    assert "nothing pages yet" in text


@pytest.fixture
def letters(kafka: str, topic: Callable[..., str]) -> tuple[str, str]:
    """(broker, event topic) with three dead letters, one of them hostile."""
    name = topic()
    producer = KafkaProducer(bootstrap_servers=kafka)

    def send(
        value: bytes, reason: bytes, offset: int, rows: bytes = b"*", more: list[tuple[str, bytes]] | None = None
    ) -> None:
        headers = [
            *(more or []),
            ("vedette-source", f"{name}/0/{offset}".encode()),
            ("vedette-rows", rows),
            ("vedette-reason", reason),
            ("vedette-detail", b"at byte 3: <b>expected</b> a value"),
        ]
        producer.send(name + DEAD_SUFFIX, value=value, headers=headers).get(timeout=20)

    send(b"{" * 4_000, b"not-decodable", 7)
    send(b"\xff\x00<script>alert(1)</script>", b"not-decodable", 8, more=[("vedette-reason", b"fine")])
    send(b'{"inputs": [1e999]}', b"non-finite", 9, rows=b"0,3")
    producer.close()
    return kafka, name


def test_dead_letters_are_read_with_reasons_and_samples(letters: tuple[str, str]) -> None:
    kafka, name = letters
    found = read(KafkaSettings(bootstrap=kafka), name + DEAD_SUFFIX)
    assert (found.kept, found.reasons) == (3, {"not-decodable": 2, "non-finite": 1})
    newest, hostile, first = found.newest
    assert (newest.source, newest.rows, newest.reason) == (f"{name}/0/9", "0,3", "non-finite")
    assert (hostile.reason, hostile.sample) == ("not-decodable", "\\xff\\x00<script>alert(1)</script>")
    assert (first.size, len(first.sample)) == (4_000, 300)
    assert newest.time >= first.time > 1_600_000_000 * SECOND


def test_dead_letter_page_escapes_what_it_shows(letters: tuple[str, str], scene: Fixture, serve: Fixture) -> None:
    kafka, name = letters
    scene.topic = name
    scene.worker(partitions=(0,))
    scene.traffic()
    text = serve(topic=name, kafka=kafka).get("/dead-letters").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script>alert" not in text
    assert "at byte 3: &lt;b&gt;expected&lt;/b&gt; a value" in text
    plain = " ".join(text.split())
    assert "4 rows refused since recording began" in plain
    assert "keeps 3 letters" in plain
    assert '<td class="what">not-decodable</td><td class="number" data-name="letters">2</td>' in plain


def test_topic_that_does_not_exist_holds_no_letters(kafka: str) -> None:
    assert read(KafkaSettings(bootstrap=kafka), "vedette-test-nowhere.dead").kept == 0


def test_broker_away_is_told_on_the_page(scene: Fixture, serve: Fixture) -> None:
    settings = KafkaSettings(bootstrap="127.0.0.1:1")
    with pytest.raises(BrokerError, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        read(settings, "events.dead")
    answer = serve(kafka="127.0.0.1:1").get("/dead-letters")
    assert answer.status_code == 200
    assert "Kafka cannot be read." in answer.text


def test_accounting_adds_up_or_says_that_it_does_not(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker("host:1", (0,))
    scene.worker("gone:1", (1,), at=scene.now - 100 * SECOND)
    scene.traffic(0)
    scene.traffic(1)
    redis.hset(PartitionKeys("events", 0).watermark, mapping={"w": 1234, "since": 3, "epoch": 7, "bundle": "b"})
    served = serve()
    text = " ".join(served.get("/accounting").text.split())
    assert "rows = scored + probes + excluded + invalid + duplicates" in text
    assert "1,234" in text
    assert '<span class="many">nobody</span>' in text
    redis.hincrby(PartitionKeys("events", 1).totals, "scored", -5)
    text = " ".join(served.get("/accounting").text.split())
    assert "5 rows do not add up" in text
    assert '<td class="number many" data-name="difference">5</td>' in text


def form_mark(served: Fixture, session: requests.Session, path: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', session.get(served.url + path, timeout=30).text)
    assert found
    return found.group(1)


def test_silences_are_made_and_refused_by_form(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    served, session = serve(), requests.Session()
    mark = form_mark(served, session, "/silences")
    desk = IncidentService(redis, "digits")

    def make(**fields: str) -> requests.Response:
        data = {"csrf": mark, "by": "ada", "hours": "4", "client": "aa*", **fields}
        return session.post(served.url + "/silences", data=data, timeout=30)

    page = make(comment="<b>why</b>", starts="2031-05-01T08:00")
    assert "silence of client aa*" in " ".join(page.text.split())
    assert "&lt;b&gt;why&lt;/b&gt;" in page.text
    assert "to come" in page.text
    (made,) = desk.silences()
    assert made.ends - made.starts == 4 * 3600 * SECOND
    assert make(client="", maintenance="1").status_code == 200
    for fields, sentence in (
        ({"client": ""}, "only a maintenance window is about everything"),
        ({"hours": "9999"}, "no such length"),
        ({"entity": "x"}, "no such entity"),
        ({"starts": "soon"}, "is no time"),
        ({"by": ""}, "must be named"),
    ):
        answer = make(**fields)
        assert (answer.status_code, sentence in html.unescape(answer.text)) == (422, True), fields
    assert len(desk.silences()) == 2
    assert make(csrf="0" * 64).status_code == 403
    ended = session.post(f"{served.url}/silences/{made.id}/end", data={"csrf": mark, "by": "bob"}, timeout=30)
    assert ended.status_code == 200
    assert session.post(f"{served.url}/silences/{made.id}/end", data={"by": "eve"}, timeout=30).status_code == 403
    unknown = session.post(f"{served.url}/silences/00000000/end", data={"csrf": mark, "by": "bob"}, timeout=30)
    assert unknown.status_code == 422


def test_repeaters_are_proposed_from_an_incident_and_approved_by_somebody_else(
    scene: Fixture, serve: Fixture, redis: Redis
) -> None:
    name = scene.attack("11aa000000000001")
    served, session = serve(), requests.Session()
    mark = form_mark(served, session, f"/incidents/{name}")
    desk = IncidentService(redis, "digits")

    def post(path: str, **fields: str) -> requests.Response:
        return session.post(served.url + path, data={"csrf": mark, **fields}, timeout=30)

    where = f"/incidents/{name}/repeater"
    assert post(where, by="ada", days="30", reason=" ").status_code == 422
    assert post(where, by="ada", days="31", reason="a sensor").status_code == 422
    assert "proposed as a repeater: &lt;b&gt;a sensor" in post(where, by="ada", days="30", reason="<b>a sensor").text
    page = " ".join(post("/repeaters/11aa000000000001/approve", by="Ada").text.split())
    assert "ada has proposed client 11aa000000000001; somebody else must approve it" in page
    assert desk.repeaters.all()[0].approved_by == ""
    page = post("/repeaters/11aa000000000001/approve", by="bob").text
    assert '<td data-name="approved by">bob</td>' in page
    assert "&lt;b&gt;a sensor" in page
    again = post("/repeaters", by="ada", days="7", client="11aa000000000001", reason="again")
    assert (again.status_code, "already approved by bob" in again.text) == (409, True)
    assert post("/repeaters", by="ada", days="7", client="zz", reason="x").status_code == 422
    assert "ended by carla" in post("/repeaters/11aa000000000001/revoke", by="carla").text
    unmarked = session.post(f"{served.url}/repeaters/11aa000000000001/approve", data={"by": "eve"}, timeout=30)
    assert unmarked.status_code == 403


def test_a_false_alarm_is_approved_on_its_page_by_somebody_else(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    name = scene.attack("11aa000000000001")
    served, session = serve(), requests.Session()
    mark = form_mark(served, session, f"/incidents/{name}")

    def act(action: str, by: str, **fields: str) -> requests.Response:
        data = {"csrf": mark, "by": by, **fields}
        return session.post(f"{served.url}/incidents/{name}/{action}", data=data, timeout=30)

    assert "When somebody else vouches for it" in act("resolve", "ada", verdict="false").text
    refused = act("approve-verdict", "ada")
    assert (refused.status_code, "somebody else must approve" in refused.text) == (409, True)
    assert "say ada and bob" in act("approve-verdict", "bob").text


def test_under_a_named_token_nobody_is_a_second_person(
    scene: Fixture, serve: Fixture, redis: Redis, tmp_path: Path
) -> None:
    ada, bob = (tokens.make(tmp_path / "tokens", who, "responder") for who in ("ada", "bob"))
    served = serve(tokens=tmp_path / "tokens")

    def post(path: str, token: str, **body: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.post(f"{served.url}/api/v1{path}", json=body, headers=headers, timeout=30)

    client = "11aa000000000001"
    ends = time.time_ns() // 1000 + 3_600_000_000
    made = post("/repeaters", ada, client=client, by="bob", reason="a sensor", ends=ends)
    assert made.json()["proposed_by"] == "ada"
    assert post(f"/repeaters/{client}/approve", ada, by="bob").status_code == 409
    assert post(f"/repeaters/{client}/approve", bob, by="ada").json()["approved_by"] == "bob"


def test_merged_incident_leads_to_its_campaign(scene: Fixture, serve: Fixture) -> None:
    near = {"nearest": [1.0] * 64}
    first = scene.attack("11aa000000000001", page=False, **near)
    scene.signal("22bb000000000001", **near)
    scene.correlate()
    served = serve()
    text = served.get(f"/incidents/{first}").text
    assert "one incident of the whole campaign" in text
    campaign = re.search(r'href="(/incidents/[0-9a-f]{16}[^"]*)">one incident', text)
    assert campaign
    assert "spread over 2 accounts" in served.get(campaign.group(1)).text


def test_every_page_is_in_the_navigation_and_works_while_empty(serve: Fixture, redis: Redis) -> None:
    served = serve(kafka="127.0.0.1:1")
    links = re.findall(r'<nav aria-label="Pages">(.*?)</nav>', served.get("/").text, re.DOTALL)[0]
    paths = re.findall(r'href="([^"]+)"', links)
    assert [path.split("?")[0] for path in paths] == [
        "/", "/incidents", "/silences", "/repeaters", "/probes", "/detectors", "/dead-letters", "/accounting",
    ]  # fmt: skip
    for path in paths:
        answer = served.get(path)
        assert answer.status_code == 200, path
        assert 'aria-current="page"' in answer.text
