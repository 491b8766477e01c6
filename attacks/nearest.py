"""The nearest adversarial row of every start row, as an attack meets them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.threat import ThreatModel


class Nearest:
    """Keeps, of all legal rows that were offered, the nearest adversarial one that the threat model admits.

    Attributes
    ----------
    rows : float64 (n, d)
        The start row where there is none yet.
    distances : float64 (n,)
        Infinite where there is none yet.
    """

    def __init__(self, x: NDArray[np.float64], threat: ThreatModel) -> None:
        self.rows = x.copy()
        self.distances = np.full(len(x), np.inf)
        self._x, self._threat = x, threat

    @property
    def found(self) -> NDArray[np.bool_]:
        """(n,) which start rows have one."""
        return np.isfinite(self.distances)

    def offer(self, samples: NDArray[np.intp], rows: NDArray[np.float64]) -> None:
        """Legal adversarial rows (m, d), each of start row `samples` (m,), which may repeat."""
        distances = self._threat.distances(self._x[samples], rows)
        better = np.flatnonzero(self._threat.within(distances) & (distances < self.distances[samples]))
        # The last of several assignments to one place holds: the nearest comes last.
        order = better[np.argsort(-distances[better], kind="stable")]
        self.rows[samples[order]] = rows[order]
        self.distances[samples[order]] = distances[order]
