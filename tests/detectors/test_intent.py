"""The intent test tells attacks on a digits model from clients that repeat themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks import registry
from attacks.threat import Domain, ThreatModel
from benchmarks import repeaters
from detectors.contract import Batch, Reference
from detectors.errors import FitError
from detectors.kernels import exact, limit_blas_threads
from detectors.queries import intent as rules
from detectors.queries.intent import IntentTest, IntentVerdict, Shape
from detectors.schema import Feature, FeatureSchema
from detectors.surrogate import Surrogate
from detectors.view import ReferenceFrame
from streams.demo import digits, model

Rows = NDArray[np.float64]

#: Sizes at which the ensemble asks.
SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
REPEATERS = 12


@dataclass(frozen=True)
class World:
    """The demo's watched model, and intent tests fitted on its scores or on its labels alone."""

    pools: digits.Pools
    net: model.Perceptron
    reference: Reference
    frame: ReferenceFrame
    scores: IntentTest
    labels: IntentTest

    def start(self, pool: digits.Pool, rng: np.random.Generator) -> Rows:
        picture = pool.inputs[rng.integers(len(pool))]
        return digits.fresh(picture[None], digits.columns([digits.Style()]), rng)[0]

    def answer(self, rows: Rows) -> NDArray[np.int32]:
        return self.net.predict(rows).argmax(axis=1).astype(np.int32)


@pytest.fixture(scope="module")
def world() -> World:
    limit_blas_threads()
    rng = np.random.default_rng(3)
    pools = digits.split(3)
    net = model.train(pools.model, rng)
    which = rng.integers(0, len(pools.reference), 3000)
    plain = digits.columns([digits.Style()]).repeat(len(which), axis=0)
    inputs = digits.fresh(pools.reference.inputs[which], plain, rng)
    outputs = net.predict(inputs)
    reference = Reference(inputs, outputs.argmax(axis=1).astype(np.int32), outputs)
    frame = ReferenceFrame.fit(reference, digits.CLASSES, rng)
    tests = [
        IntentTest.fit(given, digits.schema(), frame, np.random.default_rng(4))
        for given in (reference, replace(reference, outputs=None))
    ]
    return World(pools, net, reference, frame, *tests)


def distinct(rows: Rows, labels: NDArray[Any]) -> tuple[Rows, NDArray[np.int32]]:
    """Exact repetitions join no cluster."""
    _, first = np.unique(rows, axis=0, return_index=True)
    kept = np.sort(first)
    return rows[kept], labels[kept].astype(np.int32)


def grow(test: IntentTest, rows: Rows, labels: NDArray[np.int32], seed: int = 1) -> int | None:
    """Size at which a growing cluster pages first."""
    for size in SIZES:
        if size > len(rows):
            return None
        last = slice(max(0, size - 128), size)
        if test.judge(rows[last], labels[last], size, rows[:4].mean(axis=0), seed).page:
            return size
    return None


def attack(world: World, name: str, norm: Any, seed: int, eps: float = 0.15) -> tuple[Rows, NDArray[np.int32]]:
    """Distinct queries of one attack on one picture."""
    rng = np.random.default_rng(seed)
    schema = digits.schema()
    legal = Domain(schema.lows(), schema.highs(), schema.integral(), schema.mutable())
    threat = ThreatModel(name, norm, eps if norm == "linf" else None, legal, "black-box", 400)
    row = world.start(world.pools.hostile, rng)
    parameters = {"step": 0.05} if name == "simba" else {}
    label = world.answer(row[None]).astype(np.int64)
    trace = registry.kind(name)(**parameters).craft(world.net, row[None], label, threat, rng).trace
    return distinct(trace.inputs, trace.labels)


def test_hop_skip_jump_pages_within_24_queries(world: World) -> None:
    for test in (world.scores, world.labels):
        sizes = [grow(test, *attack(world, "hop_skip_jump", "l2", seed)) for seed in range(8)]
        assert all(size is not None and size <= 24 for size in sizes), sizes


def test_boundary_attack_pages(world: World) -> None:
    for test in (world.scores, world.labels):
        sizes = [grow(test, *attack(world, "boundary", "l2", seed)) for seed in range(8)]
        assert all(size is not None for size in sizes), sizes


