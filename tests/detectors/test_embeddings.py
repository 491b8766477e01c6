"""Detectors of embeddings, rows that carry none, and an attack that only the embedding shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors import bundle, registry
from detectors.calibration.conformal import LARGEST, ScoreCalibration, spread_out, upper_pvalues
from detectors.calibration.report import FitReport
from detectors.contract import SAYS_NOTHING, Batch, Reference
from detectors.embeddings.dknn import EmbeddingNeighbours
from detectors.embeddings.space import embedded_rows
from detectors.embeddings.trust_ratio import EmbeddingTrustRatio
from detectors.ensemble import fit, silent
from detectors.errors import FitError, SchemaError
from detectors.inputs.dknn import DeepNeighbours
from detectors.inputs.trust_ratio import TrustRatio
from detectors.recalibration import recalibrate
from detectors.schema import Feature, FeatureSchema
from detectors.scorer import Ensemble
from detectors.view import BatchView, ReferenceFrame

pytestmark = pytest.mark.usefixtures("hasty")

WIDTH, EMBEDDING = 6, 4
CLASSES = ("low", "middle", "high")
PLAIN = FeatureSchema(tuple(Feature(f"x{i}") for i in range(WIDTH)), CLASSES)
SCHEMA = replace(PLAIN, embedding_width=EMBEDDING)
#: Share of benign events without an embedding.
BARE = 0.2
NAMES = ("embedding_trust_ratio", "embedding_dknn")
WEEK_US = 60_000_000


def around(labels: NDArray[np.int32], width: int, seed: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Rows in the region of their class."""
    centres = np.random.default_rng(seed).normal(0, 4, (len(CLASSES), width))
    return centres[labels] + rng.normal(size=(len(labels), width))


def embedded(labels: NDArray[np.int32], rng: np.random.Generator, bare: float = 0.0) -> NDArray[np.float64]:
    found = around(labels, EMBEDDING, 2, rng)
    found[rng.random(len(labels)) < bare] = np.nan
    return found


def reference(n: int = 900, bare: float = BARE) -> Reference:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, n).astype(np.int32)
    return Reference(around(labels, WIDTH, 1, rng), labels, embeddings=embedded(labels, rng, bare))


def events(n: int, seed: int, clients: int = 40, bare: float = BARE) -> Batch:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.int32)
    return Batch(
        inputs=around(labels, WIDTH, 1, rng),
        labels=labels,
        clients=rng.integers(1, clients + 1, n).astype(np.uint64),
        times=np.sort(rng.integers(0, 2 * WEEK_US, n)),
        offsets=np.arange(n, dtype=np.int64),
        rows=np.zeros(n, dtype=np.int32),
        embeddings=embedded(labels, rng, bare),
    )


def fitted_to(
    benign: Batch | None,
    detectors: tuple[str, ...],
    known: Reference | None = None,
    schema: FeatureSchema = SCHEMA,
    crafted: dict[str, Reference] | None = None,
) -> tuple[Ensemble, FitReport]:
    return fit(
        reference() if known is None else known,
        schema,
        benign,
        crafted=crafted,
        budget=1,
        clients_per_week=40,
        week_us=WEEK_US,
        partitions=1,
        rng=np.random.default_rng(0),
        detectors=detectors,
    )


@pytest.fixture(scope="module")
def made() -> tuple[Ensemble, FitReport]:
    return fitted_to(events(3000, 5), ("trust_ratio", *NAMES))


@pytest.fixture(scope="module")
def ensemble(made: tuple[Ensemble, FitReport]) -> Ensemble:
    return made[0]


def pvalues(ensemble: Ensemble, batch: Batch) -> dict[str, NDArray[np.float64]]:
    verdicts = ensemble.score(batch, ensemble.new_state())
    return dict(zip(verdicts.detectors, verdicts.pvalues.T, strict=True))


# --- schema and rows --------------------------------------------------------------------------------------------------


