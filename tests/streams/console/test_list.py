"""The list of incidents over HTTP: filters, pages, bulk actions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests
from redis import Redis

from streams.console.incident_room import BULK_ROWS, PAGE_ROWS, ListQuery
from streams.incidents.service import IncidentService

Fixture = Any


def listed(text: str) -> list[str]:
    return re.findall(r'<tr data-key="([0-9a-f]{16})"', text)


@pytest.fixture
def many(scene: Fixture) -> list[str]:
    """120 tickets, the newest first."""
    for client in range(120):
        scene.signal(f"{client:016x}", time=scene.now + client * 60_000_000)
    names: list[str] = scene.correlate()
    assert len(names) == 120
    return names


def test_filters_are_those_of_the_address(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    ticket = scene.attack("11aa000000000001", page=False)
    page = scene.attack("22bb000000000001")
    done = scene.attack("33cc000000000001")
    IncidentService(redis, "digits").resolve(done, "ada", "true")
    served = serve()
    for query, wanted in {
        "": [page, ticket],
        "state=all": [page, ticket, done],
        "state=resolved": [done],
        "level=ticket": [ticket],
        "q=22BB+evasion": [page],
        "q=nothing": [],
        "order=first_seen&ascending=1&state=all": [ticket, page, done],
        "state=%3Cscript%3E&level=x&order=y&page=-3&ascending=z": [page, ticket],
        "page=99999999999999999999": [page, ticket],
        "page=7": [page, ticket],
    }.items():
        assert listed(served.get(f"/incidents?{query}").text) == wanted, query
        rows = served.get(f"/incidents/rows?{query}").json()
        assert listed(rows["rows"]) == wanted, query
    assert "No incident fits." in served.get("/incidents?q=nothing").text


def test_list_comes_in_pages(many: list[str], serve: Fixture) -> None:
    served = serve()
    first = served.get("/incidents").text
    assert listed(first) == many[:PAGE_ROWS]
    assert "120 incidents, 1 to 50 shown" in first
    address = re.search(r'rel="next" href="([^"]+)"', first)
    assert address
    assert listed(served.get(address.group(1).replace("&amp;", "&")).text) == many[50:100]
    last = served.get("/incidents?page=3").text
    assert listed(last) == many[100:]
    assert 'rel="next"' not in last
    assert len(first.encode()) < 100_000


def test_address_of_a_query_is_read_back() -> None:
    query = ListQuery(state="all", level="page", text="a&b =1", order="signals", ascending=True, page=4)
    from urllib.parse import parse_qsl

    assert ListQuery.of(dict(parse_qsl(query.address()))) == query
    assert ListQuery().address() == ""


def act(served: Fixture, **fields: Any) -> requests.Response:
    session = requests.Session()
    mark = re.search(r'name="csrf" value="([0-9a-f]{64})"', session.get(served.url + "/incidents", timeout=30).text)
    assert mark
    data = {"csrf": mark.group(1), **fields}
    return session.post(served.url + "/incidents/bulk?state=all", data=data, timeout=30)


def test_bulk_does_what_it_can_and_tells_the_rest(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    first, second, third = (scene.attack(f"{place}{place}aa000000000001") for place in range(3))
    desk = IncidentService(redis, "digits")
    desk.acknowledge(first, "bob")
    answer = act(serve(), incident=[first, second, third, "f" * 16], action="acknowledge", by="ada")
    text = " ".join(answer.text.split())
    assert answer.status_code == 200
    assert "2 incidents: acknowledged." in text
    assert f"incident {first} is already acknowledged by bob" in text
    assert "no incident &#39;ffffffffffffffff&#39;" in text
    assert [desk.show(name).incident.assignee for name in (first, second, third)] == ["bob", "ada", "ada"]
    answer = act(serve(), incident=[second, third], action="resolve", verdict="benign", note="a test", by="ada")
    assert "2 incidents: resolved." in answer.text
    assert desk.show(third).incident.verdict == "benign"


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "acknowledge", "by": "ada"},
        {"action": "acknowledge", "by": "ada", "incident": ["0" * 16] * (BULK_ROWS + 1)},
        {"action": "delete", "by": "ada", "incident": "ID"},
        {"action": "silence", "by": "ada", "hours": "1", "incident": "ID"},
        {"action": "acknowledge", "by": " ", "incident": "ID"},
        {"action": "resolve", "by": "ada", "verdict": "", "incident": "ID"},
    ],
)
def test_bulk_refuses_what_makes_no_sense(scene: Fixture, serve: Fixture, redis: Redis, fields: dict[str, Any]) -> None:
    name = scene.attack()
    if fields.get("incident") == "ID":
        fields = {**fields, "incident": name}
    answer = act(serve(), **fields)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert IncidentService(redis, "digits").show(name).incident.state == "new"


def test_address_that_a_bulk_action_leaves_is_the_list_again(serve: Fixture) -> None:
    answer = serve().get("/incidents/bulk?state=all&q=guest", allow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/incidents?model=digits&state=all&q=guest"


def test_bulk_needs_our_mark(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    name = scene.attack()
    answer = serve().post("/incidents/bulk", data={"incident": name, "action": "acknowledge", "by": "eve", "csrf": "0"})
    assert answer.status_code == 403
    assert IncidentService(redis, "digits").show(name).incident.state == "new"
