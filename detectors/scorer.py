"""The fitted ensemble: rows in, verdicts and signals out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors import kernels
from detectors.contract import Batch, PartitionState, Signal, Verdicts
from detectors.embeddings.space import embedded_rows
from detectors.policy import Policy
from detectors.queries import walk as walking
from detectors.queries.intent import IntentTest
from detectors.queries.memory import Memory
from detectors.queries.walk import Packed, Tables
from detectors.responses.escalation import Escalation
from detectors.schema import FeatureSchema
from detectors.signals import Teller
from detectors.single import Single
from detectors.stored import part_of

#: Columns of `Verdicts.statistics`.
TESTS = ("client-cluster", "client-opposite", "input-sequence", "index-cluster")
#: Prefix of the arrays of inquiries.
INQUIRIES = "inquiries"
#: Version of what `Ensemble.arrays` and `Ensemble.settings` hold.
CONTENT_VERSION = 5


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """A fitted and calibrated ensemble (`contract.Scorer`); made by `detectors.ensemble.fit`.

    Attributes
    ----------
    schema : FeatureSchema
    single : Single
        Detectors of single inputs, their calibration and fusion.
    tables : Tables
        Calibration of the walk, thresholds included.
    intent : IntentTest
    policy : Policy
    index_rows : int
        The account-oblivious index is calibrated for at most so many rows.
    escalation : Escalation or None
        Inquiries that ask the model again about rows that were singled out; `score` never calls them.
    digest : str
        Identity of the content: 32 hex digits over every array and setting.
    """

    schema: FeatureSchema
    single: Single
    tables: Tables
    intent: IntentTest
    policy: Policy
    index_rows: int
    escalation: Escalation | None = None
    digest: str = field(init=False)
    _packed: Packed = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_packed", self.tables.packed())
        object.__setattr__(self, "digest", content_digest(self.arrays(), self.settings()))

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors of single inputs, in the order of the columns of verdicts."""
        return tuple(detector.name for detector in self.single.detectors)

    def with_policy(self, thresholds: NDArray[np.float64], policy: Policy) -> Ensemble:
        """The same ensemble with other thresholds (ticket A, ticket B, ticket index, sequential test) and policy."""
        return replace(self, tables=self.tables._replace(thresholds=np.array(thresholds)), policy=policy)

    def new_state(self, clients: int = 20_000, index_rows: int = 10_000) -> Memory:
        """An empty state; the index has at most as many rows as it was calibrated for."""
        past = self.single.new_past(clients)
        return Memory(self.single.frame.width, clients, min(index_rows, self.index_rows), past=past)

    def warm_up(self) -> None:
        """Compile every kernel that `score` uses, or load it from the cache."""
        kernels.warm_up()
        self.intent.warm_up()
        frame = self.single.frame
        count = min(2, len(frame.inputs))
        nothing = np.zeros(count, dtype=np.int64)
        width = self.schema.embedding_width
        batch = Batch(
            inputs=frame.inputs[:count],
            labels=frame.labels[:count],
            clients=np.arange(count, dtype=np.uint64),
            times=nothing,
            offsets=nothing,
            rows=nothing.astype(np.int32),
            embeddings=None if width is None else np.zeros((count, width)),
        )
        self.score(batch, self.new_state(clients=2, index_rows=2))

    def score(self, batch: Batch, state: PartitionState) -> Verdicts:
        """Score a batch and advance the state in place.

        Raises
        ------
        SchemaError
            When the batch does not fit the schema (`BatchView`, `embedded_rows`); the state is then unchanged.
        TypeError
            When the state was not made by `new_state`.
        """
        if not isinstance(state, Memory):
            raise TypeError(f"the state must come from new_state, not be a {type(state).__name__}")
        if batch.embeddings is not None:
            embedded_rows(batch, self.schema.embedding_width)
        scored = self.single.score(batch, state.past)
        trace = walking.empty_trace(len(batch))
        levels = np.zeros(len(batch), dtype=np.uint8)
        teller = Teller(self, scored, trace, state)
        signals: list[Signal] = []
        for row, events in walking.stops(scored.columns, self._packed, state, trace):
            for event in events:
                signal = teller.tell(row, int(event[0]), int(event[1]), int(event[2]))
                if signal is not None:
                    signals.append(signal)
                    levels[row] = max(levels[row], signal.level)
        return Verdicts(
            detectors=self.detectors,
            scores=scored.scores,
            pvalues=scored.pvalues,
            fused=scored.fused,
            tests=TESTS,
            statistics=self._statistics(trace),
            levels=levels,
            signals=tuple(signals),
        )

    def _statistics(self, trace: NDArray[Any]) -> NDArray[np.float64]:
        policy, thresholds = self.policy, self.tables.thresholds
        found = np.empty((len(trace), len(TESTS)))
        found[:, 0] = trace["evidence_a"] / thresholds[0]
        found[:, 1] = trace["evidence_b"] / thresholds[1]
        found[:, 2] = trace["sequence"] / thresholds[3]
        found[:, 3] = trace["index_shared"] / (thresholds[2] * policy.index_factor)
        return found

    def settings(self) -> dict[str, Any]:
        """Everything that is no array, as plain data."""
        named = {} if self.escalation is None else {"inquiries": list(self.escalation.names)}
        return {
            "version": CONTENT_VERSION,
            "schema": self.schema.to_dict(),
            "detectors": list(self.detectors),
            "policy": asdict(self.policy),
            "index_rows": self.index_rows,
            **named,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted, as named arrays."""
        parts: tuple[tuple[str, Mapping[str, NDArray[Any]]], ...] = (
            ("single", self.single.arrays()),
            ("walk", self.tables._asdict()),
            ("intent", self.intent.arrays()),
            (INQUIRIES, {} if self.escalation is None else self.escalation.arrays()),
        )
        return {f"{part}.{name}": array for part, arrays in parts for name, array in arrays.items()}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Self:
        """The inverse of `arrays` and `settings`.

        Raises
        ------
        KeyError, TypeError, ValueError, DetectorError
            When something is missing or malformed; `detectors.bundle` turns them into a sentence.
        """
        if settings["version"] != CONTENT_VERSION:
            raise ValueError(f"content version {settings['version']}, this release reads {CONTENT_VERSION}")
        schema = FeatureSchema.from_dict(settings["schema"])
        single = Single.restore(part_of(arrays, "single"), schema, tuple(settings["detectors"]))
        made = cls(
            schema=schema,
            single=single,
            tables=Tables.restore(part_of(arrays, "walk"), len(single.fusion.values)),
            intent=IntentTest.restore(part_of(arrays, "intent"), schema),
            policy=Policy(**settings["policy"]),
            index_rows=int(settings["index_rows"]),
            escalation=escalation_of(arrays, settings, schema),
        )
        if made.index_rows < 1:
            raise ValueError(f"index rows {made.index_rows} must be 1 or more")
        if set(made.arrays()) != set(arrays):
            raise ValueError(f"unknown arrays: {', '.join(sorted(set(arrays) - set(made.arrays())))}")
        return made


def escalation_of(
    arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any], schema: FeatureSchema
) -> Escalation | None:
    """The inquiries among an ensemble's arrays; None where its settings name none."""
    names = settings.get("inquiries")
    return None if names is None else Escalation.restore(part_of(arrays, INQUIRIES), schema, tuple(names))


def content_digest(arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> str:
    """32 hex digits over names, types, shapes and bytes of arrays, and over the settings."""
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode())
    for name, array in sorted(arrays.items()):
        total.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