def test_schema_states_the_width_and_is_as_before_without_one() -> None:
    assert FeatureSchema.from_dict(SCHEMA.to_dict()) == SCHEMA
    assert SCHEMA.digest() != PLAIN.digest()
    assert "embedding_width" not in PLAIN.to_dict()
    assert FeatureSchema.from_dict(PLAIN.to_dict()).embedding_width is None


@pytest.mark.parametrize("width", [0, -1, True, 2.5, "8"])
def test_width_of_an_embedding_is_a_whole_number_from_one_on(width: object) -> None:
    with pytest.raises(SchemaError, match=r"embedding_width is .*; it must be a whole number from 1 on"):
        FeatureSchema.from_dict({**PLAIN.to_dict(), "embedding_width": width})


def test_taken_rows_keep_their_embeddings() -> None:
    batch = events(10, 1)
    assert batch.embeddings is not None
    part = batch.take(np.array([7, 2]))
    assert part.embeddings is not None
    np.testing.assert_array_equal(part.embeddings, batch.embeddings[[7, 2]])


def test_rows_with_an_embedding_are_found_and_half_ones_refused() -> None:
    batch = events(50, 1)
    assert batch.embeddings is not None
    there = np.flatnonzero(~np.isnan(batch.embeddings[:, 0]))
    assert 0 < len(there) < 50
    np.testing.assert_array_equal(embedded_rows(batch, EMBEDDING), there)
    assert len(embedded_rows(batch, None)) == 0
    assert len(embedded_rows(replace(batch, embeddings=None), EMBEDDING)) == 0
    with pytest.raises(SchemaError, match=r"\(50, 4\); the schema needs \(50, 5\)"):
        embedded_rows(batch, EMBEDDING + 1)
    for value in (np.nan, np.inf):
        batch.embeddings[there[1], 2] = value
        with pytest.raises(SchemaError, match=f"embedding of row {there[1]} holds a value that is not finite"):
            embedded_rows(batch, EMBEDDING)


# --- detectors --------------------------------------------------------------------------------------------------------


def view_of(batch: Batch) -> BatchView:
    return BatchView(ReferenceFrame.fit(reference(), len(CLASSES), np.random.default_rng(0)), batch)


def test_scores_are_those_of_the_detector_of_inputs_on_the_embedding() -> None:
    known, batch = reference(bare=0.0), events(200, 4, bare=0.0)
    assert known.embeddings is not None and batch.embeddings is not None
    space = FeatureSchema(tuple(Feature(f"e{i}") for i in range(EMBEDDING)), CLASSES)
    as_inputs = Reference(known.embeddings, known.labels)
    frame = ReferenceFrame.fit(as_inputs, len(CLASSES), np.random.default_rng(5))
    view = BatchView(frame, replace(batch, inputs=batch.embeddings, embeddings=None))
    ratio = EmbeddingTrustRatio().fit(known, SCHEMA, np.random.default_rng(5))
    assert ratio.score(view_of(batch)).tobytes() == TrustRatio().score(view).tobytes()
    neighbours = EmbeddingNeighbours().fit(known, SCHEMA, np.random.default_rng(5))
    alike = DeepNeighbours().fit(as_inputs, space, np.random.default_rng(5))
    assert neighbours.score(view_of(batch)).tobytes() == alike.score(view).tobytes()


