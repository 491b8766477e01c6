"""Child processes that never outlive us: sessions of their own, ended politely, then for good."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

#: Seconds that a child gets to end after SIGTERM before it is killed.
GRACE_SECONDS = 8.0
#: Linux's prctl option that sends a signal to a child whose parent has died.
_PR_SET_PDEATHSIG = 1
#: Lines of a log that an error shows.
LOG_TAIL_LINES = 12


class Child(Protocol):
    """What ending a child needs of it; `subprocess.Popen` is one."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...


def spawn(
    command: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that Ctrl-C reaches only us; its output goes to `log`.

    On Linux the child is killed when the thread that started it ends, whatever way: start children from the main
    thread.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def stop(children: Sequence[Child], grace_seconds: float = GRACE_SECONDS) -> None:
    """End children and whatever they started: SIGTERM to all, then SIGKILL to what still runs after the grace."""
    for child in children:
        signal_session(child, signal.SIGTERM)
    until = time.monotonic() + grace_seconds
    for child in children:
        try:
            child.wait(max(0.05, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            signal_session(child, signal.SIGKILL)
            child.wait()
        else:
            signal_session(child, signal.SIGKILL)


def signal_session(child: Child, what: signal.Signals) -> None:
    """Signal a child and everything in its session that has not left it."""
    try:
        os.killpg(child.pid, what)
    except (ProcessLookupError, PermissionError):
        return


def tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