@pytest.mark.parametrize(("name", "norm", "share"), [("nes", "linf", 0.4), ("simba", "l2", 0.6)])
def test_score_attacks_page_before_or_at_success_where_the_model_gives_scores(
    world: World, name: str, norm: str, share: float
) -> None:
    """Each trace ends when the attack succeeds, so that some are too short to show anything."""
    traces = [attack(world, name, norm, seed) for seed in range(16)]
    sizes = [grow(world.scores, *trace) for trace in traces if len(trace[0]) >= 48]
    assert len(sizes) >= 8
    assert sum(size is not None for size in sizes) >= share * len(sizes), sizes


def scores_of(world: World, rows: Rows, labels: NDArray[np.int32]) -> Rows:
    """The watched model's score of each row's answer, and its largest other one."""
    outputs = world.net.predict(rows)
    own = outputs[np.arange(len(rows)), labels]
    outputs[np.arange(len(rows)), labels] = -np.inf
    return np.column_stack([own, outputs.max(axis=1)])


@pytest.mark.parametrize(("name", "norm"), [("square", "linf"), ("simba", "l2"), ("zoo", "l2")])
def test_attacks_of_few_features_at_a_time_page_by_the_feedback_of_scores(world: World, name: str, norm: str) -> None:
    paged, clusters = 0, 0
    for seed in range(10):
        rows, labels = attack(world, name, norm, seed, 0.05)
        for size in SIZES:
            last = slice(max(0, size - 128), size)
            if size <= len(rows):
                given = scores_of(world, rows[last], labels[last])
                verdict = world.scores.judge(rows[last], labels[last], size, rows[:4].mean(axis=0), 1, given)
                if verdict.page:
                    assert verdict.measures["by_scores"] > 2.0
                    paged += 1
                    break
        clusters += len(rows) >= 48
    assert clusters >= 5
    assert paged >= 0.8 * clusters


@pytest.mark.parametrize(("name", "norm"), [("hop_skip_jump", "l2"), ("simba", "l2")])
def test_decoys_of_few_features_between_the_queries_hide_little(world: World, name: str, norm: str) -> None:
    """Three to each query: the start row with four features a little off, so that the cluster is narrow and stays.

    A quarter of the last 128 members is left to judge, which is too little for the small late steps of Square.
    """
    paged, clusters = 0, 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        own, _ = attack(world, name, norm, seed)
        decoys = np.repeat(own[:1], 3 * len(own), axis=0).reshape(len(own), 3, 64)
        for place in np.ndindex(len(own), 3):
            decoys[(*place, rng.choice(64, 4, replace=False))] += rng.choice([-0.05, 0.05], 4)
        rows = np.concatenate([own[:, None], np.clip(decoys, 0, 1)], axis=1).reshape(-1, 64)
        rows, labels = distinct(rows, world.answer(rows))
        sizes = [size for size in (*SIZES, 512) if size <= len(rows)]
        if len(sizes) < 7:
            continue
        clusters += 1
        for size in sizes:
            last = slice(max(0, size - 128), size)
            given = scores_of(world, rows[last], labels[last])
            if world.scores.judge(rows[last], labels[last], size, rows[:4].mean(axis=0), 1, given).page:
                paged += 1
                break
    assert clusters >= 3
    assert paged >= 0.6 * clusters


def test_scores_are_taken_only_where_every_member_has_some(world: World) -> None:
    rows, labels = attack(world, "simba", "l2", 1)
    rows, labels = rows[:64], labels[:64]
    given = scores_of(world, rows, labels)

    def found(answers: Rows | None) -> float:
        return world.scores.judge(rows, labels, 64, rows[:4].mean(axis=0), 1, answers).measures["by_scores"]

    guessed = found(None)
    assert found(given) != guessed
    given[5] = np.nan
    assert found(given) == guessed


WIDE = Shape(touched=40, moved=0, gate=40.0, wide_share=1.0, cut_links=0.0, design=0.0)


