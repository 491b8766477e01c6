"""The demo as a command: it shows the main job by itself, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from streams.demo.report import Report, judge
from tests.streams.demo.staging import COMMAND, START_SECONDS, assert_nothing_is_left, demo, environment, said

TRAFFIC_SECONDS = 45


def drained(master: int) -> bool:
    """Read what a terminal shows, so that nobody waits to write to it."""
    try:
        while select.select([master], [], [], 0)[0]:
            os.read(master, 65536)
    except OSError:  # the other side is closed
        return True
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_headless_demo_on_the_servers_of_others_shows_the_main_job_and_keeps_what_is_theirs(
    tmp_path: Path, kafka: str, redis: Any, redis_url: str, wait_until: Callable[..., Any]
) -> None:
    home, report = tmp_path / "home", tmp_path / "demo.json"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    other = "vedette-demo-of-somebody-else"
    admin.create_topics([NewTopic(other, 1, 1)])
    before, groups = set(admin.list_topics()), {one["group_id"] for one in admin.list_groups()}
    redis.set("vedette:{digits}:alerts", "theirs")
    options = ("--seconds", str(TRAFFIC_SECONDS), "--report", str(report), "--kafka", kafka, "--redis", redis_url)
    try:
        with demo(home, "--headless", *options) as process:
            output = said(process, "console:")
            assert set(admin.list_topics()) > before
            assert redis.dbsize() > 1
            rest, _ = process.communicate(timeout=300)
        output += rest
        assert process.returncode == 0, output
        figures = json.loads(report.read_bytes())
        assert judge(msgspec_report(figures), TRAFFIC_SECONDS) == []
        assert "the main job holds" in output
        assert "a “week” is 120 s here" in output
        assert len(figures["attackers"]) == 5
        assert figures["benign_clients"] == 199
        assert figures["rows_lost"] == figures["rows_double_counted"] == 0
        wait_until(
            lambda: set(admin.list_topics()) - {"__consumer_offsets"} == before - {"__consumer_offsets"}, 60, "ours"
        )
        assert {one["group_id"] for one in admin.list_groups()} == groups
        assert [key.decode() for key in redis.scan_iter()] == ["vedette:{digits}:alerts"]
        assert redis.get("vedette:{digits}:alerts") == b"theirs"
    finally:
        admin.delete_topics([other])
        admin.close()
    assert_nothing_is_left(home, wait_until)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ctrl_c_ends_a_demo_on_a_terminal(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    home = tmp_path / "home"
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        COMMAND,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**environment(home), "TERM": "xterm", "COLUMNS": "110", "LINES": "50"},
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""

    def sees(text: bytes) -> bool:
        nonlocal shown
        assert process.poll() is None, shown[-3000:]
        while select.select([master], [], [], 0)[0]:
            shown += os.read(master, 65536)
        return text in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown)

    try:
        wait_until(lambda: sees(b"Vedette demo starts"), 60, "the progress view")
        wait_until(lambda: sees(b"open incidents"), START_SECONDS, "an incident on the live view")
        assert sees(b"Ctrl-C ends everything")
        assert sees(b"hop skip jump")
        assert sees(b"http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: drained(master) and process.poll() is not None, 60, "the end")
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        os.close(master)
    assert_nothing_is_left(home, wait_until)


def test_a_report_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with demo(home, "--headless", "--report", str(tmp_path / "no" / "such" / "demo.json")) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--report: cannot write" in output
    assert not list(home.iterdir())


def test_the_console_takes_the_next_free_port() -> None:
    from streams.demo.stage import _free_port

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken = held.getsockname()[1]
        assert taken < _free_port(taken) <= taken + 50


def msgspec_report(figures: dict[str, Any]) -> Report:
    import msgspec

    return msgspec.convert(figures, Report)
