"""A small world for tests of the ensemble: digits, a real model, clients that differ, a sensor, simple attackers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from detectors.contract import Batch, Reference
from detectors.schema import FeatureSchema

Predict = Callable[[NDArray[np.float64]], NDArray[np.int32]]

SCHEMA = FeatureSchema.image((8, 8), [str(digit) for digit in range(10)])
WEEK_US = 60_000_000
SENSOR = 900_000


@dataclass(frozen=True)
class World:
    """A model, its training rows, and images that benign rows are made from."""

    model: Any
    reference: Reference
    pictures: NDArray[np.float64]

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.int32]:
        return self.model.predict(inputs).astype(np.int32)

    def probabilities(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.model.predict_proba(inputs)

    def fresh(self, n: int, rng: np.random.Generator, which: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Rows made anew from pictures by small rotations, shifts and noise."""
        chosen = rng.integers(0, len(self.pictures), n) if which is None else which
        return augment(self.pictures[chosen], rng)


def augment(pictures: NDArray[np.float64], rng: np.random.Generator, noise: float = 0.04) -> NDArray[np.float64]:
    n = len(pictures)
    images = pictures.reshape(n, 8, 8)
    out = np.empty_like(images)
    angle, shift = rng.normal(0, 7, n), rng.normal(0, 0.35, (n, 2))
    rows, columns = np.mgrid[0:8, 0:8] - 3.5
    for i in range(n):
        a = np.deg2rad(angle[i])
        at = np.array([np.cos(a) * rows - np.sin(a) * columns, np.sin(a) * rows + np.cos(a) * columns]) + 3.5
        out[i] = ndimage.map_coordinates(images[i], at + shift[i][:, None, None], order=1, mode="constant")
    return np.clip(out.reshape(n, 64) + rng.normal(0, noise, (n, 64)), 0.0, 1.0)