def test_parts_count_by_how_the_cluster_spreads() -> None:
    loud = {"progress": 3.0, "following": -1.5, "bisection": -2.0, "by_scores": 2.7, "by_answers": 2.4}
    loud["halvings"] = 2.0
    parts = [(3.0 / 3.4) ** 2, (1.5 / 1.7) ** 2, (2.0 / 2.5) ** 2, (2.0 / 3.0) ** 2, (2.7 / 3.0) ** 2]
    assert WIDE.score(loud) == pytest.approx(sum(parts))
    assert WIDE.score({**loud, "by_answers": 3.0}) == pytest.approx(sum(parts[:4]) + 1.0)
    for narrow in (replace(WIDE, gate=6.0), replace(WIDE, wide_share=0.29)):
        assert narrow.score(loud) == 0.0
        assert replace(narrow, design=1.0).score(loud) == 0.0
        moved = replace(narrow, moved=3)
        assert moved.score(loud) == pytest.approx((3.0 / 2.8) ** 2 + parts[3] + parts[4])
    design = replace(WIDE, design=0.9)
    assert design.score(loud) == pytest.approx((3.0 / 4.5) ** 2 + (2.7 / 3.5) ** 2)
    assert set(WIDE.brought({**loud, "score": sum(parts)})) == set(loud)
    assert set(WIDE.brought({**loud, "score": sum(parts[1:])})) == set(loud) - {"progress"}
    assert not replace(WIDE, touched=6).judged
    assert replace(WIDE, lines_apart=1).score(loud) == pytest.approx(sum(parts))
    assert replace(WIDE, lines_apart=2).score(loud) == pytest.approx(sum(parts) - parts[2])


def test_no_part_counts_more_than_two_and_none_against_a_page() -> None:
    signs = {"progress": 1, "following": -1, "bisection": -1, "halvings": 1, "by_scores": 1, "by_answers": 1}
    quiet = dict.fromkeys(signs, 0.0)
    for name, sign in signs.items():
        assert WIDE.score({**quiet, name: sign * 99.0}) == rules.MOST_OF_A_PART
        assert WIDE.score({**quiet, name: sign * -99.0}) == 0.0


def test_a_cluster_tells_what_it_touches_how_it_moves_and_whether_it_is_a_design(world: World) -> None:
    rng = np.random.default_rng(3)
    base = np.clip(world.start(world.pools.live, rng), 0.2, 0.8)
    walk = np.repeat(base[None], 48, axis=0)
    for turn in range(1, 48):  # one feature after another is changed for good
        walk[turn:, turn % 10] += 0.01
    subsets = np.where(rng.random((48, 64)) < 0.5, base, 0.0)
    back = np.repeat(base[None], 48, axis=0)
    back[np.arange(48), np.arange(48) % 10] += 0.1
    for rows, expected in (
        (walk, {"touched": 10.0, "moved": 10.0, "design": 0.0}),
        (back, {"touched": 10.0, "moved": 0.0, "design": 1.0}),
        (subsets, {"touched": 64.0, "design": 1.0}),
    ):
        found = world.scores.judge(rows, world.answer(rows), 48, rows[:4].mean(axis=0), 1).measures
        assert {name: found[name] for name in expected} == expected


#: How many of `REPEATERS` clients of a kind may page: 5 % of a kind is the aim, and random walks in all features and
#: explainers are known to be worse (docs/detection.md).
ALLOWED = {"sensor": 0, "sweep": 0, "grid": 0, "few_feature_walk": 0, "what_if": 0, "recourse": 0, "path_explainer": 0}
KNOWN_WORSE = (repeaters.walk_in_all_features, repeaters.shap_explainer)
KINDS = [(kind, ALLOWED.get(kind.__name__, 1)) for kind in repeaters.KINDS if kind not in KNOWN_WORSE]


@pytest.mark.parametrize(("kind", "allowed"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])
def test_repeaters_stay_tickets(world: World, kind: Any, allowed: int) -> None:
    paged = 0
    site = repeaters.Site(world.net.predict, world.pools.reference.inputs.mean(axis=0))
    for seed in range(REPEATERS):
        rng = np.random.default_rng(seed)
        rows = np.clip(kind(site, world.start(world.pools.live, rng), rng), 0, 1)
        paged += grow(world.scores, *distinct(rows, world.answer(rows)), seed) is not None
    assert paged <= allowed


def cluster(world: World, size: int, seed: int = 0) -> tuple[Rows, NDArray[np.int32], Rows]:
    rng = np.random.default_rng(seed)
    rows = np.clip(world.start(world.pools.live, rng) + 0.1 * rng.normal(size=(size, 64)), 0, 1)
    return rows, world.answer(rows), rows[:4].mean(axis=0)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 128])
