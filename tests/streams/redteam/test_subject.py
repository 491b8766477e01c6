"""The model under test in every form, and one sentence for what is none."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest

from attacks import gradients
from streams.errors import ConfigError, EndpointError
from streams.redteam import samples, subject
from tests.streams.redteam.conftest import Endpoint, Little


def test_a_url_is_asked_in_requests_of_bounded_size_under_a_name(endpoint: Endpoint, little: Little) -> None:
    found = subject.load(f"{endpoint.url}/v2/models/little%20one/infer", client="drill")
    scores = found.model.predict(little.inputs)
    assert np.array_equal(np.argmax(scores, axis=1), little.truth)
    assert {(path, client) for path, client, _ in endpoint.seen} == {("/v2/models/little%20one/infer", "drill")}
    assert [shape for _, _, shape in endpoint.seen] == [[64, 6], [64, 6], [32, 6]]
    assert found.gradients is None


@pytest.mark.parametrize("name", ["model", "made"])
def test_estimators_and_functions_that_make_them_have_gradients(little: Little, name: str) -> None:
    found = subject.load(f"little:{name}")
    assert found.gradients is not None
    assert np.allclose(found.gradients.predict(little.inputs), found.model.predict(little.inputs))
    assert found.trees is None


def test_trees_are_read_as_trees(little: Little) -> None:
    found = subject.load("little:tree")
    assert found.trees is not None
    assert found.gradients is None


def test_a_function_of_rows_only_answers(little: Little) -> None:
    found = subject.load("little:scores")
    assert found.model.predict(little.inputs).shape == (160, 2)
    assert found.gradients is None


def test_a_method_of_an_object_answers_too(little: Little) -> None:
    assert subject.load("little:model.predict_proba").model.predict(little.inputs).shape == (160, 2)


def test_pickles_are_read_only_when_they_are_trusted(little: Little) -> None:
    joblib.dump(samples.breast_cancer_forest(), "forest.joblib")
    with pytest.raises(ConfigError, match="--trust-pickle"):
        subject.load("forest.joblib")
    assert subject.load("forest.joblib", trust_pickle=True).trees is not None


def test_layers_come_back_from_an_npz_without_any_code(tmp_path: Path) -> None:
    network = gradients.adapt(samples.digits_mlp())
    subject.save_network(network, tmp_path / "layers.npz")
    rows = samples.digit_rows()[1][0][:9]
    found = subject.load(str(tmp_path / "layers.npz"))
    assert found.gradients is not None
    assert np.array_equal(found.model.predict(rows), network.predict(rows))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nothing", "'nothing' is not understood; it is a URL"),
        ("model.onnx", "model.onnx: no such file"),
        ("gone.joblib", "no such file"),
        ("gone.npz", "no such file"),
        ("http://127.0.0.1:1", "names no model; it reads http://HOST:PORT/v2/models/NAME"),
        ("http://127.0.0.1:1/v2/models/", "names no model"),
        ("http:///v2/models/m", "names no model"),
        ("http://[::1/v2/models/m", "Invalid IPv6 URL"),
        ("http://127.0.0.1:no/v2/models/m", "is no URL of a model"),
        ("nowhere:model", "No module named 'nowhere'"),
        ("little:gone", "has no attribute 'gone'"),
        ("little:unfitted", "LogisticRegression is not fitted"),
        ("little:unprepared", "Prepared is not fitted"),
        ("little:LogisticRegression", "is a class; name a fitted estimator"),
        ("little:inputs", "ndarray, which has neither predict_proba nor predict"),
        ("little.npz", "holds no layers weights_0, biases_0, ...; it has inputs, labels"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(little: Little, spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        subject.load(spec)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_damaged_pickle_is_refused(little: Little) -> None:
    Path("bad.pkl").write_bytes(b"no pickle")
    with pytest.raises(ConfigError, match=r"bad\.pkl cannot be read"):
        subject.load("bad.pkl", trust_pickle=True)


@pytest.mark.parametrize("name", ["broken", "unmade"])
def test_a_strangers_function_that_raises_is_one_sentence(little: Little, name: str) -> None:
    with pytest.raises(EndpointError, match=r"little:\w+ failed: RuntimeError: out of"):
        subject.load(f"little:{name}").model.predict(little.inputs)


@pytest.mark.parametrize(
    "spec", ["little:scores", "little:inputs", "little:LogisticRegression", "http://h/v2/models/m"]
)
def test_what_cannot_be_fitted_is_no_estimator(little: Little, spec: str) -> None:
    with pytest.raises(ConfigError, match="no estimator that can be fitted"):
        subject.load_estimator(spec)


@pytest.mark.parametrize("spec", ["little:unfitted", "little:made"])
def test_estimators_to_fit_need_not_be_fitted(little: Little, spec: str) -> None:
    assert hasattr(subject.load_estimator(spec), "fit")
