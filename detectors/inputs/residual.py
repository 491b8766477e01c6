"""Class-conditional PCA residual: does the input lie off the surface on which its class lives?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import exact, rows
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import correct_rows, feature_scales

#: Share of a class's variance that its basis keeps.
KEPT_VARIANCE = 0.95
#: A class with fewer rows than this uses the pooled basis of all.
MIN_ROWS = 20
#: Smaller lengths are told in two figures: rows of a class that fills its space differ by no more than rounding.
SMALL_LENGTH = 0.1


class PcaResidual:
    """Distance of the standardised input from the principal subspace (95 % of variance) of its predicted class.

    Blind to: perturbations inside the subspace, and to everything in classes that fill their space.

    References
    ----------
    Hotelling's residual statistic (Q), Jackson & Mudholkar, Technometrics 21(3), 1979; used on adversarial inputs by
    Hendrycks & Gimpel, "Early Methods for Detecting Adversarial Images", ICLR workshop 2017.
    """

    name = "pca_residual"

    def __init__(self) -> None:
        self.means_: NDArray[np.float64] = np.empty((0, 0))
        self.bases_: NDArray[np.float64] = np.empty((0, 0, 0))
        self.ranks_: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """A mean and a basis for each class."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        mean, scale = feature_scales(kept.inputs)
        standardised = exact.standardise(kept.inputs, mean, scale, exact.grid_for(schema.width))
        pooled = _basis(standardised)
        found = []
        for label in range(len(schema.classes)):
            members = standardised[kept.labels == label]
            found.append(_basis(members) if len(members) >= MIN_ROWS else pooled)
        self.means_ = np.stack([centre for centre, _ in found])
        self.ranks_ = np.array([basis.shape[1] for _, basis in found], dtype=np.int64)
        self.bases_ = np.zeros((len(found), schema.width, int(self.ranks_.max())))
        for place, (_, basis) in enumerate(found):
            self.bases_[place, :, : basis.shape[1]] = basis
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) residual lengths in standard deviations."""
        return self._lengths(view.standardised, view.batch.labels)

    def _lengths(self, standardised: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
        out = np.empty(len(standardised))
        rows.residual(standardised, labels, self.means_, self.bases_, self.ranks_, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """What the residual means."""
        one = slice(row, row + 1)
        score = float(self._lengths(view.standardised[one], view.batch.labels[one])[0])
        length = f"{score:.1f}" if score >= SMALL_LENGTH else f"{score:.2g}"
        return f"the input holds {length} sd of structure that rows of its predicted class do not have"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Means, bases and how many of their columns are in use."""
        return {"means": self.means_, "bases": self.bases_, "ranks": self.ranks_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        classes, width = len(schema.classes), schema.width
        made.means_ = stored(arrays, "means", np.float64, classes, width)
        made.bases_ = stored(arrays, "bases", np.float64, classes, width, None)
        made.ranks_ = within("ranks", stored(arrays, "ranks", np.int64, classes), 0, made.bases_.shape[2])
        return made


def _basis(rows_of_class: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre = rows_of_class.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(rows_of_class, rowvar=False).reshape(len(centre), len(centre)))
    values, vectors = values[::-1], vectors[:, ::-1]
    share = np.cumsum(np.maximum(values, 0.0))
    kept = int(np.searchsorted(share, KEPT_VARIANCE * share[-1])) + 1 if share[-1] > 0 else 1
    return centre, vectors[:, : min(kept, len(centre))]
