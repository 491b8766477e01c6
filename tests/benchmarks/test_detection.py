"""What the benchmark of single inputs counts, and what it counts on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import crafted, detection
from benchmarks.detection import (
    LEAD,
    LEAST_EXAMPLES,
    Cell,
    auroc,
    detected,
    lead_figures,
    scene_of,
    supervised,
    tables,
    tree_figures,
    wilson,
    worst,
)
from benchmarks.report import write_between


def test_ties_count_against_the_detector() -> None:
    benign = np.array([5.0, 5.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    crafted_scores = np.array([6.0, 5.0, 4.0, 1.0])
    assert detected(benign, crafted_scores, 0.0).tolist() == [True, False, False, False]
    assert detected(benign, crafted_scores, 0.1).tolist() == [True, False, False, False]
    assert detected(benign, crafted_scores, 0.2).tolist() == [True, True, True, False]
    for rate in (0.0, 0.1, 0.2, 0.3, 0.9):
        assert detected(benign, benign, rate).mean() <= rate


def test_interval_of_a_share_is_wilsons() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(9, 10)
    assert low == pytest.approx(0.5958, abs=1e-4)
    assert high == pytest.approx(0.9821, abs=1e-4)


def test_worst_case_leaves_out_small_cells_and_attacks_that_stand_beside() -> None:
    enough = LEAST_EXAMPLES
    cells = {
        ("t", "s", "pgd"): Cell((0.9,), ((enough - 2, enough),), ((0, enough),)),
        ("t", "s", "square"): Cell((0.5,), ((0, enough - 1),), ((0, enough - 1),)),
        ("t", "s", f"pgd, {crafted.KEPT}"): Cell((0.1,), ((0, enough),), ((0, enough),)),
        ("t", "other", "pgd"): Cell((0.1,), ((0, enough),), ((0, enough),)),
    }
    assert worst(cells, "t", "s", lambda cell: cell.tpr) == ((enough - 2) / enough, "pgd")
    assert worst(cells, "nowhere", "s", lambda cell: cell.tpr)[1] == "none"


def test_lead_over_single_detectors_is_by_attack_and_by_the_worst() -> None:
    enough = LEAST_EXAMPLES
    cells = {}
    for scheme, pgd, square in (("default", 10, 18), ("IForest", 15, 2), ("KNN", 0, 0), ("ECOD", 0, 0)):
        cells["t", scheme, "pgd"] = Cell((0.9,), ((pgd, enough),), ((0, enough),))
        cells["t", scheme, "square"] = Cell((0.9,), ((square, enough),), ((0, enough),))
    cells |= {
        ("t", "max-softmax", attack): Cell((0.9,), ((0, enough),), ((0, enough),)) for attack in ("pgd", "square")
    }
    values = {figure.name: figure.value for figure in lead_figures(cells)}
    assert values["t / default: least lead over IForest (TPR at 1 %)"] == pytest.approx(-5 / enough)
    assert values["t / default: mean lead over IForest (TPR at 1 %)"] == pytest.approx(5.5 / enough)
    assert values[LEAD] == pytest.approx(8 / enough)


def test_least_share_over_seeds_is_that_of_a_seed() -> None:
    cell = Cell((1.0, 1.0), ((30, 30), (24, 30)), ((0, 30), (0, 30)))
    assert cell.tpr == 0.9
    assert cell.least == 0.8


def test_deal_shares_no_row_and_repeats_itself() -> None:
    made, again = (crafted.task("digits", "logistic", 3) for _ in range(2))
    parts = [{row.tobytes() for row in part.x} for part in (made.train, made.tuning, made.report)]
    assert sum(len(part) for part in parts) == len(set.union(*parts))
    assert made.report.x.tobytes() == again.report.x.tobytes()
    assert made.report.outputs.tobytes() == again.report.outputs.tobytes()
    assert (made.report.labels == made.report.outputs.argmax(axis=1)).all()
    assert 0.9 < (made.report.labels == made.report.truth).mean() < 1.0


def test_examples_are_successful_and_within_their_radius() -> None:
    made = crafted.task("digits", "logistic", 3)
    chosen = {plan.name: plan for plan in crafted.plans(made)}
    starts = made.report.x[made.report.labels == made.report.truth][:12]
    truth = made.report.truth[made.report.labels == made.report.truth][:12]
    for name in ("pgd 0.2", "square 0.3", f"pgd 0.3, {crafted.KEPT}"):
        examples = crafted.craft(made, chosen[name], made.report, 12, 0)
        assert examples.starts == 12
        assert 0 < len(examples.x) <= 12
        for x, label in zip(examples.x, examples.labels, strict=True):
            away = np.abs(x - starts).max(axis=1)
            nearest = int(away.argmin())
            assert away[nearest] <= float(chosen[name].eps or 0.0) + 1e-9
            assert label != truth[nearest]
            if crafted.KEPT in name:
                assert (x[starts[nearest] == 0.0] == 0.0).all()


@pytest.mark.parametrize(("data", "kind"), [("cancer", "forest"), ("cancer", "boosting")])
def test_trees_are_asked_by_their_arrays(data: crafted.Data, kind: crafted.Kind) -> None:
    made = crafted.task(data, kind, 1)
    np.testing.assert_allclose(
        made.model.predict(made.report.x), made.model.estimator.predict_proba(made.report.x), atol=1e-12
    )


def test_supervised_detectors_learn_the_attack_from_tuning_rows() -> None:
    made = crafted.task("cancer", "forest", 1)
    plan = next(plan for plan in crafted.tree_plans(made) if plan.name == "square Linf 0.2")
    scene = scene_of(made, [plan], 20, 20, inquiries=False)
    found = supervised(scene, scene.cases[0])
    assert set(found) == {"supervised, leaves", "supervised, scores"}
    for benign, shown in found.values():
        assert (len(benign), len(shown)) == (len(made.report.x), len(scene.cases[0].examples.x))
        assert auroc(benign, shown) > 0.9


def test_gap_is_to_the_better_supervised_detector_and_empty_where_none_learned() -> None:
    def cell(area: float) -> Cell:
        return Cell((area,), ((30, 30),), ((0, 30),))

    shown = ("default", "extended", "IForest", "KNN", "ECOD", "max-softmax")
    cells = {("t", scheme, attack): cell(0.5) for scheme in shown for attack in ("a", "b")}
    cells |= {("t", "trees", "a"): cell(0.9), ("t", "trees", "b"): cell(0.9)}
    cells |= {("t", "OC-score", "a"): cell(0.8), ("t", "OC-score", "b"): cell(0.8)}
    cells |= {("t", "supervised, leaves", "a"): cell(0.85), ("t", "supervised, scores", "a"): cell(0.97)}
    values = {figure.name: figure.value for figure in tree_figures(cells)}
    assert values["t / trees: largest gap to the best supervised (AUROC)"] == pytest.approx(0.07)
    text = tables({}, cells)
    assert "| supervised, leaves | .850 (.850-.850) |  |" in text
    assert "| best supervised less trees | +.070 | none |" in text


def test_text_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n")
    write_between(page, "x", "new")
    assert page.read_text() == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="has no lines"):
        write_between(page, "y", "new")


def test_deals_are_kept_and_cells_are_made_of_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = detection.Settings(3, 2, of_trees=False)
    asked = []

    def deal(made: crafted.Task, attacks: list[crafted.Plan], settings: detection.Settings) -> detection.Deal:
        asked.append(made.seed)
        row = detection.Judged("default", attacks[0].name, 10, made.seed, 1, made.seed / 10)
        return detection.Deal(settings=settings, error=0.1, success={row.attack: 0.5}, judged=[row])

    monkeypatch.setattr(detection, "deal", deal)
    chosen = [("cancer", "logistic")]
    first, told, older = detection.measure(chosen, crafted.plans, range(3, 5), settings, tmp_path)
    assert (asked, older) == ([3, 4], [])
    ((key, cell),) = first.items()
    assert key[:2] == ("cancer logistic", "default")
    assert (cell.hits, cell.tiny, cell.aurocs) == (((3, 10), (4, 10)), ((1, 10), (1, 10)), (0.3, 0.4))
    assert told["cancer logistic"] == {"error": 0.1, "success": {key[2]: 0.5}}
    assert detection.measure(chosen, crafted.plans, range(3, 5), settings, tmp_path) == (first, told, [])
    assert asked == [3, 4]
    other = detection.Settings(4, 2, of_trees=False)
    with pytest.raises(SystemExit, match=r"single inputs\.json was measured with other settings"):
        detection.measure(chosen, crafted.plans, range(3, 4), other, tmp_path)
