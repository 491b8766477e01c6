"""`vedette harden`: mitigations are measured on rows that nothing learned from, and those that fail are called so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams import config
from streams.cli import invoke
from streams.hardening import command
from streams.hardening.measure import CARRIED_OVER, Effect, Trial, measure
from streams.redteam import subject
from streams.redteam.command import bounded, read
from streams.redteam.intervals import change
from tests.streams.redteam import conftest

little = conftest.little

MODULE = """
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier

mlp = MLPClassifier((16,), max_iter=60, learning_rate_init=0.02, random_state=0)
forest = RandomForestClassifier(8, random_state=0)


class Stopped(MLPClassifier):
    def _backprop(self, *arguments):
        raise KeyboardInterrupt


stopped = Stopped((16,), random_state=0)


def fitted():
    raise RuntimeError("out of glue")
"""


@pytest.fixture
def estimators(little: conftest.Little) -> Iterator[conftest.Little]:
    import sys

    Path("estimators.py").write_text(MODULE)
    yield little
    sys.modules.pop("estimators", None)


def run(*more: str, model: str = "estimators:mlp") -> int:
    base = ["harden", "--model", model, "--data", "little.npz", "--schema", "little.json", "--out", "out"]
    base += ["--threat", "image-linf-white-box", "--eps", "0.08", "--rows", "40", "--budget", "60", "--members", "2"]
    return invoke([*base, *more])


def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/hardening.json").read_text())
    return found


def test_ctrl_c_while_a_network_learns_ends_it(estimators: conftest.Little) -> None:
    assert run(model="estimators:stopped") == 130
    assert not any(Path("out").iterdir())


def test_each_mitigation_is_measured_before_and_after_and_saved(
    estimators: conftest.Little, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == told()
    assert list(found["after"]) == list(command.MITIGATIONS)
    assert found["attacks"] == ["hop_skip_jump", "pgd", "square"]
    assert (found["learned"], found["held_out"], found["attacked"]) == (107, 53, 40)
    for one in (found["before"], *found["after"].values()):
        assert one["robust_accuracy"]["n"] == 40
        assert one["clean_accuracy"]["n"] == 53
        assert one["robust_accuracy"]["hits"] <= min(share["hits"] for share in one["attacks"].values())
        assert one["latency_ms"]["one_row"] > 0
    for name, one in found["after"].items():
        assert CARRIED_OVER in one["attacks"]
        moved = one["robust_accuracy"]["value"] - found["before"]["robust_accuracy"]["value"]
        assert one["robust_change"]["value"] == pytest.approx(moved, abs=1e-5)
        assert one["robust_change"]["low"] <= moved + 1e-5
        path = Path(found["saved"][name]["path"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == found["saved"][name]["sha256"]


def test_saved_models_answer_as_they_were_measured(estimators: conftest.Little) -> None:
    assert run("--only", "adversarial-training,preprocessing") == 0
    found = told()
    known = read("little.npz", "little.json", None)
    threat = bounded("t", config.threat(None, "image-linf-white-box"), known, 0.08, 60)
    trial = command.prepare(known, None, threat, 40, 0).trial
    for name in ("before", "adversarial-training", "preprocessing"):
        model = subject.load(f"out/{name}.joblib", trust_pickle=True).model
        right = np.argmax(model.predict(trial.inputs), axis=1) == trial.truth
        one = found["before"] if name == "before" else found["after"][name]
        assert int(right.sum()) == one["clean_accuracy"]["hits"]
    layers = subject.load("out/adversarial-training.npz").model
    pickled = subject.load("out/adversarial-training.joblib", trust_pickle=True).model
    assert np.allclose(layers.predict(trial.inputs), pickled.predict(trial.inputs))
    assert not Path("out/preprocessing.npz").exists()


def test_nothing_learns_from_held_out_rows(estimators: conftest.Little) -> None:
    known = read("little.npz", "little.json", None)
    threat = bounded("t", config.threat(None, "image-linf-white-box"), known)
    task = command.prepare(known, None, threat, 40, 5)
    learned = {row.tobytes() for row in task.inputs}
    held = {row.tobytes() for row in task.trial.inputs}
    assert not learned & held
    assert len(learned) + len(held) == 160
    shares = [float((part == 1).mean()) for part in (task.truth, task.trial.truth)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_a_mitigation_that_does_nothing_is_said_not_to_help(
    estimators: conftest.Little, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--only", "ensemble", "--attacks", "square", model="estimators:forest") == 0
    found = told()
    assert not found["after"]["ensemble"]["helped"]
    said = capsys.readouterr().out
    assert "ensemble did not help: robust accuracy" in said
    assert "nothing is recommended" in said
    assert found["recommended"] is None
    assert not Path("out/model.joblib").exists()


def test_verdicts_name_gain_harm_and_price() -> None:
    some, most = np.repeat([True, False], [20, 80]), np.repeat([True, False], [80, 20])
    same = change(most, most)
    assert Effect(same, change(some, most)).sentence(0.02).startswith("helped: robust accuracy +60.0 points (")
    assert Effect(same, change(most, some)).sentence(0.02).startswith("made it worse: robust accuracy -60.0")
    assert Effect(same, same).sentence(0.02).startswith("did not help: robust accuracy +0.0")
    assert "at a price: accuracy -60.0 points" in Effect(change(most, some), change(some, most)).sentence(0.02)


def test_what_fooled_the_model_before_is_tried_on_the_next(estimators: conftest.Little) -> None:
    known = read("little.npz", "little.json", None)
    threat = bounded("t", config.threat(None, "image-linf-white-box"), known, 0.08, 60)
    trial: Trial = command.prepare(known, None, threat, 40, 0).trial
    fitted = subject.load_estimator("little:model")
    first = measure(fitted, trial)
    again = measure(fitted, trial, first)
    assert np.array_equal(again.withstood[CARRIED_OVER], first.robust)


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--model", "little:scores"], 2, "no estimator that can be fitted"),
        (["--model", "http://127.0.0.1:1/v2/models/m"], 2, "no estimator that can be fitted"),
        (["--model", "estimators:fitted"], 22, "estimators:fitted failed: RuntimeError: out of glue"),
        (["--only", "prayer"], 2, "--only: no mitigation is called 'prayer'; there are adversarial-training"),
        (["--attacks", "prayer"], 2, "no attack"),
        (["--only", ","], 2, "--only: names no mitigation"),
        (["--attacks", ","], 2, "--attacks: names no attack"),
        (["--test", "gone.npz"], 2, "--test: gone.npz: no such file"),
        (["--test", "narrow.npz", "--schema", "little.json"], 2, "rows have 3 features, the schema has 6"),
        (["--out", "little.npz"], 2, "--out: little.npz is a file"),
        (["--out", "."], 2, "--out: . holds other files"),
        (["--threat", "nothing"], 2, "no threat model 'nothing'"),
    ],
)
def test_bad_input_is_one_sentence_with_its_exit_code(
    estimators: conftest.Little, capsys: pytest.CaptureFixture[str], more: list[str], code: int, sentence: str
) -> None:
    with Path("narrow.npz").open("wb") as out:
        np.savez(out, inputs=estimators.inputs[:, :3], labels=estimators.truth)
    assert run(*more) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vedette: ")]
    assert len(said) == 1
    assert sentence in said[0]


def test_a_threat_model_without_a_bound_is_refused(
    estimators: conftest.Little, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("vedette.toml").write_text(
        '[[models]]\nname = "m"\ntopic = "t"\nbundle = "b"\n[threats.far]\nnorm = "l2"\nknowledge = "white-box"\n'
    )
    base = ["harden", "--model", "estimators:mlp", "--data", "little.npz", "--out", "out", "--threat", "far"]
    assert invoke(base) == 2
    assert "--threat: far has no bound on the distance; pass --eps" in capsys.readouterr().err
