"""Worker processes of tests, forked from a process that has imported and compiled what a worker needs.

A start costs seconds of processor time, nearly all of it imports and loading kernels, and tests start a hundred. Each
is a process of its own all the same, in a session of its own, and runs the main function of a module as ``python -m``
would.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Elsewhere than on Linux libraries that were loaded before a fork may not work after it: a fresh interpreter then.
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_CONTEXT.set_forkserver_preload(["tests.warm_modules"])


class Forked:
    """What tests use of `subprocess.Popen`."""

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        log.touch()
        given = (module, [str(part) for part in arguments], str(log), {**os.environ, **(environ or {})})
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return code


def _run(module: str, arguments: list[str], log: str, environ: dict[str, str]) -> None:
    os.setsid()
    with open(log, "ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).main())
