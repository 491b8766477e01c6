"""The REST API: what it gives is what its own OpenAPI document promises, whatever it is asked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from streams.incidents.service import IncidentService

Fixture = Any
TOKEN = "a token of more than sixteen characters"
HOUR = 3_600_000_000


class Api:
    """Calls the API and holds every answer against the document."""

    def __init__(self, served: Fixture, headers: dict[str, str] | None = None) -> None:
        self.served = served
        self.session = requests.Session()
        self.session.headers.update(headers or {})
        self.document = self.session.get(served.url + "/api/v1/openapi.json", timeout=30).json()

    def call(self, method: str, path: str, operation: str = "", **options: Any) -> requests.Response:
        answer = self.session.request(method, f"{self.served.url}/api/v1{path}", timeout=30, **options)
        described = self.document["paths"]["/api/v1" + (operation or path.partition("?")[0])][method.lower()]
        self.check(described, answer)
        return answer

    def check(self, described: dict[str, Any], answer: requests.Response) -> None:
        assert answer.status_code < 500, answer.text
        assert str(answer.status_code) in described["responses"], (answer.status_code, answer.text)
        ((kind, content),) = described["responses"][str(answer.status_code)]["content"].items()
        assert answer.headers["Content-Type"].split(";")[0] == kind
        schema = {**content["schema"], "components": self.document["components"]}
        jsonschema.validate(answer.json(), schema, cls=jsonschema.Draft202012Validator)
        if kind == "application/problem+json":
            assert answer.json()["status"] == answer.status_code


ONE = "/incidents/{incident}"


def test_document_is_openapi_and_names_every_schema_it_uses(serve: Fixture, redis: Redis) -> None:
    document = Api(serve()).document
    assert document["openapi"] == "3.1.0"
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == 21
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in document["components"]["schemas"]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_everything_that_can_be_read(scene: Fixture, serve: Fixture) -> None:
    scene.worker()
    scene.traffic()
    scene.probe()
    scene.history(units=5)
    name = scene.attack()
    api = Api(serve())
    assert api.call("GET", "/models").json()["models"] == [{"name": "digits", "topic": "events"}]
    look = api.call("GET", "/overview").json()
    assert (look["lag"], look["rows_per_second"], look["open_pages"], look["blind"]) == (12, 1234.0, 1, False)
    found = api.call("GET", "/incidents").json()
    assert ([one["id"] for one in found["incidents"]], found["total"]) == ([name], 1)
    whole = api.call("GET", f"/incidents/{name}", ONE).json()
    assert (whole["change"], whole["incident"]["severity"], len(whole["evidence"])) == (6, "high", 6)
    assert len(api.call("GET", "/probes").json()["outcomes"]) == 15
    assert api.call("GET", "/accounting").json()["adds_up"] is True
    assert api.call("GET", "/silences").json() == {"silences": []}


def test_list_takes_filters_and_refuses_what_it_does_not_know(scene: Fixture, serve: Fixture) -> None:
    names = [scene.attack(f"{place}{place}aa000000000001", page=place == 1) for place in range(3)]
    api = Api(serve())

    def ids(query: str) -> list[str]:
        return [one["id"] for one in api.call("GET", f"/incidents?{query}").json()["incidents"]]

    assert ids("level=page") == [names[1]]
    assert ids("q=22aa") == [names[2]]
    assert ids("order=first_seen&ascending=true") == names
    assert ids("order=first_seen&ascending=true&offset=1&limit=1") == [names[1]]
    assert ids("assignee=nobody") == []
    assert ids("technique=AML.T0043.001&state=all&model=digits&order=first_seen") == names[::-1]
    for query in ("level=loud", "limit=0", "limit=1000", "offset=-1", "ascending=maybe", "colour=red", "state="):
        answer = api.call("GET", f"/incidents?{query}")
        assert answer.status_code == 422, query
    assert "colour" in answer.json()["detail"] or "state" in answer.json()["detail"]
    assert api.call("GET", "/incidents?model=other").status_code == 404


def test_actions_do_what_the_pages_do(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    name = scene.attack()
    api = Api(serve())
    desk = IncidentService(redis, "digits")

    def act(what: str, **body: Any) -> requests.Response:
        return api.call("POST", f"/incidents/{name}/{what}", f"{ONE}/{what}", json=body)

    assert act("acknowledge", by="ada").json()["assignee"] == "ada"
    second = act("acknowledge", by="bob")
    assert (second.status_code, second.json()["title"]) == (409, "Somebody was faster")
    assert act("assign", by="ada", to="bob").json()["assignee"] == "bob"
    assert act("note", by="ada", text="asked the tenant").json()["history"][-1]["what"] == "note: asked the tenant"
    assert act("resolve", by="bob", verdict="false", note="a sensor").json()["verdict"] == "false"
    assert act("reopen", by="bob").json()["state"] == "new"
    for what, body in (
        ("resolve", {"by": "bob", "verdict": "maybe"}),
        ("resolve", {"by": "bob"}),
        ("acknowledge", {"by": ""}),
        ("acknowledge", {"by": " "}),
        ("acknowledge", {"by": "x" * 81}),
        ("acknowledge", {"by": "ada", "force": True}),
        ("note", {"by": "ada", "text": "x" * 501}),
        ("assign", {"by": "ada", "to": 3}),
    ):
        assert act(what, **body).status_code == 422, (what, body)
    assert desk.show(name).incident.state == "new"
    missing = api.call("POST", f"/incidents/{'f' * 16}/reopen", f"{ONE}/reopen", json={"by": "ada"})
    assert missing.status_code == 404


def test_silences_are_made_listed_and_ended(scene: Fixture, serve: Fixture, wait_until: Callable[..., Any]) -> None:
    api = Api(serve())
    ends = time.time_ns() // 1000 + HOUR
    made = api.call("POST", "/silences", json={"matcher": {"client": "3fa1*"}, "ends": ends, "by": "ada"}).json()
    assert (made["ends"], made["kind"]) == (ends, "silence")
    assert [one["id"] for one in api.call("GET", "/silences").json()["silences"]] == [made["id"]]
    scene.attack()

    def states() -> list[str]:
        return [one["state"] for one in api.call("GET", "/incidents").json()["incidents"]]

    wait_until(lambda: states() == ["suppressed"], 10, "the next look, at most a second later")
    ended = api.call("POST", f"/silences/{made['id']}/end", "/silences/{silence}/end", json={"by": "bob"}).json()
    assert ended["ends"] < ends
    assert api.call("GET", "/silences").json()["silences"] == []
    assert len(api.call("GET", "/silences?ended=true").json()["silences"]) == 1
    refused = api.call("POST", "/silences", json={"ends": ends, "by": "ada"})
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "say what to silence; only a maintenance window is about everything",
    )
    unknown = api.call("POST", "/silences/00000000/end", "/silences/{silence}/end", json={"by": "bob"})
    assert unknown.status_code == 404


def test_repeaters_are_proposed_approved_and_revoked(serve: Fixture, redis: Redis) -> None:
    api = Api(serve())
    ends = time.time_ns() // 1000 + HOUR
    client = "3fa1" * 4
    body = {"client": client, "reason": "a sensor", "ends": ends, "by": "ada"}
    assert api.call("POST", "/repeaters", json=body).json()["approved_by"] == ""
    assert api.call("POST", "/repeaters", json=body).status_code == 409

    def act(what: str, by: str, where: str = client) -> requests.Response:
        return api.call("POST", f"/repeaters/{where}/{what}", f"/repeaters/{{client}}/{what}", json={"by": by})

    assert act("approve", "ada").status_code == 409
    assert act("approve", "bob").json()["approved_by"] == "bob"
    assert [one["client"] for one in api.call("GET", "/repeaters").json()["repeaters"]] == [client]
    assert act("revoke", "ada").json()["revoked_by"] == "ada"
    assert api.call("GET", "/repeaters").json()["repeaters"] == []
    assert len(api.call("GET", "/repeaters?ended=true").json()["repeaters"]) == 1
    assert act("approve", "bob", "f" * 16).status_code == 404
    assert act("revoke", "bob", "nobody").status_code == 404
    assert api.call("POST", "/repeaters", json={**body, "ends": 1}).status_code == 422


def test_probes_are_asked_for_and_refused(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    api = Api(serve())
    body = {"attack": "hop_skip_jump", "by": "ada", "count": 3, "threat": "image-l2"}
    made = api.call("POST", "/probes", json=body).json()
    assert (made["attack"], made["count"], made["by"], made["threat"]) == ("hop_skip_jump", 3, "ada", "image-l2")
    found = api.call("GET", "/probes").json()
    assert [one["id"] for one in found["requests"]] == [made["id"]]
    assert found["prober"] == ""
    for wrong, said in (
        ({"attack": "no_such"}, "there are adaptive_extraction"),
        ({"threat": "no-such"}, "no threat model 'no-such'"),
        ({"kind": "burst", "attack": "control_direct"}, "cannot be sent as burst"),
        ({"count": 51}, "count"),
        ({"by": " "}, "by"),
    ):
        answer = api.call("POST", "/probes", json={**body, **wrong})
        assert (answer.status_code, said in answer.json()["detail"]) == (422, True), wrong
    assert redis.hlen(scene.keys.probe_requests) == 1
    for number in range(99):
        redis.hset(scene.keys.probe_requests, f"{number:016x}", b"{}")
    assert api.call("POST", "/probes", json=body).status_code == 409


def test_changes_need_more_than_a_foreign_page_can_send(scene: Fixture, serve: Fixture, redis: Redis) -> None:
    name = scene.attack()
    path = f"/api/v1/incidents/{name}/acknowledge"
    served = serve()
    body = {"by": "eve"}
    assert served.post(path, data=json.dumps(body), headers={"Content-Type": "text/plain"}).status_code == 415
    assert served.post(path, data=body).status_code == 415
    assert served.post(path, json=body, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert served.post(path, data=b"{" * 70_000, headers={"Content-Type": "application/json"}).status_code == 413
    guarded = serve(token=TOKEN)
    assert guarded.post(path, json=body).status_code == 401
    session = requests.Session()
    session.post(guarded.url + "/login", data={"token": TOKEN}, timeout=30)
    assert session.post(guarded.url + path, json=body, timeout=30).status_code == 403
    assert IncidentService(redis, "digits").show(name).incident.state == "new"
    page = session.get(f"{guarded.url}/incidents/{name}", timeout=30).text
    mark = page.split('name="csrf" value="')[1][:64]
    done = session.post(guarded.url + path, json={"by": "ada"}, headers={"X-CSRF-Token": mark}, timeout=30)
    assert done.json()["assignee"] == "ada"
    Api(guarded, {"Authorization": f"Bearer {TOKEN}"}).call(
        "POST", f"/incidents/{name}/assign", f"{ONE}/assign", json={"by": "ada", "to": "bob"}
    )


def test_errors_of_the_api_are_problem_documents(serve: Fixture, redis: Redis) -> None:
    served = serve()
    for method, path, status in (
        ("GET", "/api/v1/nowhere", 404),
        ("DELETE", "/api/v1/incidents", 405),
        ("POST", "/api/v1/overview", 405),
        ("GET", "/api/v1/incidents/%ff%00", 404),
    ):
        answer = requests.request(method, served.url + path, timeout=30)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), path
        assert answer.json()["status"] == status


@pytest.fixture
def api(scene: Fixture, serve: Fixture) -> Api:
    scene.worker()
    scene.traffic()
    scene.attack()
    return Api(serve())


TEXTS = st.one_of(
    st.text(max_size=30), st.sampled_from(["", "all", "page", "digits", "true", "0", "-1", "1e9", "null", "\x00", "%"])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_breaks_the_promise_fuzz(api: Api, data: st.DataObject) -> None:
    path, operations = data.draw(st.sampled_from(sorted(api.document["paths"].items())), label="path")
    method, described = data.draw(st.sampled_from(sorted(operations.items())), label="method")
    known = [
        one["id"]
        for one in api.session.get(f"{api.served.url}/api/v1/incidents?state=all", timeout=30).json()["incidents"]
    ]
    names = st.one_of(st.sampled_from(known), st.text("0123456789abcdef", min_size=16, max_size=16), TEXTS)
    address, query = path, {}
    for parameter in described["parameters"]:
        if parameter["in"] == "path":
            name = data.draw(names, label=parameter["name"])
            address = address.replace(f"{{{parameter['name']}}}", requests.utils.quote(name, safe="") or "x")
        elif data.draw(st.booleans()):
            query[parameter["name"]] = data.draw(TEXTS, label=parameter["name"])
    options: dict[str, Any] = {"params": query}
    if "requestBody" in described:
        schema = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        fields = api.document["components"]["schemas"][schema]["properties"]
        good = {
            "by": "ada",
            "to": "bob",
            "text": "t",
            "verdict": "true",
            "ends": time.time_ns() // 1000 + HOUR,
            "matcher": {"rule": "x"},
        }
        body = {name: data.draw(st.one_of(st.just(good.get(name, "")), VALUES), label=name) for name in fields}
        body = data.draw(st.one_of(st.just(body), VALUES), label="body")
        options["data"] = json.dumps(body)
        options["headers"] = {"Content-Type": "application/json"}
    answer = api.session.request(method.upper(), api.served.url + address, timeout=30, **options)
    if "." in address.replace("/", " ").split():  # a client folds such a path before it is sent
        assert answer.status_code < 500
        return
    api.check(described, answer)
