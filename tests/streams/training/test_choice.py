"""What `--detectors` and `--model` of `vedette fit` mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors import registry
from streams.errors import ConfigError
from streams.training.choice import detectors_of, model_of


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
