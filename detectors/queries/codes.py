"""The small forms of a row that histories keep: projected codes, sketches, sign hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detectors.kernels import exact, rows
from detectors.queries.walk import SIM_BITS
from detectors.view import BatchView, ReferenceFrame

#: Whole steps that int8 spans on each side of zero.
CODE_STEPS = 127.0
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
    projection : float64 (d, 12)
        To the codes; distances keep their length in the mean (Johnson & Lindenstrauss 1984). On the grid, so exact.
    planes : float64 (d, 64)
        Normals of the sign hash (Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002).
    scales : float64 (12,)
        Code steps a standard deviation of the reference, one and the same for every dimension.
    salt : uint64 (1,)
    reference : uint32 (r,)
        Sketches of the reference rows.
    """

    projection: NDArray[np.float64]
    planes: NDArray[np.float64]
    scales: NDArray[np.float64]
    salt: NDArray[np.uint64]
    reference: NDArray[np.uint32]

    @classmethod
    def fit(cls, frame: ReferenceFrame, rng: np.random.Generator) -> Self:
        """Draw the secrets and learn the codes' range from the reference."""
        width = frame.width
        projection = exact.on_grid(rng.normal(size=(width, rows.CODE_DIMS)) / np.sqrt(rows.CODE_DIMS), frame.grid)
        planes = exact.on_grid(rng.normal(size=(width, SIM_BITS)), frame.grid)
        spread = float(np.sqrt(np.mean(np.square(frame.standardised @ projection))))
        step = rows.CODE_RANGE_SD * (spread if spread > 0.0 else 1.0) / CODE_STEPS
        salt = rng.integers(1, 2**63, size=1, dtype=np.int64).astype(np.uint64)
        made = cls(projection, planes, np.full(rows.CODE_DIMS, 1.0 / step), salt, np.empty(0, dtype=np.uint32))
        sketches = made.code(frame.standardised, frame.inputs).sketches
        return cls(projection, planes, made.scales, salt, sketches)

    @property
    def grain(self) -> float:
        """Standard deviations a code step."""
        return float(1.0 / self.scales[0])

    def code(self, standardised: NDArray[np.float64], inputs: NDArray[np.float64]) -> Forms:
        """The forms of rows, given in standard deviations (on the grid) and as they came."""
        code, sketch, simhash, row_hash = rows.empty_codes(len(inputs))
        bits = 2 if len(self.planes) <= TWO_BIT_WIDTH else 1
        rows.codes(
            standardised,
            inputs,
            self.projection,
            self.scales,
            self.planes,
            self.salt[0],
            bits,
            code,
            sketch,
            simhash,
            row_hash,
        )
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
            "planes": self.planes,
            "scales": self.scales,
            "salt": self.salt,
            "reference": self.reference,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""
        return cls(*(np.array(arrays[name]) for name in ("projection", "planes", "scales", "salt", "reference")))
