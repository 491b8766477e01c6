"""A campaign: every permitted attack on every row that the model gets right, in parts that survive an interruption.

A part is one attack on some of the rows. It is written when it is done and depends on the seed, the attack and its rows
alone, so a campaign that was stopped and goes on ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from attacks.contract import Crafted, Model
from attacks.errors import AttackError, ModelError
from attacks.network import Network
from attacks.oracle import scores_of
from attacks.surrogate import fit_surrogate
from attacks.threat import ThreatModel
from detectors.contract import Progress
from detectors.schema import FeatureSchema
from streams.errors import ConfigError, EndpointError
from streams.redteam.lineup import Entry, Lineup
from streams.redteam.subject import Subject
from streams.redteam.witness import Trails, Witness

#: Distances of the plots, as shares of the threat model's eps.
RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
#: Start rows of a part; fewer where the queries of so many would not fit `TRACE_BYTES`.
PART_ROWS = 50
TRACE_BYTES = 200_000_000
#: Rows, never attacked ones, that a surrogate learns the model's answers of; fewest that make one.
SURROGATE_ROWS, LEAST_SURROGATE_ROWS = 1000, 20
#: Largest difference between a model's scores and those of its copy in the attacker's hands.
COPY_SLACK = 1e-9
VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """The rows of a campaign.

    Attributes
    ----------
    inputs : float64 (n, d)
    truth : int64 (n,)
    places : int64 (n,)
        Number of each row in its file.
    scores : float64 (n, k)
        The model's.
    """

    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]
    places: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) which rows the model gets right."""
        return np.asarray(np.argmax(self.scores, axis=1) == self.truth, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one attack made of some start rows, at r distances.

    Attributes
    ----------
    rows : int64 (m,)
        Places in the field.
    crafted : float64 (r, m, d)
        The start row where nothing was found.
    success : bool (r, m)
        The model itself was asked; no smaller distance succeeds where a larger one fails.
    scores : float64 (r, m, k)
        The model's, of the crafted rows.
    queries : int64 (r, m)
    pvalues : float64 (r, m)
        Of the bundle; empty (r, 0) without one.
    ticket, page : int64 (m,)
        Queries at the threat model's own distance until a ticket, until a page; 0 for never. Empty without a bundle.
    seconds : float
    """

    rows: NDArray[np.int64]
    crafted: NDArray[np.float64]
    success: NDArray[np.bool_]
    scores: NDArray[np.float64]
    queries: NDArray[np.int64]
    pvalues: NDArray[np.float64]
    ticket: NDArray[np.int64]
    page: NDArray[np.int64]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """Everything that decides what a campaign finds.

    Attributes
    ----------
    subject : Subject
    threat : ThreatModel
    schema : FeatureSchema
    field : Field
    lineup : Lineup
    seed : int
    spare : (inputs (s, d), scores (s, k))
        Rows that are not attacked with the model's answers, for a surrogate.
    witness : Witness or None
    curve : bool
        Whether other distances than eps are tried.
    """

    subject: Subject
    threat: ThreatModel
    schema: FeatureSchema
    field: Field
    lineup: Lineup
    seed: int
    spare: tuple[NDArray[np.float64], NDArray[np.float64]]
    witness: Witness | None = None
    curve: bool = True

    @property
    def radii(self) -> tuple[float | None, ...]:
        """Distances, ascending; (None,) where the threat model has no bound."""
        eps = self.threat.eps
        if eps is None:
            return (None,)
        if not self.curve:
            return (eps,)
        if self.threat.norm == "l0":
            return tuple(sorted({float(max(1, round(part * eps))) for part in RADII}))
        return tuple(part * eps for part in RADII)

    @property
    def own(self) -> int:
        """Place of the threat model's eps among `radii`."""
        return self.radii.index(self.threat.eps)

    @property
    def attacked(self) -> NDArray[np.intp]:
        """Places in the field of the rows that are attacked."""
        wanted = self.field.right
        if self.threat.goal != "any":
            wanted = wanted & (self.field.truth != self.threat.goal)
        return np.flatnonzero(wanted)

    def chunks(self) -> list[NDArray[np.intp]]:
        """The attacked rows in parts."""
        rows = self.attacked
        fitting = TRACE_BYTES // max(1, 8 * self.threat.budget * self.schema.width)
        size = max(1, min(PART_ROWS, fitting))
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a campaign to go on."""
        threat, domain = self.threat, self.threat.domain
        legal = (domain.low, domain.high, domain.integral, domain.mutable, *domain.groups, threat.unit)
        relations = () if domain.relations is None else (domain.relations.matrix, domain.relations.constant)
        return {
            "version": VERSION,
            "model": self.subject.name,
            "answers": digest(np.round(self.field.scores, 6)),
            "data": digest(self.field.inputs, self.field.truth, self.field.places),
            "threat": [threat.name, threat.norm, threat.eps, threat.knowledge, threat.goal, digest(*legal, *relations)],
            "budget": threat.budget,
            "seed": self.seed,
            "distances": list(self.radii),
            "attacks": [[entry.name, entry.target, _plain(entry.parameters)] for entry in self.lineup.entries],
            "bundle": None if self.witness is None else self.witness.ensemble.digest,
        }


def digest(*arrays: NDArray[Any]) -> str:
    """Hex digest of arrays' contents."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def draw(
    inputs: NDArray[np.float64], truth: NDArray[np.int64], threat: ThreatModel, rows: int, seed: int
) -> NDArray[np.intp]:
    """Places of at most `rows` rows (n, d), drawn from those that the threat model calls legal.

    Raises
    ------
    ConfigError
        None is legal.
    """
    legal = np.flatnonzero(threat.domain.holds(inputs))
    if len(legal) == 0:
        raise ConfigError(f"--data: no row is legal under {threat.name!r}: {threat.domain.complaint(inputs)}")
    return np.sort(np.random.default_rng([seed, 1]).permutation(legal)[:rows])


