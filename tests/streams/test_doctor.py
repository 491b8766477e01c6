from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from redis import Redis

from detectors.schema import Feature, FeatureSchema
from streams import children, config, doctor, embedded
from streams.doctor import command, installation, kafka_side, redis_side, sampling
from streams.doctor.finding import Finding
from streams.errors import BrokerError, NotKeyedByClient, StoreError
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import WorkerStatus
from streams.topics import DEAD_SUFFIX

CLIENT_KEY, PROBE_KEY = "ab" * 16, "cd" * 32
ENVIRON = {"VEDETTE_CLIENT_KEY": CLIENT_KEY, "VEDETTE_PROBE_KEY": PROBE_KEY}


def settings_for(kafka: str, redis_url: str, topic: str, **model: Any) -> config.Settings:
    declared = {"name": "digits", "topic": topic, "bundle": "/nowhere/digits.vedette", **model}
    data = {"models": [declared], "kafka": {"bootstrap": kafka}, "redis": {"url": redis_url}}
    return config.parse(data, "test")


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def event(client: str | None = None, **more: Any) -> bytes:
    body = {"model": "digits", "inputs": [0.0, 1.0], "outputs": [0.2, 0.8], **more}
    if client is not None:
        body["client"] = client
    return json.dumps(body).encode()


@pytest.fixture
def produce(kafka: str) -> Iterator[Callable[..., None]]:
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5)

    def send(topic: str, records: list[tuple[bytes | None, bytes, int]], headers: list[tuple[str, bytes]] = []) -> None:  # noqa: B006
        for key, value, partition in records:
            producer.send(topic, key=key, value=value, partition=partition, headers=headers)
        producer.flush()

    yield send
    producer.close()


def keyed(clients: int, each: int, partitions: int) -> list[tuple[bytes | None, bytes, int]]:
    return [(b"client-%d" % client, event(), client % partitions) for _ in range(each) for client in range(clients)]


def test_healthy_set_up_has_no_problem_but_the_missing_bundle(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(3)
    produce(name, keyed(30, 10, 3))
    findings = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))
    assert [f.check for f in findings.values() if f.status == "problem"] == ["bundle"]
    warnings = {f.check for f in findings.values() if f.status == "warning"}
    assert warnings - {"record size"} == {"workers", "endpoint"}, "the broker's limit of record size is its own affair"
    assert findings["topic"].text == f"{name}: 3 partitions, 1 replica"
    assert "LogAppendTime" in findings["topic time"].text
    assert "30 clients in 300 sampled rows of 3 partitions, each in one partition" in findings["clients"].text
    assert findings["redis durability"].text == "appendfsync always"
    assert findings["progress"].text == "300 records not scored yet"
    assert set(findings) >= {
        "packages",
        "client key",
        "probe key",
        "console",
        "redis clock",
        "kafka clock",
        "dead letters",
    }


def test_mixed_topic_is_refused_with_its_own_exit_code(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(3)
    produce(name, [(b"client-%d" % (n % 20), event(), n % 3) for n in range(200)])
    found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))["clients"]
    assert (found.status, found.exit_code) == ("problem", NotKeyedByClient.exit_code)
    assert "20 of 20 clients with several rows lie in several partitions" in found.text


def test_one_stray_client_makes_a_topic_mixed(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(2)
    produce(name, [*keyed(40, 5, 2), (b"client-0", event(), 1)])
    found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))["clients"]
    assert found.status == "problem"
    assert "1 of 40 clients" in found.text
    assert "client-0" not in found.text, "raw ids are never shown"


def test_a_few_strays_among_many_are_a_warning(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(2)
    produce(name, [*keyed(400, 2, 2), (b"client-0", event(), 1)])
    found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))["clients"]
    assert found.status == "warning"
    assert "1 of 400 clients" in found.text


def test_topic_keyed_by_request_cannot_be_judged_and_says_so(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(2)
    produce(name, [(b"request-%d" % n, event(), n % 2) for n in range(100)])
    found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))["clients"]
    assert found.status == "warning"
    assert "none of them twice" in found.text


def test_anonymous_share_and_what_is_lost_is_told(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(1)
    produce(name, [(b"c%d" % (n % 10) if n % 4 else None, event(), 0) for n in range(400)])
    found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))
    assert found["anonymous"].status == "warning"
    assert found["anonymous"].text.startswith("25.0% of sampled rows have no client")
    assert "no history" in found["anonymous"].text
    assert found["clients"].status == "ok"


