"""A small watched model, its reference, and the traffic of some clients, as files that the commands read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from detectors import surrogate
from detectors.schema import Feature, FeatureSchema
from tests.conftest import HASTY_PASSES

WIDTH, CLASSES = 10, ("low", "middle", "high")
#: Seconds of a week here, and the first one's beginning.
WEEK, BEGIN = 3600.0, 1_790_000_000.0
#: A client key for the tests' environment.
KEY = "000102030405060708090a0b0c0d0e0f"

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """Events in the order of their times."""

    inputs: Rows
    clients: list[str]
    times: Rows

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Shop:
    """What the model answers, and what its clients send."""

    weights: Rows

    @property
    def schema(self) -> FeatureSchema:
        return FeatureSchema(tuple(Feature(f"f{i}", -10.0, 10.0) for i in range(WIDTH)), CLASSES)

    def scores(self, inputs: Rows) -> Rows:
        logits = inputs @ self.weights
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def rows(self, n: int, rng: np.random.Generator) -> Rows:
        centres = np.random.default_rng(0).normal(scale=1.5, size=(6, WIDTH))
        return np.clip(centres[rng.integers(0, 6, n)] + rng.normal(size=(n, WIDTH)), -10, 10)

    def traffic(self, clients: int, each: int, rng: np.random.Generator, prefix: str = "client") -> Traffic:
        n = clients * each
        names = [f"{prefix}-{number:03d}" for number in rng.permutation(np.repeat(np.arange(clients), each))]
        times = BEGIN + np.sort(rng.uniform(0, WEEK, n))
        return Traffic(self.rows(n, rng), names, times)

    def columns(self, traffic: Traffic) -> dict[str, Any]:
        """As a table of Parquet or CSV."""
        scores = self.scores(traffic.inputs)
        return {
            **{f"f{i}": traffic.inputs[:, i] for i in range(WIDTH)},
            **{f"output_{c}": scores[:, c] for c in range(len(CLASSES))},
            "client": traffic.clients,
            "time": traffic.times,
        }

    def lines(self, traffic: Traffic) -> list[dict[str, Any]]:
        """As native events."""
        scores = self.scores(traffic.inputs)
        return [
            {
                "id": str(i),
                "time": traffic.times[i],
                "model": "shop",
                "client": traffic.clients[i],
                "inputs": traffic.inputs[i].tolist(),
                "outputs": scores[i].tolist(),
            }
            for i in range(len(traffic))
        ]


@dataclass(frozen=True)
class Files:
    """Paths of what the commands are given."""

    folder: Path
    shop: Shop
    reference: str
    benign: str
    schema: str


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("shop")
    shop = Shop(np.random.default_rng(1).normal(size=(WIDTH, len(CLASSES))))
    rng = np.random.default_rng(2)
    inputs = shop.rows(900, rng)
    np.savez(folder / "reference.npz", inputs=inputs, outputs=shop.scores(inputs))
    pyarrow.parquet.write_table(pa.table(shop.columns(shop.traffic(120, 30, rng))), folder / "benign.parquet")
    (folder / "schema.json").write_text(json.dumps(shop.schema.to_dict()))
    names = ("reference.npz", "benign.parquet", "schema.json")
    return Files(folder, shop, *(str(folder / name) for name in names))


@pytest.fixture(scope="module", autouse=True)
def always_hasty(hasty: None) -> None:
    """No test here is about what the surrogate tells."""


@pytest.fixture(autouse=True)
def keyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A client key, and a folder without settings."""
    monkeypatch.setenv("VEDETTE_CLIENT_KEY", KEY)
    monkeypatch.delenv("VEDETTE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def bundle(files: Files) -> str:
    """A bundle that pages, made by the command."""
    from streams.cli import invoke

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VEDETTE_CLIENT_KEY", KEY)
        patch.setattr(surrogate, "PASSES", HASTY_PASSES)  # as `hasty`: fits of the same rows are compared
        patch.chdir(files.folder)
        out = str(files.folder / "shop.vedette")
        assert invoke([*fit_arguments(files), "--benign", files.benign, "--out", out]) == 0
    return out


def fit_arguments(files: Files) -> list[str]:
    """`vedette fit` for this shop: twelve clients come in a week of an hour."""
    schema = ["--schema", files.schema, "--reference", files.reference]
    return ["fit", *schema, "--week-seconds", str(WEEK), "--clients-per-week", "12", "--partitions", "2"]