def run(campaign: Campaign, folder: Path, telling: Progress) -> dict[str, list[Part]]:
    """Attack, part by part; parts that lie in the folder are read. Returns the parts of each attack in order.

    Raises
    ------
    ConfigError
        The folder holds another campaign, or an attack refuses.
    EndpointError
        The model fails; what was done until then is kept.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    _same(campaign, folder)
    chunks = campaign.chunks()
    total = max(1, len(campaign.lineup.entries) * len(chunks))
    surrogate: Network | None = None
    found: dict[str, list[Part]] = {}
    done = 0
    for entry in campaign.lineup.entries:
        found[entry.name] = []
        for number, rows in enumerate(chunks):
            telling(entry.name, done / total)
            path = parts / f"{entry.name}-{number:04d}.npz"
            part = _read(path)
            if part is None:
                if entry.target == "surrogate" and surrogate is None:
                    surrogate = learn_surrogate(campaign)
                part = attack(campaign, entry, rows, number, surrogate)
                _write(path, part)
            found[entry.name].append(part)
            done += 1
    telling("report", 1.0)
    return found


def learn_surrogate(campaign: Campaign) -> Network:
    """A stand-in that has learned the model's answers on rows that are not attacked.

    Raises
    ------
    ConfigError
    """
    inputs, scores = campaign.spare
    try:
        return fit_surrogate(inputs, np.argmax(scores, axis=1), np.random.default_rng([campaign.seed, 2]), "mlp")
    except AttackError as refusal:
        raise ConfigError(f"--data: no surrogate can be learned from {len(inputs)} rows: {refusal}") from None


def asked(subject: Subject, rows: NDArray[np.float64]) -> Model:
    """Whom attacks ask: the copy in our hands where its scores of rows (n, d) equal the model's, else the model."""
    copy = subject.trees or subject.gradients
    if copy is None or copy is subject.model:
        return subject.model
    mine, theirs = copy.predict(rows), subject.model.predict(rows)
    return copy if mine.shape == theirs.shape and np.abs(mine - theirs).max() <= COPY_SLACK else subject.model


