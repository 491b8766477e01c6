"""Every registered detector of single rows keeps the contract; those of histories: test_history_detectors."""

from __future__ import annotations

import functools
import io
import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from detectors import registry
from detectors.contract import Batch, Detector, Reference
from detectors.errors import DetectorError, FitError, SchemaError
from detectors.schema import Feature, FeatureSchema
from detectors.view import BatchView, ReferenceFrame

ROWS = 700
KINDS = ("picture", "table")
#: Detectors that run as PyOD gives them: statistics that PyOD takes anew with each batch, a density, a machine of
#: libsvm, one that draws from numpy's global generator. They take milliseconds a row, so there are fewer rows.
UNCOMPILED = ["pyod.COPOD", "pyod.KDE", "pyod.OCSVM", "pyod.Sampling"]


def batch_of(inputs: NDArray[Any], labels: NDArray[Any]) -> Batch:
    n = len(inputs)
    return Batch(
        inputs=np.ascontiguousarray(inputs, dtype=np.float64),
        labels=np.ascontiguousarray(labels, dtype=np.int32),
        clients=np.arange(n, dtype=np.uint64),
        times=np.arange(n, dtype=np.int64),
        offsets=np.arange(n, dtype=np.int64),
        rows=np.zeros(n, dtype=np.int32),
    )


def picture_rows(n: int, rng: np.random.Generator) -> tuple[FeatureSchema, NDArray[np.float64], NDArray[np.int32]]:
    schema = FeatureSchema.image((6, 5), ["a", "b", "c", "d"])
    labels = rng.integers(0, 4, n).astype(np.int32)
    centres = np.random.default_rng(3).uniform(0.2, 0.8, (4, 30))
    inputs = np.clip(centres[labels] + rng.normal(0, 0.15, (n, 30)), 0, 1)
    inputs[:, 0] = 0.0
    return schema, inputs, labels


def table_rows(n: int, rng: np.random.Generator) -> tuple[FeatureSchema, NDArray[np.float64], NDArray[np.int32]]:
    schema = FeatureSchema(
        (
            Feature("income", 0.0),
            Feature("age", 18, 99, integral=True),
            Feature("rate", 0.0, 1.0),
            Feature("red", 0, 1, True, True, "colour"),
            Feature("green", 0, 1, True, True, "colour"),
            Feature("blue", 0, 1, True, True, "colour"),
        ),
        ("no", "yes"),
    )
    inputs = np.zeros((n, 6))
    inputs[:, 0] = rng.lognormal(10, 1, n)
    inputs[:, 1] = rng.integers(18, 100, n)
    inputs[:, 2] = rng.beta(2, 5, n)
    inputs[np.arange(n), 3 + rng.integers(0, 3, n)] = 1.0
    return schema, inputs, (inputs[:, 2] > 0.3).astype(np.int32)


def ledger_rows(n: int, rng: np.random.Generator) -> tuple[FeatureSchema, NDArray[np.float64], NDArray[np.int32]]:
    """Rows that keep relations which the schema does not state."""
    names = ("loan", "funded", "rate", "fee", "due", "paid", "left", "accounts", "rent", "own", "other")
    inputs = np.zeros((n, len(names)))
    inputs[:, 0] = np.rint(rng.lognormal(8, 1, n) / 25) * 25
    inputs[:, 1] = np.where(rng.random(n) < 0.6, inputs[:, 0], np.rint(inputs[:, 0] * rng.random(n) / 25) * 25)
    inputs[:, 2] = rng.uniform(0.05, 0.25, n)
    inputs[:, 3] = rng.gamma(2, 20, n)
    inputs[:, 4] = np.round(1.1 * inputs[:, 1] + inputs[:, 3], 2)
    inputs[:, 5] = inputs[:, 4] * rng.random(n)
    inputs[:, 6] = inputs[:, 4] - inputs[:, 5]
    inputs[:, 7] = rng.poisson(3, n)
    inputs[np.arange(n), 8 + rng.choice(3, n, p=[0.6, 0.39, 0.01])] = 1.0
    schema = FeatureSchema(tuple(Feature(name) for name in names), ("no", "yes"))
    return schema, inputs, (inputs[:, 2] > 0.15).astype(np.int32)


MAKERS = {"picture": picture_rows, "table": table_rows, "ledger": ledger_rows}
EMBEDDING_WIDTH = 5


def embeddings_of(labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.float64]:
    """A region for each class; some rows carry none."""
    found = np.random.default_rng(4).normal(0, 3, (4, EMBEDDING_WIDTH))[labels]
    found += rng.normal(size=found.shape)
    found[::11] = np.nan
    return found


