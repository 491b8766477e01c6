"""A demo that is ended before it shows anything leaves nothing behind, whatever ends it."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streams.demo.stage import _ended_by_signals
from tests.streams.demo.staging import assert_nothing_is_left, demo, said

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
MOMENTS = ("Apache Kafka's jars", "starting Apache Kafka", "fitting the surrogate")
#: When and how a starting demo is ended: every signal once but Ctrl-C's, which another test sends from a terminal; or
#: everything in `make faults`.
ENDS = (
    list(itertools.product(MOMENTS, SIGNALS))
    if os.environ.get("VEDETTE_FAULTS") == "full"
    else [(MOMENTS[0], SIGNALS[2]), (MOMENTS[1], SIGNALS[3]), (MOMENTS[1], SIGNALS[1])]
)


@pytest.mark.slow
@pytest.mark.timeout(400)
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
