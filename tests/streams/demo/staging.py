"""The demo as a command, for tests of it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: How long a demo may take from its start to its traffic on a busy machine.
START_SECONDS = 240.0

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
