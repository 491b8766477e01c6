"""What the query traces of different attackers look like to the watched model."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from attacks import gradients, registry
from attacks.network import Network
from attacks.threat import Domain, ThreatModel

BUDGET = 200


class Watched:
    """Counts the rows of each call."""

    def __init__(self, inner: Network) -> None:
        self.inner = inner
        self.sizes: list[int] = []

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        self.sizes.append(len(X))
        return self.inner.predict(X)


@pytest.fixture(scope="module")
def digits() -> tuple[Network, NDArray[np.float64], NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    network = gradients.adapt(LogisticRegression(C=0.1, max_iter=100).fit(x[:900] / 16, y[:900]))
    rows = x[900:912] / 16
    return network, rows, np.argmax(network.predict(rows), axis=1)


def threat(name: str, budget: int = BUDGET) -> ThreatModel:
    yes = np.ones(64, dtype=bool)
    kind = registry.kind(name)
    norm = "l2" if "l2" in kind.norms else "linf"
    domain = Domain(np.zeros(64), np.ones(64), ~yes, yes)
    return ThreatModel("trace", norm, 0.8 if kind.needs_eps else None, domain, "black-box", budget)


@pytest.mark.parametrize(
    ("name", "largest"),
    [("boundary", 1), ("simba", 1), ("square", 1), ("uniform_noise", 1), ("kept_apart", 1), ("nes", 20), ("zoo", 32)],
)
def test_a_lone_attacker_asks_no_more_at_once_than_his_next_step_needs(
    name: str, largest: int, digits: tuple[Network, NDArray[np.float64], NDArray[np.int64]]
) -> None:
    network, x, y = digits
    model = Watched(network)
    crafted = registry.kind(name)().craft(model, x[:1], y[:1], threat(name), np.random.default_rng(0))
    assert max(model.sizes) <= largest
    assert sum(model.sizes) == crafted.queries[0]


def test_rows_of_one_call_share_batches(digits: tuple[Network, NDArray[np.float64], NDArray[np.int64]]) -> None:
    network, x, y = digits
    model = Watched(network)
    registry.kind("boundary")().craft(model, x, y, threat("boundary"), np.random.default_rng(0))
    assert len(model.sizes) < 2 * BUDGET
    assert max(model.sizes) == len(x)


def nearest_earlier(trace: NDArray[np.float64]) -> NDArray[np.float64]:
    distance = np.sqrt(((trace[:, None] - trace[None]) ** 2).sum(axis=2))
    distance[np.triu_indices(len(trace))] = np.inf
    return distance.min(axis=1)[1:]


def test_queries_kept_apart_are_further_from_each_other_than_those_of_hop_skip_jump(
    digits: tuple[Network, NDArray[np.float64], NDArray[np.int64]],
) -> None:
    network, x, y = digits
    gaps, reached = {}, {}
    for name in ("hop_skip_jump", "kept_apart"):
        crafted = registry.kind(name)().craft(network, x, y, threat(name), np.random.default_rng(0))
        assert crafted.success.all()
        gaps[name] = np.median([np.quantile(nearest_earlier(crafted.trace.of(i).inputs), 0.1) for i in range(len(x))])
        reached[name] = np.median(crafted.distances)
    assert gaps["kept_apart"] > 2 * gaps["hop_skip_jump"]
    assert reached["kept_apart"] >= reached["hop_skip_jump"]


def test_more_queries_never_end_further_away(digits: tuple[Network, NDArray[np.float64], NDArray[np.int64]]) -> None:
    network, x, y = digits
    for name in ("hop_skip_jump", "boundary", "sign_opt", "opt", "zoo"):
        found = []
        for budget in (BUDGET, 5 * BUDGET):
            crafted = registry.kind(name)().craft(network, x, y, threat(name, budget), np.random.default_rng(0))
            found.append(np.median(np.where(crafted.success, crafted.distances, np.inf)))
        assert found[1] < found[0]
