"""What `--detectors`, `--inquiries` and `--model` of `vedette fit` mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detectors import registry
from streams.config import parse
from streams.errors import ConfigError
from streams.training.choice import ask_of, detectors_of, inquiries_of, model_of
from tests.streams.models.test_models import echo, endpoint


def test_default_detectors_are_fitted_unless_others_are_named() -> None:
    assert detectors_of(None) == registry.DEFAULT
    assert detectors_of("trust_ratio, pyod.HBOS") == ("trust_ratio", "pyod.HBOS")
    assert detectors_of("trees") == registry.SETS["trees"]
    assert set(registry.DEFAULT) < set(detectors_of("extended"))
    assert detectors_of("+dknn,+pyod.KDE") == (*registry.DEFAULT, "dknn", "pyod.KDE")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("nought", r"--detectors: no detector is called 'nought'; there are .*trust_ratio.*pyod\.<class of PyOD>"),
        ("+dknn,trust_ratio", r"put '\+' before every name, or before none"),
        (" , ", "--detectors: no names; there are"),
        ("pyod.Nought", "--detectors: PyOD has no detector 'Nought'"),
    ],
)
def test_wrong_names_are_told(option: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        detectors_of(option)


def test_model_is_an_object_of_a_module_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vedette_choice_model.py").write_text("class Held:\n    forest = [1, 2]\nbroken = Held()\n")
    monkeypatch.chdir(tmp_path)
    assert model_of(None) is None
    assert model_of("vedette_choice_model:broken.forest") == [1, 2]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("model.pkl", "--model: 'model.pkl' is not MODULE:NAME"),
        (":forest", "is not MODULE:NAME"),
        ("vedette_no_such_module:forest", "vedette_no_such_module cannot be imported: ModuleNotFoundError"),
        ("math:forest", "--model: module 'math' has no attribute 'forest'"),
    ],
)
def test_model_that_is_not_there_is_told(option: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model_of(option)


def test_inquiries_are_named_beside_the_model_that_they_ask() -> None:
    assert inquiries_of(None, None) == ()
    assert inquiries_of(None, "scoring:forest") == ()
    assert inquiries_of("all", "m.onnx") == ("noise_stability", "feature_squeezing")
    assert inquiries_of("feature_squeezing", "http://h/v2/models/m") == ("feature_squeezing",)
    assert model_of("http://h/v2/models/m") is None
    assert model_of("m.onnx") is None


@pytest.mark.parametrize(
    ("option", "model", "complaint"),
    [
        ("all", None, "--inquiries ask the watched model; name it with --model: a URL"),
        ("noise", "m.onnx", "--inquiries: 'noise' is not `all`, or names of noise_stability, feature_squeezing"),
        (" , ", "m.onnx", "--inquiries: ' , ' is not `all`"),
        ("noise_stability,noise_stability", "m.onnx", "each once"),
        (None, "m.onnx", "--model: m.onnx: only inquiries ask an endpoint or a file; add --inquiries all"),
    ],
)
def test_inquiries_that_make_no_sense_are_told(option: str | None, model: str | None, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        inquiries_of(option, model)


def test_questions_of_a_fit_carry_marks_where_there_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse({"models": [{"name": "m", "topic": "events", "bundle": "b"}]}, "here")
    monkeypatch.setenv("VEDETTE_PROBE_KEY", "00" * 32)
    rows = np.random.default_rng(0).normal(size=(5, 4))
    with endpoint(echo) as (url, seen):
        for given in (settings, None):
            ask, notes = ask_of(f"{url}/v2/models/m", given, lambda: "events")
            assert ask(rows).shape == (5, 2)
            assert len(notes) == (given is None)
    assert seen[0][2]["id"].startswith("vp1.")
    assert "id" not in seen[1][2]
    assert ask_of("scipy.special:softmax", None, lambda: "events")[1] == ()


def test_a_module_that_exits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone.py").write_text("raise SystemExit(4)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--model: gone cannot be imported: SystemExit: 4"):
        model_of("gone:model")
