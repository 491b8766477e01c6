"""Every registered detector of clients' histories keeps its contract, and what is remembered is forgotten in time."""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from detectors import ensemble as ensembles
from detectors import registry
from detectors.contract import Batch, Detector, HistoryDetector, Reference
from detectors.queries.extraction import DISTANCES, KEPT_ROWS, LEAST_VALUES, weights
from detectors.queries.past import Past
from detectors.schema import FeatureSchema
from detectors.single import raw_scores
from detectors.view import BatchView, ReferenceFrame

NAMES = [name for name in registry.names() if registry.remembers(name)]
WIDTH, CLASSES = 20, 3
SCHEMA = FeatureSchema.image((4, 5), ["a", "b", "c"])
CENTRES = np.random.default_rng(3).uniform(0.25, 0.75, (CLASSES, WIDTH))


def natural(n: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    return np.clip(CENTRES[labels] + rng.normal(0, 0.12, (n, WIDTH)), 0, 1), labels


def batch_of(inputs: NDArray[np.float64], labels: NDArray[np.int32], clients: NDArray[Any]) -> Batch:
    place = np.arange(len(inputs), dtype=np.int64)
    rows = np.zeros(len(inputs), dtype=np.int32)
    return Batch(np.ascontiguousarray(inputs), labels, clients.astype(np.uint64), place, place, rows)


@functools.cache
def reference() -> Reference:
    return Reference(*natural(600, np.random.default_rng(1)))


@functools.cache
def traffic() -> Batch:
    """Nine clients (and nobody), one of which walks in short steps; one row far out, one row twice."""
    rng = np.random.default_rng(2)
    inputs, labels = natural(2400, rng)
    clients = rng.integers(0, 10, 2400)
    walker = np.flatnonzero(clients == 4)
    inputs[walker] = np.clip(inputs[walker[0]] + 0.01 * np.cumsum(rng.normal(size=(len(walker), WIDTH)), axis=0), 0, 1)
    inputs[700] = 1e300
    inputs[801], labels[801], clients[801] = inputs[800], labels[800], clients[800]
    return batch_of(inputs, labels, clients)


class Case:
    """A fitted detector and its frame."""

    def __init__(self, name: str) -> None:
        self.frame = ReferenceFrame.fit(reference(), CLASSES, np.random.default_rng(2), size=200)
        self.kind: Any = registry.kind(name)
        self.detector = self.fit(5)

    def fit(self, seed: int) -> HistoryDetector:
        fitted: HistoryDetector = self.kind().fit(reference(), SCHEMA, np.random.default_rng(seed))
        return fitted

    def past(self, clients: int = 20) -> Past:
        return Past({self.detector.name: self.detector.record}, clients)

    def advance(self, batch: Batch, past: Past, detector: HistoryDetector | None = None) -> NDArray[np.float64]:
        return raw_scores((detector or self.detector,), BatchView(self.frame, batch), past)[:, 0]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def remembered(past: Past) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in past.arrays().items()}


def test_is_a_history_detector_under_its_name(case: Case) -> None:
    assert isinstance(case.detector, HistoryDetector)
    assert not isinstance(case.detector, Detector)
    assert registry.kind(case.detector.name) is case.kind
    assert case.detector.record.itemsize <= 8192


def test_scores_are_finite_and_say_nothing_of_nobody(case: Case) -> None:
    scores = case.advance(traffic(), case.past())
    assert scores.shape == (len(traffic()),)
    assert np.isfinite(scores).all()
    assert (scores >= 0.0).all()
    assert len(np.unique(scores)) > 50
    assert (scores[traffic().clients == 0] == 0.0).all()


