"""Whoever reads a detector learns where it comes from and what it cannot see."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import pytest

from detectors import registry
from detectors.inputs.outliers.uncompiled import Uncompiled
from detectors.kernels import lines
from detectors.queries import feedback, intent, walk
from detectors.responses.feature_squeezing import FeatureSqueezing
from detectors.responses.noise_stability import NoiseStability

OWN = "Vedette's own method"
#: A section that names a paper by its year, or says that there is none.
REFERENCES = re.compile(rf"^References\n-+\n(?=(?:.|\n)*?(?:\b(?:19|20)\d\d\b|{OWN}))", re.MULTILINE)
BLIND = re.compile(r"^Blind to: \w[^.]{15,}", re.MULTILINE)

TOLD: dict[str, type[Any] | ModuleType] = {
    **{name: registry.kind(name) for name in registry.names()},
    "pyod.<class>": Uncompiled,
    "noise_stability": NoiseStability,
    "feature_squeezing": FeatureSqueezing,
    "intent test": intent.IntentTest,
    "cluster evidence and the index": walk,
    "feedback": feedback,
    "lines": lines,
}


@pytest.mark.parametrize("name", TOLD)
def test_docstring_gives_references_and_what_it_cannot_see(name: str) -> None:
    text = inspect.cleandoc(TOLD[name].__doc__ or "")
    assert REFERENCES.search(text), f"{name}: a section References, or the sentence that it is {OWN}"
    assert BLIND.search(text), f"{name}: a paragraph that begins with 'Blind to:'"


def test_detectors_of_pyod_inherit_what_is_told_of_them() -> None:
    assert registry.kind("pyod.KDE").__doc__ == Uncompiled.__doc__
