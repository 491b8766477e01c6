"""How scores of single inputs are made comparable, and how they become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Spread = Literal["median", "tail"]
"""What one unit of a detector's score is, within a predicted class: ``median`` its median absolute deviation, ``tail``
the way from its median to its 95 % quantile. Where classes differ in the shape of their scores, the second makes their
upper ends comparable, and these decide."""

Fusion = Literal["product", "mean"]
"""``product``: weighted sum of -ln p (weights learned from crafted or rehearsed rows); ``mean``: mean of e-values,
valid under any dependence and led by the detector that speaks loudest."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The choice of both."""

    spread: Spread = "median"
    fusion: Fusion = "product"