def test_no_client_at_the_configured_place_is_told(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(1)
    produce(name, keyed(5, 4, 1))
    settings = settings_for(kafka, redis_url, name, client="header:X-User")
    found = by_check(doctor.examine(settings, "digits", environ=ENVIRON))["clients"]
    assert found.status == "warning"
    assert "'header:X-User'" in found.text


def test_ids_that_own_most_of_the_traffic_are_named_by_their_hash(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(1)
    records = [(b"gateway" if n % 2 else b"user-%d" % (n % 50), event(), 0) for n in range(400)]
    produce(name, records)
    found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))["busy ids"]
    assert found.status == "warning"
    from detectors.kernels.siphash import hash_bytes

    assert f"client {hash_bytes(bytes.fromhex(CLIENT_KEY), b'gateway'):016x} 50%" in found.text
    assert "gateway)" not in found.text


@pytest.mark.parametrize(
    ("path", "record"),
    [
        ("field:user", (None, event(user="ann"))),
        ("field:user", (None, event(user=7))),
        (
            "parameter:user",
            (
                None,
                json.dumps(
                    {
                        "model_name": "digits",
                        "request": {"inputs": [{"shape": [1, 2], "data": [0, 1]}], "parameters": {"user": "ann"}},
                        "response": {},
                    }
                ).encode(),
            ),
        ),
        ("key", (b"ann", event())),
    ],
)
def test_identity_is_read_where_the_setting_says(path: str, record: tuple[bytes | None, bytes]) -> None:
    key, value = record
    found = sampling.identities(sampling.SampledRecord(0, 0, 0, key, value), path)
    assert found == [(b"7" if b'"user": 7' in value else b"ann", 1)]


def test_identity_in_a_header_ignores_case() -> None:
    record = sampling.SampledRecord(0, 0, 0, b"k", event(), (("x-client-id", b"ann"),))
    assert sampling.identities(record, "header:X-Client-Id") == [(b"ann", 1)]


def test_compact_records_carry_hashed_clients_row_by_row() -> None:
    table = pa.table({"client": pa.array([5, 5, None, 9], pa.uint64()), "inputs": [[0.0]] * 4})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    record = sampling.SampledRecord(0, 0, 0, b"k", sink.getvalue().to_pybytes())
    clients = sampling.whose([record], "key")
    assert dict(clients.rows) == {5: 2, 9: 1}
    assert clients.anonymous == 1


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[1]", b"\xff\xff\xff\xffgarbage", b'{"model":"digits"}', np.random.default_rng(0).bytes(300)]
)
def test_unreadable_records_are_counted_and_stop_nothing(value: bytes) -> None:
    records = [sampling.SampledRecord(0, n, 0, b"a", each) for n, each in enumerate((value, event()))]
    clients = sampling.whose(records, "key")
    assert (clients.unreadable, clients.identified) == (1, 1)


class Fitted:
    """What the doctor asks of a bundle."""

    schema = FeatureSchema((Feature("a"), Feature("b")), ("no", "yes"))
    digest = "0123456789abcdef"


