"""The demo's child processes: started in order, watched, ended in reverse order, never left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streams import children
from streams.errors import VedetteError


class ChildDied(VedetteError):
    """A process of the demo ended although it should run."""


@dataclass(slots=True)
class Processes:
    """Runs children whose output goes to log files in `directory`."""

    directory: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start `python -m command...`."""
        self._running[name] = children.spawn([sys.executable, "-m", *command], self._log(name), environ)

    def check(self) -> None:
        """Raise `ChildDied` with the end of its log when a child has ended by itself."""
        for name, child in self._running.items():
            code = child.poll()
            if code is not None:
                raise ChildDied(f"the {name} process ended with exit code {code}; its last words:\n{self.tail(name)}")

    def ended(self, name: str) -> int | None:
        """Exit code of a child that has ended, else None."""
        return self._running[name].poll()

    def tail(self, name: str) -> str:
        """The last lines of a child's log."""
        return children.tail(self._log(name))

    def stop(self, *names: str) -> None:
        """End these children: SIGTERM to all, then SIGKILL to whatever still runs after the grace."""
        children.stop([self._running.pop(name) for name in names if name in self._running])

    def stop_all(self) -> None:
        """End every child, the youngest first."""
        for name in reversed(list(self._running)):
            self.stop(name)

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"
