from __future__ import annotations

import numpy as np
import pytest

from detectors.schema import Feature, FeatureSchema
from streams import config, threats
from streams.config import ThreatSettings
from streams.errors import ConfigError

SCHEMA = FeatureSchema(
    (
        Feature("age", integral=True),
        Feature("income"),
        Feature("income_debt"),
        Feature("country_a", 0, 1, group="country"),
        Feature("country_b", 0, 1, group="country"),
        Feature("id", mutable=False),
    ),
    ("good", "bad"),
)


def rows(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    income = rng.uniform(1, 9, n)
    country = rng.integers(0, 2, n)
    x = np.column_stack([rng.integers(18, 80, n), income, 2 * income, country, 1 - country, np.arange(n)])
    return x.astype(np.float64), (income > 5).astype(np.int64)


@pytest.mark.parametrize("name", sorted(config.THREATS))
def test_every_shipped_threat_model_fits_a_table(name: str) -> None:
    x, y = rows()
    made = threats.model(name, config.threat(None, name), SCHEMA, x, y)
    assert made.name == name
    assert made.domain.holds(x).all()
    assert not made.domain.movable[5]


def test_bounds_come_from_the_schema_and_else_from_the_rows() -> None:
    x, y = rows()
    made = threats.model("t", ThreatSettings(eps=0.1, scale="range"), SCHEMA, x, y)
    assert made.domain.low[0] == x[:, 0].min()
    assert made.domain.high[3] == 1.0
    assert np.array_equal(made.unit[:3], np.ptp(x[:, :3], axis=0))
    loose = threats.model("t", ThreatSettings(eps=0.1, bounds="schema"), SCHEMA, x, y)
    assert np.isinf(loose.domain.high[0])


def test_names_of_features_decide_what_can_change() -> None:
    x, y = rows()
    declared = ThreatSettings(eps=1.0, mutable=("income*", "age", "id"), immutable=("*_debt",))
    made = threats.model("t", declared, SCHEMA, x, y)
    assert made.domain.mutable.tolist() == [True, True, False, False, False, False]


def test_relations_of_the_rows_hold_for_crafted_ones() -> None:
    x, y = rows()
    made = threats.model("t", ThreatSettings(eps=0.5, relations=True), SCHEMA, x, y)
    moved = x.copy()
    moved[:, 1] = np.clip(moved[:, 1] + 0.2, 1.0, 8.0)
    back = made.project(x, moved)
    assert made.domain.holds(back).all()
    assert np.allclose(back[:, 2], 2 * back[:, 1])


def test_a_distance_quantile_is_half_the_way_to_another_class() -> None:
    x = np.array([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0], [10.0, 0.0]])
    y = np.array([0, 0, 1, 1])
    schema = FeatureSchema((Feature("a"), Feature("b")), ("0", "1"))
    made = threats.model("t", ThreatSettings(norm="l2", eps_quantile=0.5, bounds="schema"), schema, x, y)
    assert made.eps == pytest.approx(np.median([4.0, 3.0, 3.0, 9.0]) / 2)


@pytest.mark.parametrize(("goal", "wanted"), [("any", "any"), ("bad", 1), (0, 0)])
def test_goals_are_classes_by_name_or_number(goal: str | int, wanted: str | int) -> None:
    x, y = rows()
    assert threats.model("t", ThreatSettings(eps=1.0, goal=goal), SCHEMA, x, y).goal == wanted


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (ThreatSettings(eps=1.0, goal="ugly"), "threats.t.goal: no class 'ugly'; there are any, good, bad"),
        (ThreatSettings(eps=1.0, goal=2), "threats.t.goal: no class 2"),
        (ThreatSettings(eps=1.0, mutable=("wage",)), "threats.t.mutable: no feature is called 'wage'"),
        (ThreatSettings(eps=1.0, immutable=("*",)), "threats.t: .*no feature can be changed"),
        (ThreatSettings(eps_quantile=0.1), "threats.t.eps_quantile: needs rows of at least two classes"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused_in_a_sentence(declared: ThreatSettings, sentence: str) -> None:
    x, _ = rows()
    with pytest.raises(ConfigError, match=sentence):
        threats.model("t", declared, SCHEMA, x)
