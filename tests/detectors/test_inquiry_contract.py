"""Every inquiry keeps the contract, and the escalation tier tells p-values that hold."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors import bundle
from detectors.calibration.report import FitReport
from detectors.contract import Reference
from detectors.ensemble import fit
from detectors.errors import BundleError, FitError, InquiryError
from detectors.manifest import read_manifest
from detectors.responses import escalation
from detectors.responses.contract import Ask, Inquiry
from detectors.responses.escalation import KINDS, Escalation
from detectors.schema import FeatureSchema
from detectors.scorer import INQUIRIES, Ensemble
from tests.detectors.test_detector_contract import MAKERS, batch_of

Rows = NDArray[np.float64]


@dataclass
class Softmax:
    """A model that answers every row the same to the bit in whatever company: it adds up feature by feature.

    Its smooth bend makes it no linear model in its log-odds. It counts what it is asked.
    """

    weights: Rows
    centre: Rows
    scale: Rows
    asked: list[int] = field(default_factory=list)

    def __call__(self, rows: Rows) -> Rows:
        assert rows.flags.c_contiguous
        assert rows.dtype == np.float64
        self.asked.append(len(rows))
        sums = np.zeros((len(rows), self.weights.shape[1]))
        for feature, weights in enumerate(self.weights):
            value = np.tanh((rows[:, feature, None] - self.centre[feature]) / self.scale[feature])
            sums += (value + value * value) * weights
        sums -= sums.max(axis=1, keepdims=True)
        powers = np.exp(sums)
        total = np.zeros((len(rows), 1))
        for label in range(powers.shape[1]):
            total += powers[:, label, None]
        return powers / total


class Case:
    def __init__(self, name: str, rows: str) -> None:
        self.schema, inputs, _ = MAKERS[rows](700, np.random.default_rng(1))
        shape = (self.schema.width, len(self.schema.classes))
        self.model = Softmax(
            np.random.default_rng(4).normal(size=shape), inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
        )
        self.reference = Reference(inputs, self.labels(inputs))
        self.kind = KINDS[name]
        self.inquiry = self.fit(5)
        _, self.fresh, _ = MAKERS[rows](150, np.random.default_rng(7))
        self.fresh[120:] += np.random.default_rng(8).normal(0, 2, self.fresh[120:].shape)
        self.fresh[149] = 1e300
        self.given = self.labels(self.fresh)
        self.given[::5] = 0  # labels that the model does not give now
        self.scores = self.inquiry.score(self.fresh, self.given, self.model)

    def labels(self, inputs: Rows) -> NDArray[np.int32]:
        return self.model(np.ascontiguousarray(inputs)).argmax(axis=1).astype(np.int32)

    def fit(self, seed: int) -> Inquiry:
        return self.kind().fit(self.reference, self.schema, self.model, np.random.default_rng(seed))


@pytest.fixture(scope="module", params=[(name, rows) for name in KINDS for rows in MAKERS], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def written(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays that went through a file, without pickling."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_is_an_inquiry_under_its_name(case: Case) -> None:
    assert isinstance(case.inquiry, Inquiry)
    assert KINDS[case.inquiry.name] is case.kind


def test_scores_are_finite_and_one_a_row(case: Case) -> None:
    assert case.scores.shape == (150,)
    assert case.scores.dtype == np.float64
    assert np.isfinite(case.scores).all()
    assert len(np.unique(case.scores)) > 50


def test_the_order_of_rows_does_not_matter(case: Case) -> None:
    order = np.random.default_rng(0).permutation(150)
    again = case.inquiry.score(case.fresh[order], case.given[order], case.model)
    assert again.tobytes() == case.scores[order].tobytes()


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda rows: np.repeat(rows, 2, axis=1)[:, ::2]])
def test_the_layout_of_rows_does_not_matter(case: Case, layout: Callable[[Rows], Rows]) -> None:
    assert case.inquiry.score(layout(case.fresh), case.given, case.model).tobytes() == case.scores.tobytes()
    assert case.inquiry.score(case.fresh, case.given.astype(np.int64), case.model).tobytes() == case.scores.tobytes()


def test_the_layout_of_answers_does_not_matter(case: Case) -> None:
    def fortran(rows: Rows) -> Rows:
        return np.asfortranarray(case.model(rows))

    assert case.inquiry.score(case.fresh, case.given, fortran).tobytes() == case.scores.tobytes()


def test_a_row_scores_the_same_alone_and_in_any_batch(case: Case) -> None:
    for row in (0, 5, 119, 120, 149):
        alone = case.inquiry.score(case.fresh[row : row + 1], case.given[row : row + 1], case.model)
        assert alone.tobytes() == case.scores[row : row + 1].tobytes()
    pieces = [case.inquiry.score(case.fresh[a:b], case.given[a:b], case.model) for a, b in ((0, 1), (1, 64), (64, 150))]
    assert np.concatenate(pieces).tobytes() == case.scores.tobytes()


def test_more_rows_than_a_block_score_as_they_do_in_one(case: Case) -> None:
    many = np.tile(case.fresh, (4, 1))
    found = case.inquiry.score(many, np.tile(case.given, 4), case.model)
    assert found.tobytes() == np.tile(case.scores, 4).tobytes()


def test_no_rows_have_no_scores_and_rows_stay_as_they_were(case: Case) -> None:
    assert case.inquiry.score(case.fresh[:0], case.given[:0], case.model).shape == (0,)
    before = case.fresh.copy()
    case.inquiry.score(case.fresh, case.given, case.model)
    assert case.fresh.tobytes() == before.tobytes()


def test_the_fit_is_deterministic_by_its_seed(case: Case) -> None:
    ours, again = case.inquiry.arrays(), case.fit(5).arrays()
    assert {name: array.tobytes() for name, array in ours.items()} == {n: a.tobytes() for n, a in again.items()}


def test_comes_back_from_its_arrays_equal_to_the_bit(case: Case) -> None:
    restored = case.kind.restore(written(case.inquiry.arrays()), case.schema)
    assert restored.questions == case.inquiry.questions
    assert restored.score(case.fresh, case.given, case.model).tobytes() == case.scores.tobytes()


@pytest.mark.parametrize("wrong", ["missing", "narrow", "float32", "nan"])
def test_arrays_that_do_not_fit_are_refused(case: Case, wrong: str) -> None:
    for name in case.inquiry.arrays():
        arrays = dict(case.inquiry.arrays())
        if wrong == "missing":
            del arrays[name]
        elif wrong == "narrow":
            arrays[name] = arrays[name][..., :-1]
        elif wrong == "float32":
            arrays[name] = arrays[name].astype(np.float32)
        else:
            arrays[name] = np.full_like(arrays[name], np.nan)
        with pytest.raises((KeyError, ValueError), match=name):
            case.kind.restore(arrays, case.schema)


def test_asks_no_more_often_than_it_says(case: Case) -> None:
    case.model.asked.clear()
    case.inquiry.score(case.fresh, case.given, case.model)
    assert sum(case.model.asked) <= len(case.fresh) * case.inquiry.questions
    case.model.asked.clear()
    case.inquiry.score(case.fresh[:1], case.given[:1], case.model)
    assert sum(case.model.asked) <= case.inquiry.questions


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x[:, :-1], y), r"have shape \(150, \d+\); the inquiry was fitted on"),
        (lambda x, y: (x[0], y), "have shape"),
        (lambda x, y: (x, y[:-1]), r"150 rows come with labels of shape \(149,\)"),
        (
            lambda x, y: (np.where(np.arange(150)[:, None] == 3, np.nan, x), y),
            "1 rows hold NaN or infinity, first row 3",
        ),
        (lambda x, y: (x, y - 1), "row 0 has label -1; labels are 0 to"),
        (lambda x, y: (x, y + 9), "row 0 has label 9"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_the_model_is_asked(case: Case, change: Any, says: str) -> None:
    case.model.asked.clear()
    with pytest.raises(InquiryError, match=says):
        case.inquiry.score(*change(case.fresh, case.given), case.model)
    assert not case.model.asked


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: p[:-1], "an inquiry needs one probability of each"),
        (lambda p: p[:, :1], "an inquiry needs one probability of each"),
        (lambda p: np.column_stack([p, p[:, 0] * 0]), "an inquiry needs one probability of each"),
        (lambda p: p.argmax(axis=1), "an inquiry needs one probability of each"),
        (lambda p: np.where(np.arange(len(p))[:, None] == 2, np.nan, p), "with NaN or infinity"),
        (lambda p: np.log(p), "no probabilities"),
        (lambda p: 2 * p, "no probabilities"),
        (lambda p: [["no", "yes"]] * len(p), "no array of numbers"),
    ],
)
def test_a_model_that_answers_otherwise_is_refused_at_score_and_fit(case: Case, spoil: Any, says: str) -> None:
    def ask(rows: Rows) -> Any:
        return spoil(case.model(rows))

    with pytest.raises(InquiryError, match=says):
        case.inquiry.score(case.fresh, case.given, ask)
    with pytest.raises(InquiryError, match=says):
        Escalation.fit(
            case.reference, case.schema, case.fresh[:140], case.labels(case.fresh[:140]), ask, np.random.default_rng(0)
        )


def test_what_the_model_raises_reaches_the_caller(case: Case) -> None:
    def away(_: Rows) -> Rows:
        raise ConnectionError("away")

    with pytest.raises(ConnectionError, match="away"):
        case.inquiry.score(case.fresh, case.given, away)


# --- calibrated -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tier:
    schema: FeatureSchema
    model: Ask
    reference: Reference
    benign: Rows
    labels: NDArray[np.int32]
    fitted: Escalation


@pytest.fixture(scope="module")
def tier() -> Tier:
    case = Case("feature_squeezing", "table")
    _, benign, _ = MAKERS["table"](600, np.random.default_rng(21))
    labels = case.labels(benign)
    fitted = Escalation.fit(case.reference, case.schema, benign, labels, case.model, np.random.default_rng(2))
    return Tier(case.schema, case.model, case.reference, benign, labels, fitted)


def test_a_p_value_counts_the_benign_rows_of_its_class_that_score_as_much(tier: Tier) -> None:
    assert tier.fitted.names == tuple(KINDS)
    _, fresh, _ = MAKERS["table"](80, np.random.default_rng(22))
    given = tier.model(fresh).argmax(axis=1).astype(np.int32)
    for answered, inquiry in zip(tier.fitted.judge(fresh, given, tier.model), tier.fitted.inquiries, strict=True):
        usual = inquiry.score(tier.benign, tier.labels, tier.model)
        assert np.array_equal(answered.scores, inquiry.score(fresh, given, tier.model))
        assert answered.questions == inquiry.questions
        for score, label, p, rows in zip(answered.scores, given, answered.pvalues, answered.rows, strict=True):
            own = usual[tier.labels == label]
            known = own if len(own) >= escalation.MIN_CLASS_ROWS else usual
            assert rows == len(known)
            assert p == pytest.approx((1 + np.count_nonzero(known >= score)) / (len(known) + 1), abs=1e-15)


def test_with_plenty_of_benign_rows_inquiries_are_fitted_on_those_that_do_not_calibrate_them(tier: Tier) -> None:
    _, benign, _ = MAKERS["table"](3_000, np.random.default_rng(31))
    benign[:, 0] = 1e6 + np.arange(3_000)  # far from the reference, and every row known by it
    given = tier.model(benign).argmax(axis=1).astype(np.int32)
    name = ("feature_squeezing",)
    fitted, sparing = (
        Escalation.fit(tier.reference, tier.schema, benign[:n], given[:n], tier.model, np.random.default_rng(5), name)
        for n in (3_000, 2_999)
    )
    low, high = (fitted.inquiries[0].arrays()[end][0] for end in ("low", "high"))
    assert 1e6 <= low < high < 1e6 + 3_000
    assert fitted.values.shape == (1, escalation.MAX_ROWS)
    assert sparing.inquiries[0].arrays()["high"][0] == tier.reference.inputs[:, 0].max() < low


def test_a_class_with_few_benign_rows_is_compared_with_all_classes(tier: Tier) -> None:
    most = int(np.bincount(tier.labels).argmax())
    few = np.concatenate([np.flatnonzero(tier.labels == most)[:150], np.flatnonzero(tier.labels != most)[:20]])
    fitted = Escalation.fit(
        tier.reference, tier.schema, tier.benign[few], tier.labels[few], tier.model, np.random.default_rng(2)
    )
    answered = fitted.judge(tier.benign, tier.labels, tier.model)[0]
    assert set(answered.rows[tier.labels == most]) == {150}
    assert set(answered.rows[tier.labels != most]) == {170}


def test_benign_rows_have_p_values_that_are_uniform_at_least(tier: Tier) -> None:
    _, fresh, _ = MAKERS["table"](800, np.random.default_rng(23))
    given = tier.model(fresh).argmax(axis=1).astype(np.int32)
    for answered in tier.fitted.judge(fresh, given, tier.model):
        for level in (0.02, 0.1, 0.5):
            assert np.mean(answered.pvalues <= level) <= level + 4 * np.sqrt(level * (1 - level) / 300)


def test_the_tier_is_deterministic_and_comes_back_from_its_arrays(tier: Tier) -> None:
    again = Escalation.fit(
        tier.reference, tier.schema, tier.benign, tier.labels, tier.model, np.random.default_rng(2)
    ).arrays()
    ours = tier.fitted.arrays()
    assert {name: array.tobytes() for name, array in ours.items()} == {n: a.tobytes() for n, a in again.items()}
    restored = Escalation.restore(written(ours), tier.schema, tier.fitted.names)
    for a, b in zip(
        restored.judge(tier.benign[:30], tier.labels[:30], tier.model),
        tier.fitted.judge(tier.benign[:30], tier.labels[:30], tier.model),
        strict=True,
    ):
        assert a.scores.tobytes() == b.scores.tobytes()
        assert a.pvalues.tobytes() == b.pvalues.tobytes()


def test_a_tier_that_does_not_fit_together_is_refused(tier: Tier) -> None:
    names = tier.fitted.names

    def refused(change: dict[str, Any], says: str, named: tuple[str, ...] = names) -> None:
        with pytest.raises((KeyError, ValueError), match=says):
            Escalation.restore(tier.fitted.arrays() | change, tier.schema, named)

    refused({"values": tier.fitted.values[:, ::-1].copy()}, "must ascend")
    refused({"counts": tier.fitted.counts + 1}, "counts add up to")
    refused({"counts": -tier.fitted.counts}, "outside 0 to")
    refused({"more": np.zeros(1)}, "unknown arrays: more")
    refused({}, "named once", ())
    refused({}, "no_such", ("no_such", "noise_stability"))


@pytest.mark.parametrize(
    ("rows", "names", "flipped", "says"),
    [
        (99, tuple(KINDS), False, "99 benign rows are too few to calibrate inquiries on; give 100"),
        (600, ("noise",), False, "inquiries are named once, of noise_stability, feature_squeezing; given: noise"),
        (600, (), False, "given: none"),
        (600, ("feature_squeezing", "feature_squeezing"), False, "named once"),
        (600, tuple(KINDS), True, "gives only .*% of 600 benign rows the label that was recorded"),
    ],
)
def test_a_tier_that_cannot_be_fitted_says_why(
    tier: Tier, rows: int, names: tuple[str, ...], flipped: bool, says: str
) -> None:
    labels = 1 - tier.labels if flipped else tier.labels
    with pytest.raises(FitError, match=says):
        Escalation.fit(
            tier.reference, tier.schema, tier.benign[:rows], labels[:rows], tier.model, np.random.default_rng(0), names
        )


# --- in a bundle ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tier: Tier) -> tuple[Ensemble, Ensemble, FitReport]:
    """The same fit without inquiries and with them."""

    def fitted(**more: Any) -> tuple[Ensemble, FitReport]:
        return fit(
            Reference(tier.benign, tier.labels),
            tier.schema,
            None,
            budget=0,
            clients_per_week=None,
            week_us=1,
            partitions=1,
            rng=np.random.default_rng(0),
            detectors=("trust_ratio",),
            **more,
        )

    plain, _ = fitted()
    asking, report = fitted(inquiries=tuple(KINDS), ask=tier.model)
    return plain, asking, report


def test_inquiries_change_nothing_else_of_an_ensemble(tier: Tier, pair: tuple[Ensemble, Ensemble, FitReport]) -> None:
    plain, asking, _ = pair
    assert plain.escalation is None
    assert "inquiries" not in plain.settings()
    own = {name: array for name, array in asking.arrays().items() if not name.startswith(INQUIRIES + ".")}
    assert {n: a.tobytes() for n, a in own.items()} == {n: a.tobytes() for n, a in plain.arrays().items()}
    assert asking.digest != plain.digest
    batch = batch_of(tier.benign[:50], tier.labels[:50])
    ours, theirs = (one.score(batch, one.new_state(10, 10)) for one in (plain, asking))
    assert ours.fused.tobytes() == theirs.fused.tobytes()
    assert ours.statistics.tobytes() == theirs.statistics.tobytes()


def test_a_bundle_carries_inquiries_and_names_them(
    tier: Tier, pair: tuple[Ensemble, Ensemble, FitReport], tmp_path: Path
) -> None:
    plain, asking, report = pair
    path = tmp_path / "asking.vedette"
    bundle.save(path, asking, report)
    manifest = read_manifest(path)
    assert manifest["settings"]["inquiries"] == list(KINDS)
    assert f"{INQUIRIES}.noise_stability.noise" in manifest["arrays"]
    whole = bundle.load(path, tier.schema)
    assert whole.digest == asking.digest
    alone, digest = bundle.load_escalation(path)
    assert digest == asking.digest
    assert alone is not None
    assert whole.escalation is not None
    wanted = asking.escalation
    assert wanted is not None
    for found in (alone, whole.escalation):
        assert {n: a.tobytes() for n, a in found.arrays().items()} == {
            n: a.tobytes() for n, a in wanted.arrays().items()
        }
    bundle.save(tmp_path / "plain.vedette", plain, report)
    assert bundle.load_escalation(tmp_path / "plain.vedette") == (None, plain.digest)
    assert whole.with_policy(whole.tables.thresholds, whole.policy).escalation is whole.escalation


def test_inquiries_of_a_bundle_that_do_not_fit_together_are_refused(
    pair: tuple[Ensemble, Ensemble, FitReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, asking, report = pair
    path = tmp_path / "wrong.vedette"
    arrays = asking.arrays()
    arrays[f"{INQUIRIES}.counts"] = arrays[f"{INQUIRIES}.counts"] + 1
    monkeypatch.setattr(Ensemble, "arrays", lambda _: arrays)
    bundle.save(path, asking, report)
    monkeypatch.undo()
    with pytest.raises(BundleError, match=r"inquiries do not fit together: counts add up to .*; fit it anew"):
        bundle.load_escalation(path)
    with pytest.raises(BundleError, match="counts add up to"):
        bundle.load(path)


def test_inquiries_need_the_model_at_the_fit(tier: Tier) -> None:
    with pytest.raises(FitError, match=r"ask the watched model at their fit; give it \(`--model`\)"):
        fit(
            tier.reference,
            tier.schema,
            None,
            budget=0,
            clients_per_week=None,
            week_us=1,
            partitions=1,
            rng=np.random.default_rng(0),
            inquiries=("noise_stability",),
        )
