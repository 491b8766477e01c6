"""The escalation tier: fitted inquiries and the scores that they give benign rows, so that a score has a p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.conformal import upper_pvalues
from detectors.contract import Progress, Reference
from detectors.errors import FitError
from detectors.responses.asking import asked, judged
from detectors.responses.contract import Ask, Inquiry
from detectors.responses.feature_squeezing import FeatureSqueezing
from detectors.responses.noise_stability import NoiseStability
from detectors.schema import FeatureSchema
from detectors.stored import stored, within

KINDS: dict[str, type[Inquiry]] = {kind.name: kind for kind in (NoiseStability, FeatureSqueezing)}
"""Inquiries by name."""
#: Benign rows that inquiries are calibrated on, at most and at least.
MAX_ROWS, LEAST_ROWS = 2_000, 100
#: With so many benign rows beyond those, inquiries are fitted on them: models are too sure of rows they learned from.
LEAST_FRESH = 1_000
#: A class with fewer benign rows than this is compared with those of all classes.
MIN_CLASS_ROWS = 100
#: Share of benign rows whose recorded label the model must give again: below it another model is asked.
LEAST_AGREEMENT = 0.9
#: Rows that are asked about at a time while calibrating.
BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Answered:
    """What one inquiry says of n rows.

    Attributes
    ----------
    inquiry : str
    scores : float64 (n,)
    pvalues : float64 (n,)
        Conformal: (1 + benign rows that score at least as much) / (rows + 1).
    rows : int64 (n,)
        Benign rows that each is compared with: of its class, or of all.
    questions : int
        Rows that the model was asked for each.
    """

    inquiry: str
    scores: NDArray[np.float64]
    pvalues: NDArray[np.float64]
    rows: NDArray[np.int64]
    questions: int


@dataclass(frozen=True, slots=True, eq=False)
class Escalation:
    """Fitted inquiries with their calibration.

    A p-value is conformal given the predicted class where the class has `MIN_CLASS_ROWS` benign rows, over all classes
    where it has not (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005, section 4.5).

    Attributes
    ----------
    inquiries : tuple of Inquiry
    values : float64 (J, m)
        Scores of benign rows by each inquiry, class after class, ascending within each.
    counts : int64 (k,)
        Benign rows of each class; their sum is m.
    width : int
        Features of a row.
    """

    inquiries: tuple[Inquiry, ...]
    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    width: int

    @classmethod
    def fit(
        cls,
        reference: Reference,
        schema: FeatureSchema,
        inputs: NDArray[np.float64],
        labels: NDArray[np.int32],
        ask: Ask,
        rng: np.random.Generator,
        names: Sequence[str] = tuple(KINDS),
        progress: Progress | None = None,
    ) -> Self:
        """Fit inquiries on the reference, or on benign rows if there are plenty; calibrate them on other benign rows.

        Parameters
        ----------
        reference : Reference
        schema : FeatureSchema
        inputs : float64 (n, d)
            Benign rows that are not in the reference; of many, `MAX_ROWS` are drawn for the calibration.
        labels : int32 (n,)
            The model's recorded answers to them.
        ask : callable
            The watched model.
        rng : numpy.random.Generator
        names : sequence of str
            Of `KINDS`, each once.
        progress : callable, optional

        Raises
        ------
        FitError
            A name is not known, there are too few benign rows, or another model answers than gave the labels.
        InquiryError
            The model's answers are no probabilities of the schema's classes.
        """
        unknown = [name for name in names if name not in KINDS]
        if unknown or not names or len(set(names)) < len(names):
            raise FitError(f"inquiries are named once, of {', '.join(KINDS)}; given: {', '.join(names) or 'none'}")
        rows, given = judged(inputs, labels, schema.width, len(schema.classes))
        if len(rows) < LEAST_ROWS:
            raise FitError(f"{len(rows)} benign rows are too few to calibrate inquiries on; give {LEAST_ROWS}")
        order = rng.permutation(len(rows))
        chosen, rest = np.sort(order[:MAX_ROWS]), np.sort(order[MAX_ROWS:])
        known = Reference(rows[rest], given[rest]) if len(rest) >= LEAST_FRESH else reference
        rows, given = rows[chosen], given[chosen]
        starts = range(0, len(rows), BLOCK_ROWS)
        again = [asked(ask, rows[at : at + BLOCK_ROWS], len(schema.classes)).argmax(axis=1) for at in starts]
        agreement = float(np.mean(np.concatenate(again) == given))
        if agreement < LEAST_AGREEMENT:
            raise FitError(
                f"the model that inquiries ask gives only {agreement:.0%} of {len(rows)} benign rows the label that "
                "was recorded; name the model that is watched, in the version that answered, with the same features"
            )
        fitted, scores = [], np.empty((len(names), len(rows)))
        for place, name in enumerate(names):
            told = f"asking the model: {name}"
            inquiry = KINDS[name]().fit(known, schema, ask, rng.spawn(1)[0])
            for at in starts:
                if progress is not None:
                    progress(told, (place + at / len(rows)) / len(names))
                part = slice(at, at + BLOCK_ROWS)
                scores[place, part] = inquiry.score(rows[part], given[part], ask)
            fitted.append(inquiry)
        values = np.stack([one[np.lexsort((one, given))] for one in scores])
        return cls(tuple(fitted), values, np.bincount(given, minlength=len(schema.classes)), schema.width)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inquiries, in order."""
        return tuple(inquiry.name for inquiry in self.inquiries)

    @property
    def questions(self) -> int:
        """Rows that the model is asked for each row judged, by all inquiries together."""
        return sum(inquiry.questions for inquiry in self.inquiries)

    def judge(self, inputs: NDArray[np.float64], labels: NDArray[np.int32], ask: Ask) -> tuple[Answered, ...]:
        """What every inquiry says of rows (n, d) that the model gave labels (n,).

        Raises
        ------
        InquiryError
            The rows do not fit, or the model's answers are no probabilities of the schema's classes.
        """
        rows, given = judged(inputs, labels, self.width, len(self.counts))
        found = []
        for inquiry, values in zip(self.inquiries, self.values, strict=True):
            scores = inquiry.score(rows, given, ask)
            pvalues, against = self._pvalues(scores, given, values)
            found.append(Answered(inquiry.name, scores, pvalues, against, inquiry.questions))
        return tuple(found)

    def _pvalues(
        self, scores: NDArray[np.float64], labels: NDArray[np.int32], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        pvalues = upper_pvalues(scores, np.sort(values))
        against = np.full(len(scores), len(values), dtype=np.int64)
        ends = np.cumsum(self.counts)
        for label in np.unique(labels):
            if self.counts[label] >= MIN_CLASS_ROWS:
                mine = labels == label
                pvalues[mine] = upper_pvalues(scores[mine], values[ends[label] - self.counts[label] : ends[label]])
                against[mine] = self.counts[label]
        return pvalues, against

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted: the calibration, and every inquiry's arrays behind its name."""
        own = {f"{one.name}.{name}": array for one in self.inquiries for name, array in one.arrays().items()}
        return {"values": self.values, "counts": self.counts, **own}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema, names: Sequence[str]) -> Self:
        """The inverse of `arrays`.

        Raises
        ------
        KeyError, ValueError
            Something is missing or malformed.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"inquiries are named once, not {', '.join(map(str, names)) or 'not at all'}")
        made = []
        for name in names:
            prefix = f"{name}."
            own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            made.append(KINDS[name].restore(own, schema))
        values = stored(arrays, "values", np.float64, len(names), None)
        counts = within("counts", stored(arrays, "counts", np.int64, len(schema.classes)), 0, values.shape[1])
        if counts.sum() != values.shape[1]:
            raise ValueError(f"counts add up to {counts.sum()}, not to the {values.shape[1]} values of an inquiry")
        inner = np.ones(values.shape[1], dtype=np.bool_)
        inner[np.cumsum(counts)[counts > 0] - 1] = False  # from the last value of a class on the next begins anew
        if (np.diff(values, axis=1)[:, inner[:-1]] < 0).any():
            raise ValueError("values must ascend within each class")
        restored = cls(tuple(made), values, counts, schema.width)
        if set(restored.arrays()) != set(arrays):
            raise ValueError(f"unknown arrays: {', '.join(sorted(set(arrays) - set(restored.arrays())))}")
        return restored
