"""The schema of each model's inputs, from its bundle: names of features and classes, whether inputs are pictures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from detectors.errors import DetectorError
from detectors.schema import FeatureSchema
from streams.config import ModelSettings

log = logging.getLogger("vedette.console")


def from_bundle(path: str) -> FeatureSchema:
    """The schema in a bundle.

    Raises
    ------
    DetectorError, OSError
    """
    from detectors import bundle

    return bundle.load(path).schema


class Schemas:
    """Reads a bundle's schema once for each state of its file; a model without a readable bundle has none.

    Parameters
    ----------
    read : callable
        Path of a bundle -> schema.
    """

    def __init__(self, read: Callable[[str], FeatureSchema] = from_bundle) -> None:
        self._read = read
        self._known: dict[str, tuple[float, FeatureSchema | None]] = {}
        self._lock = threading.Lock()

    def of(self, model: ModelSettings) -> FeatureSchema | None:
        """The schema of a model's inputs, or None."""
        with self._lock:
            try:
                changed = Path(model.bundle).stat().st_mtime
            except OSError:
                changed = 0.0
            known = self._known.get(model.name)
            if known is None or known[0] != changed:
                self._known[model.name] = known = (changed, self._load(model))
            return known[1]

    def _load(self, model: ModelSettings) -> FeatureSchema | None:
        try:
            return self._read(model.bundle)
        except (DetectorError, OSError) as error:
            log.warning("no names and pictures for %s: bundle %s: %s", model.name, model.bundle, error)
            return None
