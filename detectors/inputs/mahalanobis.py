"""Class-conditional Mahalanobis distance: is the input an unusual combination of values for its class?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.kernels import exact, rows
from detectors.schema import FeatureSchema
from detectors.stored import stored
from detectors.view import correct_rows, feature_scales

#: A class with fewer rows than this uses the mean and covariance of all.
MIN_ROWS = 20


class Mahalanobis:
    """Length of the standardised input after whitening by its predicted class's shrunk covariance.

    Blind to: perturbations along directions in which the class varies much.

    References
    ----------
    Lee, Lee, Lee & Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
    Attacks", NeurIPS 2018, equation 2, on inputs. Shrinkage: Ledoit & Wolf, Journal of Multivariate Analysis
    88(2), 2004.
    """

    name = "mahalanobis"

    def __init__(self) -> None:
        self.means_: NDArray[np.float64] = np.empty((0, 0))
        self.factors_: NDArray[np.float64] = np.empty((0, 0, 0))

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """A mean and a whitening matrix for each class."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        mean, scale = feature_scales(kept.inputs)
        standardised = exact.standardise(kept.inputs, mean, scale, exact.grid_for(schema.width))
        pooled = _whitening(standardised)
        found = []
        for label in range(len(schema.classes)):
            members = standardised[kept.labels == label]
            found.append(_whitening(members) if len(members) >= MIN_ROWS else pooled)
        self.means_ = np.stack([centre for centre, _ in found])
        self.factors_ = np.stack([factor for _, factor in found])
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) distances."""
        return self._distances(view.standardised, view.batch.labels)

    def _distances(self, standardised: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
        out = np.empty(len(standardised))
        rows.whitened_length(standardised, labels, self.means_, self.factors_, out)
        return out

    def explain(self, view: View, row: int) -> str:
        """The distance beside what rows of the class have on average."""
        one = slice(row, row + 1)
        found = float(self._distances(view.standardised[one], view.batch.labels[one])[0])
        usual = float(np.sqrt(view.standardised.shape[1]))
        return f"the combination of values is {found:.1f} sd from the centre of its class; about {usual:.1f} is usual"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Means and whitening matrices."""
        return {"means": self.means_, "factors": self.factors_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        classes, width = len(schema.classes), schema.width
        made.means_ = stored(arrays, "means", np.float64, classes, width)
        made.factors_ = stored(arrays, "factors", np.float64, classes, width, None)
        return made


def _whitening(members: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,) and W (d, d) with W W' = inverse covariance, shrunk and kept away from singular."""
    from sklearn.covariance import ledoit_wolf

    centre = members.mean(axis=0)
    covariance, _ = ledoit_wolf(members)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values[-1]) * np.finfo(np.float64).eps * len(values), float(np.finfo(np.float64).tiny) * 2.0**100)
    return centre, np.ascontiguousarray(vectors / np.sqrt(np.maximum(values, floor)))
