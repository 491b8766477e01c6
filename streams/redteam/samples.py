"""Two models and their data to try a campaign on: handwritten digits with a perceptron, breast cancer with a forest.

    python -m streams.redteam.samples FOLDER

writes ``digits.npz``, ``digits.schema.json``, ``digits-train.npz``, ``digits-reference.npz`` (for `vedette fit`),
``breast-cancer.csv`` and ``breast-cancer-train.csv``. The models are ``streams.redteam.samples:digits_mlp`` and
``streams.redteam.samples:breast_cancer_forest``; neither has learned from the rows of the files without ``train``, and
no picture is in two files.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier

from streams.demo import digits
from streams.demo.model import learning_rows, perceptron

#: Which rows models learn from is drawn with it.
SEED = 0
TREES = 100

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


@cache
def digits_mlp() -> MLPClassifier:
    """The demo's perceptron: 64 pixels in [0, 1], layers of 64 and 32."""
    rng = np.random.default_rng(SEED)
    return perceptron(digits.split(SEED).model, rng)


@cache
def breast_cancer_forest() -> RandomForestClassifier:
    """A random forest of 100 trees on 30 features in their own units."""
    (inputs, truth), _ = breast_cancer()
    return RandomForestClassifier(TREES, random_state=SEED).fit(inputs, truth)


def digit_rows(seed: int = SEED) -> tuple[Rows, Rows]:
    """Rows that the perceptron learns from, and pictures that it has never met."""
    pools = digits.split(seed)
    rest = (pools.live, pools.hostile, pools.probe)
    held_out = np.concatenate([pool.inputs for pool in rest]), np.concatenate([pool.truth for pool in rest])
    return learning_rows(pools.model, np.random.default_rng(seed)), held_out


def reference_rows(seed: int = SEED) -> Rows:
    """Benign rows for detectors: pictures of their own."""
    pools = digits.split(seed)
    parts = (pools.reference, pools.history)
    return np.concatenate([pool.inputs for pool in parts]), np.concatenate([pool.truth for pool in parts])


def breast_cancer(seed: int = SEED) -> tuple[Rows, Rows]:
    """One half to learn from, the other half."""
    inputs, truth = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(inputs))
    inputs, truth = np.asarray(inputs, dtype=np.float64)[order], np.asarray(truth, dtype=np.int64)[order]
    half = len(inputs) // 2
    return (inputs[:half], truth[:half]), (inputs[half:], truth[half:])


def write(folder: Path) -> list[Path]:
    """All files, and their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = digit_rows()
    written = []
    for name, (inputs, truth) in (("digits", held_out), ("digits-train", train)):
        path = folder / f"{name}.npz"
        with path.open("wb") as out:
            np.savez(out, allow_pickle=False, inputs=inputs, labels=truth)
        written.append(path)
    inputs, truth = reference_rows()
    scores = digits_mlp().predict_proba(inputs)
    path = folder / "digits-reference.npz"
    with path.open("wb") as out:
        np.savez(out, allow_pickle=False, inputs=inputs, outputs=scores, labels=scores.argmax(axis=1), truth=truth)
    written.append(path)
    path = folder / "digits.schema.json"
    path.write_text(json.dumps(digits.schema().to_dict(), indent=1), encoding="utf-8")
    written.append(path)
    names: Any = load_breast_cancer().feature_names
    train, held_out = breast_cancer()
    for name, (inputs, truth) in (("breast-cancer", held_out), ("breast-cancer-train", train)):
        columns = {str(feature).replace(" ", "_"): inputs[:, place] for place, feature in enumerate(names)}
        path = folder / f"{name}.csv"
        pyarrow.csv.write_csv(pa.table({**columns, "label": truth}), path)
        written.append(path)
    return written


def main() -> int:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(prog="python -m streams.redteam.samples")
    parser.add_argument("folder", type=Path)
    for path in write(parser.parse_args().folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
