"""Detectors by name: those of Vedette, and those that entry points of the group ``vedette.detectors`` add."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from detectors.contract import Detector, HistoryDetector
from detectors.embeddings.dknn import EmbeddingNeighbours
from detectors.embeddings.trust_ratio import EmbeddingTrustRatio
from detectors.errors import DetectorError, FitError, MissingDetector
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
from detectors.inputs.outliers.uncompiled import PREFIX, Uncompiled, uncompiled
from detectors.inputs.pattern import Pattern
from detectors.inputs.relations import Relations
from detectors.inputs.residual import PcaResidual
from detectors.inputs.trust_ratio import TrustRatio
from detectors.queries.extraction import Extraction
from detectors.queries.trajectory import Trajectory
from detectors.responses.disagreement import Disagreement
from detectors.responses.margin import Margin

#: Entry points of this group are detectors.
GROUP = "vedette.detectors"

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
        Relations,
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
    return sorted({*_OWN, *(point.name for point in entry_points(group=GROUP))})


def kind(name: str) -> type[Detector | HistoryDetector]:
    """The class of a detector.

    Raises
    ------
    MissingDetector
        When there is none of that name; those there are stand in the text.
    DetectorError
        When PyOD has no such class, or an entry point cannot be imported or is no detector of its name.
    """
    if name in _OWN:
        return _OWN[name]
    if name in _ALIASES:
        return _ALIASES[name]
    if name.startswith(PREFIX):
        other: type[Any] = uncompiled(name)
        return other
    point = _point(name)
    if point is not None:
        return _loaded(point)
    there = f"there are {', '.join(names())}, and {PREFIX}<class of PyOD>"
    raise MissingDetector(name, f"no detector is called {name!r}; {there}")


def provider(name: str) -> tuple[str, str] | None:
    """Name and version of the distribution whose entry point adds a detector; None of Vedette's own and PyOD's."""
    point = None if name in _OWN or name.startswith(PREFIX) else _point(name)
    return None if point is None or point.dist is None else (point.dist.name, point.dist.version)


def runs_pyod(name: str) -> bool:
    """Whether a detector scores by PyOD's own code, fitted again when a bundle is read."""
    return issubclass(kind(name), Uncompiled)


def _point(name: str) -> EntryPoint | None:
    return next((point for point in entry_points(group=GROUP) if point.name == name), None)


def _loaded(point: EntryPoint) -> type[Detector | HistoryDetector]:
    where = f"the detector {point.name!r} ({point.value}, of {'?' if point.dist is None else point.dist.name})"
    try:
        found: Any = point.load()
    except (Exception, SystemExit) as failed:  # whatever the module does, its user reads one sentence
        raise DetectorError(f"{where} cannot be imported: {type(failed).__name__}: {failed}") from None
    lacking = [part for part in ("fit", "explain", "arrays", "restore") if not callable(getattr(found, part, None))]
    if not (callable(getattr(found, "score", None)) or callable(getattr(found, "advance", None))):
        lacking.append("score")
    if lacking:
        raise DetectorError(f"{where} is no detector: it lacks {', '.join(lacking)} (see detectors.contract.Detector)")
    if getattr(found, "name", None) != point.name:
        raise DetectorError(
            f"{where} calls itself {getattr(found, 'name', None)!r}; name and entry point must be the same, as bundles "
            "keep the name"
        )
    kept: type[Detector | HistoryDetector] = found
    return kept


def remembers(name: str) -> bool:
    """Whether a detector is one of clients' histories (`contract.HistoryDetector`)."""
    return hasattr(kind(name), "advance")


def reads_model(name: str) -> bool:
    """Whether a detector needs the watched model at its fit."""
    return bool(getattr(kind(name), "needs_model", False))


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
    if not reads_model(name):
        return found()
    if model is None:
        raise FitError(f"{name} reads the watched model at its fit; give it (`--model`), or leave {name} out")
    make: Any = found
    made_detector: Detector | HistoryDetector = make(model)
    return made_detector
