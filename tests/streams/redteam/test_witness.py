"""What a bundle would have seen: its own verdicts, and nothing of the attacker's past."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from attacks.contract import Trace
from detectors import bundle, ensemble
from detectors.contract import Reference
from detectors.schema import FeatureSchema
from streams import tables
from streams.cli import invoke
from streams.errors import BundleMismatch
from streams.redteam.witness import Witness
from tests.streams.redteam.conftest import Little


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of rows near two corners of the unit cube: whatever lies between is odd."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 600).astype(np.int32)
    inputs = np.clip(np.where(labels[:, None] == 1, 0.8, 0.2) + rng.normal(0, 0.05, (600, 6)), 0, 1)
    scores = np.where(labels[:, None] == [0, 1], 0.9, 0.1)
    schema = FeatureSchema.from_dict(
        {
            "features": [{"name": f"f{i}", "low": 0.0, "high": 1.0} for i in range(6)],
            "classes": ["no", "yes"],
            "image_shape": None,
        }
    )
    fitted, report = ensemble.fit(
        Reference(inputs, labels, scores, labels),
        schema,
        None,
        budget=1,
        clients_per_week=None,
        week_us=604_800_000_000,
        partitions=4,
        rng=np.random.default_rng(0),
    )
    path = tmp_path_factory.mktemp("bundle") / "little.vedette"
    bundle.save(path, fitted, report)
    return str(path)


def test_rows_off_the_reference_are_seen_and_rows_of_it_are_not(bundle_path: str, little: Little) -> None:
    witness = Witness.load(bundle_path, tables.read_schema("little.json"))
    rng = np.random.default_rng(2)
    usual = np.clip(0.8 + rng.normal(0, 0.05, (50, 6)), 0, 1)
    odd = np.tile([0.5, 0.9, 0.1, 0.5, 0.9, 0.1], (20, 1))
    scores = np.tile([0.1, 0.9], (50, 1))
    assert (witness.pvalues(usual, scores) <= 0.05).mean() < 0.3
    assert (witness.pvalues(odd, scores[:20]) <= 0.05).all()
    assert witness.pvalues(usual[:0], scores[:0]).shape == (0,)


def test_a_trail_does_not_depend_on_the_others(bundle_path: str, little: Little) -> None:
    witness = Witness.load(bundle_path, tables.read_schema("little.json"))
    rng = np.random.default_rng(3)
    start = np.full(6, 0.8)
    inputs = np.clip(start + rng.normal(0, 0.002, (120, 6)), 0, 1)
    samples = np.repeat([0, 1], 60)
    trace = Trace(inputs, samples, np.ones(120, dtype=np.int64))
    both = witness.trails(trace, 3)
    alone = witness.trails(Trace(inputs[60:], np.zeros(60, dtype=np.int64), trace.labels[60:]), 1)
    assert both.ticket[1] == alone.ticket[0]
    assert both.page[1] == alone.page[0]
    assert (both.ticket[2], both.page[2]) == (0, 0)


def test_a_bundle_for_other_rows_is_refused(bundle_path: str, little: Little) -> None:
    with pytest.raises(BundleMismatch, match="is for 6 features and 2 classes; the rows have 3 and 2"):
        Witness.load(bundle_path, FeatureSchema.image((3,), ["a", "b"]))


def test_a_report_with_a_bundle_tells_recall_by_distance(bundle_path: str, little: Little) -> None:
    base = ["redteam", "run", "--model", "little:model", "--data", "little.npz", "--schema", "little.json"]
    base += ["--threat", "image-linf", "--eps", "0.15", "--rows", "25", "--budget", "60", "--report", "out"]
    assert invoke([*base, "--bundle", bundle_path, "--attacks", "square,hop_skip_jump"]) == 0
    told = json.loads(Path("out/report.json").read_text())
    for attack in told["attacks"]:
        points = attack["detection"]["recall"]
        assert [point["n"] for point in points] == sorted(point["n"] for point in points)
        own = next(point for point in points if point["eps"] == 0.15)
        assert own["n"] == attack["fooled"]["hits"]
        assert attack["detection"]["trails"]["ticketed"]["n"] == told["attacked"]
    assert told["detection"]["crafted_seen"]["n"] == sum(one["fooled"]["hits"] for one in told["attacks"])
    assert "Seen by the bundle" in Path("out/report.html").read_text()
