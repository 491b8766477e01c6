"""How many false pages a week each bundle was calibrated for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detectors.errors import DetectorError
from detectors.manifest import read_report


def from_bundle(path: str) -> int:
    """The budget in a bundle's report.

    Raises
    ------
    DetectorError, OSError
    """
    return read_report(path).budget


class Budgets:
    """Reads a bundle's budget once for each state of its file; a bundle that cannot be read has none.

    Parameters
    ----------
    read : callable
        Path of a bundle -> false pages a week.
    """

    def __init__(self, read: Callable[[str], int] = from_bundle) -> None:
        self._read = read
        self._known: dict[str, tuple[float, int | None]] = {}

    def of(self, path: str) -> int | None:
        """False pages a week, or None where nobody can tell."""
        try:
            changed = Path(path).stat().st_mtime
        except OSError:
            return None
        known = self._known.get(path)
        if known is None or known[0] != changed:
            try:
                budget: int | None = self._read(path)
            except (DetectorError, OSError):
                budget = None
            self._known[path] = known = (changed, budget)
        return known[1]
