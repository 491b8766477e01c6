"""Noise stability: does a little noise move the model's answer as it moves those of benign rows?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference
from detectors.responses.asking import asked, judged
from detectors.responses.contract import Ask
from detectors.schema import FeatureSchema
from detectors.stored import stored, within
from detectors.view import correct_rows

#: Draws of each size of noise, and the sizes as shares of a feature's observed range.
DRAWS, SIZES = 32, (0.05, 0.1, 0.2)
#: Reference rows that the usual answers are learned from, and the fewest of a pair of classes with figures of its own.
MAX_ROWS, MIN_ROWS = 1_000, 20
#: Probabilities are taken as at least this before logarithms.
LEAST_PROBABILITY = 1e-9
#: Rows that are judged at a time.
BLOCK_ROWS = 128


class NoiseStability:
    """How far noise moves the log-odds of the predicted class against another, beyond what is usual for both.

    For every other class z the mean over draws of ln p_z - ln p_y, less its value at the row itself, is put in standard
    deviations of the reference rows of class y; the largest over z and over sizes of noise counts.

    Blind to: linear models, whose log-odds noise moves by nothing in the mean; adversarial inputs far behind the
    boundary, as high-confidence attacks make them (Hosseini, Kannan & Poovendran, "Are Odds Really Odd?", 2019); models
    that answer labels alone, nearly so.

    References
    ----------
    Roth, Kilcher & Hofmann, "The Odds are Odd: A Statistical Test for Detecting Adversarial Examples", ICML 2019,
    equations 4 to 7.
    """

    name = "noise_stability"

    @property
    def questions(self) -> int:
        """Rows asked for each row judged."""
        return 1 + len(self.noise_)

    def fit(self, reference: Reference, schema: FeatureSchema, ask: Ask, rng: np.random.Generator) -> Self:
        """Draw the noise, and learn how it moves benign rows of every class."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        width = np.ptp(kept.inputs, axis=0)
        chosen = np.sort(rng.permutation(len(kept))[:MAX_ROWS])
        k = len(schema.classes)
        self.low_ = np.maximum(schema.lows(), -np.finfo(np.float64).max)
        self.high_ = np.minimum(schema.highs(), np.finfo(np.float64).max)
        draws = rng.normal(size=(len(SIZES), DRAWS, schema.width)) * width
        self.noise_ = np.concatenate([size * part for size, part in zip(SIZES, draws, strict=True)])
        labels = kept.labels[chosen]
        moved = self._moves(kept.inputs[chosen], labels, ask, k)
        self.mean_, self.spread_ = np.zeros((k, k, len(SIZES))), np.ones((k, k, len(SIZES)))
        pooled = moved.reshape(-1, len(SIZES))
        for label in range(k):
            mine = moved[labels == label]
            for other in range(k):
                found = mine[:, other] if len(mine) >= MIN_ROWS else pooled
                self.mean_[label, other] = found.mean(axis=0)
                self.spread_[label, other] = np.maximum(found.std(axis=0), 1e-6)
        return self

    def _moves(
        self, inputs: NDArray[np.float64], labels: NDArray[np.int32], ask: Ask, classes: int
    ) -> NDArray[np.float64]:
        """(n, k, sizes) mean change of ln p_z - ln p_y."""
        moved = np.empty((len(inputs), classes, len(SIZES)))
        for start in range(0, len(inputs), BLOCK_ROWS):
            rows, own = inputs[start : start + BLOCK_ROWS], labels[start : start + BLOCK_ROWS]
            noisy = np.clip(rows[:, None] + self.noise_, self.low_, self.high_)
            questions = np.concatenate([rows[:, None], noisy], axis=1).reshape(-1, rows.shape[1])
            answers = asked(ask, questions, classes)
            odds = np.log(np.maximum(answers, LEAST_PROBABILITY)).reshape(len(rows), -1, classes)
            odds = odds - odds[np.arange(len(rows)), :, own][:, :, None]
            change = (odds[:, 1:] - odds[:, :1]).reshape(len(rows), len(SIZES), DRAWS, classes)
            moved[start : start + BLOCK_ROWS] = change.mean(axis=2).transpose(0, 2, 1)
        return moved

    def score(self, inputs: NDArray[np.float64], labels: NDArray[np.int32], ask: Ask) -> NDArray[np.float64]:
        """(n,) largest standardised change.

        Raises
        ------
        InquiryError
            As in `detectors.responses.asking`.
        """
        inputs, labels = judged(inputs, labels, len(self.low_), len(self.mean_))
        moved = self._moves(inputs, labels, ask, len(self.mean_))
        normal = (moved - self.mean_[labels]) / self.spread_[labels]
        normal[np.arange(len(labels)), labels] = -np.inf
        return np.asarray(normal.max(axis=(1, 2), initial=-1e6))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The noise and the usual changes."""
        return {
            "noise": self.noise_,
            "mean": self.mean_,
            "spread": self.spread_,
            "low": self.low_,
            "high": self.high_,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made, k = cls(), len(schema.classes)
        made.noise_ = stored(arrays, "noise", np.float64, len(SIZES) * DRAWS, schema.width)
        made.mean_ = stored(arrays, "mean", np.float64, k, k, len(SIZES))
        made.spread_ = within("spread", stored(arrays, "spread", np.float64, k, k, len(SIZES)), 1e-9, np.inf)
        made.low_, made.high_ = (stored(arrays, name, np.float64, schema.width) for name in ("low", "high"))
        return made
