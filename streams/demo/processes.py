"""The demo's child processes: started, watched, ended, never left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
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
        safe = {"PYTHONSAFEPATH": "1", **environ}  # packages of the folder that the demo was started in don't count
        self._running[name] = children.spawn([sys.executable, "-m", *command], self._log(name), safe)

    def check(self, finished: Collection[str] = ()) -> None:
        """Raise `ChildDied` with the end of its log when a child has ended by itself.

        Those in `finished` may end, with exit code 0; they are forgotten then.
        """
        for name, child in list(self._running.items()):
            code = child.poll()
            if code == 0 and name in finished:
                del self._running[name]
            elif code is not None:
                raise ChildDied(f"the {name} process ended with exit code {code}; its last words:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """The last lines of a child's log."""
        return children.tail(self._log(name))

    def stop(self, *names: str) -> dict[str, int]:
        """End these children: SIGTERM to all, then SIGKILL to whatever still runs after the grace.

        Returns
        -------
        dict of str to int
            Exit code of each that ran.
        """
        ending = {name: self._running.pop(name) for name in names if name in self._running}
        children.stop(list(ending.values()))
        return {name: child.returncode for name, child in ending.items()}

    def stop_all(self) -> None:
        """End every child."""
        self.stop(*reversed(self._running))

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"
