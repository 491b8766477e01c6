"""What a mitigation is worth: accuracy, worst-case robust accuracy and latency, on rows that no model learned from."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Model
from attacks.network import Network
from attacks.oracle import scores_of
from attacks.threat import ThreatModel
from detectors.contract import Progress
from streams.errors import ConfigError
from streams.models.named import Answers
from streams.redteam.campaign import asked
from streams.redteam.intervals import Change, Share, change, share
from streams.redteam.lineup import Entry, lineup
from streams.redteam.subject import Subject, of

#: Attacks that judge, of those that the threat model and the model permit.
JUDGES = ("pgd", "transfer_pgd", "leaf_search", "square", "hop_skip_jump", "coordinate_search")
#: What else is tried on a mitigated model: rows that fooled the model before.
CARRIED_OVER = "crafted before"
#: Calls that a latency is the median of, and rows of the larger ones.
LATENCY_CALLS, LATENCY_ROWS = 30, 100


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What is measured the same way for every model.

    Attributes
    ----------
    inputs : float64 (n, d)
        Held-out rows.
    truth : int64 (n,)
    attacked : int64 (m,)
        Places of the rows that are attacked.
    threat : ThreatModel
    seed : int
    attacks : sequence of str
    image_shape : tuple of int or None
    surrogate : Network or None
        For attacks by transfer.
    """

    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]
    attacked: NDArray[np.intp]
    threat: ThreatModel
    seed: int
    attacks: Sequence[str] = JUDGES
    image_shape: tuple[int, ...] | None = None
    surrogate: Network | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one model did in a trial.

    Attributes
    ----------
    right : bool (n,)
        Held-out rows that it gets right.
    withstood : dict of str to bool (m,)
        Attack -> attacked rows that it gets right and that the attack did not turn.
    crafted : dict of str to float64 (m, d)
        What the attacks made, the start row where they failed.
    one_ms, row_ms : float
        Latency of one row alone; of a row among a hundred.
    """

    right: NDArray[np.bool_]
    withstood: dict[str, NDArray[np.bool_]]
    crafted: dict[str, NDArray[np.float64]] = field(repr=False)
    one_ms: float
    row_ms: float

    @property
    def robust(self) -> NDArray[np.bool_]:
        """(m,) rows that withstood all attacks."""
        return np.asarray(np.all(list(self.withstood.values()), axis=0), dtype=np.bool_)

    @property
    def accuracy(self) -> Share:
        """On all held-out rows."""
        return share(self.right)

    @property
    def robust_accuracy(self) -> Share:
        """Worst case, on the attacked rows."""
        return share(self.robust)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "clean_accuracy": self.accuracy.to_dict(),
            "robust_accuracy": self.robust_accuracy.to_dict(),
            "attacks": {name: share(rows).to_dict() for name, rows in self.withstood.items()},
            "latency_ms": {"one_row": round(self.one_ms, 4), "row_of_a_hundred": round(self.row_ms, 5)},
        }


def measure(
    estimator: Any, trial: Trial, before: Measured | None = None, progress: Progress | None = None, name: str = "model"
) -> Measured:
    """Put one fitted estimator through a trial; with `before`, also through what fooled the model before.

    Raises
    ------
    ConfigError
        No attack fits.
    EndpointError, AttackError
    """
    subject = of(estimator, name)
    right = np.argmax(scores_of(subject.model, trial.inputs), axis=1) == trial.truth
    x, y = trial.inputs[trial.attacked], trial.truth[trial.attacked]
    standing = right[trial.attacked] & trial.threat.domain.holds(x)
    if trial.threat.goal != "any":
        standing &= y != trial.threat.goal
    withstood: dict[str, NDArray[np.bool_]] = {}
    crafted: dict[str, NDArray[np.float64]] = {}
    entries = judges(subject, trial)
    for place, entry in enumerate(entries):
        if progress is not None:
            progress(f"{name}: {entry.name}", place / len(entries))
        rows = x.copy()
        which = np.flatnonzero(standing)
        if len(which):
            rng = np.random.default_rng([trial.seed, zlib.crc32(entry.name.encode())])
            target = cast("Model", _target(subject, entry, trial, x))
            rows[which] = entry.attack.craft(target, x[which], y[which], trial.threat, rng).inputs
        crafted[entry.name] = rows
        withstood[entry.name] = right[trial.attacked] & ~_turned(subject.model, x, y, rows, trial.threat)
    if before is not None:
        fooled = np.zeros(len(x), dtype=np.bool_)
        for rows in before.crafted.values():
            fooled |= _turned(subject.model, x, y, rows, trial.threat)
        withstood[CARRIED_OVER] = right[trial.attacked] & ~fooled
    one, row = latency(Answers(estimator, name), trial.inputs)
    return Measured(right, withstood, crafted, one, row)


def judges(subject: Subject, trial: Trial) -> tuple[Entry, ...]:
    """The attacks that fit; `coordinate_search` only where neither Square nor HopSkipJump keeps the norm."""
    entries = lineup(subject, trial.threat, trial.image_shape).entries
    wanted = [entry for entry in entries if entry.name in trial.attacks]
    wanted = [entry for entry in wanted if entry.target == "model" or trial.surrogate is not None]
    names = {entry.name for entry in wanted}
    if tuple(trial.attacks) == JUDGES and names & {"square", "hop_skip_jump"}:
        wanted = [entry for entry in wanted if entry.name != "coordinate_search"]
    if not wanted:
        raise ConfigError(
            f"none of {', '.join(trial.attacks)} fits the threat model {trial.threat.name!r} and the model"
        )
    return tuple(wanted)


def _target(subject: Subject, entry: Entry, trial: Trial, x: NDArray[np.float64]) -> Any:
    if entry.target == "surrogate":
        return trial.surrogate
    if entry.access in ("labels", "scores"):
        return asked(subject, x)
    return subject.in_hand(entry.access)


def _turned(
    model: Model,
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    crafted: NDArray[np.float64],
    threat: ThreatModel,
) -> NDArray[np.bool_]:
    """(m,) which crafted rows, moved at all, fulfil the goal in the model's own answer."""
    moved = (crafted != x).any(axis=1) & threat.admits(x, crafted)
    return moved & threat.reached(np.argmax(scores_of(model, crafted), axis=1), y)


