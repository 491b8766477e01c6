"""`vedette notifier` as a command: --check, --status, and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from streams.cli import invoke
from streams.notify.webhook import SIGNATURE, verify
from streams.store.keys import ModelKeys
from tests.notify.conftest import SECRET, Destination

SETTINGS = """
[[models]]
name = "digits"
topic = "events"
bundle = "none"
[redis]
url = "{redis}"
[[notify.destinations]]
name = "hook"
kind = "webhook"
url = "{first}"
secret_file = "{secret}"
timeout_seconds = 2.0
[[notify.destinations]]
name = "oncall"
kind = "pagerduty"
url = "{second}/v2/enqueue"
secret_file = "{secret}"
[[notify.routes]]
destinations = ["hook", "oncall"]
"""


@pytest.fixture
def settings_of(redis_url: str, secret_file: str, tmp_path: Path) -> Callable[[str, str], str]:
    def write(first: str, second: str) -> str:
        path = tmp_path / "vedette.toml"
        path.write_text(SETTINGS.format(redis=redis_url, first=first, second=second, secret=secret_file))
        return str(path)

    return write


def test_check_sends_a_test_and_its_end_everywhere(
    destination: Callable[[], Destination], settings_of: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = destination(), destination()
    assert invoke(["--config", settings_of(first.url, second.url), "notifier", "--check"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("arrived") == 2
    assert [one.json["action"] for one in first.received] == ["trigger", "resolve"]
    assert [one.json["event_action"] for one in second.received] == ["trigger", "resolve"]
    assert {one.json["dedup_key"] for one in second.received} == {second.received[0].json["dedup_key"]}
    hook = first.received[0]
    signed_at = float(hook.headers[SIGNATURE.lower()].split(",")[0].removeprefix("t="))
    assert verify(hook.body, hook.headers[SIGNATURE.lower()], SECRET, signed_at)
    assert "no incident" in hook.json["title"]
    assert SECRET not in printed.out + printed.err


def test_check_says_which_destination_did_not_take_it(
    destination: Callable[[], Destination], settings_of: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = destination(), destination()
    second.always(401)
    path = settings_of(first.url, second.url)
    assert invoke(["--config", path, "notifier", "--check", "--json"]) == 23
    printed = capsys.readouterr()
    found = {one["destination"]: one for one in json.loads(printed.out)}
    assert found["hook"]["arrived"]
    assert not found["oncall"]["arrived"]
    assert found["oncall"]["text"].startswith("HTTP 401")
    assert "did not arrive at oncall" in printed.err
    assert invoke(["--config", path, "notifier", "--check", "--to", "hook"]) == 0
    assert invoke(["--config", path, "notifier", "--check", "--to", "hok"]) == 2
    assert "no destination 'hok'; declared: hook, oncall" in capsys.readouterr().err


def test_status_tells_what_waits(
    redis: Redis, settings_of: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ModelKeys("digits")
    redis.hset(keys.notices("hook"), "k", "{}")
    redis.zadd(keys.notices_due("hook"), {"k": 1.0})
    redis.hset(keys.notice_health, "oncall", json.dumps({"failures": 3, "since": 1, "problem": "HTTP 503"}))
    path = settings_of("http://127.0.0.1:1", "http://127.0.0.1:1")
    assert invoke(["--config", path, "notifier", "--status", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["destination"], first["threads"], first["failures"]) == ("hook", 1, 0)
    assert first["oldest_seconds"] > 1e9
    assert (second["failures"], second["problem"]) == (3, "HTTP 503")
    assert invoke(["--config", path, "notifier", "--status"]) == 0
    assert "HTTP 503" in capsys.readouterr().out


def test_without_destinations_it_says_so_and_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[[models]]\nname = "digits"\ntopic = "events"\nbundle = "none"\n')
    command = [sys.executable, "-m", "streams.cli", "--config", str(path), "notifier"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "notify.destinations: none is declared, so nobody is told of pages" in process.stderr.readline()
    process.terminate()
    assert process.wait(30) == 0
    process.stderr.close()
    assert invoke(["--config", str(path), "notifier", "--check"]) == 2
    assert "none is declared; see docs/notifications.md" in capsys.readouterr().err
