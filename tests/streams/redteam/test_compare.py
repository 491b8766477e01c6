from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.cli import invoke
from streams.errors import ConfigError
from streams.redteam.compare import compare
from streams.redteam.findings import FORMAT

N = 60


def outcome(right: np.ndarray, fooled: dict[str, list[int]], name: str = "m", **threat: Any) -> dict[str, Any]:
    """A report with as much as a comparison reads."""
    declared = {
        "name": "t", "norm": "linf", "eps": 0.1, "knowledge": "black-box", "budget": 100, "goal": "any",
        "scaled": False, "movable": 5, "relations": 0,
    }  # fmt: skip
    return {
        "format": FORMAT,
        "model": name,
        "threat": declared | threat,
        "attacks": [{"name": attack} for attack in fooled],
        "outcomes": {
            "digest": [f"{i:04x}" for i in range(len(right))],
            "counted": [True] * len(right),
            "right": right.tolist(),
            "fooled_by": fooled,
        },
    }


EVERY = np.ones(N, dtype=bool)
WEAK = outcome(EVERY, {"square": list(range(40)), "nes": list(range(20))}, "weak")
STRONG = outcome(EVERY, {"square": list(range(10)), "nes": list(range(20)), "pgd": list(range(60))}, "strong")


def test_who_is_more_robust_is_said_with_its_significance() -> None:
    found = compare(WEAK, STRONG)
    assert found["verdict"] == "more robust"
    assert compare(STRONG, WEAK)["verdict"] == "less robust"
    worst = found["robust_accuracy"]
    assert (worst["first"], worst["second"]) == (pytest.approx(20 / 60), pytest.approx(40 / 60))
    assert worst["change"]["gained"] == 20
    assert worst["change"]["p"] == pytest.approx(2 * 0.5**20)
    assert worst["change"]["low"] > 0


def test_attacks_that_only_one_report_has_do_not_count() -> None:
    found = compare(WEAK, STRONG)
    assert found["attacks"] == ["square", "nes"]
    assert found["only_in_one"] == ["pgd"]
    each = {one["name"]: one for one in found["each"]}
    assert each["square"]["verdict"] == "more robust"
    assert each["nes"]["verdict"] == "no significant difference"
    assert each["square"]["adjusted_p"] == pytest.approx(2 * each["square"]["p"])


def test_chance_is_called_chance() -> None:
    nearly = outcome(EVERY, {"square": list(range(2, 41)), "nes": list(range(20))})
    assert compare(WEAK, nearly)["verdict"] == "no significant difference"


def test_rows_are_matched_by_what_they_are() -> None:
    turned = outcome(EVERY, {"square": [N - 1 - i for i in range(40)], "nes": [N - 1 - i for i in range(20)]})
    turned["outcomes"]["digest"] = turned["outcomes"]["digest"][::-1]
    found = compare(WEAK, turned)
    assert (found["robust_accuracy"]["change"]["gained"], found["robust_accuracy"]["change"]["lost"]) == (0, 0)
    fewer = outcome(EVERY[:30], {"square": list(range(30)), "nes": []})
    assert compare(WEAK, fewer)["rows"] == 30


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (outcome(EVERY, {"square": []}, eps=0.2), "eps is 0.1 in the first, 0.2 in the second"),
        (outcome(EVERY, {"square": []}, budget=7), "budget is 100 in the first, 7 in the second"),
        (outcome(EVERY, {"simba": []}), "no attack is in both"),
        (outcome(EVERY[:0], {"square": []}), "no row is in both"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compare(WEAK, other)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, Any], str]:
    def write(name: str, report: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "report.json").write_text(report if isinstance(report, str) else json.dumps(report))
        return str(folder)

    return write


def test_the_command_reads_folders_and_prints_both_ways(
    written: Callable[[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = written("a", WEAK), written("b", STRONG)
    assert invoke(["redteam", "compare", a, b + "/report.json"]) == 0
    said = capsys.readouterr().out
    assert "more robust" in said
    assert "33.3% -> 66.7%: +33.3 points" in said
    assert invoke(["redteam", "compare", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "more robust"


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        ("{", "not a readable report"),
        ({"format": "x"}, "not a report of this version"),
        ({key: WEAK[key] for key in WEAK if key not in ("threat", "outcomes")}, "it lacks threat, outcomes"),
        (WEAK | {"threat": {"norm": "linf"}}, "it lacks threat.eps"),
    ],
)
def test_a_broken_report_is_one_sentence(
    written: Callable[[str, Any], str], capsys: pytest.CaptureFixture[str], report: Any, sentence: str
) -> None:
    a = written("a", WEAK)
    assert invoke(["redteam", "compare", a, written("b", report)]) == 2
    assert sentence in capsys.readouterr().err
    assert invoke(["redteam", "compare", a, a + "/gone"]) == 2
    assert "no report" in capsys.readouterr().err