@pytest.mark.parametrize("kind", [EmbeddingTrustRatio, EmbeddingNeighbours])
def test_rows_without_an_embedding_say_nothing(kind: type[EmbeddingTrustRatio | EmbeddingNeighbours]) -> None:
    detector = kind().fit(reference(), SCHEMA, np.random.default_rng(5))
    batch = events(200, 4)
    assert batch.embeddings is not None
    bare = np.isnan(batch.embeddings[:, 0])
    scores = detector.score(view_of(batch))
    assert (scores[bare] == SAYS_NOTHING).all()
    assert (scores[~bare] > SAYS_NOTHING).all()
    assert (detector.score(view_of(replace(batch, embeddings=None))) == SAYS_NOTHING).all()
    assert "carries no embedding" in detector.explain(view_of(batch), int(np.flatnonzero(bare)[0]))
    assert detector.explain(view_of(batch), int(np.flatnonzero(~bare)[0])).startswith("in the embedding, ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("schema", "embeddings", "message"),
    [
        (PLAIN, "kept", r"looks at the embedding, and the schema states no `embedding_width`; state it, or leave"),
        (SCHEMA, None, r"no reference row carries one; give the reference with embeddings .*, or leave"),
        (SCHEMA, np.full((900, EMBEDDING), np.nan), "no reference row carries one"),
        (SCHEMA, np.ones((900, EMBEDDING + 1)), r"reference rows: embeddings have shape \(900, 5\)"),
        (SCHEMA, np.where(np.arange(900 * 4).reshape(900, 4) == 9, np.inf, 1.0), "the embedding of row 2 holds"),
    ],
)
def test_fit_refuses_what_it_cannot_learn_embeddings_from(
    name: str, schema: FeatureSchema, embeddings: NDArray[np.float64] | str | None, message: str
) -> None:
    known = reference() if isinstance(embeddings, str) else replace(reference(), embeddings=embeddings)
    with pytest.raises(FitError, match=message):
        registry.made(name).fit(known, schema, np.random.default_rng(0))


def test_fit_refuses_benign_events_without_embeddings() -> None:
    batch = replace(events(1000, 5), embeddings=None)
    with pytest.raises(FitError, match="embedding_dknn is calibrated on embeddings, and the benign events carry none"):
        fitted_to(batch, ("trust_ratio", "embedding_dknn"))
    odd = events(1000, 5)
    assert odd.embeddings is not None
    odd.embeddings[17] = [1.0, np.nan, 1.0, 1.0]
    with pytest.raises(FitError, match="benign rows: the embedding of row 17"):
        fitted_to(odd, ("trust_ratio",))


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "places"), [(0, 5), (1, 8), (7, 8), (8, 8), (9, 8), (30, 1000), (1000, 30)])
def test_values_spread_over_places_keep_p_values_valid(n: int, places: int) -> None:
    values = np.arange(1.0, n + 1)
    found = spread_out(values, places)
    assert found.shape == (places,)
    assert (np.diff(found) >= 0).all()
    for score in np.arange(0.5, n + 2):
        exact = upper_pvalues(np.array([score]), values)[0]
        spread = upper_pvalues(np.array([score]), found)[0]
        assert exact - 1e-12 <= spread <= exact + 1 / (places + 1)
    if n == places:
        np.testing.assert_array_equal(found, values)
    assert (found == LARGEST).any() == (n < places)


@pytest.mark.parametrize("share", [0.1, 0.7, 1.0])
def test_what_says_nothing_has_p_value_one_and_bends_no_other(share: float) -> None:
    rng = np.random.default_rng(0)

    def drawn(n: int) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.bool_]]:
        labels = rng.integers(0, 2, n).astype(np.int32)
        scores = rng.normal(labels[:, None] * 3.0, 1.0 + labels[:, None], (n, 2))
        bare = rng.random(n) < share * np.where(labels == 0, 1.0, 0.5)
        scores[bare, 1] = SAYS_NOTHING
        return scores, labels, bare

    shape, ranks, fresh = drawn(4000), drawn(4000), drawn(4000)
    found = ScoreCalibration.fit(*shape[:2], *ranks[:2], classes=2)
    p = found.pvalues(found.ranks(*fresh[:2]))
    assert (p[fresh[2], 1] == 1.0).all()
    for level in (0.01, 0.1, 0.5):
        assert np.mean(p[:, 0] <= level) == pytest.approx(level, rel=0.35)
        assert np.mean(p[~fresh[2], 1] <= level) == pytest.approx(level, rel=0.35)
    assert np.isfinite(found.values).all()


def test_detectors_that_always_speak_are_calibrated_as_without_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(600, 2)), rng.integers(0, 2, 600).astype(np.int32)
    some = np.column_stack([scores, np.where(rng.random(600) < 0.5, SAYS_NOTHING, 1.0 * rng.random(600))])
    plain = ScoreCalibration.fit(scores[:300], labels[:300], scores[300:], labels[300:], 2)
    mixed = ScoreCalibration.fit(some[:300], labels[:300], some[300:], labels[300:], 2)
    np.testing.assert_array_equal(mixed.values[:2], plain.values)
    np.testing.assert_array_equal(mixed.centres[:, :2], plain.centres)
    np.testing.assert_array_equal(mixed.spreads[:, :2], plain.spreads)


