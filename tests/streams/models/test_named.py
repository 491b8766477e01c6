"""Models by the names that settings and options give them; ONNX files in the forms that converters leave."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from streams.errors import ConfigError, EndpointError
from streams.events.batch import ProbeCandidate
from streams.models import named
from streams.models.contract import Model
from streams.models.marked import CLIENT, Marks
from streams.models.onnx import OnnxModel
from streams.probes.marks import HELLO, verify
from streams.redteam import subject
from tests.streams.models import graphs
from tests.streams.models.test_models import echo, endpoint

ROWS = np.random.default_rng(0).uniform(-1, 1, (9, 6))


@pytest.mark.parametrize("kind", [graphs.FLOAT, graphs.DOUBLE])
def test_a_file_answers_with_the_graphs_probabilities(tmp_path: Path, kind: int) -> None:
    model = named.load(graphs.flat(tmp_path / "m.onnx", kind), client="c")
    assert isinstance(model, OnnxModel)
    assert isinstance(model, Model)
    found = model.predict(np.asfortranarray(ROWS))
    assert found.dtype == np.float64
    assert np.allclose(found, graphs.expected(ROWS), atol=1e-6 if kind == graphs.FLOAT else 1e-14)


@pytest.mark.parametrize("sides", [[1, 2, 3], [2, 3], [2, 3, 1]])
def test_rows_of_one_channel_are_laid_out_as_the_graph_takes_them(tmp_path: Path, sides: list[int]) -> None:
    model = named.load(graphs.flat(tmp_path / "m.onnx", sides=sides), client="c")
    assert np.allclose(model.predict(ROWS), graphs.expected(ROWS))
    with pytest.raises(EndpointError, match=r"takes rows of 6 features, not an array of shape \(9, 5\)"):
        model.predict(ROWS[:, :5])


@pytest.mark.parametrize("zipmap", [False, True])
def test_labels_beside_probabilities_and_dicts_of_zipmap_are_read(tmp_path: Path, zipmap: bool) -> None:
    model = named.load(graphs.converted(tmp_path / "m.onnx", zipmap), client="c")
    assert np.allclose(model.predict(ROWS), graphs.expected(ROWS), atol=1e-6)


def test_dicts_by_the_names_of_classes_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = named.load(graphs.converted(tmp_path / "m.onnx", True, ["a", "b", "c"]), client="c")
    with pytest.raises(EndpointError, match=r"keys are \['a', 'b', 'c'\].*options=\{'zipmap': False\}"):
        model.predict(ROWS)


def test_of_several_outputs_that_of_probabilities_is_taken(tmp_path: Path) -> None:
    model = named.load(graphs.two_outputs(tmp_path / "m.onnx", "logits", "probabilities"), client="c")
    assert np.allclose(model.predict(ROWS), graphs.expected(ROWS))
    with pytest.raises(ConfigError, match=r"no single output of scores .* its outputs: a tensor\(double\) \['n', 3\]"):
        named.load(graphs.two_outputs(tmp_path / "m.onnx", "a", "b"), client="c")


def test_graphs_that_take_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for write, says in (
        (lambda: graphs.two_inputs(path), "takes no rows .* as one input .* its inputs: a tensor"),
        (lambda: graphs.flat(path, batch=4), "takes 4 rows at a time; export it with a free batch size"),
        (lambda: graphs.flat(path, sides=[3, 2, 2]), "in several ways; export it with rows"),
        (lambda: graphs.flat(path, sides=["h", 2]), "in several ways"),
    ):
        with pytest.raises(ConfigError, match=says):
            named.load(write(), option="models.m.escalation.model", client="c")


def test_files_that_are_no_graphs_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for name, says in (("bad.onnx", "bad.onnx cannot be read"), ("gone.onnx", "gone.onnx: no such file")):
        with pytest.raises(ConfigError, match=says) as refused:
            named.load(str(tmp_path / name), client="c")
        assert "\n" not in str(refused.value)


def test_without_the_runtime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = graphs.flat(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"need the extra onnx; pip install 'vedette\[onnx\]'"):
        named.load(spec, client="c")


def test_rows_that_the_graph_refuses_are_one_clear_error(tmp_path: Path) -> None:
    model = named.load(graphs.flat(tmp_path / "m.onnx", sides=["d"]), client="c")
    with pytest.raises(EndpointError, match=r"m\.onnx failed: ") as failed:
        model.predict(ROWS[:, :5])
    assert "\n" not in str(failed.value)


def test_the_red_team_takes_files_too(tmp_path: Path) -> None:
    found = subject.load(graphs.converted(tmp_path / "m.onnx", True))
    assert found.gradients is None
    assert np.allclose(found.model.predict(ROWS), graphs.expected(ROWS), atol=1e-6)


def test_estimators_functions_and_what_makes_them_are_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shelf.py").write_text(
        "import numpy as np\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "model = LogisticRegression().fit(np.eye(6), [0, 1, 2, 0, 1, 2])\n"
        "unfitted = LogisticRegression()\n"
        "def made():\n    return model\n"
        "def scores(rows):\n    return model.predict_proba(rows)\n"
    )
    try:
        answers = [named.load(f"shelf:{name}", client="c").predict(ROWS) for name in ("model", "made", "scores")]
        assert all(np.array_equal(answers[0], other) for other in answers[1:])
        for name, says in (("unfitted", "not fitted"), ("LogisticRegression", "is a class"), ("np", "neither")):
            with pytest.raises(ConfigError, match=says):
                named.load(f"shelf:{name}", client="c")
    finally:
        sys.modules.pop("shelf", None)


@pytest.mark.parametrize("spec", ["", "nothing", "http://h", "http://h/v2/models/", "no.such:f"])
def test_what_names_no_model_is_refused_under_its_option(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"^models\.m\.escalation\.model: "):
        named.load(spec, option="models.m.escalation.model", client="c")


def test_questions_to_an_endpoint_carry_a_mark_that_workers_know() -> None:
    key, now = bytes(range(32)), 1_700_000_000_000_000
    marks = Marks(key, "events")
    rows = np.random.default_rng(1).normal(size=(70, 4))
    with endpoint(echo) as (url, seen):
        model = named.load(f"{url}/v2/models/m", client=CLIENT, client_header="X-Who", request_id=marks)
        assert len(model.predict(rows)) == 70
    ids = [body["id"] for _, _, body, _ in seen]
    assert len(set(ids)) == 2
    assert {headers["X-Who"] for _, headers, _, _ in seen} == {CLIENT}
    for identity, part in zip(ids, (rows[:64], rows[64:]), strict=True):
        candidate = ProbeCandidate(offset=0, header=None, request_id=identity, client=CLIENT.encode(), payload=b"")
        mark = verify(candidate, "events", 3, now, 120_000_000, key, part)
        assert mark is not None
        assert mark.expired  # so it is excluded everywhere
        assert not mark.elsewhere
        assert verify(candidate, "others", 3, now, 120_000_000, key, part) is None


def test_marks_begin_another_campaign_before_their_numbers_run_out() -> None:
    marks = Marks(bytes(32), "events")
    marks._counter = HELLO
    first, second = marks(ROWS), marks(ROWS)
    assert first != second


def test_a_strangers_code_that_exits_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "leaving.py").write_text(
        "import sys\n"
        "def scores(rows):\n    sys.exit(3)\n"
        "def made():\n    sys.exit()\n"
        "class Estimator:\n    predict_proba = staticmethod(scores)\n"
        "class Plain:\n    predict = staticmethod(scores)\n"
        "class Broken:\n    def predict(self, rows):\n        raise RuntimeError('no')\n"
        "estimator, plain, broken = Estimator(), Plain(), Broken()\n"
    )
    (tmp_path / "gone.py").write_text("raise SystemExit(4)\n")
    try:
        for name in ("scores", "estimator", "plain", "broken"):
            model = named.load(f"leaving:{name}", client="c")
            with pytest.raises(EndpointError, match=f"leaving:{name} failed: (SystemExit: 3|RuntimeError: no)"):
                model.predict(ROWS)
        with pytest.raises(EndpointError, match="leaving:made failed: SystemExit"):
            named.load("leaving:made", client="c")
        with pytest.raises(ConfigError, match="--model: gone cannot be imported: SystemExit: 4"):
            named.load("gone:model", client="c")
    finally:
        sys.modules.pop("leaving", None)
