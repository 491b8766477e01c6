"""The half of the ensemble that looks at single inputs: scores, p-values, their fusion, and what the walk reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from detectors import registry
from detectors.calibration.conformal import ScoreCalibration
from detectors.calibration.fusion import Fusion
from detectors.contract import Batch, Detector, HistoryDetector
from detectors.embeddings.space import needs_embedding
from detectors.kernels.feedback import strongest
from detectors.queries.codes import Coder
from detectors.queries.past import Past
from detectors.queries.walk import BINS, ROW, Columns
from detectors.schema import FeatureSchema
from detectors.stored import part_of, stored
from detectors.view import BatchView, ReferenceFrame


@dataclass(frozen=True, slots=True)
class Scored:
    """A batch as single inputs.

    Attributes
    ----------
    view : BatchView
    scores, pvalues : float64 (n, D)
    sums, fused : float64 (n,)
        Fused score and its conformal p-value.
    columns : Columns
        For the walk.
    """

    view: BatchView
    scores: NDArray[np.float64]
    pvalues: NDArray[np.float64]
    sums: NDArray[np.float64]
    fused: NDArray[np.float64]
    columns: Columns


def remembers(detector: Detector | HistoryDetector) -> TypeGuard[HistoryDetector]:
    """Whether it is a detector of histories; far cheaper than asking for the whole protocol, as every batch does."""
    return hasattr(detector, "advance")


def raw_scores(
    detectors: tuple[Detector | HistoryDetector, ...], view: BatchView, past: Past | None = None
) -> NDArray[np.float64]:
    """(n, D) scores of every detector; without a past, those of histories are 0. The past moves on."""
    scores = np.zeros((len(view.batch), len(detectors)))
    slots = fresh = None
    for column, detector in enumerate(detectors):
        if not remembers(detector):
            scores[:, column] = cast("Detector", detector).score(view)
        elif past is not None:
            if slots is None or fresh is None:
                slots, fresh = past.places(view.batch.clients)
            scores[:, column] = detector.advance(view, slots, fresh, past.records[detector.name])
    return scores


def new_past(detectors: tuple[Detector | HistoryDetector, ...], clients: int) -> Past | None:
    """Room for what detectors remember of so many clients; None where none remembers anything."""
    layouts = {one.name: one.record for one in detectors if remembers(one)}
    return Past(layouts, clients) if layouts else None


@dataclass(frozen=True, slots=True)
class Single:
    """Everything fitted that a row meets before the walk.

    Attributes
    ----------
    frame : ReferenceFrame
    detectors : tuple of Detector or HistoryDetector
    scores : ScoreCalibration
    fusion : Fusion
    coder : Coder
    edges : float64 (4,)
        Bounds of the five bins of the density (distance to the 5th nearest reference row of the predicted class).
    """

    frame: ReferenceFrame
    detectors: tuple[Detector | HistoryDetector, ...]
    scores: ScoreCalibration
    fusion: Fusion
    coder: Coder
    edges: NDArray[np.float64]

    def score(self, batch: Batch, past: Past | None = None) -> Scored:
        """Score rows one by one; no row's result depends on the others but through its client's past."""
        view = BatchView(self.frame, batch)
        scores = raw_scores(self.detectors, view, past)
        ranks = self.scores.ranks(scores, view.batch.labels)
        sums, rank = self.fusion.fuse(ranks, self.scores.surprise)
        return Scored(
            view=view,
            scores=scores,
            pvalues=self.scores.pvalues(ranks),
            sums=sums,
            fused=self.fusion.pvalues(rank),
            columns=columns_of(view, self.coder, self.edges, rank, sums),
        )

    @property
    def calibrated(self) -> tuple[int, ...]:
        """(D + 1,) scores that each detector's p-values were taken from, and sums that the fused one was.

        Of detectors of embeddings those of the rows that carried one, which may stand there several times.
        """
        values = self.scores.values
        heard = [
            len(np.unique(own)) if needs_embedding(detector) else len(own)
            for detector, own in zip(self.detectors, values, strict=True)
        ]
        return (*heard, len(self.fusion.values))

    def new_past(self, clients: int) -> Past | None:
        """Room for what its detectors remember of so many clients; None where none remembers anything."""
        return new_past(self.detectors, clients)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted; names start with the part they belong to."""
        found: dict[str, NDArray[Any]] = {"edges": self.edges}
        parts: list[tuple[str, dict[str, Any]]] = [
            ("frame", self.frame.arrays()),
            ("scores", self.scores.arrays()),
            ("fusion", self.fusion.arrays()),
            ("coder", self.coder.arrays()),
        ]
        parts += [(f"detector.{detector.name}", detector.arrays()) for detector in self.detectors]
        for part, arrays in parts:
            found.update({f"{part}.{name}": array for name, array in arrays.items()})
        return found

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema, names: tuple[str, ...]) -> Self:
        """The inverse of `arrays`; `names` are those of the detectors, in order."""
        frame = ReferenceFrame.restore(part_of(arrays, "frame"), len(schema.classes))
        if frame.width != schema.width:
            raise ValueError(f"the reference has {frame.width} features, the schema {schema.width}")
        return cls(
            frame=frame,
            detectors=tuple(registry.kind(name).restore(part_of(arrays, f"detector.{name}"), schema) for name in names),
            scores=ScoreCalibration.restore(part_of(arrays, "scores"), len(schema.classes), len(names)),
            fusion=Fusion.restore(part_of(arrays, "fusion"), len(names)),
            coder=Coder.restore(part_of(arrays, "coder"), schema.width),
            edges=stored(arrays, "edges", np.float64, BINS - 1),
        )


def columns_of(
    view: BatchView, coder: Coder, edges: NDArray[np.float64], rank: NDArray[np.int32], sums: NDArray[np.float64]
) -> Columns:
    """What the walk reads of a batch; `sums` (n,) are fused scores, and `rank` (n,) their ranks."""
    batch, forms, density = view.batch, coder.forms(view), view.own_distance
    rows = np.zeros(len(batch), dtype=ROW)
    rows["client"], rows["offset"], rows["row"], rows["label"] = batch.clients, batch.offsets, batch.rows, batch.labels
    rows["codes"], rows["sketch"], rows["sketch_rank"] = forms.codes, forms.sketches, forms.sketch_rank
    rows["simhash"], rows["hash"] = forms.simhash, forms.hashes
    rows["density"], rows["bin"], rows["rank"] = density, np.searchsorted(edges, density), rank
    rows["oddness"] = sums
    rows["own"] = rows["rival"] = np.nan
    if batch.outputs is not None and batch.outputs.shape[1] > 1:
        own, rival = np.empty(len(batch)), np.empty(len(batch))
        strongest(np.ascontiguousarray(batch.outputs, dtype=np.float64), batch.labels, own, rival)
        rows["own"], rows["rival"] = own, rival
    return Columns(batch.inputs, rows)