# --- ensembles --------------------------------------------------------------------------------------------------------


def test_a_benign_looking_input_whose_embedding_lies_in_another_class_is_odd(ensemble: Ensemble) -> None:
    usual = events(400, 8, bare=0.0)
    rng = np.random.default_rng(9)
    crafted = replace(usual, embeddings=embedded(((usual.labels + 1) % 3).astype(np.int32), rng))
    before, after = pvalues(ensemble, usual), pvalues(ensemble, crafted)
    assert before["trust_ratio"].tobytes() == after["trust_ratio"].tobytes()
    for name in NAMES:
        assert np.median(after[name]) < 0.01
        assert np.mean(after[name] < 0.05) > 0.95
        assert np.mean(before[name] < 0.05) < 0.1
    fused = ensemble.score(crafted, ensemble.new_state()).fused
    assert np.median(fused) < 0.02
    assert np.mean(ensemble.score(usual, ensemble.new_state()).fused < 0.05) < 0.1


def test_rows_without_an_embedding_have_p_value_one(ensemble: Ensemble) -> None:
    batch = events(400, 8, bare=0.5)
    assert batch.embeddings is not None
    bare = np.isnan(batch.embeddings[:, 0])
    found = pvalues(ensemble, batch)
    for name in NAMES:
        assert (found[name][bare] == 1.0).all()
        assert np.mean(found[name][~bare] < 0.1) < 0.2
    assert np.mean(found["embedding_trust_ratio"][~bare] < 0.1) > 0.02
    assert (pvalues(ensemble, replace(batch, embeddings=None))["embedding_dknn"] == 1.0).all()


def test_verdicts_do_not_depend_on_cuts(ensemble: Ensemble) -> None:
    batch = events(300, 8, bare=0.3)
    whole, state = ensemble.score(batch, ensemble.new_state()), ensemble.new_state()
    parts = [ensemble.score(batch.take(slice(a, b)), state) for a, b in ((0, 1), (1, 120), (120, 121), (121, 300))]
    assert np.concatenate([part.scores for part in parts]).tobytes() == whole.scores.tobytes()
    assert np.concatenate([part.fused for part in parts]).tobytes() == whole.fused.tobytes()


def test_embeddings_that_do_not_fit_are_refused_before_the_state_changes(ensemble: Ensemble) -> None:
    batch, state = events(50, 8), ensemble.new_state()
    empty = state.digest()
    with pytest.raises(SchemaError, match=r"embeddings have shape \(50, 3\)"):
        ensemble.score(replace(batch, embeddings=np.ones((50, 3))), state)
    assert state.digest() == empty


def test_bundle_keeps_detectors_of_embeddings(made: tuple[Ensemble, FitReport], tmp_path: Path) -> None:
    bundle.save(tmp_path / "site.vedette", *made)
    loaded = bundle.load(tmp_path / "site.vedette", SCHEMA)
    assert loaded.digest == made[0].digest
    assert loaded.schema.embedding_width == EMBEDDING
    loaded.warm_up()
    batch = events(200, 8)
    for column, scores in pvalues(loaded, batch).items():
        assert scores.tobytes() == pvalues(made[0], batch)[column].tobytes()


def test_bundle_of_another_width_does_not_fit_together(ensemble: Ensemble) -> None:
    settings = ensemble.settings()
    settings["schema"] = {**settings["schema"], "embedding_width": EMBEDDING + 1}
    with pytest.raises(ValueError, match="embeddings have 4 values, the schema says 5"):
        Ensemble.restore(ensemble.arrays(), settings)