def attack(
    campaign: Campaign, entry: Entry, rows: NDArray[np.intp], number: int, surrogate: Network | None = None
) -> Part:
    """One part.

    At the threat model's own distance every row is attacked. At a smaller one those whose crafted row is too far are
    attacked again, at a larger one those that withstood; each time with the whole budget.

    Raises
    ------
    ConfigError, EndpointError
    """
    began = time.monotonic()
    threat, radii = campaign.threat, campaign.radii
    x, y = campaign.field.inputs[rows], campaign.field.truth[rows]
    classes = campaign.field.scores.shape[1]
    shape = (len(radii), len(rows))
    crafted = np.tile(x, (len(radii), 1, 1))
    scores = np.tile(campaign.field.scores[rows], (len(radii), 1, 1))
    success, queries = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.int64)
    trails: Trails | None = None
    own = campaign.own
    order = [own, *range(own - 1, -1, -1), *range(own + 1, len(radii))]
    for place in order:
        within = _at(threat, radii[place])
        wanted = np.ones(len(rows), dtype=np.bool_)
        if place != own:
            former = place + 1 if place < own else place - 1
            kept = success[former] & within.admits(x, crafted[former])
            crafted[place, kept], scores[place, kept] = crafted[former, kept], scores[former, kept]
            success[place, kept], queries[place, kept] = True, queries[former, kept]
            wanted = success[former] & ~kept if place < own else ~success[former]
        which = np.flatnonzero(wanted)
        if len(which) == 0:
            continue
        made = _craft(campaign, entry, x[which], y[which], within, [number, place], surrogate)
        answers = scores_of(campaign.subject.model, made.inputs)
        if answers.shape[1] != classes:
            raise EndpointError(f"{campaign.subject.name} answered with {answers.shape[1]} classes, before {classes}")
        hit = within.reached(np.argmax(answers, axis=1), y[which]) & within.admits(x[which], made.inputs)
        queries[place, which] = made.queries
        success[place, which[hit]] = True
        crafted[place, which[hit]], scores[place, which[hit]] = made.inputs[hit], answers[hit]
        if place == own and campaign.witness is not None:
            trails = campaign.witness.trails(made.trace, len(rows))
    pvalues = np.empty((len(radii), 0))
    if campaign.witness is not None:
        flat = campaign.witness.pvalues(crafted.reshape(-1, x.shape[1]), scores.reshape(-1, classes))
        pvalues = flat.reshape(shape)
    none = np.empty(0, dtype=np.int64)
    return Part(
        rows.astype(np.int64),
        crafted,
        success,
        scores,
        queries,
        pvalues,
        none if trails is None else trails.ticket,
        none if trails is None else trails.page,
        time.monotonic() - began,
    )


def _craft(
    campaign: Campaign,
    entry: Entry,
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    threat: ThreatModel,
    place: list[int],
    surrogate: Network | None,
) -> Crafted:
    subject = campaign.subject
    model: Any
    if entry.target == "surrogate":
        model = surrogate
    elif entry.access in ("labels", "scores"):
        model = asked(subject, x)
    else:
        model = subject.in_hand(entry.access)
    rng = np.random.default_rng([campaign.seed, zlib.crc32(entry.name.encode()), *place])
    try:
        return entry.attack.craft(cast("Model", model), x, y, threat, rng)
    except ModelError as wrong:
        raise EndpointError(f"{subject.name}: {wrong}") from None
    except AttackError as refusal:
        raise ConfigError(f"{entry.name} cannot go on: {refusal}") from None


def _at(threat: ThreatModel, eps: float | None) -> ThreatModel:
    return threat if eps == threat.eps else replaced(threat, eps=eps)


def replaced(threat: ThreatModel, **fields: Any) -> ThreatModel:
    """The threat model with other values."""
    names = ("name", "norm", "eps", "domain", "knowledge", "budget", "goal", "scale")
    return ThreatModel(**{name: getattr(threat, name) for name in names} | fields)


def _same(campaign: Campaign, folder: Path) -> None:
    """Compare the campaign with the one that the folder holds, or write it there."""
    path, identity = folder / "campaign.json", campaign.identity()
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _replace(path, json.dumps(identity, indent=1).encode())
        return
    except (OSError, ValueError):
        held = {}
    held = held if isinstance(held, dict) else {}
    identity = json.loads(json.dumps(identity))
    other = sorted(key for key in {*identity, *held} if held.get(key) != identity.get(key))
    if other:
        raise ConfigError(
            f"--report: {folder} holds a campaign that differs in {', '.join(other)}; name another folder, or pass "
            "--again to throw that one away"
        )


def _read(path: Path) -> Part | None:
    """A part that was written; None where there is none, or only a broken one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            held = {name: stored[name] for name in stored.files}
        return Part(**{name: held[name] for name in Part.__dataclass_fields__} | {"seconds": float(held["seconds"])})
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile, OSError):
        return None


def _write(path: Path, part: Part) -> None:
    passing = path.with_suffix(".partial")
    with passing.open("wb") as out:
        arrays = {name: np.asarray(getattr(part, name)) for name in Part.__dataclass_fields__}
        np.savez_compressed(out, allow_pickle=False, **arrays)
    passing.replace(path)


def _replace(path: Path, content: bytes) -> None:
    passing = path.with_suffix(".partial")
    passing.write_bytes(content)
    passing.replace(path)


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}


def timed(subject: Subject, rows: NDArray[np.float64], clock: Callable[[], float]) -> Iterator[float]:
    """Milliseconds of the model's answer to each row (n, d), asked alone."""
    for row in rows:
        began = clock()
        subject.model.predict(row[None])
        yield 1e3 * (clock() - began)
