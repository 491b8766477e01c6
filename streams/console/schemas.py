"""The schema of each model's inputs, from its bundle: names of features and classes, whether inputs are pictures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from detectors.errors import DetectorError
from detectors.schema import FeatureSchema

log = logging.getLogger("vedette.console")


def from_bundle(path: str) -> FeatureSchema:
    """The schema in a bundle.

    Raises
    ------
    DetectorError, OSError
    """
    from detectors.bundle import load

    return load(path).schema


class Schemas:
    """Reads a bundle's schema once for each state of its file; a bundle that cannot be read has none.

    Parameters
    ----------
    read : callable
        Path of a bundle -> schema.
    """

    def __init__(self, read: Callable[[str], FeatureSchema] = from_bundle) -> None:
        self._read = read
        self._known: dict[str, tuple[float, FeatureSchema | None]] = {}
        self._lock = threading.Lock()

    def of(self, path: str) -> FeatureSchema | None:
        """The schema in the bundle at `path`, or None."""
        with self._lock:
            try:
                changed = Path(path).stat().st_mtime
            except OSError:
                changed = 0.0
            known = self._known.get(path)
            if known is None or known[0] != changed:
                self._known[path] = known = (changed, self._load(path))
            return known[1]

    def _load(self, path: str) -> FeatureSchema | None:
        try:
            return self._read(path)
        except (DetectorError, OSError) as error:
            log.warning("no names and pictures: bundle %s: %s", path, error)
            return None
