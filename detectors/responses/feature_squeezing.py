"""Feature squeezing: does the answer hold when detail is taken from the input?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference
from detectors.responses.asking import asked, judged
from detectors.responses.contract import Ask
from detectors.schema import FeatureSchema
from detectors.stored import stored
from detectors.view import correct_rows

#: Levels that a feature's range is rounded to: 1 bit and 4 bits, as published for grey pictures.
LEVELS = (2, 16)
#: Rows that are judged at a time.
BLOCK_ROWS = 512


class FeatureSqueezing:
    """Largest L1 distance between the model's answers to the row and to squeezed copies of it.

    Copies: every feature rounded to few levels of its observed range; a picture's pixels also replaced by the median of
    a window of 2 x 2. Features that are whole numbers or one-hot are left as they are.

    Blind to: attacks that are made robust to squeezing (He, Wei, Chen, Carlini & Song, WOOT 2017).

    References
    ----------
    Xu, Evans & Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018, section III.
    """

    name = "feature_squeezing"

    @property
    def questions(self) -> int:
        """Rows asked for each row judged."""
        return 1 + len(LEVELS) + (self._shape is not None)

    def fit(self, reference: Reference, schema: FeatureSchema, ask: Ask, rng: np.random.Generator) -> Self:
        """Learn the range of every feature."""
        kept = correct_rows(reference, len(schema.classes), schema.width)
        self.low_, self.high_ = kept.inputs.min(axis=0), kept.inputs.max(axis=0)
        return self._of(schema)

    def _of(self, schema: FeatureSchema) -> Self:
        self._shape, self._classes = schema.image_shape, len(schema.classes)
        self._free = ~schema.integral() & (self.high_ > self.low_)
        return self

    def _squeezed(self, rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        width = np.where(self._free, self.high_ - self.low_, 1.0)
        share = np.clip((rows - self.low_) / width, 0.0, 1.0)
        made = [
            np.where(self._free, self.low_ + width * np.rint(share * (levels - 1)) / (levels - 1), rows)
            for levels in LEVELS
        ]
        if self._shape is not None:
            high, wide, channels = (*self._shape, 1)[:3]
            picture = np.pad(rows.reshape(-1, high, wide, channels), ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
            window = np.stack([picture[:, a : a + high, b : b + wide] for a in (0, 1) for b in (0, 1)])
            made.append(np.median(window, axis=0).reshape(len(rows), -1))
        return made

    def score(self, inputs: NDArray[np.float64], labels: NDArray[np.int32], ask: Ask) -> NDArray[np.float64]:
        """(n,) distances, 0 to 2.

        Raises
        ------
        InquiryError
            As in `detectors.responses.asking`.
        """
        inputs, labels = judged(inputs, labels, len(self.low_), self._classes)
        out = np.zeros(len(inputs))
        for start in range(0, len(inputs), BLOCK_ROWS):
            rows = inputs[start : start + BLOCK_ROWS]
            copies = self._squeezed(rows)
            answers = asked(ask, np.concatenate([rows, *copies]), self._classes)
            answers = answers.reshape(1 + len(copies), len(rows), self._classes)
            out[start : start + BLOCK_ROWS] = np.abs(answers[1:] - answers[:1]).sum(axis=2).max(axis=0)
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The ranges."""
        return {"low": self.low_, "high": self.high_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.low_, made.high_ = (stored(arrays, name, np.float64, schema.width) for name in ("low", "high"))
        return made._of(schema)
