"""The rows of one record: judged, the bad ones set aside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.events.batch import DecodeOptions, Reason
from streams.events.identity import ClientPlace
from streams.events.refusal import Refusal, quoted

#: Name of the embedding: a field of native events, an output tensor, a column.
EMBEDDING = "embedding"
_NO_ANSWER = "the model's answer is missing: neither label nor outputs"

Faults = dict[int, tuple[Reason, str]]
"""Place of a refused row -> why."""


@dataclass(frozen=True)
class Layout:
    """What readers ask of the deployment, worked out once for a fetch."""

    options: DecodeOptions

    @cached_property
    def width(self) -> int:
        """Number of features, d."""
        return self.options.schema.width

    @cached_property
    def k(self) -> int:
        """Number of classes."""
        return len(self.options.schema.classes)

    @cached_property
    def embedding_width(self) -> int | None:
        """Values of an embedding, e; None: those of events are ignored."""
        return self.options.schema.embedding_width

    @cached_property
    def classes(self) -> dict[str, int]:
        """Number of each class by its name, the first of those that share one."""
        return {name: self.k - place for place, name in enumerate(reversed(self.options.schema.classes), 1)}

    @cached_property
    def place(self) -> ClientPlace:
        """Where the client's name stands."""
        return ClientPlace.parse(self.options.client_path)

    @cached_property
    def schemas(self) -> dict[bytes, dict[str, int]]:
        """Places of columns by name, for each Arrow schema of this fetch that was found good, by its bytes."""
        return {}

    @cached_property
    def uncompressed(self) -> set[bytes]:
        """Headers of Arrow messages of this fetch whose bodies are not compressed."""
        return set()

    def check_rows(self, n: int) -> None:
        """`Refusal` when a record has more rows than are allowed."""
        limit = self.options.max_record_rows
        if n > limit:
            raise Refusal(Reason.TOO_LARGE, f"the record has {n:,} rows; {limit:,} are allowed")

    def check_model(self, name: str | None) -> None:
        """`Refusal` when a record names another model; an empty declared name lets every model pass."""
        if name is not None and self.options.model and name != self.options.model:
            raise Refusal(Reason.UNDECLARED_MODEL, f"the record is of model {quoted(name)}, not {self.options.model}")


@dataclass(frozen=True, slots=True)
class Refused:
    """Some rows of a record, or with None all of it, and why."""

    reason: Reason
    detail: str
    rows: tuple[int, ...] | None


@dataclass(slots=True)
class Rows:
    """The sound rows of one record, in order.

    Attributes
    ----------
    inputs : (m, d) of any numeric dtype
    labels : int32 (m,)
    outputs : (m, k) or None
    places : int32 (m,) or None
        Place of each row in its record; None: 0 to m - 1.
    embeddings : (m, e) or None
        NaN in rows without one.
    client, request_id
        Of the record as a whole.
    clients : uint64 (m,) or None
        Where the record carries a hash for each row.
    sources : int32, int64 and int32 (m,), or None
        Source coordinates.
    claims : tuple of (request id, first row, row behind the last)
        Front-door ids that stand for some rows only.
    refused : tuple of Refused
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int32]
    outputs: NDArray[Any] | None
    places: NDArray[np.int32] | None = None
    embeddings: NDArray[Any] | None = None
    client: bytes | None = None
    request_id: str | None = None
    clients: NDArray[np.uint64] | None = None
    sources: tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]] | None = None
    claims: tuple[tuple[str, int, int], ...] = ()
    refused: tuple[Refused, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)


def add_faults(faults: Faults, rows: Iterable[int], reason: Reason, detail: str) -> None:
    """Refuse rows; the first reason of a row stands."""
    for row in rows:
        faults.setdefault(int(row), (reason, detail))


def settle(
    layout: Layout,
    inputs: NDArray[Any],
    outputs: NDArray[Any] | None,
    scored: NDArray[np.bool_] | None,
    labels: NDArray[np.int64] | None,
    stated: NDArray[np.bool_] | None,
    faults: Faults,
    embeddings: NDArray[Any] | None = None,
    embedded: NDArray[np.bool_] | None = None,
) -> Rows:
    """Judge the rows of a record whose structure is sound.

    Parameters
    ----------
    inputs : (n, d) of any numeric dtype
    outputs : (n, k) or None
    scored : bool (n,) or None
        Rows that have outputs; None: all of them, where `outputs` is there.
    labels : int64 (n,) or None
        Stated labels.
    stated : bool (n,) or None
        Rows that have a label; None: all of them, where `labels` is there.
    faults : Faults
        What is known to be wrong already. Added to.
    embeddings : (n, e) or None
    embedded : bool (n,) or None
        Rows that have an embedding; None: all of them, where `embeddings` is there.

    Returns
    -------
    Rows
        Without the refused rows; without identity.

    Raises
    ------
    Refusal
        When the record's only row is refused.
    """
    n = len(inputs)
    _check_finite(faults, inputs, "inputs")
    if outputs is not None:
        if scored is not None:
            outputs = np.where(scored[:, None], outputs, 0.0)
        _check_finite(faults, outputs, "outputs")
        final = np.argmax(outputs, axis=1)
        if scored is not None:
            outputs[~scored] = np.nan
    if labels is not None:
        bad = (labels < 0) | (labels >= layout.k)
        if stated is not None:
            bad &= stated
        add_faults(
            faults, np.flatnonzero(bad), Reason.LABEL_OUT_OF_RANGE, f"the label is none of the {layout.k} classes"
        )
        final = labels if stated is None or outputs is None else np.where(stated, labels, final)
    if outputs is None or scored is not None:
        lacking = np.ones(n, dtype=np.bool_) if scored is None else ~scored
        if labels is not None:
            lacking &= False if stated is None else ~stated
        add_faults(faults, np.flatnonzero(lacking), Reason.MISSING_FIELD, _NO_ANSWER)
        if outputs is None and labels is None:
            final = np.zeros(n, dtype=np.int64)
    rows = Rows(inputs, final.astype(np.int32), outputs)
    if embeddings is not None:
        there = np.ones(n, dtype=np.bool_) if embedded is None else embedded
        embeddings = np.where(there[:, None], embeddings, 0.0)
        _check_finite(faults, embeddings, "embeddings")
        embeddings[~there] = np.nan
        rows.embeddings = embeddings
    if faults:
        _set_aside(rows, faults, n)
    return rows


def _check_finite(faults: Faults, values: NDArray[Any], what: str) -> None:
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        add_faults(faults, bad, Reason.NON_FINITE, f"{what} hold a value that is not finite")


def _set_aside(rows: Rows, faults: Faults, n: int) -> None:
    if n == 1:
        raise Refusal(*faults[0])
    keep = np.ones(n, dtype=np.bool_)
    keep[list(faults)] = False
    grouped: dict[Reason, tuple[str, list[int]]] = {}
    for row in sorted(faults):
        reason, detail = faults[row]
        grouped.setdefault(reason, (f"row {row}: {detail}", []))[1].append(row)
    rows.refused = tuple(Refused(reason, detail, tuple(places)) for reason, (detail, places) in grouped.items())
    rows.inputs, rows.labels = rows.inputs[keep], rows.labels[keep]
    rows.outputs = None if rows.outputs is None else rows.outputs[keep]
    rows.embeddings = None if rows.embeddings is None else rows.embeddings[keep]
    rows.places = np.flatnonzero(keep).astype(np.int32)
