"""Square attack: random patches at the edge of the ball, kept when the margin improves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Access, Crafted, Model
from attacks.errors import ThreatModelError
from attacks.oracle import Oracle, start_rows
from attacks.random_search import climb, random_features, shrunk
from attacks.threat import ThreatModel, lengths


@dataclass(frozen=True, slots=True)
class Square:
    """Square attack, Linf and L2, on images and on flat rows.

    Parameters
    ----------
    share : float
        Share of the features that the first patch covers.
    shape : (rows, columns) or (rows, columns, channels) or None
        Set for images: patches are squares. Without it a patch is a random set of features.

    References
    ----------
    Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial attack via random
    search", ECCV 2020, algorithms 1 to 3; schedule of the patch: section 5.
    """

    share: float = 0.1
    shape: tuple[int, ...] | None = None
    name: ClassVar[str] = "square"
    access: ClassVar[Access] = "scores"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    needs_eps: ClassVar[bool] = True
    targeted: ClassVar[bool] = True

    def craft(
        self,
        model: Model,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        threat: ThreatModel,
        rng: np.random.Generator,
    ) -> Crafted:
        x, y = start_rows(self, x, y, threat)
        if self.shape is not None and int(np.prod(self.shape)) != x.shape[1]:
            raise ThreatModelError(f"square: shape {self.shape} does not hold {x.shape[1]} features")
        oracle = Oracle(model, x, y, threat)
        oracle.need(2, self)
        first = self._first(len(x), threat, rng)
        return climb(oracle, lambda push, turn: self._patched(push, turn, threat, rng), first)

    def _first(self, n: int, threat: ThreatModel, rng: np.random.Generator) -> NDArray[np.float64]:
        """(n, d) pushes on the edge of the ball, in units of distance; stripes on images."""
        width = threat.domain.width
        if self.shape is None:
            signs = rng.choice(np.array([-1.0, 1.0]), size=(n, width))
        else:
            rows, columns, channels = (*self.shape, 1)[:3]
            stripes = rng.choice(np.array([-1.0, 1.0]), size=(n, 1, columns, channels))
            signs = np.broadcast_to(stripes, (n, rows, columns, channels)).reshape(n, width)
        signs = signs * threat.domain.movable
        if threat.norm == "linf":
            return signs * threat.radius
        return signs / lengths("l2", signs)[:, None] * threat.radius

    def _patched(
        self, push: NDArray[np.float64], turn: int, threat: ThreatModel, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(m, d) pushes with one fresh patch each."""
        share = shrunk(self.share, turn, threat.budget)
        patch = self._patch(len(push), share, threat, rng)
        signs = rng.choice(np.array([-1.0, 1.0]), size=(len(push), 1) if self.shape is not None else push.shape)
        if threat.norm == "linf":
            return np.where(patch, signs * threat.radius, push)
        other = self._patch(len(push), share, threat, rng) & ~patch
        kept = np.where(patch | other, 0.0, push)
        spare = np.sqrt(np.maximum(threat.radius**2 - np.einsum("ij,ij->i", kept, kept), 0.0))[:, None]
        inside = np.where(patch, push, 0.0)
        inside /= np.maximum(lengths("l2", inside), 1e-300)[:, None]
        fresh = np.where(patch, signs, 0.0) * threat.domain.movable
        fresh /= np.maximum(lengths("l2", fresh), 1e-300)[:, None]
        mixed = inside + fresh
        return kept + mixed / np.maximum(lengths("l2", mixed), 1e-300)[:, None] * spare

    def _patch(self, m: int, share: float, threat: ThreatModel, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(m, d) the features of one random patch a row."""
        movable = threat.domain.movable
        if self.shape is None:
            return random_features(m, share, movable, rng)
        rows, columns, channels = (*self.shape, 1)[:3]
        side = min(max(1, round(np.sqrt(share * rows * columns))), rows, columns)
        top, left = rng.integers(0, rows - side + 1, (m, 1)), rng.integers(0, columns - side + 1, (m, 1))
        high, wide = np.arange(rows), np.arange(columns)
        inside = ((high >= top) & (high < top + side))[:, :, None] & ((wide >= left) & (wide < left + side))[:, None, :]
        return np.repeat(inside[..., None], channels, axis=3).reshape(m, -1) & movable
