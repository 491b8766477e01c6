"""A small table with a model that attacks can turn, as files and as a module of the working directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

#: The module that `--model little:...` names; `slow` takes its time, so that a test can stop it in the middle.
MODULE = """
import time
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

rng = np.random.default_rng(5)
inputs = rng.uniform(0, 1, (300, 6))
truth = (inputs[:, 0] + inputs[:, 1] > 1).astype(int)
model = LogisticRegression(C=100.0).fit(inputs, truth)
unfitted = LogisticRegression()


def made():
    return model


def tree():
    return DecisionTreeClassifier(max_depth=4, random_state=0).fit(inputs, truth)


def scores(rows):
    return model.predict_proba(rows)


def slow(rows):
    time.sleep(0.02)
    return model.predict_proba(rows)


def constant(rows):
    return np.tile([0.6, 0.4], (len(rows), 1))


def broken(rows):
    raise RuntimeError("out of paper")


def unmade():
    raise RuntimeError("out of ink")
"""


@dataclass(frozen=True, slots=True)
class Little:
    """Where the files are, and what is in them."""

    folder: Path
    data: str
    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Little]:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VEDETTE_CONFIG", raising=False)
    (tmp_path / "little.py").write_text(MODULE)
    rng = np.random.default_rng(6)
    inputs = rng.uniform(0, 1, (160, 6))
    truth = (inputs[:, 0] + inputs[:, 1] > 1).astype(np.int64)
    with (tmp_path / "little.npz").open("wb") as out:
        np.savez(out, inputs=inputs, labels=truth)
    features = [{"name": f"f{i}", "low": 0.0, "high": 1.0} for i in range(6)]
    (tmp_path / "little.json").write_text(json.dumps({"features": features, "classes": ["no", "yes"]}))
    sys.modules.pop("little", None)
    yield Little(tmp_path, "little.npz", inputs, truth)
    sys.modules.pop("little", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))