@functools.cache
def world(seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels / 16.0
    order = rng.permutation(len(pixels))
    train, rest = order[:900], order[900:]
    inputs = np.concatenate([pixels[train], augment(np.repeat(pixels[train], 3, axis=0), rng)])
    truth = np.concatenate([labels[train], np.repeat(labels[train], 3)]).astype(np.int32)
    model = MLPClassifier((32,), max_iter=40, random_state=1, learning_rate_init=5e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(inputs, truth)
    return World(model, Reference(inputs, model.predict(inputs).astype(np.int32), truth=truth), pixels[rest])


def benign(
    home: World,
    rng: np.random.Generator,
    clients: int = 200,
    weeks: int = 6,
    a_week: int = 60,
    sensors: int = 1,
    first_client: int = 1,
) -> Batch:
    """Traffic of clients with habits of their own, 1 % exact duplicates, and sensors that repeat one picture."""
    who, when, rows = [], [], []
    for client in range(clients):
        rate = rng.lognormal(0.0, 0.5)
        n = max(4, rng.poisson(a_week * weeks * rate))
        favourites = rng.choice(len(home.pictures), 300)
        made = augment(home.pictures[rng.choice(favourites, n)], rng, noise=rng.uniform(0.02, 0.07))
        repeated = np.flatnonzero(rng.random(n) < 0.01)
        repeated = repeated[repeated > 0]
        made[repeated] = made[repeated - 1]
        rows.append(made)
        who.append(np.full(n, first_client + client))
        when.append(np.sort(rng.random(n)))
    for sensor in range(sensors):
        n = a_week * weeks
        rows.append(sensor_rows(home, n, rng))
        who.append(np.full(n, SENSOR + sensor))
        when.append(np.sort(rng.random(n)))
    return batch_of(home.predict, np.concatenate(rows), np.concatenate(who), np.concatenate(when) * weeks * WEEK_US)


def sensor_rows(home: World, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    picture = home.pictures[rng.integers(len(home.pictures))]
    return np.clip(picture + rng.normal(0, 0.01, (n, 64)), 0.0, 1.0)


def batch_of(
    predict: Predict,
    inputs: NDArray[np.float64],
    clients: NDArray[Any],
    times: NDArray[np.float64],
    first_offset: int = 0,
) -> Batch:
    """Rows in the order of their times."""
    order = np.argsort(times, kind="stable")
    inputs = np.ascontiguousarray(inputs[order])
    n = len(inputs)
    return Batch(
        inputs=inputs,
        labels=predict(inputs),
        clients=clients[order].astype(np.uint64),
        times=times[order].astype(np.int64),
        offsets=np.arange(first_offset, first_offset + n, dtype=np.int64),
        rows=np.zeros(n, dtype=np.int32),
    )


def sent(home: World, inputs: NDArray[np.float64], clients: int | NDArray[Any], first: int = 1000) -> Batch:
    """Rows in this order, of one client or of several."""
    n = len(inputs)
    inputs = np.ascontiguousarray(inputs)
    return Batch(
        inputs=inputs,
        labels=home.predict(inputs),
        clients=np.broadcast_to(np.asarray(clients, dtype=np.uint64), n).copy(),
        times=np.arange(n, dtype=np.int64) * 1000,
        offsets=np.arange(first, first + n, dtype=np.int64),
        rows=np.zeros(n, dtype=np.int32),
    )


# --- attackers --------------------------------------------------------------------------------------------------------


class Tape:
    """A model whose every query is kept."""

    def __init__(self, predict: Callable[[NDArray[np.float64]], Any], most: int) -> None:
        self.predict, self.most = predict, most
        self.queries: list[NDArray[np.float64]] = []

    def __call__(self, inputs: NDArray[np.float64]) -> Any:
        if len(self.queries) + len(inputs) > self.most:
            raise StopIteration
        self.queries.extend(inputs)
        return self.predict(inputs)


def boundary_walk(home: World, rng: np.random.Generator, queries: int = 250) -> NDArray[np.float64]:
    """Bisect to the boundary, estimate its normal, step along it (as HopSkipJump does)."""
    start, other = home.fresh(2, rng)
    label = home.predict(start[None])[0]
    while home.predict(other[None])[0] == label:
        other = home.fresh(1, rng)[0]
    tape = Tape(home.predict, queries)

    def bisect(x: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = 0.0, 1.0
        while high - low > 0.005:
            middle = (low + high) / 2
            if tape((start + middle * (x - start))[None])[0] != label:
                high = middle
            else:
                low = middle
        return start + high * (x - start)

    try:
        x = bisect(other)
        for step in range(1, 40):
            size = 0.1 * np.linalg.norm(x - start) / np.sqrt(step)
            noise = rng.normal(size=(int(12 * np.sqrt(step)), 64))
            noise /= np.linalg.norm(noise, axis=1, keepdims=True)
            sign = np.where(tape(np.clip(x + size * noise, 0, 1)) != label, 1.0, -1.0)
            normal = ((sign - sign.mean())[:, None] * noise).mean(axis=0)
            length = np.linalg.norm(x - start) / np.sqrt(step)
            moved = np.clip(x + length * normal / max(np.linalg.norm(normal), 1e-9), 0, 1)
            while tape(moved[None])[0] == label and length > 1e-4:
                length /= 2
                moved = np.clip(x + length * normal / max(np.linalg.norm(normal), 1e-9), 0, 1)
            x = bisect(moved)
    except StopIteration:
        pass
    return np.array(tape.queries)


def score_descent(home: World, rng: np.random.Generator, queries: int = 250) -> NDArray[np.float64]:
    """Estimate the gradient of the score by antithetic noise and follow its sign (as NES does)."""
    x = start = home.fresh(1, rng)[0]
    label = int(home.predict(start[None])[0])
    tape = Tape(home.probabilities, queries)
    try:
        while True:
            noise = rng.normal(size=(10, 64))
            up, down = tape(np.clip(x + 0.02 * noise, 0, 1)), tape(np.clip(x - 0.02 * noise, 0, 1))
            slope = ((up - down)[:, label][:, None] * noise).mean(axis=0)
            x = np.clip(np.clip(x - 0.02 * np.sign(slope), start - 0.3, start + 0.3), 0, 1)
    except StopIteration:
        pass
    return np.array(tape.queries)


def pixel_search(home: World, rng: np.random.Generator, queries: int = 250) -> NDArray[np.float64]:
    """Keep single-pixel steps that lower the score (as SimBA does)."""
    x = home.fresh(1, rng)[0]
    label = int(home.predict(x[None])[0])
    tape = Tape(home.probabilities, queries)
    try:
        best = tape(x[None])[0, label]
        while True:
            for pixel in rng.permutation(64):
                for step in (0.2, -0.2):
                    moved = x.copy()
                    moved[pixel] = np.clip(moved[pixel] + step, 0, 1)
                    score = tape(moved[None])[0, label]
                    if score < best:
                        x, best = moved, score
                        break
    except StopIteration:
        pass
    return np.array(tape.queries)


ATTACKS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "boundary_walk": boundary_walk,
    "score_descent": score_descent,
    "pixel_search": pixel_search,
}


def diluted(
    home: World, trace: NDArray[np.float64], share: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A trace with `share` benign rows before each of its queries; which rows are the attack's."""
    rows = np.empty((len(trace) * (share + 1), 64))
    own = np.arange(len(rows)) % (share + 1) == share
    rows[own], rows[~own] = trace, home.fresh(len(rows) - len(trace), rng)
    return rows, own
