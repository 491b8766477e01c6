"""Detectors by name: those of Vedette, and those that entry points of the group ``vedette.detectors`` add."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from detectors.contract import Detector, HistoryDetector
from detectors.embeddings.dknn import EmbeddingNeighbours
from detectors.embeddings.trust_ratio import EmbeddingTrustRatio
from detectors.errors import DetectorError, FitError
from detectors.inputs.constraints import Constraints
from detectors.inputs.dknn import DeepNeighbours
from detectors.inputs.isolation_forest import IsolationForest
from detectors.inputs.leaves import LeafDistance
from detectors.inputs.mahalanobis import Mahalanobis
from detectors.inputs.outliers.ecod import Ecod
from detectors.inputs.outliers.gmm import Gmm
from detectors.inputs.outliers.hbos import Hbos
from detectors.inputs.outliers.knn import Knn
from detectors.inputs.outliers.loda import Loda
from detectors.inputs.outliers.lof import Lof
from detectors.inputs.outliers.mcd import Mcd
from detectors.inputs.outliers.pca import Pca
from detectors.inputs.outliers.uncompiled import PREFIX, uncompiled
from detectors.inputs.pattern import Pattern
from detectors.inputs.residual import PcaResidual
from detectors.inputs.trust_ratio import TrustRatio
from detectors.queries.extraction import Extraction
from detectors.queries.trajectory import Trajectory
from detectors.responses.disagreement import Disagreement
from detectors.responses.margin import Margin

#: The default ensemble, in the order of its columns. `pattern` costs .05 us a row and lifted the worst case of single
#: inputs (TPR at 1 % FPR, ``benchmarks.detection``, MLP) from .05 to .98 on MNIST, from .44 to .88 on spambase.
DEFAULT: tuple[str, ...] = ("trust_ratio", "pca_residual", "mahalanobis", "isolation_forest", "constraints", "pattern")

#: Named sets: measured in ``benchmarks.detection``. ``extended`` costs more a row and wants events with probabilities;
#: ``trees`` is for tree ensembles, which it reads at the fit.
SETS: dict[str, tuple[str, ...]] = {
    "default": DEFAULT,
    "extended": (*DEFAULT, "margin", "pyod.ECOD"),
    "trees": ("trust_ratio", "oc_score", "dknn", "margin", "pyod.GMM"),
}

_OWN: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        TrustRatio,
        PcaResidual,
        Mahalanobis,
        IsolationForest,
        Constraints,
        DeepNeighbours,
        EmbeddingTrustRatio,
        EmbeddingNeighbours,
        LeafDistance,
        Disagreement,
        Margin,
        Pattern,
        Hbos,
        Ecod,
        Pca,
        Knn,
        Lof,
        Mcd,
        Gmm,
        Loda,
        Extraction,
        Trajectory,
    )
}
#: Compiled detectors that have a name of their own, by the name of PyOD's class.
_ALIASES: dict[str, type[Any]] = {PREFIX + "IForest": IsolationForest}


def names() -> list[str]:
    """Every registered detector; any other of PyOD's is found as ``pyod.<class>``."""
    return sorted({*_OWN, *(point.name for point in entry_points(group="vedette.detectors"))})


def kind(name: str) -> type[Detector | HistoryDetector]:
    """The class of a detector; `DetectorError` names those there are."""
    if name in _OWN:
        return _OWN[name]
    if name in _ALIASES:
        return _ALIASES[name]
    if name.startswith(PREFIX):
        other: type[Any] = uncompiled(name)
        return other
    for point in entry_points(group="vedette.detectors"):
        if point.name == name:
            found: type[Detector | HistoryDetector] = point.load()
            return found
    raise DetectorError(f"no detector is called {name!r}; there are {', '.join(names())}, and {PREFIX}<class of PyOD>")


def remembers(name: str) -> bool:
    """Whether a detector is one of clients' histories (`contract.HistoryDetector`)."""
    return hasattr(kind(name), "advance")


def made(name: str, model: Any = None) -> Detector | HistoryDetector:
    """A detector, not yet fitted.

    Parameters
    ----------
    name : str
    model : object, optional
        The watched model, for detectors that read it once at their fit (`needs_model`).

    Raises
    ------
    FitError
        When it needs the model and there is none.
    """
    found = kind(name)
    if not getattr(found, "needs_model", False):
        return found()
    if model is None:
        raise FitError(f"{name} reads the watched model at its fit; give it (`--model`), or leave {name} out")
    make: Any = found
    made_detector: Detector | HistoryDetector = make(model)
    return made_detector