def test_reference_alone_calibrates_embeddings_too() -> None:
    alone, _ = fitted_to(None, ("trust_ratio", "embedding_dknn"))
    batch = events(400, 8, bare=0.0)
    assert batch.embeddings is not None
    moved = replace(batch, embeddings=np.roll(batch.embeddings, 1, axis=0))
    other = np.roll(batch.labels, 1) != batch.labels
    found = pvalues(alone, moved)["embedding_dknn"]  # a few dozen rows calibrate it
    assert np.median(found[other]) < 0.05
    assert np.median(found[~other]) > 0.5


def test_crafted_rows_weigh_embeddings_only_where_they_carry_them() -> None:
    benign, rng = events(2000, 5), np.random.default_rng(4)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    inputs = around(labels, WIDTH, 1, rng)
    far = embedded(((labels + 1) % 3).astype(np.int32), rng)
    names = ("trust_ratio", "embedding_trust_ratio")
    bare, _ = fitted_to(benign, names, crafted={"odd": Reference(inputs, labels)})
    known, _ = fitted_to(benign, names, crafted={"odd": Reference(inputs, labels, embeddings=far)})
    np.testing.assert_allclose(bare.single.fusion.weights, [0.5, 0.5])
    assert known.single.fusion.weights[1] > 0.9


def test_what_crafted_rows_tell_nothing_of_has_no_curve_and_is_told(made: tuple[Ensemble, FitReport]) -> None:
    examined, notes = made[1].examination, made[1].notes
    assert examined is not None
    assert [one.detector for one in examined.curves] == ["trust_ratio", "fused"]
    assert any(f"how well {' and '.join(NAMES)} find them" in note for note in notes), notes


def test_few_embeddings_are_told_and_none_stated_is_refused() -> None:
    names = ("trust_ratio", "embedding_dknn")
    _, report = fitted_to(events(1000, 5, bare=0.5), names, reference(bare=0.0))
    told = [note for note in report.notes if "carry an embedding" in note]
    assert len(told) == 1
    assert "of 1,000 benign events carry an embedding; embedding_dknn know nothing of the others" in told[0]
    with pytest.raises(FitError, match=r"the schema states no `embedding_width`; state it \(--schema\), or leave"):
        fitted_to(events(1000, 5), names, schema=PLAIN)


def test_other_detectors_score_the_same_whether_events_carry_embeddings_or_not() -> None:
    benign = events(1500, 5)
    with_them, _ = fitted_to(benign, registry.DEFAULT)
    without, _ = fitted_to(
        replace(benign, embeddings=None), registry.DEFAULT, replace(reference(), embeddings=None), PLAIN
    )
    batch = events(300, 8)
    one = with_them.score(batch, with_them.new_state())
    other = without.score(replace(batch, embeddings=None), without.new_state())
    assert one.scores.tobytes() == other.scores.tobytes()
    assert one.fused.tobytes() == other.fused.tobytes()
    assert {name: array.tobytes() for name, array in with_them.arrays().items()} == {
        name: array.tobytes() for name, array in without.arrays().items()
    }


def test_detectors_that_nothing_crafted_weighs_are_fitted_alone() -> None:
    ensemble, _ = fitted_to(events(1500, 5), ("embedding_trust_ratio", "embedding_dknn"))
    np.testing.assert_allclose(ensemble.single.fusion.weights, [0.5, 0.5])


def test_a_pilot_without_embeddings_is_refused_as_a_fit_is() -> None:
    ensemble, report = fitted_to(events(1500, 5), ("trust_ratio", "embedding_trust_ratio"))
    pilot = replace(events(1500, 6), embeddings=None)
    with pytest.raises(FitError, match="embedding_trust_ratio is calibrated on embeddings, and the benign events"):
        recalibrate(
            ensemble, report, pilot, budget=1, clients_per_week=40, week_us=WEEK_US, partitions=1, progress=silent
        )


def test_chances_of_uniformity_rest_on_the_rows_that_carried_an_embedding() -> None:
    ensemble, _ = fitted_to(events(1500, 5, bare=0.9), ("trust_ratio", "embedding_trust_ratio"))
    plain, embedding, _ = ensemble.single.calibrated
    assert embedding < plain / 4