@functools.cache
def watched(rows: str) -> RandomForestClassifier:
    """A model for detectors that read it."""
    _, inputs, labels = MAKERS[rows](ROWS, np.random.default_rng(1))
    return RandomForestClassifier(12, random_state=0).fit(inputs, labels)


class Case:
    """A fitted detector, its frame, and rows it has not seen."""

    def __init__(self, name: str, rows: str) -> None:
        plain, inputs, labels = MAKERS[rows](ROWS, np.random.default_rng(1))
        self.schema = replace(plain, embedding_width=EMBEDDING_WIDTH)
        self.reference = Reference(inputs, labels, embeddings=embeddings_of(labels, np.random.default_rng(6)))
        self.frame = ReferenceFrame.fit(self.reference, len(self.schema.classes), np.random.default_rng(2), size=200)
        self.name, self.rows = name, rows
        self.kind: Any = registry.kind(name)
        self.model = watched(rows)
        self.detector = self.fit(5)
        n = 60 if name in UNCOMPILED else 300
        _, fresh, fresh_labels = MAKERS[rows](n, np.random.default_rng(7))
        odd = fresh[5 * n // 6 :]
        odd += np.random.default_rng(8).normal(0, 2, odd.shape)
        odd[-1] = 1e300
        embeddings = embeddings_of(fresh_labels, np.random.default_rng(13))
        embeddings[-2] = 1e300
        fresh_labels[::3] = np.random.default_rng(9).integers(0, len(self.schema.classes), len(fresh_labels[::3]))
        outputs = np.random.default_rng(10).dirichlet(np.ones(len(self.schema.classes)), len(fresh))
        outputs[::7] = np.nan  # events without scores among others
        self.batch = replace(batch_of(fresh, fresh_labels), outputs=outputs, embeddings=embeddings)

    def fit(self, seed: int, reference: Reference | None = None) -> Detector:
        rows = self.reference if reference is None else reference
        made: Any = registry.made(self.name, self.model)
        fitted: Detector = made.fit(rows, self.schema, np.random.default_rng(seed))
        return fitted

    def score(self, batch: Batch) -> NDArray[np.float64]:
        return self.detector.score(BatchView(self.frame, batch))


ALONE = [name for name in registry.names() if not registry.remembers(name)]


CASES = [*((name, rows) for name in (*ALONE, *UNCOMPILED) for rows in KINDS), ("relations", "ledger")]
#: Rows of these hold no relation that the schema does not state: whatever comes, nothing was learned that it breaks.
SILENT = {("relations", "picture"), ("relations", "table")}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def test_is_a_detector_under_its_registered_name(case: Case) -> None:
    assert isinstance(case.detector, Detector)
    assert registry.kind(case.detector.name) is case.kind


def test_scores_are_finite_doubles_one_a_row(case: Case) -> None:
    scores = case.score(case.batch)
    assert scores.shape == (len(case.batch),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    if (case.name, case.rows) in SILENT:
        assert not scores.any()
    else:
        assert len(np.unique(scores)) > 1


def test_empty_batch_gives_no_scores(case: Case) -> None:
    assert case.score(case.batch.take(slice(0, 0))).shape == (0,)


def test_one_row_scores_as_in_company(case: Case) -> None:
    scores = case.score(case.batch)
    for row in (0, len(scores) // 2, len(scores) - 1):
        assert case.score(case.batch.take(slice(row, row + 1))).tobytes() == scores[row : row + 1].tobytes()


def test_scores_do_not_depend_on_cuts(case: Case) -> None:
    whole = case.score(case.batch).tobytes()
    rng = np.random.default_rng(11)
    for pieces in (2, 3, 5, 9, 17, 40):
        cuts = np.sort(rng.integers(0, len(case.batch) + 1, pieces))
        bounds = [0, *cuts.tolist(), len(case.batch)]
        parts = [case.score(case.batch.take(slice(a, b))) for a, b in itertools.pairwise(bounds)]
        assert np.concatenate(parts).tobytes() == whole


def test_scores_do_not_depend_on_order(case: Case) -> None:
    scores = case.score(case.batch)
    order = np.random.default_rng(12).permutation(len(case.batch))
    assert case.score(case.batch.take(order)).tobytes() == scores[order].tobytes()


def test_scores_do_not_depend_on_memory_layout(case: Case) -> None:
    scores = case.score(case.batch).tobytes()
    inputs, labels = np.asfortranarray(case.batch.inputs), case.batch.labels.copy()
    assert case.batch.embeddings is not None
    embeddings = np.asfortranarray(case.batch.embeddings)
    inputs.flags.writeable = labels.flags.writeable = embeddings.flags.writeable = False
    assert case.score(replace(case.batch, inputs=inputs, labels=labels, embeddings=embeddings)).tobytes() == scores


def test_score_leaves_batch_and_detector_alone(case: Case) -> None:
    batch = case.batch.take(slice(None))
    before = {name: array.tobytes() for name, array in case.detector.arrays().items()}
    case.score(batch)
    assert batch.embeddings is not None and case.batch.embeddings is not None
    assert batch.embeddings.tobytes() == case.batch.embeddings.tobytes()
    assert batch.inputs.tobytes() == case.batch.inputs.tobytes()
    assert {name: array.tobytes() for name, array in case.detector.arrays().items()} == before


def test_fit_is_a_function_of_rows_and_seed(case: Case) -> None:
    once, again = case.fit(5).arrays(), case.fit(5).arrays()
    assert once.keys() == again.keys()
    for name, array in once.items():
        assert array.tobytes() == again[name].tobytes(), name


def test_arrays_survive_a_file_without_pickling(case: Case) -> None:
    buffer = io.BytesIO()
    stored_arrays: dict[str, Any] = dict(case.detector.arrays())
    np.savez(buffer, **stored_arrays)
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as stored:
        arrays = dict(stored)
    for array in arrays.values():
        array.flags.writeable = False
    restored = case.kind.restore(arrays, case.schema)
    view = BatchView(case.frame, case.batch)
    assert restored.score(view).tobytes() == case.detector.score(view).tobytes()
    assert {n: (a.dtype, a.tobytes()) for n, a in restored.arrays().items()} == {
        n: (a.dtype, a.tobytes()) for n, a in case.detector.arrays().items()
    }


def test_explains_a_row_in_one_sentence(case: Case) -> None:
    view = BatchView(case.frame, case.batch)
    for row in (0, len(case.batch) - 1):
        sentence = case.detector.explain(view, row)
        assert len(sentence) > 20
        assert "\n" not in sentence
        assert "nan" not in sentence


def test_fit_refuses_rows_that_are_not_finite(case: Case) -> None:
    inputs = case.reference.inputs.copy()
    inputs[17, 2] = np.nan
    with pytest.raises(FitError, match="first row 17"):
        case.fit(0, replace(case.reference, inputs=inputs))


def test_class_without_reference_rows_is_scored(case: Case) -> None:
    seen = case.reference.labels != 1
    assert case.reference.embeddings is not None
    reference = Reference(
        case.reference.inputs[seen], case.reference.labels[seen], embeddings=case.reference.embeddings[seen]
    )
    classes = len(case.schema.classes)
    frame = ReferenceFrame.fit(reference, classes, np.random.default_rng(2), size=100)
    detector = case.fit(5, reference)
    scores = detector.score(BatchView(frame, case.batch))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_view_refuses_rows_that_are_not_finite(value: float) -> None:
    schema, inputs, labels = picture_rows(100, np.random.default_rng(0))
    frame = ReferenceFrame.fit(Reference(inputs, labels), len(schema.classes), np.random.default_rng(0))
    inputs[41, 7] = value
    with pytest.raises(SchemaError, match=f"row 41 of the batch: feature 7 is {value}"):
        BatchView(frame, batch_of(inputs, labels))


def test_view_refuses_wrong_labels_and_shapes() -> None:
    schema, inputs, labels = picture_rows(100, np.random.default_rng(0))
    frame = ReferenceFrame.fit(Reference(inputs, labels), len(schema.classes), np.random.default_rng(0))
    for wrong in (-1, 4):
        labels[3] = wrong
        with pytest.raises(SchemaError, match=f"row 3 of the batch: label {wrong}; labels are 0 to 3"):
            BatchView(frame, batch_of(inputs, labels))
    with pytest.raises(SchemaError, match=r"\(100, 29\).*needs \(n, 30\)"):
        BatchView(frame, batch_of(inputs[:, 1:], labels))


def test_unknown_detector_is_named_with_those_there_are() -> None:
    with pytest.raises(DetectorError, match=r"no detector is called 'nought'.*trust_ratio"):
        registry.kind("nought")


def test_scoring_loads_neither_scikit_learn_nor_pyod() -> None:
    program = """
import sys
import numpy as np
from detectors import kernels, registry
from detectors.contract import Batch, Reference
from detectors.view import BatchView, ReferenceFrame
kernels.warm_up()
rng = np.random.default_rng(0)
inputs, labels = rng.normal(size=(60, 3)), np.zeros(60, dtype=np.int32)
frame = ReferenceFrame.fit(Reference(inputs, labels), 2, rng)
wide = np.zeros(60, dtype=np.int64)
view = BatchView(frame, Batch(inputs, labels, wide.astype(np.uint64), wide, wide, labels))
registry.kind("trust_ratio")().score(view)
print(sorted({"sklearn", "pyod", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