def with_version(served: str, look: Callable[[str], Finding]) -> Finding:
    """What is found while an endpoint serves that version."""

    class Model(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"name": "m", "versions": [served]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        return look(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def test_bundle_is_loaded_and_described_or_the_remedy_told(tmp_path: Path) -> None:
    from detectors import bundle
    from detectors.contract import Reference
    from detectors.ensemble import fit

    rng = np.random.default_rng(0)
    labels = np.arange(600, dtype=np.int32) % 2
    inputs = rng.normal(labels[:, None] * 3.0, 1.0, (600, 2))
    ensemble, report = fit(
        Reference(inputs, labels),
        Fitted.schema,
        None,
        budget=1,
        clients_per_week=None,
        week_us=10**9,
        partitions=1,
        rng=rng,
    )
    path = tmp_path / "digits.vedette"
    bundle.save(path, ensemble, report)
    model = settings_for("x:1", "redis://x", "events", bundle=str(path)).models[0]
    scorer, found = installation.bundle(model)
    assert found.status == "ok", found.text
    assert scorer is not None
    assert f"2 features, 2 classes, digest {ensemble.digest[:12]}" in found.text
    assert f"made by vedette {version('vedette')}, numpy {np.__version__}" in found.text

    def model_at(endpoint: str) -> config.ModelSettings:
        return settings_for("x:1", "redis://x", "events", bundle=str(path), endpoint=endpoint).models[0]

    bundle.save(path, ensemble, report, bundle.origin(ensemble, model.name, "7"))
    assert f"of {model.name}, version 7, made by" in installation.bundle(model)[1].text
    served = with_version("7", lambda url: installation.endpoint(model_at(url)))
    assert served.status == "ok", served.text
    served = with_version("8", lambda url: installation.endpoint(model_at(url)))
    assert served.status == "warning"
    assert f"serves version 8 of {model.name}; the bundle was fitted for version 7" in served.text
    bundle.save(path, ensemble, report, bundle.origin(ensemble, "fraud", "7"))
    found = installation.bundle(model)[1]
    assert found.status == "warning"
    assert f"fitted for another model than {model.name}" in found.text
    path.write_bytes(path.read_bytes()[:-200])
    scorer, found = installation.bundle(model)
    assert scorer is None
    assert (found.status, found.exit_code) == ("problem", 12)
    assert "vedette fit" in found.remedy


@pytest.mark.parametrize(
    ("records", "status", "told"),
    [
        ([event("a"), event("a")], "ok", "2 rows of the 2 newest records fit"),
        ([event("a"), b"{", event("a", inputs=[1.0])], "warning", "2 rows beside 1 good ones"),
        ([event("a", inputs=[0.0] * 7)], "problem", "7 values in a row; 2 are expected"),
        ([event("a", model="other")], "problem", "undeclared-model"),
    ],
)
def test_events_are_tried_with_the_bundles_schema(records: list[bytes], status: str, told: str) -> None:
    settings = settings_for("x:1", "redis://x", "events")
    sample = [sampling.SampledRecord(0, n, 0, b"a", value) for n, value in enumerate(records)]
    found = kafka_side.decodable(sample, Fitted(), settings, settings.models[0])  # type: ignore[arg-type]  # what it asks of
    assert found.status == status
    assert told in found.text


def test_missing_topics_are_told_with_the_remedy(kafka: str, redis_url: str, redis: Redis) -> None:
    found = by_check(doctor.examine(settings_for(kafka, redis_url, "no-such-topic"), "digits", environ=ENVIRON))
    for check in ("topic", "dead letters"):
        assert (found[check].status, found[check].exit_code) == ("problem", 13)
        assert "vedette topics" in found[check].remedy
    assert "clients" not in found


def test_create_time_and_compaction_are_told(
    kafka: str, redis_url: str, redis: Redis, produce: Callable[..., None]
) -> None:
    name = f"vedette-test-doctor-{os.getpid()}"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    settings = {"cleanup.policy": "compact", "max.message.bytes": "20000000"}
    admin.create_topics([NewTopic(name, 1, 1, topic_configs=settings), NewTopic(name + DEAD_SUFFIX, 1, 1)])
    try:
        producer = KafkaProducer(bootstrap_servers=kafka)
        now = round(time.time() * 1000)
        for behind in (0, 0, 90_000, 0):
            producer.send(name, key=b"a", value=event(), timestamp_ms=now - behind)
        producer.flush()
        producer.close()
        found = by_check(doctor.examine(settings_for(kafka, redis_url, name), "digits", environ=ENVIRON))
        assert found["topic time"].status == "warning"
        assert "message.timestamp.type=LogAppendTime" in found["topic time"].remedy
        assert found["topic retention"].status == "problem"
        assert found["record size"].status == "warning"
        assert found["record times"].status == "warning"
        assert "go back by up to 90.0 s" in found["record times"].text
    finally:
        admin.delete_topics([name, name + DEAD_SUFFIX])
        admin.close()


def test_clocks_that_differ_are_told(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(1)
    produce(name, keyed(3, 3, 1))
    settings = settings_for(kafka, redis_url, name)
    for late, status in ((5.0, "warning"), (300.0, "problem")):
        findings = doctor.examine(settings, "digits", environ=ENVIRON, clock=lambda late=late: time.time() - late)  # type: ignore[misc]  # a default binds the loop's value
        found = by_check(findings)
        for check in ("redis clock", "kafka clock", "record times"):
            assert found[check].status == status, found[check]
        assert f"{late:.0f}" in found["redis clock"].text or f"{late - 0.001:.3f}" in found["redis clock"].text


def test_unreachable_broker_is_one_problem_and_the_rest_is_still_examined(redis_url: str, redis: Redis) -> None:
    (port,) = embedded.free_ports(1)
    settings = settings_for(f"127.0.0.1:{port}", redis_url, "events")
    findings = doctor.examine(settings, "digits", environ=ENVIRON)
    found = by_check(findings)
    assert (found["kafka"].status, found["kafka"].exit_code) == ("problem", BrokerError.exit_code)
    assert found["redis"].status == "ok"


def test_unreachable_redis_is_one_problem_and_the_rest_is_still_examined(kafka: str, topic: Callable[..., str]) -> None:
    (port,) = embedded.free_ports(1)
    found = by_check(
        doctor.examine(settings_for(kafka, f"redis://127.0.0.1:{port}/0", topic(1)), "digits", environ=ENVIRON)
    )
    assert (found["redis"].status, found["redis"].exit_code) == ("problem", StoreError.exit_code)
    assert found["topic"].status == "ok"


def test_redis_that_may_forget_is_a_problem(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    (port,) = embedded.free_ports(1)
    command = [embedded.redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", tmp_path, "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "allkeys-lru"]
    child = children.spawn([str(part) for part in command], tmp_path / "redis.log")
    try:
        url = f"redis://127.0.0.1:{port}/0"
        wait_until(lambda: redis_side.reach(settings_for("x:1", url, "t"))[0] is not None, 10, "Redis to answer")
        found = by_check(doctor.examine(settings_for("127.0.0.1:1", url, "t"), "digits", environ=ENVIRON))
        assert found["redis durability"].status == "problem"
        assert "appendfsync everysec" in found["redis durability"].text
        assert found["redis eviction"].status == "problem"
        assert "allkeys-lru" in found["redis eviction"].text
    finally:
        children.stop([child], 2.0)


def test_lost_watermark_recreated_topic_and_expired_records_have_their_exit_codes(
    kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str], produce: Callable[..., None]
) -> None:
    name = topic(1)
    produce(name, keyed(3, 3, 1))
    settings = settings_for(kafka, redis_url, name)
    redis.hset(PartitionKeys(name, 0).watermark, "w", 5)
    assert by_check(doctor.examine(settings, "digits", environ=ENVIRON))["progress"].text == "4 records not scored yet"
    redis.hset(PartitionKeys(name, 0).watermark, "time", (time.time_ns() + 7_201 * 10**9) // 1000)
    ahead = by_check(doctor.examine(settings, "digits", environ=ENVIRON))["progress"]
    assert ahead.status == "warning"
    assert ahead.text == f"the time of records runs ahead of this machine's clock: {name}/0 by 2.0 h"
    redis.hset(PartitionKeys(name, 0).watermark, "time", time.time_ns() // 1000)
    assert by_check(doctor.examine(settings, "digits", environ=ENVIRON))["progress"].status == "ok"
    redis.hset(PartitionKeys(name, 0).watermark, "topic_id", "of-another-topic")
    found = by_check(doctor.examine(settings, "digits", environ=ENVIRON))["progress"]
    assert (found.status, found.exit_code) == ("problem", 14)
    redis.hdel(PartitionKeys(name, 0).watermark, "topic_id")
    redis.hset(PartitionKeys(name, 0).watermark, "w", 5000)
    found = by_check(doctor.examine(settings, "digits", environ=ENVIRON))["progress"]
    assert found.exit_code == 14
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    from kafka import TopicPartition

    admin.delete_records({TopicPartition(name, 0): 4})
    admin.close()
    redis.hset(PartitionKeys(name, 0).watermark, "w", 2)
    found = by_check(doctor.examine(settings, "digits", environ=ENVIRON))["progress"]
    assert found.status == "problem"
    assert "expired before they were scored" in found.text


def test_workers_that_report_are_counted(kafka: str, redis_url: str, redis: Redis, topic: Callable[..., str]) -> None:
    import msgspec

    now = time.time_ns() // 1000
    for name, at, bundle in (("a", now, "b1"), ("b", now, "b2"), ("gone", now - 60_000_000, "b0")):
        status = WorkerStatus(name, at, [0], 10, 100, 50.0, 1.0, 1, 1.0, bundle, "")
        redis.hset(ModelKeys("digits").workers, name, msgspec.json.encode(status))
    found = by_check(doctor.examine(settings_for(kafka, redis_url, topic(1)), "digits", environ=ENVIRON))["workers"]
    assert found.status == "warning"
    assert found.text.startswith("2 workers, 100 rows/s, 20 records behind")
    assert "b1, b2" in found.text


def test_missing_and_wrong_secrets_are_told_without_showing_them(
    kafka: str, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    settings = settings_for("127.0.0.1:1", redis_url, "events")
    found = by_check(doctor.examine(settings, "digits", environ={"VEDETTE_CLIENT_KEY": "abcdef"}))
    assert (found["client key"].status, found["client key"].exit_code) == ("problem", 2)
    assert "abcdef" not in found["client key"].text
    assert found["probe key"].status == "problem"
    assert "openssl rand -hex 32" in found["probe key"].remedy


def test_secret_files_that_others_can_read_are_told(tmp_path: Path) -> None:
    for name, text, mode in (("client", CLIENT_KEY, 0o644), ("probe", PROBE_KEY, 0o600)):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
    data = {
        "models": [{"name": "digits", "topic": "t", "bundle": "b"}],
        "secrets": {"client_key_file": str(tmp_path / "client"), "probe_key_file": str(tmp_path / "probe")},
    }
    client, probe = installation.secrets(config.parse(data, "test"), {})
    assert (client.status, probe.status) == ("warning", "ok")
    assert "chmod 600" in client.remedy


@pytest.mark.parametrize(
    ("host", "token", "status"),
    [
        ("127.0.0.1", None, "ok"),
        ("::1", None, "ok"),
        ("0.0.0.0", None, "problem"),
        ("0.0.0.0", "", "problem"),
        ("0.0.0.0", "s3cret-of-16-chars", "ok"),
    ],
)
def test_console_that_strangers_can_reach_needs_a_token(
    tmp_path: Path, host: str, token: str | None, status: str
) -> None:
    console: dict[str, Any] = {"host": host}
    if token is not None:
        (tmp_path / "token").write_text(token)
        console["token_file"] = str(tmp_path / "token")
    data = {"models": [{"name": "digits", "topic": "t", "bundle": "b"}], "console": console}
    (found,) = installation.console(config.parse(data, "test"))
    assert found.status == status
    assert "s3cret" not in found.text


def test_endpoint_is_asked_whether_it_is_ready() -> None:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    Thread(target=server.serve_forever, daemon=True).start()
    model = {"name": "digits", "topic": "t", "bundle": "b", "endpoint": f"http://127.0.0.1:{server.server_port}/"}
    found = installation.endpoint(config.parse({"models": [model]}, "test").models[0])
    server.shutdown()
    server.server_close()
    assert found.status == "ok"
    found = installation.endpoint(config.parse({"models": [model]}, "test").models[0])
    assert found.status == "warning"


def test_exit_code_is_that_of_the_first_problem_and_json_is_complete(
    redis_url: str, redis: Redis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    (port,) = embedded.free_ports(1)
    settings = settings_for(f"127.0.0.1:{port}", redis_url, "events")
    code = doctor.run(settings, "digits", as_json=True)
    document = json.loads(capsys.readouterr().out)
    problems = [finding for finding in document["findings"] if finding["status"] == "problem"]
    assert code == document["exit_code"] == problems[0]["exit_code"] == 12
    assert [p["check"] for p in problems] == ["bundle", "kafka"]
    assert doctor.run(settings, "digits", as_json=False) == 12
    assert "2 problems" in capsys.readouterr().out


def test_text_from_outside_is_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    command.show([Finding("topic", "problem", "no [bold]topic[/] there", "do [this]")], Console(width=200))
    out = capsys.readouterr().out
    assert "no [bold]topic[/] there" in out
    assert "do [this]" in out


def test_notifications_that_could_not_be_sent_are_found_before_they_are_needed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    data: dict[str, Any] = {
        "models": [{"name": "digits", "topic": "t", "bundle": "b"}],
        "notify": {
            "destinations": [{"name": "oncall", "kind": "pagerduty", "secret_file": str(key)}],
            "routes": [{"destinations": ["oncall"]}],
        },
    }
    (found,) = installation.notifications(config.parse(data, "test"))
    assert found.status == "problem"
    assert f"notify.destinations.oncall.secret_file: cannot read {key}" in found.text
    key.write_text("0123456789abcdef")
    (found,) = installation.notifications(config.parse(data, "test"))
    assert found.status == "ok"
    assert "0123456789abcdef" not in found.text
    data["notify"]["routes"][0]["levels"] = ["ticket"]
    (found,) = installation.notifications(config.parse(data, "test"))
    assert "a ticket never pages" in found.text
    assert list(installation.notifications(config.parse({"models": data["models"]}, "test"))) == []
