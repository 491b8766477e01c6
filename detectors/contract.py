"""What every detector and every caller of the ensemble agree on.

A batch is columns. Nothing here reads a clock, a network or a file: times, identities and randomness are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from detectors.schema import FeatureSchema

#: Version of the MITRE ATLAS data that technique ids refer to.
ATLAS_VERSION = "5.6.0"

#: Client id of rows whose sender is unknown: scored, but without client history.
ANONYMOUS = 0

#: Score of a row that a detector can say nothing of, as what it looks at is missing: its p-value is 1.
SAYS_NOTHING = -1e30

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


class Technique:
    """MITRE ATLAS technique ids that Vedette's rules speak of."""

    EVADE = "AML.T0015"
    CRAFT = "AML.T0043"
    CRAFT_BLACK_BOX = "AML.T0043.001"
    CRAFT_TRANSFER = "AML.T0043.002"
    EXTRACT = "AML.T0024.002"


class Level(IntEnum):
    """How loudly a row speaks."""

    SILENT = 0
    TICKET = 1
    PAGE = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one model in the order in which they stand in one partition.

    Attributes
    ----------
    inputs : float64 (n, d), C order, finite
        Model inputs in the units of the schema.
    labels : int32 (n,)
        Predicted class of each row, 0 <= label < number of classes.
    clients : uint64 (n,)
        Keyed hash of the sender; `ANONYMOUS` (0) where there is none.
    times : int64 (n,)
        Broker time in microseconds since the epoch, non-decreasing within a partition.
    offsets : int64 (n,)
        Kafka offset of the record that carried the row, non-decreasing.
    rows : int32 (n,)
        Place of the row in its record.
    outputs : float64 (n, k) or None
        The model's scores, where the event carried them.
    embeddings : float64 (n, e) or None
        What the model made of each input on its way to the answer, where the schema states its width; a row whose
        event carried none is NaN throughout. None: no row has one.
    """

    inputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    clients: NDArray[np.uint64]
    times: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    outputs: NDArray[np.float64] | None = None
    embeddings: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Batch:
        """The rows that `which` selects, in that order."""
        return Batch(
            inputs=np.ascontiguousarray(self.inputs[which]),
            labels=self.labels[which],
            clients=self.clients[which],
            times=self.times[which],
            offsets=self.offsets[which],
            rows=self.rows[which],
            outputs=None if self.outputs is None else self.outputs[which],
            embeddings=None if self.embeddings is None else self.embeddings[which],
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """Benign rows that detectors are fitted on.

    Attributes
    ----------
    inputs : float64 (n, d)
    labels : int32 (n,)
        The watched model's predicted class of each row.
    outputs : float64 (n, k) or None
        The model's scores.
    truth : int32 (n,) or None
        True classes, where known; detectors that learn "normal for class c" prefer rows the model got right.
    embeddings : float64 (n, e) or None
        As in `Batch`: a row without one is NaN throughout.
    """

    inputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    outputs: NDArray[np.float64] | None = None
    truth: NDArray[np.int32] | None = None
    embeddings: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.inputs)


class View(Protocol):
    """One batch and what several detectors need of it, computed once, on first use.

    Every quantity of a row depends on that row alone, to the bit, however batches are cut.
    """

    @property
    def batch(self) -> Batch: ...

    @property
    def standardised(self) -> NDArray[np.float64]:
        """(n, d) inputs in standard deviations of the reference, rounded to a fixed-point grid (exact products)."""

    @property
    def own_distance(self) -> NDArray[np.float64]:
        """(n,) distance to the 5th nearest reference row of the predicted class, standardised L2."""

    @property
    def own_nearest(self) -> NDArray[np.float64]:
        """(n,) distance to the nearest reference row of the predicted class, standardised L2."""

    @property
    def other_distance(self) -> NDArray[np.float64]:
        """(n,) distance to the nearest reference row of any other class, standardised L2."""

    @property
    def nearest_own(self) -> NDArray[np.int64]:
        """(n,) index, among the bundle's condensed reference rows, of the nearest one of the predicted class."""


@runtime_checkable
class Detector(Protocol):
    """Scores single inputs; a larger score is more adversarial.

    A fitted detector is a pure function of each row: the score of a row does not depend, to the bit, on what else is in
    the batch. Constructor parameters are plain data. `arrays` and `restore` carry everything fitted, without pickling.
    """

    name: str

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn from benign rows."""

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) scores, finite."""

    def explain(self, view: View, row: int) -> str:
        """One plain sentence for the on-call engineer: what is odd about this row in this detector's eyes."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything fitted, as named arrays."""

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.generic]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""