def test_verdict_is_a_function_of_its_arguments_and_survives_storage(world: World, size: int) -> None:
    rows, labels, origin = cluster(world, size)
    first = world.scores.judge(rows, labels, size, origin, 7)
    stored = IntentTest.restore(world.scores.arrays(), digits.schema())
    assert world.scores.judge(rows.copy(), labels.copy(), size, origin.copy(), 7) == first
    assert stored.judge(rows, labels, size, origin, 7) == first
    assert all(math.isfinite(value) for value in first.measures.values())
    names = {"size", "touched", "moved", "gate", "wide_share", "cut_links", "design", "lines_apart"}
    names |= {"progress", "lost_margin"}
    names |= {"following", "following_p", "bisection", "halvings", "by_scores", "by_answers", "score", "needed"}
    names |= {"copies", "page"}
    assert set(first.measures) == names


def test_random_signs_follow_the_seed(world: World) -> None:
    rows, labels, origin = cluster(world, 48)
    found = {world.scores.judge(rows, labels, 48, origin, seed).measures["progress"] for seed in (1, 2, 2**63 + 5)}
    assert len(found) == 3


def test_identical_members_are_judged_without_error(world: World) -> None:
    rows = np.repeat(world.reference.inputs[:1], 20, axis=0)
    verdict = world.scores.judge(rows, world.answer(rows), 20, rows[0], 1)
    assert not verdict.page
    assert verdict.measures["progress"] == 0.0


def test_fewer_than_sixteen_members_never_page(world: World) -> None:
    rows, labels = attack(world, "hop_skip_jump", "l2", 0)
    rows, labels = rows[:24], labels[:24]
    assert world.scores.judge(rows, labels, 24, rows[:4].mean(axis=0), 1).page
    assert not world.scores.judge(rows, labels, 15, rows[:4].mean(axis=0), 1).page


def test_a_cluster_that_has_grown_for_long_must_speak_louder(world: World) -> None:
    rows, labels = attack(world, "hop_skip_jump", "l2", 0)
    rows, labels = rows[:128], labels[:128]
    young, old = (world.scores.judge(rows, labels, size, rows[:4].mean(axis=0), 1) for size in (128, 2**20))
    assert young.measures["score"] == old.measures["score"]
    assert (young.measures["needed"], old.measures["needed"]) == (1.0, 3.5)


def test_progress_of_less_margin_than_usual_rows_lack_counts_for_nothing(world: World) -> None:
    rows, labels = attack(world, "simba", "l2", 0)
    origin = rows[:4].mean(axis=0)
    found = world.scores.judge(rows[:64], labels[:64], 64, origin, 1).measures
    assert found["progress"] > 0
    deaf = replace(world.scores, floor=2.1 * found["lost_margin"])
    assert deaf.judge(rows[:64], labels[:64], 64, origin, 1).measures["score"] < found["score"]


