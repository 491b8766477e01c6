"""The small forms of a row that histories keep: projected codes, sketches, sign hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detectors.kernels import exact, rows
from detectors.queries.walk import SIM_BITS
from detectors.stored import stored, within
from detectors.view import BatchView, ReferenceFrame

#: Whole steps that int8 spans on each side of zero.
CODE_STEPS = 127.0
#: No code has fewer steps a standard deviation.
LEAST_SCALE = 1e-300
#: With at most so many features, each sets two bits of the sketch instead of one.
TWO_BIT_WIDTH = 16


class Forms(NamedTuple):
    """The small forms of n rows."""

    codes: NDArray[np.int8]  # (n, 12)
    sketches: NDArray[np.uint32]  # (n,)
    simhash: NDArray[np.uint64]  # (n,)
    hashes: NDArray[np.uint64]  # (n,)
    sketch_rank: NDArray[np.int32]  # (n,) differing bits to the 5th nearest reference sketch


@dataclass(frozen=True, slots=True)
class Coder:
    """Secret random projections, drawn at the fit.

    Attributes
    ----------
    projection : float64 (d, 12 + 64)
        To the codes; distances keep their length in the mean (Johnson & Lindenstrauss 1984). Then the normals of the
        sign hash (Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002). On the grid, so
        that products with rows on the grid are exact.
    scales : float64 (12,)
        Code steps a standard deviation of the reference, one and the same for every dimension.
    keys : uint64 (d,)
        Of the features' hashes.
    reference : uint8 (4, r)
        Sketches of the reference rows, byte by byte.
    """

    projection: NDArray[np.float64]
    scales: NDArray[np.float64]
    keys: NDArray[np.uint64]
    reference: NDArray[np.uint8]

    @classmethod
    def fit(cls, frame: ReferenceFrame, rng: np.random.Generator) -> Self:
        """Draw the secrets and learn the codes' range from the reference."""
        width, dims = frame.width, rows.CODE_DIMS
        drawn = np.concatenate(
            [rng.normal(size=(width, dims)) / np.sqrt(dims), rng.normal(size=(width, SIM_BITS))], axis=1
        )
        projection = exact.on_grid(drawn, frame.grid)
        spread = float(np.sqrt(np.mean(np.square(frame.standardised @ projection[:, :dims]))))
        step = rows.CODE_RANGE_SD * (spread if spread > 0.0 else 1.0) / CODE_STEPS
        keys = rng.integers(0, 2**64, size=width, dtype=np.uint64)
        made = cls(projection, np.full(dims, 1.0 / step), keys, np.empty((4, 0), dtype=np.uint8))
        return replace(made, reference=rows.byte_planes(made.code(frame.standardised, frame.inputs).sketches))

    @property
    def grain(self) -> float:
        """Standard deviations a code step."""
        return float(1.0 / self.scales[0])

    def code(self, standardised: NDArray[np.float64], inputs: NDArray[np.float64]) -> Forms:
        """The forms of rows, given in standard deviations (on the grid) and as they came."""
        code, sketch, simhash, row_hash = rows.empty_codes(len(inputs))
        bits = 2 if len(self.keys) <= TWO_BIT_WIDTH else 1
        products = standardised @ self.projection
        rows.codes(inputs, products, self.scales, self.keys, bits, code, sketch, simhash, row_hash)
        rank = np.empty(len(inputs), dtype=np.int32)
        rows.sketch_rank(sketch, self.reference, rank)
        return Forms(code, sketch, simhash, row_hash, rank)

    def forms(self, view: BatchView) -> Forms:
        """The forms of a batch."""
        return self.code(view.standardised, view.batch.inputs)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted."""
        return {
            "projection": self.projection,
            "scales": self.scales,
            "keys": self.keys,
            "reference": self.reference,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], width: int) -> Self:
        """The inverse of `arrays`."""
        projection = stored(arrays, "projection", np.float64, width, rows.CODE_DIMS + SIM_BITS)
        scales = within("scales", stored(arrays, "scales", np.float64, rows.CODE_DIMS), LEAST_SCALE, np.inf)
        keys = stored(arrays, "keys", np.uint64, width)
        return cls(projection, scales, keys, stored(arrays, "reference", np.uint8, 4, None))
