"""Detectors of inputs in the space of embeddings: the same arithmetic on what the model made of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import SAYS_NOTHING, Batch, Detector, HistoryDetector, Reference, View
from detectors.errors import FitError, SchemaError
from detectors.schema import Feature, FeatureSchema
from detectors.stored import part_of
from detectors.view import REFERENCE_ROWS, BatchView, ReferenceFrame, correct_rows

#: Where a smaller share of rows carries an embedding, it is told.
LEAST_EMBEDDED = 0.9


def embedded_rows(rows: Batch | Reference, width: int | None) -> NDArray[np.intp]:
    """Places of the rows that carry an embedding, ascending; none where the schema states no width.

    Raises
    ------
    SchemaError
        When embeddings are not (n, width), or a row's is neither finite nor NaN throughout.
    """
    embeddings = rows.embeddings
    if embeddings is None or width is None:
        return np.empty(0, dtype=np.intp)
    if embeddings.shape != (len(rows), width):
        raise SchemaError(f"embeddings have shape {embeddings.shape}; the schema needs ({len(rows)}, {width})")
    finite = np.isfinite(embeddings)
    there = finite.all(axis=1)
    if not there.all():
        odd = np.flatnonzero(~there & ~np.isnan(embeddings).all(axis=1))
        if len(odd):
            raise SchemaError(
                f"the embedding of row {odd[0]} holds a value that is not finite ({len(odd)} such rows); "
                "a row without an embedding is NaN throughout"
            )
    return np.flatnonzero(there)


def needs_embedding(detector: object) -> bool:
    """Whether it looks at embeddings: where crafted rows carry none, they don't weigh it."""
    return bool(getattr(detector, "needs_embedding", False))


def check_embeddings(
    detectors: Sequence[Detector | HistoryDetector], schema: FeatureSchema, benign: Batch | None
) -> None:
    """Refuse detectors of embeddings where benign events carry none: any embedding would be odd beside them."""
    asking = [detector.name for detector in detectors if needs_embedding(detector)]
    if asking and schema.embedding_width is None:
        raise FitError(
            f"{asking[0]} looks at the embedding, and the schema states no `embedding_width`; state it (--schema), or "
            f"leave {' and '.join(asking)} out"
        )
    if asking and benign is not None and not len(embedded_rows(benign, schema.embedding_width)):
        raise FitError(
            f"{asking[0]} is calibrated on embeddings, and the benign events carry none; give events with the field "
            f"`embedding`, or fit without {' and '.join(asking)}"
        )


def rarely_embedded(
    detectors: Sequence[Detector | HistoryDetector], width: int | None, rows: Batch | Reference, what: str
) -> list[str]:
    """A sentence where detectors look at embeddings, and fewer than `LEAST_EMBEDDED` of the rows carry one."""
    asking = [detector.name for detector in detectors if needs_embedding(detector)]
    carry = len(embedded_rows(rows, width)) if asking else 0
    if not asking or carry >= LEAST_EMBEDDED * len(rows):
        return []
    return [f"{carry:,} of {len(rows):,} {what} carry an embedding; {' and '.join(asking)} know nothing of the others"]


class OnEmbedding:
    """A detector of inputs that is given embeddings instead, standardised by those of the reference.

    Embeddings stand on the grid of exact products like inputs do, so scores are the same to the bit however a batch is
    cut. A row without an embedding scores `SAYS_NOTHING`.
    """

    name: ClassVar[str]
    needs_embedding: ClassVar[bool] = True
    #: The detector, without parameters.
    inner: ClassVar[type[Detector]]
    #: Condensed reference rows that it needs of its frame.
    reference_rows: ClassVar[int] = REFERENCE_ROWS

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn from the rows that carry an embedding.

        Raises
        ------
        FitError
            Also when the schema states no width, or no row carries an embedding.
        """
        if schema.embedding_width is None:
            raise FitError(
                f"{self.name} looks at the embedding, and the schema states no `embedding_width`; "
                f"state it, or leave {self.name} out"
            )
        try:
            embedded_rows(reference, schema.embedding_width)
        except SchemaError as odd:
            raise FitError(f"reference rows: {odd}") from None
        kept = correct_rows(reference, len(schema.classes), schema.width)
        which = embedded_rows(kept, schema.embedding_width)
        if kept.embeddings is None or not len(which):
            raise FitError(
                f"{self.name} looks at the embedding, and no reference row carries one; give the reference with "
                f"embeddings (`embeddings` in npz, `embedding` in events and Parquet), or leave {self.name} out"
            )
        space = Reference(kept.embeddings[which], kept.labels[which])
        self.frame_ = ReferenceFrame.fit(space, len(schema.classes), rng, self.reference_rows)
        self.inner_: Detector = self.inner().fit(space, _space_of(schema), rng)
        return self

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) scores of the detector; `SAYS_NOTHING` for rows without an embedding."""
        out = np.full(len(view.batch), SAYS_NOTHING)
        which = embedded_rows(view.batch, self.frame_.width)
        if len(which):
            out[which] = self.inner_.score(self._seen(view.batch, which))
        return out

    def explain(self, view: View, row: int) -> str:
        """The detector's sentence."""
        one = view.batch.take(slice(row, row + 1))
        which = embedded_rows(one, self.frame_.width)
        if not len(which):
            return "the event carries no embedding, so nothing is known of it"
        return f"in the embedding, {self.inner_.explain(self._seen(one, which), 0)}"

    def _seen(self, batch: Batch, which: NDArray[np.intp]) -> BatchView:
        """The rows `which`, with the embedding in place of the input."""
        part = batch if len(which) == len(batch) else batch.take(which)
        assert part.embeddings is not None
        return BatchView(self.frame_, replace(part, inputs=part.embeddings, embeddings=None))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The frame and what the detector keeps."""
        parts: dict[str, Mapping[str, NDArray[Any]]] = {"frame": self.frame_.arrays(), "inner": self.inner_.arrays()}
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        made = cls()
        made.frame_ = ReferenceFrame.restore(part_of(arrays, "frame"), len(schema.classes))
        if made.frame_.width != schema.embedding_width:
            raise ValueError(f"embeddings have {made.frame_.width} values, the schema says {schema.embedding_width}")
        made.inner_ = cls.inner.restore(part_of(arrays, "inner"), _space_of(schema))
        return made


def _space_of(schema: FeatureSchema) -> FeatureSchema:
    """The embedding as if it were the input."""
    return FeatureSchema(tuple(Feature(f"embedding_{i}") for i in range(schema.embedding_width or 0)), schema.classes)
