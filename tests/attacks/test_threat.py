"""Threat models: what is legal, what is near enough, and the way back inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attacks.errors import ThreatModelError
from attacks.relations import Relations, learn_relations
from attacks.threat import Domain, Norm, ThreatModel, lengths, shrink

NORMS: tuple[Norm, ...] = ("l0", "l1", "l2", "linf")


def domain_of(width: int = 4, **changes: Any) -> Domain:
    yes = np.ones(width, dtype=bool)
    values: dict[str, Any] = {
        "low": np.zeros(width),
        "high": np.ones(width),
        "integral": ~yes,
        "mutable": yes,
        **changes,
    }
    return Domain(**values)


def threat_of(domain: Domain, **changes: Any) -> ThreatModel:
    values: dict[str, Any] = {
        "name": "test",
        "norm": "l2",
        "eps": 1.0,
        "domain": domain,
        "knowledge": "black-box",
        "budget": 10,
        **changes,
    }
    return ThreatModel(**values)


def tied(width: int = 6) -> Domain:
    """The first feature is the sum of the next two; the fifth (whole) is bound to the sixth."""
    matrix = np.zeros((2, width))
    matrix[0, :3] = 1.0, -1.0, -1.0
    matrix[1, 4:6] = 1.0, -2.0
    whole = np.arange(width) == 4
    return domain_of(
        width,
        low=np.zeros(width),
        high=np.where(whole, 9.0, 5.0),
        integral=whole,
        relations=Relations(matrix, np.zeros(2), np.full(2, 1e-9)),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"high": np.ones(3)}, r"high has shape \(3,\)"),
        ({"low": np.full(4, 2.0)}, "feature 0: low above high"),
        ({"low": np.array([0, np.nan, 0, 0])}, "feature 1: a bound is not a number"),
        (
            {"low": np.full(4, 0.2), "high": np.full(4, 0.8), "integral": np.ones(4, dtype=bool)},
            "feature 0: no whole number between its bounds",
        ),
        ({"groups": (np.array([0, 4]),)}, "group 0 is not a list of columns 0 to 3"),
        ({"groups": (np.array([0, 1]), np.array([1, 2]))}, "group 1: a column is in two groups"),
        ({"groups": (np.array([0, 0]),)}, "group 0: a column is in two groups, or twice in one"),
        ({"high": np.full(4, 0.5), "groups": (np.array([0, 1]),)}, "one-hot columns must allow 0 and 1"),
        ({"relations": Relations(np.ones((1, 3)), np.zeros(1), np.zeros(1))}, "relations of 3 features, not 4"),
    ],
)
def test_a_domain_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ThreatModelError, match=message):
        domain_of(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l3"}, "norm is 'l3'; it is one of l0, l1, l2, linf"),
        ({"knowledge": "grey"}, "knowledge is 'grey'"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": np.nan}, "eps is nan"),
        ({"norm": "l0", "eps": 1.5}, "under l0 it is a whole number"),
        ({"budget": -1}, "budget is -1"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"goal": -1}, "goal is -1"),
        ({"goal": "some"}, "goal is 'some'"),
        ({"domain": domain_of(mutable=np.zeros(4, dtype=bool))}, "no feature can be changed"),
        ({"scale": np.ones(3)}, "one positive number for each of 4 features"),
        ({"scale": np.zeros(4)}, "one positive number for each of 4 features"),
    ],
)
def test_a_threat_model_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ThreatModelError, match=f"threat model 'test': .*{message}"):
        threat_of(**{"domain": domain_of(), **changes})


def test_a_domain_says_what_is_wrong_with_a_row() -> None:
    domain = domain_of(5, integral=np.arange(5) == 1, high=np.array([1, 9, 1, 1, 1.0]), groups=(np.array([3, 4]),))
    good = np.array([[0.5, 3, 0.5, 1, 0]])
    assert domain.complaint(good) is None
    for place, value, message in (
        (0, 1.5, "feature 0 is 1.5; it lies in 0.0 to 1.0"),
        (1, 2.5, "feature 1 is 2.5; it lies in 0.0 to 9.0 and is a whole number"),
        (4, 0.5, "feature 4 is 0.5; it lies in 0.0 to 1.0 and is 0 or 1"),
        (4, 1.0, "one-hot group 0 has 2 ones; it has one"),
        (2, np.nan, "feature 2 is nan"),
    ):
        bad = np.concatenate([good, good])
        bad[1, place] = value
        assert domain.holds(bad).tolist() == [True, False]
        assert f"row 1: {message}" in str(domain.complaint(bad))
    assert "row 0: relation 0 is missed by 1" in str(tied().complaint(np.array([[4.0, 1, 2, 0, 2, 1]])))


def test_a_group_with_an_immutable_column_is_immutable() -> None:
    domain = domain_of(groups=(np.array([0, 1]), np.array([2, 3])), mutable=np.array([True, False, True, True]))
    assert domain.movable.tolist() == [False, False, True, True]


def test_constant_features_and_lone_categories_are_not_movable() -> None:
    domain = domain_of(low=np.array([0, 1, 0, 0.0]), groups=(np.array([3]),))
    assert domain.movable.tolist() == [True, False, True, False]


def test_features_that_no_other_can_mend_are_not_movable() -> None:
    matrix = np.array([[1.0, -1.0, 0, 0]])
    relations = Relations(matrix, np.zeros(1), np.full(1, 1e-9))
    domain = domain_of(integral=np.array([True, True, False, False]), relations=relations)
    assert domain.movable.tolist() == [False, False, True, True]


def test_one_step_takes_what_follows_with_it() -> None:
    domain = tied()
    x = np.array([[3.0, 1, 2, 0, 2, 1]])
    assert domain.relations is not None
    for column in range(3):
        moved = domain.moved(x, np.array([column]), np.array([0.5]))
        assert domain.relations.hold(moved).all()
        assert np.count_nonzero(moved != x) in (0, 2)
    up = domain.moved(x, np.array([4]), np.array([0.1]))
    assert up[0, 4:].tolist() == [3, 1.5]


def test_moves_of_categories_pass_the_one_on() -> None:
    domain = domain_of(groups=(np.array([3, 1, 0]),))
    x = np.array([[0, 1, 0.5, 0], [1, 0, 0.5, 0], [0, 0, 0.5, 1]], dtype=float)
    taken = domain.moved(x, np.array([3, 3, 3]), np.array([0.1, -1, 1]))
    assert taken[:, [3, 1, 0]].tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert (taken[:, 2] == 0.5).all()


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
def test_shrinking_gives_the_nearest_point_of_the_ball(norm: Norm, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    delta = rng.normal(0, 2, (5, 7)) * (rng.random((5, 7)) < 0.7)
    radius = rng.integers(1, 5, 5).astype(float) if norm == "l0" else rng.uniform(0.1, 4, 5)
    inside = shrink(norm, delta, radius)
    assert (lengths(norm, inside) <= radius * (1 + 1e-12) + 1e-12).all()
    assert (np.abs(inside) <= np.abs(delta) + 1e-12).all()
    assert (inside * delta >= 0).all()
    kept = lengths(norm, delta) <= radius
    assert np.allclose(inside[kept], delta[kept])
    distance = ((inside - delta) ** 2).sum(axis=1)
    for _ in range(20):
        other = shrink(norm, delta + rng.normal(0, 1, delta.shape), radius)
        assert (distance <= ((other - delta) ** 2).sum(axis=1) + 1e-9).all()


def random_domain(rng: np.random.Generator, with_relations: bool) -> Domain:
    width = 12
    low, high = np.full(width, -3.0), np.full(width, 6.0)
    low[8:], high[8:] = 0.0, 1.0
    integral = (np.arange(width) < 8) & (rng.random(width) < 0.3)
    mutable = rng.random(width) < 0.85
    mutable[0], integral[0] = True, False
    relations = None
    if with_relations:
        matrix = rng.integers(-2, 3, (2, width)) * (rng.random((2, width)) < 0.4)
        matrix[0, :2] = 1.0, -1.0
        relations = Relations(matrix, np.zeros(2), np.full(2, 1e9))
    return Domain(low, high, integral, mutable, (np.array([8, 9, 10]),), relations)


def legal_rows(domain: Domain, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    x = rng.uniform(domain.low, domain.high, (n, domain.width))
    x = np.where(domain.integral, np.rint(x), x)
    x[:, [8, 9, 10]] = np.eye(3)[rng.integers(0, 3, n)]
    return x


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), with_relations=st.booleans())
def test_projection_is_admitted_and_repeats_itself(norm: Norm, seed: int, with_relations: bool) -> None:
    rng = np.random.default_rng(seed)
    domain = random_domain(rng, with_relations)
    x = legal_rows(domain, rng, 6)
    scale = rng.uniform(0.2, 4, domain.width) if rng.random() < 0.5 else None
    eps = float(rng.integers(1, 8)) if norm == "l0" else float(rng.uniform(0.05, 8))
    threat = threat_of(domain, norm=norm, eps=eps, scale=scale)
    wanted = x + rng.normal(0, 10.0 ** rng.uniform(-2, 2), x.shape)
    inside = threat.project(x, wanted)
    assert threat.admits(x, inside).all()
    if domain.relations is not None:
        drift = (inside - x) @ domain.relations.matrix.T
        assert np.abs(drift).max() < 1e-9
    assert threat.admits(x, threat.project(x, inside)).all()
    assert np.array_equal(threat.project(x, x), x)
    assert not threat.admits(x, np.where(domain.movable, inside, inside + 0.25)).any() or domain.movable.all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), with_relations=st.booleans())
def test_every_way_to_change_a_row_keeps_the_domain(seed: int, with_relations: bool) -> None:
    rng = np.random.default_rng(seed)
    domain = random_domain(rng, with_relations)
    x = legal_rows(domain, rng, 6)
    columns = rng.choice(np.flatnonzero(domain.movable), 6)
    wanted = x + rng.normal(0, 5, x.shape)
    for changed in (
        domain.repair(x, wanted),
        domain.repair(x, wanted, inwards=True),
        domain.wander(x, wanted, rng),
        domain.moved(x, columns, rng.normal(0, 3, 6)),
        domain.sample(x, rng, 0.5),
    ):
        assert domain.holds(changed).all()
        assert ((changed == x) | domain.movable).all()
        if domain.relations is not None:
            assert np.abs((changed - x) @ domain.relations.matrix.T).max() < 1e-9


def test_rounding_inwards_moves_nothing_away_from_the_start() -> None:
    domain = domain_of(3, high=np.full(3, 9.0), integral=np.ones(3, dtype=bool))
    x = np.full((1, 3), 4.0)
    moved = domain.repair(x, np.array([[5.9, 2.2, 4.4]]), inwards=True)
    assert moved.tolist() == [[5, 3, 4]]


def test_random_rounding_is_right_in_the_mean() -> None:
    domain = domain_of(2, high=np.full(2, 9.0), integral=np.ones(2, dtype=bool))
    x = np.full((4000, 2), 4.0)
    wandered = domain.wander(x, np.tile([4.3, 7.9], (4000, 1)), np.random.default_rng(0))
    assert np.allclose(wandered.mean(axis=0), [4.3, 7.9], atol=0.03)


def test_the_largest_wish_for_a_category_wins_while_the_radius_lasts() -> None:
    domain = domain_of(6, groups=(np.array([0, 1]), np.array([2, 3])))
    x = np.array([[1, 0, 1, 0, 0.5, 0.5]])
    wanted = np.array([[0.2, 0.6, 0.0, 1.0, 0.9, 0.9]])
    threat = threat_of(domain, norm="l0", eps=3)
    assert threat.project(x, wanted).tolist() == [[1, 0, 0, 1, 0.9, 0.5]]


def test_immutable_features_and_far_rows_are_not_admitted() -> None:
    threat = threat_of(domain_of(mutable=np.array([False, True, True, True])), eps=0.5)
    x = np.full((3, 4), 0.5)
    moved = x.copy()
    moved[0, 0], moved[1, 1], moved[2, 1:] = 0.6, 0.9, 0.9
    assert threat.admits(x, moved).tolist() == [False, True, False]


def test_goals() -> None:
    labels, y = np.array([0, 1, 2]), np.array([0, 0, 0])
    assert threat_of(domain_of()).reached(labels, y).tolist() == [False, True, True]
    assert threat_of(domain_of(), goal=2).reached(labels, y).tolist() == [False, False, True]


def test_relations_are_learned_and_only_real_ones() -> None:
    rng = np.random.default_rng(0)
    rows = rng.lognormal(0, 1, (400, 8))
    rows[:, 5] = rows[:, 0] + rows[:, 1]
    rows[:, 6] = 3 * rows[:, 2] - 10
    rows[:, 7] = 4.0
    learned = learn_relations(rows)
    assert learned is not None
    assert len(learned) == 2
    assert learned.hold(rows).all()
    fresh = rng.lognormal(0, 1, (50, 8))
    fresh[:, 5], fresh[:, 6], fresh[:, 7] = fresh[:, 0] + fresh[:, 1], 3 * fresh[:, 2] - 10, 4.0
    assert learned.hold(fresh).all()
    fresh[:, 5] += 0.01
    assert not learned.hold(fresh).any()
    assert learn_relations(rng.normal(0, 1, (100, 6))) is None


def test_one_hot_groups_are_no_relation() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, (100, 2)), np.eye(3)[rng.integers(0, 3, 100)]], axis=1)
    assert learn_relations(rows) is not None
    assert learn_relations(rows, (np.array([2, 3, 4]),)) is None


def test_too_few_rows_teach_no_relation() -> None:
    with pytest.raises(ThreatModelError, match="at least twice as many rows as features"):
        learn_relations(np.zeros((10, 6)))


def test_projection_holds_where_features_are_much_larger_than_the_radius() -> None:
    """Rounding of large values must not put a row beyond the radius."""
    rng = np.random.default_rng(117)
    size = np.array([1e8, 1e7, 1.0, 1e-3])
    domain = Domain(-2 * size, 2 * size, np.zeros(4, np.bool_), np.ones(4, np.bool_))
    x0 = rng.uniform(-1, 1, (200, 4)) * size
    for norm in ("l1", "l2", "linf"):
        threat = ThreatModel("t", norm, 0.17, domain, "white-box", 0)
        x = x0 + rng.standard_normal(x0.shape) * size
        projected = threat.project(x0, x)
        assert threat.admits(x0, projected).all(), norm
        assert (projected != x0).any(axis=1).all()


def test_linked_features_end_inside_their_ranges() -> None:
    """total = part + part, with ranges that rows touch: going part of the way never leaves a range by rounding."""
    rng = np.random.default_rng(15)
    rows = rng.uniform(-1, 1, (400, 3)) / 3
    rows[:, 0] = rows[:, 1] + rows[:, 2]
    relations = learn_relations(rows)
    assert relations is not None
    low, high = rows.min(axis=0), rows.max(axis=0)
    domain = Domain(low, high, np.zeros(3, np.bool_), np.ones(3, np.bool_), (), relations)
    for norm, eps in (("l1", 0.3), ("l2", 0.3), ("linf", 0.2)):
        threat = ThreatModel("t", norm, eps, domain, "white-box", 0)
        for size in (0.1, 1.0, 10.0, 1e6):
            projected = threat.project(rows, rows + rng.standard_normal(rows.shape) * size)
            assert threat.admits(rows, projected).all(), (norm, size)
