"""The console over real HTTP and real Redis: what it shows, and what it refuses."""

from __future__ import annotations

import html
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from redis import Redis

from detectors.schema import FeatureSchema
from streams import embedded
from streams.config import ConsoleSettings, DestinationSettings, NotifySettings, ObjectiveSettings
from streams.console.access import Access, read_token
from streams.console.front import HEADERS
from streams.errors import ConfigError
from streams.incidents.monitoring import open_blind
from streams.incidents.service import IncidentService
from streams.store.keys import PartitionKeys
from streams.store.messages import ReasonMessage

Fixture = Any
TOKEN = "a token of more than sixteen characters"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); //",
    "{{ 7 * 7 }}",
    "</textarea></title><svg/onload=alert(1)>",
    "javascript:alert(1)",
]


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def csrf(text: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', text)
    assert found
    return found.group(1)


def log_in(served: Fixture, token: str = TOKEN) -> requests.Session:
    session = requests.Session()
    answer = session.post(served.url + "/login", data={"token": token}, timeout=30, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    return session


def test_live_page_shows_incidents_traffic_probes_and_workers(scene: Fixture, serve: Fixture) -> None:
    scene.worker()
    scene.traffic(0)
    scene.traffic(1)
    scene.probe()
    scene.attack()
    scene.attack("77aa000000000001", page=False)
    page = serve().get("/")
    assert page.status_code == 200
    text = " ".join(page.text.split())
    assert "24 near-identical queries seeking a decision boundary" in text
    assert '<dt>Open pages</dt><dd id="open_pages">1</dd>' in text
    assert "<dt>Open tickets</dt><dd>1</dd>" in text
    assert "<dt>Rows a second</dt><dd>1,234</dd>" in text
    assert "<dt>Lag, records</dt><dd>12</dd>" in text
    total = sum(4_000 + 37 * (back * back % 11) * 10 for back in range(30))
    assert f"<dt>Rows examined</dt><dd>{2 * (total - 25):,}</dd>" in text
    assert "<dt>Rows refused</dt><dd>8</dd>" in text
    assert "92 %" in text
    assert '240 <span class="faint">inputs in 12 bursts</span>' in text
    assert "host:1" in text
    assert "No worker is alive" not in text
    assert len(page.content) < 100_000


def test_traffic_looks_back_an_hour_a_day_or_a_week(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker(partitions=(0, 1))
    scene.traffic()
    this = scene.now // (3600 * 1_000_000)
    for partition in (0, 1):
        keys = PartitionKeys("events", partition)
        for back in range(200):
            redis.hset(keys.hour(this - back), mapping={"rows": 100 + back, "pages": int(back == 30)})
    served = serve()
    given = {back: served.get(f"/api/v1/traffic?range={back}").json()["minutes"] for back in ("hour", "day", "week")}
    assert [(len(bars), bars[-1]["length"]) for bars in given.values()] == [(60, 1), (24, 60), (56, 180)]
    assert [bar["rows"] for bar in given["day"]] == [2 * (100 + back) for back in range(23, -1, -1)]
    assert sum(bar["pages"] for bar in given["day"]) == 0
    assert sum(bar["pages"] for bar in given["week"]) == 2
    whole = [bar for bar in given["week"] if bar["minute"] + 180 <= this * 60]
    for bar in whole:
        assert bar["rows"] == sum(2 * (100 + this - bar["minute"] // 60 - hour) for hour in range(3))
    assert served.get("/api/v1/traffic?range=year").status_code == 422
    for back, label in (("day", "by hour over the last 24 hours"), ("week", "by 3 hours over the last 168 hours")):
        page = served.get(f"/?range={back}")
        assert len(page.content) < 100_000
        assert f"Rows {label}" in page.text
        assert 'id="traffic"' not in page.text, "the stream would put the last hour in its place"
    assert "Rows by minute over the last 60 minutes" in served.get("/?range=x").text


def test_pages_come_before_tickets_and_open_before_resolved(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    resolved = scene.attack("00aa000000000001")
    ticket = scene.attack("11aa000000000001", page=False)
    page = scene.attack("22aa000000000001")
    IncidentService(redis, "digits").resolve(resolved, "ada", "true")
    rows = serve().get("/api/v1/incidents?state=all").json()["incidents"]
    assert [row["id"] for row in rows] == [page, ticket, resolved]


def test_nothing_alive_is_said_aloud(scene: Fixture, serve: Fixture) -> None:
    scene.worker(at=scene.now - 60_000_000)
    text = serve().get("/").text
    assert "No worker is alive." in text
    assert "silent since" in text
    assert "<dt>Lag, records</dt><dd>–</dd>" in text  # unknown, not zero


def test_partition_that_no_worker_holds_is_named(scene: Fixture, serve: Fixture) -> None:
    scene.worker(partitions=(0, 1))
    scene.worker("gone:1", partitions=(2, 3), at=scene.now - 60_000_000)
    text = " ".join(serve().get("/").text.split())
    assert "Partitions 2-3</strong> of events: held by no living worker" in text


def test_monitoring_blind_and_pilot_stand_on_the_live_page(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker()
    open_blind(redis, scene.keys, "0 of 20 rows of a transfer_pgd probe came back", scene.now, token=None)
    redis.set(scene.keys.mode, "pilot")
    served = serve()
    text = served.get("/").text
    assert "Monitoring is blind" in text
    assert "0 of 20 rows of a transfer_pgd probe came back" in text
    assert "Nobody is called" in text
    name = redis.zrange(scene.keys.incidents, 0, 0)[0].decode()
    assert "silence proves nothing" in served.get(f"/incidents/{name}").text


def test_incident_page_shows_the_evidence(scene: Fixture, serve: Fixture) -> None:
    name = scene.attack()
    text = serve().get(f"/incidents/{name}").text
    plain = " ".join(text.split())
    assert "Client 3fa1… sent 24 near-identical queries that seek a decision boundary" in plain
    assert "1.70× its threshold" in plain
    assert 'href="https://atlas.mitre.org/techniques/AML.T0043.001"' in text
    assert "Query-based evasion" in text
    assert "nearer to rows answered “3” than to rows answered “8”" in plain
    assert "1 in 476 benign inputs looks as odd" in plain
    assert "about 1 in 2,500 benign inputs, estimated from the tail" in plain
    assert "the queries move the model&#39;s answer 2.9 standard deviations more than random steps" in plain
    assert "the queries keep 2.2 times nearer to the model&#39;s decision boundary" in plain
    pictures = [
        attributes for tag, attributes in Tags(text).found if tag == "img" and attributes.get("class") == "pixels"
    ]
    assert [picture["alt"] for picture in pictures[:2]] == ["input, answered “8”", "nearest reference of “3”"]
    assert pictures[2]["alt"] == "difference: red more, blue less, at most 3"
    assert all((picture["src"] or "").startswith("data:image/png;base64,") for picture in pictures)
    assert "events/0/5 row 0" in text
    assert "raised to page by query-intent" in text


def test_ticket_says_what_a_page_would_need(scene: Fixture, serve: Fixture) -> None:
    served = serve()
    ticket = scene.attack("77aa000000000001", page=False)
    assert "nobody was called: near-identical queries alone" in served.get(f"/incidents/{ticket}").text
    pilot = scene.attack("88aa000000000001", page=False, pilot=True)
    assert "This would have paged, but Vedette runs in pilot" in served.get(f"/incidents/{pilot}").text


def test_table_of_features_where_inputs_are_no_pictures(scene: Fixture, serve: Fixture, loans: FeatureSchema) -> None:
    name = scene.attack(
        width=4, input=[150_000.0, 30.0, 0.4, 12.0], nearest=[50_000.0, 31.0, 0.4, 12.0], label=1, nearest_label=0
    )
    text = serve(schema=loans).get(f"/incidents/{name}").text
    assert "income" in text
    assert "1.5e+05" in text
    assert "50 %" in text
    assert (
        "The model answered <strong>granted</strong>; the nearest reference row is of <strong>refused</strong>" in text
    )
    assert "debt ratio" not in text  # it did not change


@pytest.mark.parametrize("schema", ["none", "narrow"])
def test_incident_page_without_a_fitting_schema_numbers_features(
    scene: Fixture, serve: Fixture, loans: FeatureSchema, schema: str
) -> None:
    name = scene.attack()
    answer = serve(schema=None if schema == "none" else loans).get(f"/incidents/{name}")
    assert answer.status_code == 200
    assert re.search(r"feature \d+", answer.text)
    assert "class 8" in answer.text


def test_hostile_strings_are_shown_and_never_become_tags(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    texts = ["harmless", *HOSTILE]
    scene.worker(HOSTILE[0], bundle=HOSTILE[1], web=HOSTILE[2])
    for place, text in enumerate(texts):
        scene.probe(text, threat=text)
        changes = {
            "rule": text,
            "technique": text,
            "entity_id": text + str(place),
            "clients": [text],
            "bundle": text,
            "reasons": [ReasonMessage(detector=text, p=0.01, text=text)],
            "measures": {text: 1.0},
            "time": scene.now + place,
            "statistic": 15.0,
        }
        scene.signal(**changes, id=text + str(place))
        scene.signal(**changes, id=text + str(place) + "b", level="page")
    names = scene.correlate()[::-1]
    assert len(names) == len(texts)
    desk = IncidentService(redis, "digits")
    for name, text in zip(names, texts, strict=True):
        desk.acknowledge(name, text)
        desk.resolve(name, text, "true", text)
    served = serve()
    pages = [served.get(f"/incidents/{name}").text for name in names]
    plain = [tag for tag, _ in Tags(pages[0]).found]
    for text, page in zip(texts, pages, strict=True):
        assert html.escape(text, quote=False)[:12] in page.replace("&#34;", '"').replace("&#39;", "'")
        assert [tag for tag, _ in Tags(page).found] == plain
    for page in (*pages, served.get("/").text):
        found = Tags(page).found
        assert [attributes for tag, attributes in found if tag == "script"] == [
            {"src": "/static/console.js", "defer": None}
        ]
        assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name == "style"]
        links = [attributes.get("href") or "" for tag, attributes in found if tag == "a"]
        assert all(link.startswith(("/", "#")) for link in links)
        sources = [attributes.get("src") or "" for tag, attributes in found if tag == "img"]
        assert all(source.startswith(("/static/", "data:image/png;base64,")) for source in sources)
    metrics = served.get("/metrics").text
    assert len([line for line in metrics.splitlines() if line.startswith("vedette_probe_recall{")]) == len(texts)


def test_responses_carry_strict_headers(scene: Fixture, serve: Fixture) -> None:
    served = serve()
    for path in ("/", "/static/console.css", "/nowhere", "/api/v1/nowhere", "/metrics", "/health", "/events/last"):
        answer = served.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, path
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert served.get("/").headers["Cache-Control"] == "no-store"
    assert served.get("/static/console.css").headers["Cache-Control"] == "no-cache"


def test_acknowledge_resolve_and_reopen_by_form(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    name = scene.attack()
    served = serve()
    session = requests.Session()
    here = f"{served.url}/incidents/{name}"
    mark = csrf(session.get(here, timeout=30).text)
    page = session.post(f"{here}/acknowledge?model=digits", data={"csrf": mark, "by": "Ada  Löve"}, timeout=30)
    assert page.status_code == 200
    assert "Ada Löve has it" in page.text
    assert 'value="Ada Löve"' in page.text  # the form remembers the name
    assert session.get(served.url + "/", timeout=30).text.count("in progress") == 1
    page = session.post(
        f"{here}/resolve", data={"csrf": mark, "by": "ada", "verdict": "false", "note": "a <new> sensor"}, timeout=10
    )
    assert "resolved: false alarm" in " ".join(page.text.split())
    assert "resolved as false: a &lt;new&gt; sensor" in page.text
    page = session.post(f"{here}/reopen", data={"csrf": mark, "by": "ada"}, timeout=30)
    assert 'id="acknowledge"' in page.text
    assert IncidentService(redis, "digits").show(name).incident.state == "new"


def test_recall_is_held_against_the_objectives_of_the_model(scene: Fixture, serve: Fixture) -> None:
    scene.worker()
    scene.probe("transfer_pgd", recall=0.85)
    scene.probe("hop_skip_jump", "campaign", recall=0.55)
    scene.probe("nes", "campaign", recall=0.85)
    scene.probe("model_copy", "extraction", recall=0.1)
    low = re.compile(r'<tr data-key="(\w+)">(?:(?!</tr>).)*class="recall low"', re.DOTALL)
    for path in ("/", "/probes"):
        assert low.findall(serve().get(path).text) == ["hop_skip_jump"], "80 % of bursts and campaigns by default"
        own = ObjectiveSettings(recall=0.9, recall_of={"hop_skip_jump": 0.5, "model_copy": 0.2})
        page = serve(objectives=own).get(path).text
        assert sorted(low.findall(page)) == ["model_copy", "nes", "transfer_pgd"]
    assert "the objective: 90 % of each attack" in page


def test_what_ended_by_itself_is_judged_by_form(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.now -= 30 * 3600 * 1_000_000
    name = scene.attack(page=False)
    redis.hset(PartitionKeys("events", 0).watermark, "identity", f"7:{int(time.time() * 1000)}:00000000")
    scene.tend()
    served = serve()
    session = requests.Session()
    here = f"{served.url}/incidents/{name}"
    page = session.get(here, timeout=30).text
    assert "It ended by itself" in page
    form = {"csrf": csrf(page), "by": "ada", "verdict": "false", "note": "a new sensor"}
    page = session.post(f"{here}/resolve", data=form, timeout=30).text
    assert "judged as false: a new sensor" in page
    assert "It ended by itself" not in page
    assert "A false alarm, says ada" in page


def test_change_without_our_mark_is_refused(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    name = scene.attack()
    served = serve()
    session = requests.Session()
    mark = csrf(session.get(served.url + "/incidents/" + name, timeout=30).text)
    path = f"{served.url}/incidents/{name}/acknowledge"
    other = csrf(served.get("/incidents/" + name).text)
    tries = [
        session.post(path, data={"by": "eve"}, timeout=30),
        session.post(path, data={"by": "eve", "csrf": "0" * 64}, timeout=30),
        session.post(path, data={"by": "eve", "csrf": "é"}, timeout=30),
        session.post(path, data={"by": "eve", "csrf": other}, timeout=30),
        session.post(path, data={"by": "eve", "csrf": mark}, headers={"Sec-Fetch-Site": "cross-site"}, timeout=30),
        requests.post(path, data={"by": "eve", "csrf": mark}, timeout=30),
        requests.post(
            path,
            data={"by": "eve", "csrf": mark},
            cookies={"vedette_session": "1-aaaaaaaaaaaaaaaaaaaaaa.é"},
            timeout=30,
        ),
    ]
    assert [answer.status_code for answer in tries] == [403] * len(tries)
    assert session.post(path, json={"by": "eve", "csrf": mark}, timeout=30).status_code == 415
    assert session.post(path, data={"by": "eve", "csrf": mark}, files={"a": b"b"}, timeout=30).status_code == 415
    assert session.post(path, data={"by": "x" * 70_000, "csrf": mark}, timeout=30).status_code == 413
    assert IncidentService(redis, "digits").show(name).incident.state == "new"


def test_second_of_two_people_sees_who_was_faster(scene: Fixture, serve: Fixture) -> None:
    name = scene.attack()
    served = serve()
    sessions = [requests.Session() for _ in range(8)]
    marks = [csrf(session.get(f"{served.url}/incidents/{name}", timeout=30).text) for session in sessions]
    barrier = threading.Barrier(len(sessions))
    answers: list[requests.Response] = []

    def take(session: requests.Session, mark: str, who: str) -> None:
        barrier.wait()
        answers.append(
            session.post(f"{served.url}/incidents/{name}/acknowledge", data={"csrf": mark, "by": who}, timeout=30)
        )

    threads = [
        threading.Thread(target=take, args=(session, mark, f"person{place}"))
        for place, (session, mark) in enumerate(zip(sessions, marks, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    winner = next(answer for answer in answers if answer.status_code == 200)
    who = re.search(r"(person\d) has it", winner.text)
    assert who
    assert all(
        f"already acknowledged by {who.group(1)}" in answer.text for answer in answers if answer.status_code == 409
    )


def test_resolution_needs_a_name_and_a_verdict(scene: Fixture, serve: Fixture) -> None:
    name = scene.attack()
    served = serve()
    session = requests.Session()
    here = f"{served.url}/incidents/{name}"
    mark = csrf(session.get(here, timeout=30).text)
    for data in ({"by": " ", "verdict": "true"}, {"by": "ada", "verdict": "maybe"}, {"by": "ada"}):
        answer = session.post(f"{here}/resolve", data={"csrf": mark, **data}, timeout=30)
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text


def test_unknown_paths_and_incidents_are_told(scene: Fixture, serve: Fixture) -> None:
    served = serve()
    assert served.get("/nowhere").status_code == 404
    answer = served.get(f"/incidents/{'0' * 16}")
    assert answer.status_code == 404
    assert "may have expired" in answer.text
    assert served.get("/?model=other").status_code == 404
    api = served.get("/api/v1/incidents/none")
    assert (api.status_code, api.headers["Content-Type"]) == (404, "application/problem+json")
    assert api.json()["title"] == "No such incident"
    wrong = served.post("/metrics")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "GET,HEAD")


def test_a_token_guards_everything(scene: Fixture, serve: Fixture) -> None:
    name = scene.attack()
    served = serve(token=TOKEN)
    for path in ("/", f"/incidents/{name}"):
        answer = served.get(path, allow_redirects=False)
        leads = "/login" if path == "/" else f"/login?next=/incidents/{name}"
        assert (answer.status_code, answer.headers["Location"]) == (303, leads)
    for path in (
        "/api/v1/overview",
        "/api/v1/incidents",
        f"/api/v1/incidents/{name}",
        "/metrics",
        "/events",
        "/events/last",
    ):
        assert served.get(path).status_code == 401
    assert served.get("/health").status_code == 200
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert served.get("/api/v1/overview", headers=bearer).status_code == 200
    assert served.get("/metrics", headers=bearer).status_code == 200
    wrong = {"Authorization": "Bearer no"}
    assert served.get("/metrics", headers=wrong).status_code == 401
    session = log_in(served)
    assert session.get(served.url + "/", timeout=30).status_code == 200
    page = session.get(served.url + f"/incidents/{name}", timeout=30)
    done = session.post(
        served.url + f"/incidents/{name}/acknowledge", data={"csrf": csrf(page.text), "by": "ada"}, timeout=10
    )
    assert "ada has it" in done.text
    without = served.post(f"/incidents/{name}/reopen", data={"by": "eve"}, headers=bearer, allow_redirects=False)
    assert without.status_code == 303  # a program that carries the token needs no form of ours
    session.post(served.url + "/logout", data={"csrf": csrf(page.text)}, timeout=30)
    assert session.get(served.url + "/", timeout=30, allow_redirects=False).status_code == 303


def test_wrong_tokens_are_limited(serve: Fixture, redis: Redis) -> None:
    served = serve(token=TOKEN)
    answers = [served.post("/login", data={"token": f"wrong {number}"}).status_code for number in range(12)]
    assert answers == [403] * 10 + [429] * 2
    assert served.post("/login", data={"token": TOKEN}).status_code == 429
    assert served.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 429
    assert served.get("/metrics").status_code == 401


def test_log_in_leads_to_the_page_that_was_asked_for(scene: Fixture, serve: Fixture) -> None:
    name = scene.attack()
    served = serve(token=TOKEN)
    session = requests.Session()
    asked = session.get(f"{served.url}/incidents/{name}?model=digits", timeout=30)
    action = re.search(r'action="(/login[^"]*)"', asked.text)
    assert action
    found = session.post(served.url + html.unescape(action.group(1)), data={"token": TOKEN}, timeout=30)
    assert (found.status_code, found.url) == (200, f"{served.url}/incidents/{name}?model=digits")
    assert 'id="export"' in found.text
    note = served.post(f"/incidents/{name}/note", data={"note": "x"}, allow_redirects=False)
    assert note.headers["Location"] == f"/login?next=/incidents/{name}"
    model = served.post("/silences/x/end?model=digits", data={"by": "ada"}, allow_redirects=False)
    assert model.headers["Location"] == "/login?next=/silences?model%3Ddigits"
    bulk = served.post("/incidents/bulk?state=all&q=x", data={"by": "ada"}, allow_redirects=False)
    assert bulk.headers["Location"] == "/login?next=/incidents?state%3Dall%26q%3Dx"
    assert served.post("/logout", allow_redirects=False).headers["Location"] == "/login"
    again = session.get(f"{served.url}/incidents/{name}/note", timeout=30)  # reloaded after a refused change
    assert (again.status_code, again.url) == (200, f"{served.url}/incidents/{name}?model=digits")


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "/\\evil.example", "https://evil.example", "/%09/evil.example", "", "/a%0d%0ab"]
)
def test_log_in_leads_nowhere_else(serve: Fixture, redis: Redis, wanted: str) -> None:
    answer = serve(token=TOKEN).post(f"/login?next={wanted}", data={"token": TOKEN}, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"token=x", {"Content-Type": "application/x-www-form-urlencoded; charset=klingon"}),
        (b"token=x", {"Content-Type": "application/x-www-form-urlencoded; charset=utf-16"}),
        (b"token=\xff\xfe", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"token=x", {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}),
    ],
)
def test_form_that_cannot_be_read_is_refused(
    serve: Fixture, redis: Redis, body: bytes, headers: dict[str, str]
) -> None:
    served = serve(token=TOKEN)
    assert served.post("/login", data=body, headers=headers).status_code == 400
    told = served.post(
        "/api/v1/silences",
        data=b"{}",
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    assert (told.status_code, told.headers["Content-Type"]) == (400, "application/problem+json")


def test_foreign_session_is_not_ours(serve: Fixture, redis: Redis) -> None:
    served, other = serve(token=TOKEN), serve(token=TOKEN + " of another console")
    cookie = log_in(other, TOKEN + " of another console").cookies["vedette_session"]
    answer = served.get("/", cookies={"vedette_session": cookie}, allow_redirects=False)
    assert answer.status_code == 303


def test_session_ends_after_a_shift() -> None:
    now = 1_700_000_000.0
    access = Access(TOKEN, clock=lambda: now)
    response = web.Response()
    access.remember(make_mocked_request("GET", "/"), response, access.new_session())
    cookie = response.cookies["vedette_session"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
    request = make_mocked_request("GET", "/", headers={"Cookie": f"vedette_session={cookie.value}"})
    assert access.known(request)
    now += 12 * 3600 + 1
    assert not access.known(request)


def test_without_a_token_only_loopback_names_are_answered(serve: Fixture, redis: Redis) -> None:
    served = serve()
    assert served.get("/", headers={"Host": "evil.example:8600"}).status_code == 421
    assert served.get("/api/v1/overview", headers={"Host": "evil.example"}).status_code == 421
    for host in ("localhost:8600", "127.0.0.1", "[::1]:8600"):
        assert served.get("/", headers={"Host": host}).status_code == 200
    guarded = serve(token=TOKEN)
    assert guarded.get("/login", headers={"Host": "vedette.example"}).status_code == 200


def test_no_start_beyond_loopback_without_a_token(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"console.host: 0\.0\.0\.0 is not loopback"):
        read_token(ConsoleSettings(host="0.0.0.0"))
    assert read_token(ConsoleSettings(host="::1")) is None
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="cannot read"):
        read_token(ConsoleSettings(host="0.0.0.0", token_file=str(path)))
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16 characters"):
        read_token(ConsoleSettings(token_file=str(path)))
    path.write_text(TOKEN + "\n")
    assert read_token(ConsoleSettings(host="0.0.0.0", token_file=str(path))) == TOKEN


def test_api_gives_what_the_pages_show(scene: Fixture, serve: Fixture) -> None:
    scene.worker()
    scene.traffic()
    name = scene.attack()
    served = serve()
    look = served.get("/api/v1/overview").json()
    assert (look["model"], look["lag"], look["rows_per_second"], look["open_pages"]) == ("digits", 12, 1234.0, 1)
    assert len(look["minutes"]) == 60
    assert [row["id"] for row in served.get("/api/v1/incidents").json()["incidents"]] == [name]
    whole = served.get(f"/api/v1/incidents/{name}").json()
    assert whole["change"] == 6
    assert whole["incident"]["level"] == "page"
    assert [signal["offset"] for signal in whole["evidence"]] == [5, 4, 3, 2, 1, 0]


def test_metrics_are_prometheus_text(scene: Fixture, serve: Fixture) -> None:
    scene.worker()
    scene.traffic()
    scene.probe()
    scene.attack()
    answer = serve().get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    assert 'vedette_incidents_open{model="digits",level="page"} 1' in lines
    assert 'vedette_lag_records{model="digits"} 12' in lines
    assert 'vedette_rows_total{model="digits",as="invalid"} 4' in lines
    assert any(
        line.startswith('vedette_probe_recall{model="digits",attack="transfer_pgd",kind="burst"} 0.9166')
        for line in lines
    )
    names = [line.split("{")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(names, key=names.index)  # each family in one piece
    for name in set(names):
        assert lines.count(f"# TYPE {name} counter") + lines.count(f"# TYPE {name} gauge") == 1


def test_unreadable_messages_do_not_hide_the_others(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker()
    redis.hset(scene.keys.workers, "broken", b"\xff{")
    redis.hset(scene.keys.probe_results, "broken", b"{}")
    name = scene.attack()
    redis.rpush(scene.keys.evidence(name), b'{"another": "version"}')
    redis.hset(scene.keys.incident("f" * 16), mapping={"m": b"not JSON", "version": 1})
    redis.zadd(scene.keys.incidents, {"f" * 16: 2e9})
    served = serve()
    assert served.get("/").status_code == 200
    assert served.get(f"/incidents/{name}").status_code == 200
    assert served.get(f"/incidents/{'f' * 16}").status_code == 500


def test_redis_away_is_told_and_comes_back(serve: Fixture, wait_until: Callable[..., Any]) -> None:
    server = embedded.start_redis()
    try:
        served = serve(redis=server.address)
        assert served.get("/").status_code == 200
        server.pause()
        wait_until(lambda: served.get("/").status_code == 503, 10, "the console to see that Redis is away")
        answer = served.get("/")
        assert "Redis does not answer" in answer.text
        assert served.get("/health").status_code == 503
        assert served.get("/api/v1/incidents").json()["title"] == "Redis does not answer"
        server.resume()
        wait_until(lambda: served.get("/health").status_code == 200, 20, "Redis to answer again")
        assert served.get("/").status_code == 200
    finally:
        server.stop()


def events(served: Fixture, path: str, count: int) -> list[tuple[str, Any]]:
    found = []
    with requests.get(served.url + path, stream=True, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            if line.startswith(b"event: "):
                kind = line[7:].decode()
            elif line.startswith(b"data: "):
                found.append((kind, msgspec.json.decode(line[6:])))
                if len(found) == count:
                    break
    return found


def test_stream_tells_what_changes(scene: Fixture, serve: Fixture) -> None:
    scene.worker()
    served = serve()
    ((kind, before),) = events(served, "/events", 1)
    assert (kind, before["open_pages"]) == ("overview", 0)
    name = scene.attack()
    looks = events(served, "/events", 2)
    assert looks[-1][1]["open_pages"] == 1
    assert name in looks[-1][1]["incidents"]
    ((_, change),) = events(served, f"/events?topic={name}", 1)
    assert change == {"change": 6}


def test_streams_are_limited_and_end_with_the_console(
    serve: Fixture, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.console.app.MOST_VIEWERS", 2)
    served = serve()
    kept = [requests.get(served.url + "/events", stream=True, timeout=30) for _ in range(2)]
    assert served.get("/events").status_code == 503
    assert served.get("/").status_code == 200
    for answer in kept:
        answer.close()


def test_viewer_who_leaves_is_forgotten(serve: Fixture, redis: Redis, wait_until: Callable[..., Any]) -> None:
    served = serve()
    host, port = served.url.removeprefix("http://").split(":")
    broadcast = served.console.broadcasts["digits"]
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: len(broadcast) == 1, 5, "the viewer")
    wait_until(lambda: len(broadcast) == 0, 10, "the viewer to be forgotten")


def test_every_page_asks_redis_for_a_bounded_number_of_commands(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker()
    scene.traffic()
    for client in range(15):
        scene.signal(f"{client:016x}")
    names = scene.correlate()
    served = serve()
    served.get("/")

    def commands() -> int:
        return sum(stat["calls"] for name, stat in redis.info("commandstats").items() if name != "cmdstat_info")

    def cost(path: str) -> int:
        watch = served.console.front.watches["digits"]
        watch._last = None
        before = commands()
        assert served.get(path).status_code == 200
        return commands() - before

    few = cost("/"), cost(f"/incidents/{names[0]}")
    for client in range(15, 300):
        scene.signal(f"{client:016x}", time=scene.now + client * 60_000_000)
    scene.correlate()
    served.get("/")
    cost("/")
    many = cost("/"), cost(f"/incidents/{names[0]}")
    assert redis.zcard(scene.keys.incidents) == 300
    # Old minutes are read again every ten seconds; otherwise nothing grows with what is stored.
    minutes = 28 * 2
    assert many[0] <= few[0] + minutes
    assert many[1] <= few[1]


def test_runbook_of_the_settings_stands_on_the_page_as_text_with_links(scene: Fixture, serve: Fixture) -> None:
    name = scene.attack()
    text = "Ask the <b>tenant</b>: https://gateway.example/keys\n\nKeep the records."
    page = serve(runbook={"AML.T0043.*": text}).get(f"/incidents/{name}").text
    assert 'Ask the &lt;b&gt;tenant&lt;/b&gt;: <a href="https://gateway.example/keys" rel=' in page
    assert '<p class="runbook">Keep the records.</p>' in page
    assert "limit or question the client" not in page


def test_deliveries_are_metrics_and_a_deaf_destination_is_told_of(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    scene.worker()
    scene.attack()
    keys, now = scene.keys, time.time()
    redis.xgroup_create(keys.alerts, "siem", id="0")
    redis.xreadgroup("siem", "one", {keys.alerts: ">"}, count=1)
    redis.hset(keys.notice_totals, mapping={"oncall|delivered": 7, "oncall|retried": 3})
    redis.hset(keys.notices("oncall"), "k", "{}")
    redis.zadd(keys.notices_due("oncall"), {"k": now - 90})
    since = round((now - 600) * 1e6)
    redis.hset(keys.notice_health, "oncall", json.dumps({"failures": 4, "since": since, "problem": "HTTP 503 <b>"}))
    destination = DestinationSettings(name="oncall", kind="pagerduty")
    served = serve(notify=NotifySettings(destinations=(destination,)))
    lines = served.get("/metrics").text.splitlines()
    for line in (
        'vedette_alert_group_pending{model="digits",group="siem"} 1',
        'vedette_alerts_length{model="digits"} 2',
        'vedette_notifications_total{model="digits",destination="oncall",outcome="delivered"} 7',
        'vedette_notifications_total{model="digits",destination="oncall",outcome="given_up"} 0',
        'vedette_notifications_open{model="digits",destination="oncall"} 1',
        'vedette_notifications_failures{model="digits",destination="oncall"} 4',
        'vedette_notifications_dead{model="digits",destination="oncall"} 0',
    ):
        assert line in lines
    overdue = next(line for line in lines if line.startswith("vedette_notifications_overdue_seconds{"))
    assert 600 <= float(overdue.split()[-1]) < 700
    page = served.get("/").text
    assert "oncall takes no notifications." in page
    assert "HTTP 503 &lt;b&gt;" in page


def test_budget_of_false_pages_is_told_against_what_was_used(
    scene: Fixture, serve: Fixture, redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    scene.worker()
    first, second = scene.attack("11aa000000000001"), scene.attack("22aa000000000001")
    scene.attack("33aa000000000001", page=False)
    open_blind(redis, scene.keys, "no probe was seen", scene.now)
    IncidentService(redis, "digits").resolve(first, "ada", "false")
    IncidentService(redis, "digits").resolve(second, "ada", "true")
    bundle = tmp_path / "bundle"
    bundle.write_bytes(b"")
    redis.hset(scene.keys.bundle, "path", str(bundle))
    monkeypatch.setattr("streams.console.budgets.read_report", lambda _: SimpleNamespace(budget=1))
    served = serve()
    look = served.get("/api/v1/overview").json()
    assert (look["week_pages"], look["week_false_pages"], look["page_budget"]) == (2, 1, 1)
    assert "1 false, budget 1" in served.get("/").text
    lines = served.get("/metrics").text.splitlines()
    assert 'vedette_pages_week{model="digits",false="true"} 1' in lines
    assert 'vedette_page_budget{model="digits"} 1' in lines


def test_what_the_model_said_when_asked_again_is_on_the_page_in_the_api_and_counted(
    scene: Fixture, serve: Fixture, redis: Redis
) -> None:
    name = scene.attack()
    served = serve()
    assert "The model, asked again" not in served.get(f"/incidents/{name}").text
    assert "vedette_escalation" not in served.get("/metrics").text
    kept = served.get(f"/api/v1/incidents/{name}").json()["evidence"]
    answers = [{"inquiry": "noise_stability", "score": 4.25, "p": 0.0015, "rows": 2000, "questions": 97}]
    for place, signal in enumerate((kept[0]["id"], "<b>forgotten</b>")):
        said = {"signal": signal, "at": 5 + place, "bundle": "b1", "answers": answers}
        redis.hset(scene.keys.inquiries(name), signal, json.dumps(said))
    redis.hset(scene.keys.inquiries(name), "unreadable", "{}")
    redis.hset(scene.keys.inquiry_totals, mapping={"answered": 2, "dropped": 1, "questions": 194})
    page = served.get(f"/incidents/{name}").text
    assert "The model, asked again" in page
    row = page.partition("noise_stability")[2].partition("</tr>")[0]
    assert all(f">{cell}<" in row for cell in ("4.25", "0.0015", "2,000", "97"))
    assert "&lt;b&gt;forgotten" in page
    assert "<b>forgotten" not in page
    whole = served.get(f"/api/v1/incidents/{name}").json()["inquiries"]
    assert [said["signal"] for said in whole] == ["<b>forgotten</b>", kept[0]["id"]]
    assert whole[1]["answers"] == answers
    lines = serve().get("/metrics").text.splitlines()
    assert 'vedette_escalation_rows_total{model="digits",outcome="answered"} 2' in lines
    assert 'vedette_escalation_rows_total{model="digits",outcome="dropped"} 1' in lines
    assert 'vedette_escalation_rows_total{model="digits",outcome="failed"} 0' in lines
    assert 'vedette_escalation_questions_total{model="digits"} 194' in lines