def latency(model: Model, inputs: NDArray[np.float64]) -> tuple[float, float]:
    """Median milliseconds of a row alone, and of a row among `LATENCY_ROWS`."""
    batch = np.resize(inputs, (LATENCY_ROWS, inputs.shape[1]))
    found = []
    for rows, count in ((batch[:1], 1), (batch, LATENCY_ROWS)):
        model.predict(rows)
        spent = []
        for _ in range(LATENCY_CALLS):
            began = time.perf_counter()
            model.predict(rows)
            spent.append(1e3 * (time.perf_counter() - began) / count)
        found.append(float(np.median(spent)))
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Effect:
    """A mitigation against the model before, on the same rows."""

    accuracy: Change
    robust: Change

    @property
    def helped(self) -> bool:
        """Whether robust accuracy surely went up."""
        return self.robust.low > 0

    def sentence(self, most_lost: float) -> str:
        """What became of it, in words."""
        if self.robust.high < 0:
            said = f"made it worse: robust accuracy {self.robust}"
        elif not self.helped:
            said = f"did not help: robust accuracy {self.robust}"
        else:
            said = f"helped: robust accuracy {self.robust}"
        if self.accuracy.value < -most_lost:
            said += f", at a price: accuracy {self.accuracy}"
        return said


def effect(before: Measured, after: Measured) -> Effect:
    """How a mitigation changed the model. Attacks that only one of both permits count on its side."""
    return Effect(change(before.right, after.right), change(before.robust, after.robust))