@runtime_checkable
class HistoryDetector(Protocol):
    """Scores a row by what its client has sent so far; a larger score is more adversarial, 0 says nothing.

    It keeps one record of a fixed layout a client, which lies in the state of the partition beside the client's
    history: bounded, part of snapshots, forgotten with it. A fitted detector is a pure function of rows and records:
    `advance` over a + b equals `advance` over a, then over b, to the bit, records included. Constructor parameters are
    plain data.
    """

    name: str

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Learn from benign rows."""

    @property
    def record(self) -> np.dtype[Any]:
        """Layout of a client's record, known once it is fitted."""

    def advance(
        self, view: View, slots: NDArray[np.int64], fresh: NDArray[np.uint8], records: NDArray[Any]
    ) -> NDArray[np.float64]:
        """(n,) scores, finite, not negative; changes the records.

        Parameters
        ----------
        view : View
        slots : int64 (n,)
            Record of each row's client; -1 for anonymous rows, which score 0.
        fresh : uint8 (n,)
            1 where the record begins anew at this row: what stands in it belongs to nobody.
        records : (c,) of `record`
        """

    def explain(self, view: View, row: int) -> str:
        """One plain sentence for the on-call engineer: what is odd about this row's client."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything fitted, as named arrays."""

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.generic]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one detector speaks about a row.

    `pvalue` is conformal: the share of benign rows that look at least as odd. `extrapolated` marks a value below what
    the calibration sample can resolve.
    """

    detector: str
    pvalue: float
    text: str
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class Signal:
    """One rule crossed its threshold at one row.

    Attributes
    ----------
    row : int
        Row of the batch at which it happened.
    rule : str
        Stable short name: ``input-sequence``, ``query-cluster``, ``query-intent``, ``index-cluster``, ``index-intent``.
    level : Level
    technique : str
        MITRE ATLAS id (`ATLAS_VERSION`).
    entity : {"client", "cluster", "population"}
    entity_id : str
        Stable name of the entity: 16 hex digits of the client hash, or ``<offset>-<row>`` of a cluster's first member.
    statistic, threshold : float
        The rule's statistic at this row and what it crossed, in the rule's own units.
    members : int64 (m, 2)
        (offset, row) of the rows that make the evidence, oldest first, bounded.
    member_clients : uint64 (m,)
        The sender of each member.
    reasons : tuple of Reason
    input, nearest : float64 (d,)
        The row, and the nearest reference row of its predicted class.
    label, nearest_label : int
    measures : mapping of str to float
        The parts of the decision by name (for the intent test: gate, progress, following, bisection, size ...).
    rests_on : int
        The client without whose own near-duplicates a cluster of many accounts would not page, where crossing pages;
        `ANONYMOUS` (0) where it pages by itself or by the intent test, and for every other rule.
    of_index : bool
        Whether the index of all accounts saw the cluster, be it of one client or of several.
    """

    row: int
    rule: str
    level: Level
    technique: str
    entity: Literal["client", "cluster", "population"]
    entity_id: str
    statistic: float
    threshold: float
    members: NDArray[np.int64]
    member_clients: NDArray[np.uint64]
    reasons: tuple[Reason, ...]
    input: NDArray[np.float64]
    nearest: NDArray[np.float64]
    label: int
    nearest_label: int
    measures: Mapping[str, float] = field(default_factory=dict)
    rests_on: int = ANONYMOUS
    of_index: bool = False


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the ensemble says of a batch, row by row.

    Attributes
    ----------
    detectors : tuple of str
        Names of the columns of `scores` and `pvalues`.
    scores : float64 (n, D)
        Raw detector scores.
    pvalues : float64 (n, D)
        Conformal p-values of the scores.
    fused : float64 (n,)
        One conformal p-value a row, re-calibrated after fusion.
    statistics : float64 (n, T)
        Each stream statistic of the row's client (or index) after the row, divided by its threshold: crossed beyond 1.
        Of clusters: the one that the row joined, and its ticket threshold; 0 where it joined none.
    tests : tuple of str
        Names of the columns of `statistics`.
    levels : uint8 (n,)
        `Level` reached at the row.
    signals : tuple of Signal
        In order of rows; few.
    """

    detectors: tuple[str, ...]
    scores: NDArray[np.float64]
    pvalues: NDArray[np.float64]
    fused: NDArray[np.float64]
    tests: tuple[str, ...]
    statistics: NDArray[np.float64]
    levels: NDArray[np.uint8]
    signals: tuple[Signal, ...]


class PartitionState(Protocol):
    """Everything the ensemble remembers of one partition: client histories, index, tests.

    Flat arrays of a fixed size and layout for a given bundle and capacity; a function of the log and the bundle alone.
    """

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Named views of the whole state (not copies)."""

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Overwrite the state with arrays of the same names, shapes and dtypes; ValueError names what differs."""

    def digest(self) -> str:
        """Hex digest of the state's bytes."""


class Scorer(Protocol):
    """What the stream worker needs of a fitted ensemble."""

    @property
    def schema(self) -> FeatureSchema: ...

    @property
    def digest(self) -> str:
        """Identity of the bundle: hex digest of its content."""

    def new_state(self, clients: int = 20_000, index_rows: int = 10_000) -> PartitionState:
        """An empty state with room for so many clients and so many rows in the account-oblivious index."""

    def warm_up(self) -> None:
        """Compile every kernel that `score` uses."""

    def score(self, batch: Batch, state: PartitionState) -> Verdicts:
        """Score a batch and advance the state in place.

        score(a + b) equals score(a) then score(b), to the bit, for any cut.
        """