def plain_progress(test: IntentTest, rows: Rows, labels: NDArray[np.int32], origin: Rows, signs: Rows) -> list[float]:
    """Progress, following and its rank, written out plainly, with the signs (copies, d) given."""
    later = rows[len(rows) // 2 :]
    modal = np.full(len(later), np.bincount(labels).argmax(), dtype=np.int32)
    own = test.surrogate.margins(later, modal)
    copies = np.array(
        [
            test.surrogate.margins(np.clip(origin + sign * (later - origin), test.low, test.high), modal)
            for sign in signs
        ]
    )
    means, nears = copies.mean(axis=1), np.abs(copies).mean(axis=1)
    near = np.abs(own).mean()
    p = (1 + (nears <= near).sum()) / (len(signs) + 1)
    following = np.log(max(near, test.floor) / max(np.median(nears), test.floor)) if p <= rules.FOLLOWING_P else 0.0
    return [(means.mean() - own.mean()) / means.std(ddof=1), min(0.0, float(following)), float(p)]


@pytest.mark.parametrize(("clear", "copies"), [(2.0, rules.FIRST_COPIES), (math.inf, rules.COPIES)])
def test_progress_and_following_are_those_of_sign_flipped_copies(
    world: World, clear: float, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "CLEAR", clear)
    rows, labels = attack(world, "hop_skip_jump", "l2", 1)
    rows, labels = rows[:100], labels[:100]
    origin = rows[:4].mean(axis=0)
    words = [splitmix(9 + (place + 1) * 0x9E3779B97F4A7C15) for place in range(rules.COPIES)]
    signs = np.array([[1.0 if word >> f & 1 else -1.0 for f in range(64)] for word in words])
    found = world.scores.judge(rows, labels, len(rows), origin, 9).measures
    assert found["copies"] == copies
    expected = plain_progress(world.scores, rows, labels, origin, signs[:copies])
    assert [found["progress"], found["following"], found["following_p"]] == pytest.approx(expected, rel=1e-9)


def splitmix(value: int) -> int:
    mask = 2**64 - 1
    z = value & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def test_bisection_is_the_nearest_opposite_pair_over_the_usual_link(world: World) -> None:
    rows, labels = attack(world, "hop_skip_jump", "l2", 2)
    rows, labels = rows[:40], labels[:40]
    grid_steps = exact.grid_for(64)
    standard = exact.standardise(rows, world.frame.mean, world.frame.scale, grid_steps)
    distance = np.linalg.norm(standard[:, None] - standard[None], axis=2)
    opposite = distance[labels[:, None] != labels[None]].min()
    typical = np.median([distance[i, :i].min() for i in range(1, 40)])
    expected = math.log((opposite + 1e-6) / (typical + 1e-6))
    verdict = world.scores.judge(rows, labels, 40, rows[:4].mean(axis=0), 1)
    assert verdict.measures["bisection"] == pytest.approx(expected, rel=1e-6)


def test_one_label_bisects_nothing(world: World) -> None:
    rows, labels, origin = cluster(world, 32)
    verdict = world.scores.judge(rows, np.zeros_like(labels), 32, origin, 1)
    assert verdict.measures["bisection"] == 0.0


def test_links_between_narrow_bases_are_cut_before_the_gate(world: World) -> None:
    """A what-if user who tries three different pictures is narrow around each of them."""
    rng = np.random.default_rng(5)
    parts = []
    for picture in world.pools.live.inputs[:3]:
        rows = np.repeat(picture[None], 14, axis=0)
        rows[np.arange(14), rng.integers(0, 64, 14)] = rng.uniform(size=14)
        parts.append(rows)
    rows = np.concatenate(parts)
    verdict = world.scores.judge(rows, world.answer(rows), 42, rows[:4].mean(axis=0), 1)
    assert verdict.measures["cut_links"] == 2
    assert verdict.measures["gate"] <= 2
    assert not verdict.page


def test_many_far_links_are_an_attackers_own_and_stay(world: World) -> None:
    rng = np.random.default_rng(6)
    rows = world.pools.live.inputs[rng.permutation(len(world.pools.live))[:30]]
    verdict = world.scores.judge(rows, world.answer(rows), 30, rows[:4].mean(axis=0), 1)
    assert verdict.measures["cut_links"] == 0
    assert verdict.measures["gate"] > rules.NARROW_FEATURES


def test_margins_of_a_row_do_not_depend_on_other_rows(world: World) -> None:
    rng = np.random.default_rng(8)
    rows = rng.uniform(-1, 2, (700, 64))
    labels = rng.integers(0, 10, 700).astype(np.int32)
    whole = world.scores.surrogate.margins(rows, labels)
    for start, stop in ((0, 1), (3, 10), (511, 513), (100, 700)):
        part = world.scores.surrogate.margins(rows[start:stop], labels[start:stop])
        assert part.tobytes() == whole[start:stop].tobytes()


def test_margins_are_those_of_the_network(world: World) -> None:
    surrogate, rows = world.scores.surrogate, world.reference.inputs[:50]
    layer = (rows - surrogate.mean) / surrogate.scale
    for weights, biases in zip(surrogate.weights[:-1], surrogate.biases[:-1], strict=True):
        layer = np.maximum(layer @ weights + biases, 0)
    logits = layer @ surrogate.weights[-1] + surrogate.biases[-1]
    labels = world.reference.labels[:50]
    own = logits[np.arange(50), labels]
    logits[np.arange(50), labels] = -np.inf
    assert surrogate.margins(rows, labels) == pytest.approx(own - logits.max(axis=1), abs=2e-3)


def test_surrogate_answers_as_the_model_does(world: World) -> None:
    rng = np.random.default_rng(9)
    rows = np.stack([world.start(world.pools.live, rng) for _ in range(400)])
    labels = world.answer(rows)
    for test in (world.scores, world.labels):
        agree = test.surrogate.margins(rows, labels) > 0
        assert agree.mean() >= 0.85


def two_classes(n: int = 300) -> tuple[Reference, FeatureSchema]:
    rng = np.random.default_rng(1)
    inputs = np.column_stack([rng.normal(size=(n, 8)), np.full(n, 3.0)])
    labels = (inputs[:, 0] > 0).astype(np.int32)
    schema = FeatureSchema(tuple(Feature(f"f{i}") for i in range(9)), ("no", "yes", "never"))
    return Reference(inputs, labels), schema


def fitted(reference: Reference, schema: FeatureSchema, **more: Any) -> IntentTest:
    frame = ReferenceFrame.fit(reference, len(schema.classes), np.random.default_rng(0))
    return IntentTest.fit(reference, schema, frame, np.random.default_rng(0), **more)


def test_classes_without_rows_and_constant_features_are_told_apart() -> None:
    test = fitted(*two_classes())
    rows = np.zeros((3, 9))
    rows[:, 8] = 3.0
    rows[1:, 0] = 2.0
    margins = test.surrogate.margins(rows, np.array([2, 1, 0], dtype=np.int32))
    assert margins[0] < -15
    assert margins[1] > 0 > margins[2]
    moved = rows.copy()
    moved[:, 8] = 4.0
    assert np.array_equal(test.surrogate.margins(moved, np.array([2, 1, 0], dtype=np.int32)), margins)


def test_a_reference_of_one_class_gives_a_test_that_judges() -> None:
    reference, schema = two_classes()
    test = fitted(replace(reference, labels=np.zeros_like(reference.labels)), schema)
    verdict = test.judge(reference.inputs[:32], reference.labels[:32], 32, reference.inputs[0], 1)
    assert isinstance(verdict, IntentVerdict)
    assert verdict.measures["progress"] == 0.0


def test_narrow_inputs_never_page() -> None:
    """With at most six features the gate can't open: a limit that the documents state."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 5))
    schema = FeatureSchema(tuple(Feature(f"f{i}") for i in range(5)), ("no", "yes"))
    test = fitted(Reference(inputs, (inputs[:, 0] > 0).astype(np.int32)), schema)
    rows = np.vstack([[1e-7 * (-1) ** i, 0, 0, 0, 0.1 * i] for i in range(32)])
    verdict = test.judge(rows, (rows[:, 0] > 0).astype(np.int32), 32, rows[0], 1)
    assert verdict.measures["gate"] <= 5
    assert not verdict.page


def test_scores_that_contradict_labels_or_are_no_probabilities_are_not_learned_from() -> None:
    reference, schema = two_classes()
    plain = fitted(reference, schema).arrays()
    for outputs in (
        np.eye(3)[1 - reference.labels],
        10.0 * np.eye(3)[reference.labels],
        np.full((300, 3), np.nan),
    ):
        other = fitted(replace(reference, outputs=outputs), schema).arrays()
        assert all(np.array_equal(plain[name], other[name]) for name in plain)


def test_benign_events_with_scores_teach_the_surrogate() -> None:
    reference, schema = two_classes(100)
    more, _ = two_classes(600)
    n = len(more)
    nothing = np.zeros(n, dtype=np.int64)
    events = Batch(
        inputs=more.inputs,
        labels=more.labels,
        clients=nothing.astype(np.uint64),
        times=nothing,
        offsets=nothing,
        rows=nothing.astype(np.int32),
    )
    sure = np.eye(3)[more.labels] * 0.98 + 0.01
    sure /= sure.sum(axis=1, keepdims=True)
    alone = fitted(reference, schema)
    for answers in (events, replace(events, outputs=sure)):
        test = fitted(reference, schema, answers=answers)
        assert not np.array_equal(test.surrogate.weights[0], alone.surrogate.weights[0])
        assert (test.surrogate.margins(more.inputs, more.labels) > 0).mean() > 0.9


def test_a_surrogate_without_rows_or_of_another_width_is_refused(world: World) -> None:
    reference, schema = two_classes()
    frame = ReferenceFrame.fit(reference, 3, np.random.default_rng(0))
    for given in (Reference(reference.inputs[:0], reference.labels[:0]), world.reference):
        with pytest.raises(FitError, match="9 features"):
            Surrogate.fit(given, schema, frame, np.random.default_rng(0))


@pytest.mark.parametrize("learn", ["MLPRegressor", "MLPClassifier"])
def test_ctrl_c_while_the_surrogate_learns_ends_the_fit(monkeypatch: pytest.MonkeyPatch, learn: str) -> None:
    """scikit-learn takes it for the end of learning, and would leave half a network."""
    from sklearn import neural_network

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(getattr(neural_network, learn), "_backprop", interrupted)
    reference, schema = two_classes()
    given = replace(reference, outputs=np.eye(3)[reference.labels]) if learn == "MLPRegressor" else reference
    with pytest.raises(KeyboardInterrupt):
        fitted(given, schema)
