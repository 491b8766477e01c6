"""The demo as a command: it shows the main job by itself, and whatever its end, nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from streams.demo.report import Report, judge
from streams.demo.stage import _ended_by_signals

#: How long a demo may take from its start to its traffic on a busy machine.
START_SECONDS = 240.0
TRAFFIC_SECONDS = 45

MOMENTS = ("Apache Kafka's jars", "starting Apache Kafka", "fitting the surrogate")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
#: When and how a starting demo is ended: every signal once but Ctrl-C's, which another test sends from a terminal; or
#: everything in `make faults`.
ENDS = (
    list(itertools.product(MOMENTS, SIGNALS))
    if os.environ.get("VEDETTE_FAULTS") == "full"
    else [(MOMENTS[0], SIGNALS[2]), (MOMENTS[1], SIGNALS[3]), (MOMENTS[1], SIGNALS[1])]
)

#: Whole demos keep a machine busy: one after the other, beside other tests.
TOGETHER = pytest.mark.xdist_group("demo")

COMMAND = [sys.executable, "-m", "streams.cli", "demo"]


def environment(home: Path) -> dict[str, str]:
    """Temporary files go where the test can count them; a setting of the caller must not matter."""
    home.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(home), "VEDETTE_KAFKA__BOOTSTRAP": "127.0.0.1:9", "VEDETTE_NO__SUCH": "x"}


@contextmanager
def demo(home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(home),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def processes_of(home: Path) -> list[str]:
    """Command lines that name the directory, and of children whose environment does."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inherited = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(home) in line or f"TMPDIR={home}".encode() in inherited:
            found.append(line)
    return found


def drained(master: int) -> bool:
    """Read what a terminal shows, so that nobody waits to write to it."""
    try:
        while select.select([master], [], [], 0)[0]:
            os.read(master, 65536)
    except OSError:  # the other side is closed
        return True
    return True


def assert_nothing_is_left(home: Path, wait_until: Callable[..., Any]) -> None:
    wait_until(lambda: not processes_of(home), 15, "the end of every process")
    wait_until(lambda: not list(home.iterdir()), 15, f"the removal of everything in {home}")


def said(process: subprocess.Popen[str], text: str, seconds: float = START_SECONDS) -> str:
    """Everything said up to the line that holds `text`."""
    assert process.stdout is not None
    until, lines = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        ready, _, _ = select.select([process.stdout], [], [], 0.2)
        if ready:
            line = process.stdout.readline()
            lines += line
            if text in line:
                return lines
            assert line or process.poll() is None, lines
    raise AssertionError(f"{text!r} was not said:\n{lines}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@TOGETHER
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
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("moment", "number"), ENDS)
def test_a_demo_that_is_ended_while_it_starts_leaves_nothing(
    tmp_path: Path, wait_until: Callable[..., Any], moment: str, number: signal.Signals
) -> None:
    home = tmp_path / "home"
    with demo(home, "--headless", "--seconds", "10") as process:
        said(process, moment)
        process.send_signal(number)
        process.wait(30)
        assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
        assert_nothing_is_left(home, wait_until)


class Interrupted:
    """Gets a signal while it is destroyed, where Python drops whatever a handler raises."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS[:3])
def test_a_signal_ends_the_demo_although_python_drops_what_its_handler_raises(number: signal.Signals) -> None:
    hook, handlers = sys.unraisablehook, [signal.getsignal(each) for each in (*SIGNALS[:3], signal.SIGALRM)]
    with _ended_by_signals():
        Interrupted(number)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10.0)
    assert sys.unraisablehook is hook
    assert [signal.getsignal(each) for each in (*SIGNALS[:3], signal.SIGALRM)] == handlers


@pytest.mark.slow
@pytest.mark.timeout(400)
@TOGETHER
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
