"""Per-input detectors by name: those of Vedette, and those that entry points of the group ``vedette.detectors`` add."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from detectors.contract import Detector
from detectors.errors import DetectorError
from detectors.inputs.constraints import Constraints
from detectors.inputs.isolation_forest import IsolationForest
from detectors.inputs.mahalanobis import Mahalanobis
from detectors.inputs.residual import PcaResidual
from detectors.inputs.trust_ratio import TrustRatio

#: The default ensemble, in the order of its columns.
DEFAULT: tuple[str, ...] = ("trust_ratio", "pca_residual", "mahalanobis", "isolation_forest", "constraints")

_OWN: dict[str, type[Any]] = {
    kind.name: kind for kind in (TrustRatio, PcaResidual, Mahalanobis, IsolationForest, Constraints)
}


def names() -> list[str]:
    """Every registered detector."""
    return sorted({*_OWN, *(point.name for point in entry_points(group="vedette.detectors"))})


def kind(name: str) -> type[Detector]:
    """The class of a detector; `DetectorError` names those there are."""
    if name in _OWN:
        return _OWN[name]
    for point in entry_points(group="vedette.detectors"):
        if point.name == name:
            found: type[Detector] = point.load()
            return found
    raise DetectorError(f"no detector is called {name!r}; there are {', '.join(names())}")