@pytest.mark.parametrize("room", [20, 3])
def test_scores_and_records_do_not_depend_on_cuts_or_evictions(case: Case, room: int) -> None:
    whole_past = case.past(room)
    whole, rng = case.advance(traffic(), whole_past), np.random.default_rng(11)
    n = len(traffic())
    for cuts in (
        [1],
        [700, 701],
        sorted(rng.integers(0, n + 1, 9)),
        sorted(rng.integers(0, n + 1, 60)),
        range(0, n, 7),
    ):
        past = case.past(room)
        bounds = [0, *(int(cut) for cut in cuts), n]
        parts = [case.advance(traffic().take(slice(a, b)), past) for a, b in itertools.pairwise(bounds)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
        assert remembered(past) == remembered(whole_past)
    assert (whole_past.scalars[3] > 0) == (room == 3)


def test_client_scores_as_if_it_were_alone(case: Case) -> None:
    whole = case.advance(traffic(), case.past())
    for client in (1, 4):
        mine = traffic().clients == client
        assert case.advance(traffic().take(mine), case.past()).tobytes() == whole[mine].tobytes()


def test_client_that_was_forgotten_begins_anew(case: Case) -> None:
    past = case.past(3)
    mine = traffic().take(traffic().clients == 4)
    first = case.advance(mine, past)
    others = traffic().take(np.isin(traffic().clients, (1, 2, 3)))
    case.advance(others, past)
    assert case.advance(mine, past).tobytes() == first.tobytes()
    assert first[-1] > 0.0


def test_score_goes_on_from_a_snapshot(case: Case) -> None:
    half = len(traffic()) // 2
    past, other = case.past(5), case.past(5)
    case.advance(traffic().take(slice(0, half)), past)
    for name, array in other.arrays().items():
        array[...] = past.arrays()[name]
    rest = traffic().take(slice(half, None))
    assert case.advance(rest, past).tobytes() == case.advance(rest, other).tobytes()
    assert remembered(past) == remembered(other)


def test_fit_is_a_function_of_rows_and_seed_and_is_restored(case: Case) -> None:
    once, again = case.fit(5).arrays(), case.fit(5).arrays()
    assert {name: array.tobytes() for name, array in once.items()} == {n: a.tobytes() for n, a in again.items()}
    restored = case.kind.restore(once, SCHEMA)
    assert restored.record == case.detector.record
    assert case.advance(traffic(), case.past(), restored).tobytes() == case.advance(traffic(), case.past()).tobytes()


def test_explains_in_one_sentence(case: Case) -> None:
    sentence = case.detector.explain(BatchView(case.frame, traffic()), 17)
    assert len(sentence) > 20
    assert "\n" not in sentence


def test_empty_batch_and_a_class_without_rows(case: Case) -> None:
    assert case.advance(traffic().take(slice(0, 0)), case.past()).shape == (0,)
    seen = reference().labels != 1
    some = Reference(reference().inputs[seen], reference().labels[seen])
    detector = case.kind().fit(some, SCHEMA, np.random.default_rng(0))
    assert np.isfinite(case.advance(traffic(), case.past(), detector)).all()


def test_places_are_those_of_a_plain_table() -> None:
    rng = np.random.default_rng(4)
    senders = (rng.zipf(1.3, 5000) % 40).astype(np.uint64)
    past, plain = Past({}, 7), OrderedDict[int, int]()
    slots, fresh = past.places(senders)
    for sender, slot, new in zip(senders.tolist(), slots.tolist(), fresh.tolist(), strict=True):
        if sender == 0:
            assert (slot, new) == (-1, 0)
            continue
        assert new == (sender not in plain)
        if new:
            place = len(plain) if len(plain) < 7 else plain.popitem(last=False)[1]
        else:
            place = plain.pop(sender)
        assert slot == place
        plain[sender] = place
    assert sorted(past.keys.tolist()) == sorted(plain)


@pytest.mark.parametrize("n", [LEAST_VALUES, 93, DISTANCES])
def test_weights_are_those_of_shapiro_and_wilk(n: int) -> None:
    x = np.sort(np.random.default_rng(n).gamma(2.0, size=n))
    mine = (weights()[n, :n] @ x) ** 2 / np.square(x - x.mean()).sum()
    assert mine == pytest.approx(scipy.stats.shapiro(x).statistic, abs=1e-7)


def plain_prada(case: Case, batch: Batch) -> list[float]:
    """Algorithm 3 of the paper for one client, the sets bounded, in plain steps; 1 - W at every tenth distance."""
    rows = np.rint(511 * (BatchView(case.frame, batch).standardised @ case.detector.arrays()["projection"]))
    kept: list[tuple[int, NDArray[Any]]] = []
    joined: dict[int, list[float]] = {}
    least: dict[int, float] = {}
    distances: list[float] = []
    said, found = 0.0, []
    for row, label in zip(np.clip(rows, -32767, 32767), batch.labels.tolist(), strict=True):
        mine = [other for name, other in kept[-KEPT_ROWS:] if name == label]
        new = not mine
        if mine:
            distance = min(float(np.linalg.norm(row - other)) for other in mine) / 511
            distances.append(distance)
            new = distance > least.get(label, 0.0)
            if new:
                joined.setdefault(label, []).append(distance)
                least[label] = max(least.get(label, 0.0), float(np.mean(joined[label]) - np.std(joined[label])))
            if len(distances) >= 100 and len(distances) % 10 == 0:
                last = np.array(distances[-100:])
                inside = last[np.abs(last - last.mean()) <= 3 * last.std()]
                said = 1.0 - float(scipy.stats.shapiro(inside).statistic)
        if new:
            kept.append((label, row))
        found.append(said)
    return found


def test_extraction_is_the_published_algorithm() -> None:
    case = Case("extraction")
    inputs, labels = natural(500, np.random.default_rng(9))
    batch = batch_of(inputs, labels, np.ones(500))
    plain = np.array(plain_prada(case, batch))
    assert (plain > 0.0).sum() > 300
    assert case.advance(batch, case.past()) == pytest.approx(plain, abs=1e-5)


def test_rows_made_from_each_other_are_an_extraction() -> None:
    case, rng = Case("extraction"), np.random.default_rng(6)
    inputs, labels = natural(400, rng)
    crafted, marks = inputs.copy(), labels.copy()
    crafted[1::2] = crafted[::2] + 0.02 * np.sign(rng.normal(size=(200, WIDTH)))
    marks[1::2] = marks[::2]
    benign = case.advance(batch_of(inputs, labels, np.ones(400)), case.past())
    stolen = case.advance(batch_of(crafted, marks, np.ones(400)), case.past())
    assert benign[:99].max() == 0.0
    assert stolen[-1] > 2.0 * benign.max() > 0.0


def test_a_walk_leaves_its_trajectory() -> None:
    case = Case("trajectory")
    scores = case.advance(traffic(), case.past())
    walker = traffic().clients == 4
    assert np.median(scores[walker][20:]) > 3.0 * np.quantile(scores[~walker], 0.99)


@pytest.fixture(scope="module")
def remembering() -> ensembles.Ensemble:
    """An ensemble of one detector of rows and both of histories."""
    rng = np.random.default_rng(8)
    inputs, labels = natural(3000, rng)
    benign = batch_of(inputs, labels, 1 + rng.integers(0, 40, 3000))
    fitted, report = ensembles.fit(
        reference(),
        SCHEMA,
        benign,
        budget=1,
        clients_per_week=10,
        week_us=3001,
        partitions=1,
        rng=np.random.default_rng(1),
        detectors=("trust_ratio", *NAMES),
    )
    assert report.weights[1:] == pytest.approx([1 / (1 + len(NAMES))] * len(NAMES))
    return fitted


def test_ensemble_keeps_the_past_beside_the_histories(remembering: ensembles.Ensemble) -> None:
    batch = replace(traffic(), clients=traffic().clients % np.uint64(7))
    whole, state = remembering.new_state(4, 100), remembering.new_state(4, 100)
    verdicts = remembering.score(batch, whole)
    parts = [remembering.score(batch.take(slice(a, a + 331)), state) for a in range(0, len(batch), 331)]
    assert np.concatenate([part.scores for part in parts]).tobytes() == verdicts.scores.tobytes()
    assert np.concatenate([part.fused for part in parts]).tobytes() == verdicts.fused.tobytes()
    assert state.digest() == whole.digest()
    assert whole.past is not None
    known = np.isin(whole.past.keys, whole.clients.keys)
    assert known.sum() >= 3  # the walk knows nobody as a client, the past does not
    other = remembering.new_state(4, 100)
    other.load({name: array.copy() for name, array in state.arrays().items()})
    assert other.digest() == state.digest()
    assert remembering.score(batch, other).scores.tobytes() == remembering.score(batch, state).scores.tobytes()
