"""What every attack, every model under attack and every caller agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attacks.threat import ThreatModel

Access = Literal["labels", "scores", "gradients", "trees", "leaves"]
"""What an attack reads of a model: its answers, or the model itself."""


class Model(Protocol):
    """A classifier as its clients see it. What `predict` raises passes through every attack untouched."""

    def predict(self, X: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d), k >= 2; the largest is the predicted class."""


@runtime_checkable
class GradientModel(Protocol):
    """A classifier in the attacker's own hands: the watched model itself, or a surrogate of it."""

    def predict(self, X: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Probabilities (n, k) of rows (n, d)."""

    def logits(self, X: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Scores (n, k) before the last non-linearity."""

    def gradient(self, X: NDArray[np.float64], weights: NDArray[np.float64], /) -> NDArray[np.float64]:
        """(n, d) gradient of the sum over classes of weights (n, k) times logits, at each row."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Every row that the model was asked, in the order in which it was asked.

    Attributes
    ----------
    inputs : float64 (q, d)
    samples : int64 (q,)
        Number of the start row that each query serves.
    labels : int64 (q,)
        The model's predicted class.
    """

    inputs: NDArray[np.float64]
    samples: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)

    def of(self, sample: int) -> Trace:
        """The queries of one start row."""
        mine = self.samples == sample
        return Trace(self.inputs[mine], self.samples[mine], self.labels[mine])


@dataclass(frozen=True, slots=True, eq=False)
class Crafted:
    """What an attack made of its start rows.

    Attributes
    ----------
    inputs : float64 (n, d)
        Crafted rows, each admitted by the threat model. Where the attack failed, its best try or the start row.
    success : bool (n,)
        The model's answer to this very row fulfils the goal; attacks by answers asked it.
    distances : float64 (n,)
        From the start rows, in the threat model's norm and scale.
    queries : int64 (n,)
        Rows asked of the model for each start row; 0 for attacks on a model in the attacker's own hands.
    trace : Trace
    """

    inputs: NDArray[np.float64]
    success: NDArray[np.bool_]
    distances: NDArray[np.float64]
    queries: NDArray[np.int64]
    trace: Trace


@runtime_checkable
class Attack(Protocol):
    """Crafts adversarial inputs. Constructor parameters are plain data with defaults.

    Start rows are independent; those of one call advance together, so that a model is asked few large batches. A call
    with one row asks in the order of a lone attacker, in batches no larger than his next step needs.

    Attributes
    ----------
    name : str
        The name in the registry.
    access : {"labels", "scores", "gradients", "trees", "leaves"}
        What it reads of the model; ``gradients`` needs a `GradientModel`, ``trees`` a `trees.TreeModel`, ``leaves`` a
        `trees.LeafModel`, and all three need knowledge that is not black-box.
    norms : frozenset of str
        Norms it can keep.
    needs_eps : bool
        Whether it needs a bound on the distance.
    targeted : bool
        Whether it can aim at one class.
    """

    name: ClassVar[str]
    access: ClassVar[Access]
    norms: ClassVar[frozenset[str]]
    needs_eps: ClassVar[bool]
    targeted: ClassVar[bool]

    def craft(
        self,
        model: Model,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        threat: ThreatModel,
        rng: np.random.Generator,
    ) -> Crafted:
        """Attack legal start rows (n, d) of classes (n,).

        Raises
        ------
        ThreatModelError
            A start row is illegal or not finite, shapes differ, or the attack can't keep this threat model.
        BudgetError
            The budget does not buy one step.
        ModelError
            The model's answers are unusable.
        """
