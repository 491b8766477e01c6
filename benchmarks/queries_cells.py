"""What the benchmark of query attacks finds, as it is stored."""

from __future__ import annotations

import msgspec
import numpy as np

from benchmarks.kept import Kept

#: False pages a week that the ensemble and baselines are calibrated for.
BUDGET = 1


class Settings(msgspec.Struct, frozen=True):
    """How much is run: own queries of an attacker; attackers a cell, those of them that baselines are judged with, and
    campaigns over many accounts; clients of a special kind; start rows of the attacker who tunes; clients a week and
    weeks of the history."""

    queries: int
    attackers: int
    rivals: int
    campaigns: int
    specials: int
    tuners: int
    clients: int
    weeks: int


class Hunt(msgspec.Struct, frozen=True):
    """One cell: own queries of each attacker until its first ticket and page; None for never.

    `scheme` is Vedette or a baseline, which only pages, with its `setting`; `each` benign queries beside each own;
    `repeaters` where history and traffic of the site hold some.
    """

    scheme: str
    setting: str
    attack: str
    each: int
    accounts: int
    tickets: list[int | None]
    pages: list[int | None]
    repeaters: bool = True

    def told(self) -> str:
        """In a few words."""
        name = f"{self.accounts} accounts" if self.accounts > 1 else f"1:{self.each}" if self.each else "undiluted"
        parts = []
        for seen in (self.tickets, self.pages):
            hits = [queries for queries in seen if queries is not None]
            parts.append(f"{len(hits)}/{len(seen)} ({np.median(hits) if hits else np.nan:.0f})")
        return f"{name} {' '.join(parts)}"


class Benign(msgspec.Struct, frozen=True):
    """Benign clients of one kind ("" for ordinary ones) in a week; `known` where the history held the kind."""

    scheme: str
    setting: str
    kind: str
    known: bool
    clients: int
    tickets: int
    pages: int
    repeaters: bool = True


class Tuned(msgspec.Struct, frozen=True):
    """One strategy on tuning or report rows: own queries until success and until the page; None for never."""

    strategy: str
    part: str
    successes: list[int | None]
    pages: list[int | None]

    @property
    def unmonitored(self) -> float:
        """Share of start rows that succeed."""
        return float(np.mean([success is not None for success in self.successes]))

    @property
    def wins(self) -> int:
        """Start rows that succeed before the page."""
        pairs = zip(self.successes, self.pages, strict=True)
        return sum(success is not None and (page is None or success < page) for success, page in pairs)

    @property
    def unseen(self) -> float:
        """Share of start rows that succeed before the page."""
        return self.wins / len(self.successes)


class Part(Kept, frozen=True):
    """What is stored at a time: one attack, the benign clients, or the attacker who tunes."""

    settings: Settings
    mode: str = ""
    reason: str = ""
    goal: float = 0.0
    hunts: list[Hunt] = msgspec.field(default_factory=list)
    benign: list[Benign] = msgspec.field(default_factory=list)
    tuned: list[Tuned] = msgspec.field(default_factory=list)


class Found(msgspec.Struct, frozen=True):
    """Everything of one data set, model and seed; `older` names its parts that other code measured."""

    data: str
    kind: str
    seed: int
    settings: Settings
    mode: str
    reason: str
    goal: float
    hunts: list[Hunt]
    benign: list[Benign]
    tuned: list[Tuned]
    older: list[str] = []

    @property
    def task(self) -> str:
        """Data set and model."""
        return f"{self.data} {self.kind}"
