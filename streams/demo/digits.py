"""Scikit-learn's digits, split into pools that share no picture, and fresh rows made of them.

1,797 pictures are few, and real traffic does not repeat itself. So every row that is sent is a picture turned, shifted
and scaled a little, with contrast and noise of its own: a stated augmentation, the same for history and live traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from detectors.schema import FeatureSchema

#: Rows and columns of a picture.
SIDE = 8
#: Largest value in the source.
SOURCE_LEVELS = 16.0
CLASSES = 10
#: Pictures of each pool; `history` and `live` take the same share of what these leave.
MODEL_ROWS, REFERENCE_ROWS, HOSTILE_ROWS, PROBE_ROWS = 600, 440, 80, 120

#: One picture's own change: turn in degrees, shift in pixels, scale, all standard deviations.
TURN_DEGREES, SHIFT_PIXELS, SCALE_SHARE = 6.0, 0.3, 0.05


@dataclass(frozen=True, slots=True)
class Pool:
    """Some pictures: inputs float64 (n, 64) in [0, 1] and true classes int64 (n,)."""

    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Pools:
    """Disjoint pools: what the model learns from, what detectors learn from, what benign clients of the history and of
    the live traffic send, what attackers start from, and what probes start from."""

    model: Pool
    reference: Pool
    history: Pool
    live: Pool
    hostile: Pool
    probe: Pool


@dataclass(frozen=True, slots=True)
class Style:
    """How one sender's pictures differ from everybody's.

    `turn` in degrees, `scale` as a factor, `shift` (rows, columns) in pixels, `contrast` as a factor, `noise` as the
    standard deviation of a pixel.
    """

    turn: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    contrast: float = 1.0
    noise: float = 0.02


def schema() -> FeatureSchema:
    """64 pixels in [0, 1], ten classes."""
    return FeatureSchema.image((SIDE, SIDE), [str(digit) for digit in range(CLASSES)])


def split(seed: int) -> Pools:
    """All pictures, shuffled and dealt to the pools before anything else happens to them."""
    pictures, truth = load_digits(return_X_y=True)
    inputs = np.asarray(pictures, dtype=np.float64) / SOURCE_LEVELS
    order = np.random.default_rng(seed).permutation(len(inputs))
    fixed = np.cumsum([MODEL_ROWS, REFERENCE_ROWS, HOSTILE_ROWS, PROBE_ROWS])
    middle = (fixed[-1] + len(inputs)) // 2
    model, reference, hostile, probe, history, live = (
        Pool(inputs[part], truth[part].astype(np.int64)) for part in np.split(order, [*fixed, middle])
    )
    return Pools(model, reference, history, live, hostile, probe)


def fresh(
    pictures: NDArray[np.float64], styles: NDArray[np.float64], rng: np.random.Generator, amount: float = 1.0
) -> NDArray[np.float64]:
    """Rows that nobody has sent before.

    Parameters
    ----------
    pictures : float64 (n, 64)
    styles : float64 (n, 6)
        Columns as in `columns`.
    amount : float
        Factor of the pictures' own turns, shifts and scales.

    Returns
    -------
    float64 (n, 64)
        In [0, 1].
    """
    n = len(pictures)
    turn = np.radians(styles[:, 0] + amount * rng.normal(0.0, TURN_DEGREES, n))
    scale = styles[:, 1] * np.exp(amount * rng.normal(0.0, SCALE_SHARE, n))
    shift = styles[:, 2:4] + amount * rng.normal(0.0, SHIFT_PIXELS, (n, 2))
    middle = (SIDE - 1) / 2
    down, right = np.divmod(np.arange(SIDE * SIDE), SIDE)
    y, x = down - middle, right - middle
    cosine, sine = (np.cos(turn) / scale)[:, None], (np.sin(turn) / scale)[:, None]
    from_y = cosine * y - sine * x + middle - shift[:, :1]
    from_x = sine * y + cosine * x + middle - shift[:, 1:]
    rows = _bilinear(pictures, from_y, from_x) * styles[:, 4:5]
    rows += rng.normal(size=rows.shape) * styles[:, 5:6]
    return np.clip(rows, 0.0, 1.0)


def columns(styles: list[Style]) -> NDArray[np.float64]:
    """Styles as float64 (n, 6): turn, scale, shift down, shift right, contrast, noise."""
    return np.array([[s.turn, s.scale, *s.shift, s.contrast, s.noise] for s in styles], dtype=np.float64)


def _bilinear(pictures: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of each picture (n, 64) at places (n, m); outside is 0."""
    padded = SIDE + 2
    framed = np.zeros((len(pictures), padded, padded))
    framed[:, 1:-1, 1:-1] = pictures.reshape(-1, SIDE, SIDE)
    flat = framed.reshape(len(pictures), padded * padded)
    y, x = np.clip(y + 1, 0, padded - 1.001), np.clip(x + 1, 0, padded - 1.001)
    top, left = y.astype(np.int64), x.astype(np.int64)
    part_y, part_x = y - top, x - left
    at = top * padded + left
    above = (1 - part_x) * np.take_along_axis(flat, at, 1) + part_x * np.take_along_axis(flat, at + 1, 1)
    at += padded
    below = (1 - part_x) * np.take_along_axis(flat, at, 1) + part_x * np.take_along_axis(flat, at + 1, 1)
    return (1 - part_y) * above + part_y * below
