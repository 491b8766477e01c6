"""The bundle that speed is measured with: fitted as `vedette fit` does by default, kept for the next run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Told, progress
from benchmarks.traffic import MICROSECONDS_PER_WEEK, Traffic
from detectors import bundle
from detectors.ensemble import fit
from detectors.kernels import source_digest

#: Where fitted bundles are kept.
KEPT = Path(__file__).resolve().parents[1] / "out" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a bundle is fitted on. The benign events suffice to calibrate an index of 10,000 rows."""

    reference: int = 5_000
    clients: int = 1_000
    weeks: int = 6
    rows_a_week: int = 25
    budget: int = 1


def fitted(seed: int, sizes: Sizes) -> Path:
    """Path of the bundle of these sizes, of this seed, made by these sources."""
    root = Path(__file__).resolve().parents[1]
    made_by = Path(__file__).with_name("traffic.py").read_bytes()
    name = hashlib.blake2b(f"{source_digest(root)} {seed} {sizes}".encode() + made_by, digest_size=8).hexdigest()
    path = KEPT / f"{name}.vedette"
    if path.exists():
        progress(f"bundle: {path.name}, fitted before")
        return path
    progress("bundle: fitting, about a minute")
    traffic = Traffic(seed)
    ensemble, report = fit(
        traffic.reference(sizes.reference),
        traffic.schema,
        traffic.benign(sizes.clients, sizes.weeks, sizes.rows_a_week),
        budget=sizes.budget,
        clients_per_week=None,
        week_us=MICROSECONDS_PER_WEEK,
        partitions=1,
        rng=np.random.default_rng(seed),
        progress=Told(),
    )
    KEPT.mkdir(parents=True, exist_ok=True)
    bundle.save(path, ensemble, report)
    return path


def index_rows(path: Path) -> int:
    """Rows of the account-oblivious index that a bundle is calibrated for."""
    return bundle.load(path).index_rows
