"""What the benchmark of query attacks counts, what it counts on, and the baselines it is measured against."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import shapiro

from attacks.contract import Trace
from benchmarks import baselines, crafted, kept, queries, queries_tables, report
from benchmarks.queries_attackers import PLANS, STRATEGIES, covered, first_success, telling_features, threat_of
from benchmarks.queries_cells import BUDGET, Benign, Found, Hunt, Part, Settings, Tuned
from benchmarks.queries_clients import KINDS, NEVER_KNOWN, SPECIAL_ROWS, Counter, Supply, known_kinds, turns
from benchmarks.queries_rivals import PLACES, Rivals, parts_of
from benchmarks.queries_tables import CELLS, Cell
from benchmarks.repeaters import Site
from detectors.calibration import order_statistics

ROW_DETECTORS = ("IForest", "KNN", "ECOD", "max-softmax")
SETTINGS = Settings(queries=100, attackers=3, rivals=2, campaigns=2, specials=2, tuners=2, clients=16, weeks=3)


pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture(scope="module")
def made() -> crafted.Task:
    return crafted.task("cancer", "logistic", 3)


@pytest.fixture(scope="module")
def world(made: crafted.Task) -> queries.World:
    return queries.World.make(made, SETTINGS, known_kinds(0))


@pytest.fixture(scope="module")
def quiet(made: crafted.Task) -> tuple[queries.World, Rivals]:
    world = queries.World.make(made, msgspec.structs.replace(SETTINGS, weeks=7), ())
    return world, Rivals(world, BUDGET, np.random.default_rng(4))


def test_mixing_keeps_the_order_of_every_sequence() -> None:
    lengths = [5, 0, 40, 17]
    order = turns(lengths, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(62))
    place = np.argsort(order)
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        assert (np.diff(place[start : start + length]) > 0).all()
    assert (np.abs(np.diff(order)) > 1).any()


def test_cover_stands_beside_every_own_query() -> None:
    own, cover = np.ones((10, 3)), np.zeros((40, 3))
    own *= np.arange(1, 11)[:, None]
    rows, mine = covered(own, 4, cover, np.random.default_rng(2))
    assert (rows[mine] == own).all()
    assert (rows[~mine] == 0).all()
    assert (mine.reshape(10, 5).sum(axis=1) == 1).all()
    assert len(set(np.flatnonzero(mine) % 5)) > 1


def test_success_is_the_first_near_row_with_another_answer() -> None:
    inputs = np.array([[0.9, 0.0], [0.1, 0.0], [0.3, 0.0], [0.2, 0.0]])
    trace = Trace(inputs, np.zeros(4, dtype=np.int64), np.array([1, 0, 1, 1]))
    start = np.zeros(2)
    assert first_success(start, trace, 0, 0.3) == 3
    assert first_success(start, trace, 0, 1.0) == 1
    assert first_success(start, trace, 0, 0.15) is None
    assert first_success(start, trace, 1, 0.15) == 2


@pytest.mark.parametrize("data", ["cancer", "digits"])
def test_benign_rows_are_fresh_and_repeat_themselves_under_a_seed(data: crafted.Data) -> None:
    part = crafted.task(data, "logistic", 3)
    supply = Supply(part.report, part.schema.image_shape, part.domain)
    rows, again = (supply.client(400, np.random.default_rng(5)) for _ in range(2))
    assert rows.tobytes() == again.tobytes()
    assert rows.min() >= 0.0
    assert rows.max() <= 1.0
    assert not {row.tobytes() for row in rows} & {row.tobytes() for row in part.report.x}
    copies = 1 - len(np.unique(rows, axis=0)) / len(rows)
    assert 0.0 < copies < 0.04
    assert (part.model.predict(rows).argmax(axis=1) != part.model.predict(rows[::-1]).argmax(axis=1)).any()


def test_every_kind_is_left_out_of_one_of_two_histories() -> None:
    assert set(known_kinds(4)) | set(known_kinds(5)) == set(KINDS) - set(NEVER_KNOWN)
    assert not set(known_kinds(4)) & set(known_kinds(5))


@pytest.mark.parametrize("kind", KINDS)
def test_special_clients_send_legal_near_identical_rows(kind: str, made: crafted.Task) -> None:
    counter = Counter(Site(made.model.predict, made.train.x.mean(axis=0)), Supply(made.report, None, made.domain))
    rows = KINDS[kind](counter, np.random.default_rng(3))
    assert 0.9 * SPECIAL_ROWS <= len(rows) <= SPECIAL_ROWS
    assert np.isfinite(rows).all()
    assert rows.min() >= 0.0
    assert rows.max() <= 1.0
    plain = counter.some(SPECIAL_ROWS, np.random.default_rng(3))

    def typical(of: NDArray[np.float64]) -> float:
        apart = np.linalg.norm(of[:, None] - of, axis=2) + 1e9 * np.eye(len(of))
        return float(np.median(apart.min(axis=1)))

    if kind != "LIME explainer":  # whose noise is as wide as rows of this data are apart
        assert typical(rows) < typical(plain)


def test_attacker_on_few_features_may_move_no_other(made: crafted.Task) -> None:
    plan = next(plan for plan in STRATEGIES if plan.few)
    threat = threat_of(made, plan, 10)
    assert threat.domain.movable.sum() == 6
    assert threat.domain.movable[telling_features(made)].all()


def test_blacklight_counts_shared_hashes_as_sets_do() -> None:
    rng = np.random.default_rng(6)
    rows = np.round(rng.random((60, 24)), 1)
    rows[30:] = rows[:30]
    rows[30:45, 0] = 1 - rows[30:45, 0]
    best, other = baselines.blacklight(rows, np.random.default_rng(0))
    words = baselines.fingerprints(rows, np.random.default_rng(0).integers(0, baselines.LEVELS, 24))
    sets = [set(row.tolist()) - {0} for row in words]
    for at, mine in enumerate(sets):
        shared = [len(mine & past) for past in sets[:at]]
        assert best[at] == pytest.approx(max(shared, default=0) / len(mine))
        assert other[at] == pytest.approx(max((n for n in shared if n < len(mine)), default=0) / len(mine))
    assert (best[45:] == 1.0).all()
    assert (other[45:] < 1.0).all()


def test_blacklight_tells_near_copies_from_strangers() -> None:
    rng = np.random.default_rng(7)
    strangers, copies = rng.random((50, 64)), np.repeat(rng.random((1, 64)), 50, axis=0)
    copies[:, 3] = rng.random(50)
    assert baselines.blacklight(strangers, rng)[0].max() < 0.5
    assert baselines.blacklight(copies, rng)[0][1:].min() >= 0.5


def test_mean_distance_is_that_to_the_fifty_nearest_earlier_rows() -> None:
    rows = np.random.default_rng(8).random((700, 5))
    found = baselines.mean_distances(rows)
    assert np.isinf(found[: baselines.NEIGHBOURS]).all()
    for at in (50, 333, 511, 512, 699):
        apart = np.sort(np.linalg.norm(rows[:at] - rows[at], axis=1))
        assert found[at] == pytest.approx(apart[: baselines.NEIGHBOURS].mean(), abs=1e-6)
    stopped = baselines.mean_distances(rows, enough=np.inf)
    assert np.isinf(stopped[baselines.BLOCK :]).all()


def test_prada_tests_distances_within_classes() -> None:
    rng = np.random.default_rng(9)
    rows, labels = rng.normal(size=(400, 20)), rng.integers(0, 2, 400).astype(np.int32)
    found = baselines.normality(rows, labels)
    tested = np.flatnonzero(np.isfinite(found))
    assert tested[0] >= baselines.LEAST_DISTANCES - 1
    assert (np.diff(tested) == baselines.EVERY).all()
    assert found[tested].min() > 0.8
    walk = np.concatenate([rows[:200], rows[:1] + 0.01 * rng.normal(size=(200, 20))])
    assert np.nanmin(baselines.normality(walk, labels)[200:]) < 0.8
    assert 0.0 < shapiro(rows[:, 0]).statistic <= 1.0


def test_stream_holds_every_row_once_and_counts_own_queries(world: queries.World) -> None:
    width = world.made.schema.width
    parts = [(np.full((30, width), 0.25 * at), np.arange(30) % 3 == 0) for at in (1, 2)]
    stream = world.stream(parts, 10, 500, np.random.default_rng(1))
    assert len(stream.rows) == 560
    for who in range(2):
        mine = stream.attacker == who
        assert (stream.rows[mine] == 0.25 * (who + 1)).all()
        assert stream.asked[mine].tolist() == np.cumsum(parts[who][1]).tolist()
        assert len(np.unique(stream.accounts[mine])) == 10
    assert not set(stream.accounts[stream.attacker < 0]) & set(stream.accounts[stream.attacker >= 0])
    assert len(world.stream(parts, 1, 0, np.random.default_rng(1)).rows) == 60 + len(world.background[0].rows)


def test_attackers_are_seen_in_traffic_and_their_own_queries_counted(world: queries.World) -> None:
    rivals = Rivals(world, BUDGET, np.random.default_rng(4))
    found = queries.hunts(world, rivals, PLANS[0])
    mine = [hunt for hunt in found if hunt.scheme == "Vedette"]
    assert {(hunt.each, hunt.accounts) for hunt in mine} == set(CELLS)
    assert len(mine[0].tickets) == SETTINGS.attackers
    assert all(ticket is not None and 1 < ticket <= SETTINGS.queries for ticket in mine[0].tickets)
    for hunt in mine:
        for ticket, page in zip(hunt.tickets, hunt.pages, strict=True):
            assert page is None or (ticket is not None and ticket <= page)
    theirs = [hunt for hunt in found if hunt.scheme != "Vedette"]
    assert {(hunt.each, hunt.accounts) for hunt in theirs} == set(PLACES)
    published = {hunt.scheme for hunt in theirs if hunt.setting == "published"}
    assert published == {"Blacklight", "Chen et al.", "PRADA", *ROW_DETECTORS}
    for setting in ("same budget", "same budget, no repeaters"):
        counted = {f"{name}, counted" for name in ROW_DETECTORS}
        assert {hunt.scheme for hunt in theirs if hunt.setting == setting} == published | counted
    assert {len(hunt.pages) for hunt in theirs if hunt.each <= 4} == {2}
    assert {len(hunt.pages) for hunt in theirs if hunt.each == 20} == {1}


def test_site_without_repeaters_pages_at_once(quiet: tuple[queries.World, Rivals]) -> None:
    world, rivals = quiet
    assert not world.repeaters
    assert world.mode == "at-once"
    assert all(kind == "" for one in (*world.history, *world.background) for kind in one.kinds)
    assert {setting for _, setting in rivals.thresholds} == {"published", "same budget"}
    found = queries.plain_hunts(world, rivals, PLANS[0])
    assert not any(hunt.repeaters for hunt in found)
    assert {(hunt.each, hunt.accounts) for hunt in found} == {(0, 1), (4, 1)}
    for hunt in (hunt for hunt in found if hunt.scheme == "Vedette"):
        # What crosses a threshold pages; only a single odd row is a ticket alone.
        for ticket, page in zip(hunt.tickets, hunt.pages, strict=True):
            assert page is None or (ticket is not None and ticket <= page)
        assert any(hunt.pages)
    rows = queries.benign(world, rivals)
    assert {row.kind for row in rows} == {""}
    assert {row.scheme for row in rows} == {"Vedette"} | {scheme for scheme, _ in rivals.thresholds}
    assert all(row.clients == SETTINGS.clients and not row.repeaters for row in rows)


def test_ordinary_clients_are_judged_apart_from_the_many_special_ones(world: queries.World) -> None:
    rows = queries.benign(world, None)
    kinds = [row.kind for row in rows]
    assert kinds == [""] * queries.ORDINARY_WEEKS + list(KINDS)
    assert [row.clients for row in rows] == [SETTINGS.clients] * queries.ORDINARY_WEEKS + [SETTINGS.specials] * len(
        KINDS
    )
    assert {row.kind for row in rows if row.known} == set(world.known)
    assert all(row.pages <= row.tickets <= row.clients for row in rows)


def test_baselines_keep_the_budget_on_a_week_that_set_it(quiet: tuple[queries.World, Rivals]) -> None:
    world, rivals = quiet
    one = world.history[0]
    parts = parts_of(one.clients, len(one.kinds))
    sequences = [(one.rows[mine], np.ones(len(mine), dtype=np.bool_)) for mine in parts]
    alarms = rivals.first(world.stream(sequences, 1, 1, np.random.default_rng(17)), len(parts))
    paged = {key: sum(at is not None for at in found) for key, found in alarms.items()}
    ranks = order_statistics.best_rank(16, 7 * 16, BUDGET)
    assert all(np.isfinite(value) for value in rivals.thresholds.values())
    assert all(count < ranks for (_, setting), count in paged.items() if setting == "same budget")
    assert all(paged[name, "published"] > ranks for name in ROW_DETECTORS)


def test_any_account_may_raise_the_alarm(quiet: tuple[queries.World, Rivals]) -> None:
    world, rivals = quiet
    usual = world.history[0].rows[:40].copy()
    odd = np.where(np.arange(world.made.schema.width) % 2, 1.0, 0.0)
    usual[[23, 31]] = odd
    stream = world.stream([(usual, np.ones(40, dtype=np.bool_))], 10, 1, np.random.default_rng(18))
    assert rivals.first(stream, 1)["KNN", "same budget"] == [24]
    assert rivals.first(stream, 1)["PRADA", "published"] == [None]


def part(settings: Settings = SETTINGS) -> Part:
    return Part(settings, hunts=[Hunt("Vedette", "", "NES", 4, 1, [3, None], [None, None])])


def forbidden() -> Part:
    raise AssertionError("what is stored is not measured again")


def test_stored_parts_are_taken_up_where_settings_and_code_are_the_same(tmp_path: Path) -> None:
    bench = queries.Bench("cancer", "logistic", 3, SETTINGS, tmp_path)
    first = bench.part("NES", part)
    assert first.sources == kept.deciding_sources(queries.DECIDING)
    assert bench.part("NES", forbidden) == first
    assert [path.name for path in tmp_path.rglob("*.*")] == ["NES.json"]
    other = queries.Bench("cancer", "logistic", 3, msgspec.structs.replace(SETTINGS, queries=50), tmp_path)
    with pytest.raises(SystemExit, match=r"NES\.json was measured with other settings: give --keep another directory"):
        other.part("NES", forbidden)
    assert bench.part("NES", forbidden) == first


@pytest.mark.parametrize("content", [b"", b"{}", b'{"settings": {"queries": 1}}', b"\xff\x00"])
def test_stored_part_that_cannot_be_read_stops_the_run_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cancer-logistic-3" / "NES.json"
    path.parent.mkdir()
    path.write_bytes(content)
    bench = queries.Bench("cancer", "logistic", 3, SETTINGS, tmp_path, accept_older=True)
    with pytest.raises(SystemExit, match=r"NES\.json is no part that can be read .*remove the file"):
        bench.part("NES", forbidden)
    assert path.read_bytes() == content


@pytest.mark.parametrize("sources", [None, "0123456789abcdef"])
def test_parts_of_other_code_are_taken_up_on_demand_only(tmp_path: Path, sources: str | None) -> None:
    path = tmp_path / "cancer-logistic-3" / "NES.json"
    path.parent.mkdir()
    stored = msgspec.to_builtins(part())
    del stored["sources"]
    path.write_bytes(msgspec.json.encode(stored | ({"sources": sources} if sources else {})))
    with pytest.raises(SystemExit, match=r"NES\.json was measured by other code: .*--accept-older"):
        queries.Bench("cancer", "logistic", 3, SETTINGS, tmp_path).part("NES", forbidden)
    bench = queries.Bench("cancer", "logistic", 3, SETTINGS, tmp_path, accept_older=True)
    assert bench.part("NES", forbidden).hunts == part().hunts
    changed = msgspec.structs.replace(SETTINGS, weeks=2)
    with pytest.raises(SystemExit, match="other settings"):
        queries.Bench("cancer", "logistic", 3, changed, tmp_path, accept_older=True).part("NES", forbidden)


def test_part_that_another_run_stored_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    bench, other = (queries.Bench("cancer", "logistic", 3, SETTINGS, tmp_path) for _ in range(2))
    first = part()

    def measured() -> Part:
        other.part("NES", lambda: first)
        return Part(SETTINGS)

    assert bench.part("NES", measured).hunts == first.hunts
    assert [path.name for path in tmp_path.rglob("*.*")] == ["NES.json"]


def test_tables_tell_parts_of_earlier_code() -> None:
    found = made_up(7, 6, 8)
    assert "earlier code" not in queries_tables.text_of([found])
    text = queries_tables.text_of([found, msgspec.structs.replace(made_up(8, 6, 8), older=["NES", "ZOO"])])
    assert "Some parts were measured by earlier code (digits mlp, seed 8: 2)." in text


def test_check_of_the_usual_tasks_wants_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.datasets.xgboost_installed", lambda: False)
    monkeypatch.setattr(queries, "TASKS", (("cancer", "mlp"), ("cancer", "xgboost")))
    kept: list[tuple[str, str]] = [("cancer", "mlp")]
    assert queries.chosen_tasks(None, quick=False) == (kept, ["cancer xgboost"])
    assert queries.chosen_tasks("cancer mlp,cancer xgboost", quick=False, check=True) == (kept, ["cancer xgboost"])
    with pytest.raises(SystemExit, match=r"cancer xgboost can't be measured here: install what is missing"):
        queries.chosen_tasks(None, quick=False, check=True)


def test_targets_without_a_figure_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    figures, _ = queries_tables.figures_of([made_up(7, 6, 8)], np.random.default_rng(0))
    assert report.all_measured(figures, queries_tables.TARGETS)
    assert not report.all_measured(figures[1:], [report.Target(figures[0].name, ">=", 0.0)])
    assert f"there is no figure for: {figures[0].name}" in capsys.readouterr().err


def test_never_counts_as_more_than_was_watched() -> None:
    cell = Cell([[5, None], [7, 9]], 100)
    assert (cell.hits, cell.total, cell.share) == (3, 4, 0.75)
    assert cell.quantile(0.5) == 9.0
    assert cell.quantile(0.9) == 101.0
    low, high = cell.interval(0.5, np.random.default_rng(0))
    assert low <= 9.0 <= high


def made_up(seed: int, ours: int | None, theirs: int | None) -> Found:
    hunts, benign = [], []
    for plan in PLANS:
        for each, accounts in CELLS:
            hunts.append(Hunt("Vedette", "", plan.name, each, accounts, [3, 4], [ours, 9]))
        for scheme, pages in (("Vedette", [ours, 9]), ("Blacklight", [theirs])):
            setting = "" if scheme == "Vedette" else "same budget"
            if setting:
                hunts.append(Hunt(scheme, setting, plan.name, 0, 1, [], pages))
            hunts += [Hunt(scheme, setting, plan.name, each, 1, pages, pages, False) for each in (0, 4)]
    for scheme, setting in (("Vedette", ""), ("Blacklight", "same budget")):
        benign += [
            Benign(scheme, setting, kind, kind in known_kinds(half), 4, 2, 1)
            for half in (0, 1)
            for kind in ("", *KINDS)
        ]
        benign.append(Benign(scheme, setting, "", False, 4, 1, 0, False))
    tuned = [
        Tuned(plan.name, part, [5, None], [4 if plan.each else None, None])
        for plan in STRATEGIES
        for part in ("tuning", "report")
    ]
    return Found("digits", "mlp", seed, SETTINGS, "intent", "", 1.0, hunts, benign, tuned)


def test_figures_take_the_worst_and_leave_known_kinds_out() -> None:
    figures, targets = queries_tables.figures_of([made_up(7, None, 8), made_up(8, 6, 8)], np.random.default_rng(0))
    values = {figure.name: figure.value for figure in figures}
    assert values["worst / undiluted: ticket"] == 1.0
    assert values["worst / undiluted: page"] == 0.75
    assert values["worst / undiluted: queries to page, p90"] == SETTINGS.queries + 1
    assert values["mean of the worst task / undiluted: page"] == values["mean / undiluted: page"] == 0.75
    assert values["sensor, left out: paged"] == 0.25
    assert values["sensor, in the history: paged"] == 0.25
    assert values["least lead over a baseline at the same budget"] == -0.5  # of the same attackers
    assert values["least lead over a baseline at the same budget, mean over attacks"] == -0.5
    assert values["no repeaters / worst / 1:4: page"] == values["no repeaters / digits mlp / mean / 1:4: page"] == 0.75
    assert values["no repeaters / worst kept apart / 1:4: queries to page, p90"] == SETTINGS.queries + 1
    assert values["no repeaters / ordinary clients: paged"] == 0.0
    assert values["ordinary clients: pages a week"] == 1.0  # four weeks, a page in each
    assert values["no repeaters / ordinary clients: pages a week"] == 0.0
    assert values["tuned attacker, worst task: success before a page"] == 0.5
    assert {target.figure for target in targets} == {target.figure for target in queries_tables.TARGETS}


def test_worst_mean_is_that_of_a_task() -> None:
    seen, missed = made_up(7, 6, 8), msgspec.structs.replace(made_up(7, None, 8), data="spambase")
    figures, _ = queries_tables.figures_of([seen, missed], np.random.default_rng(0))
    values = {figure.name: figure.value for figure in figures}
    assert values["mean / undiluted: page"] == 0.75
    assert values["mean of the worst task / undiluted: page"] == 0.5
    assert values["spambase mlp / sensor, left out: paged"] == 0.25


def test_tables_tell_what_was_never_seen() -> None:
    text = queries_tables.text_of([made_up(7, None, None)])
    assert "50 % (9-91) never/never" in text
    assert "| sensor | 2 / 4 of 8; known: " not in text
    assert "| sensor | 1 / 2 of 4; known: 1 / 2 of 4 |" in text
    assert "A site without repeaters" in text
    assert "Blacklight, same budget" in text


def test_every_row_tells_who_is_behind() -> None:
    text = "\n".join(queries_tables.against_table([made_up(7, None, 8), made_up(8, 6, 8)]))
    assert "| NES, undiluted | **behind**: digits mlp -50; slower on 1 |" in text
    ahead = queries_tables.against_table([made_up(7, 6, None)])
    assert "| worst over attacks, undiluted | better |" in ahead
    equal = queries_tables.against_table([made_up(7, 6, 8)])
    assert "| mean over attacks, undiluted | better or equal |" in equal


def test_outliers_are_scored_as_pyod_does() -> None:
    from pyod.models.knn import KNN

    rng = np.random.default_rng(10)
    known, rows = rng.random((300, 6)), rng.random((40, 6)) * 1.5
    outputs = rng.dirichlet(np.ones(3), 40)
    found = baselines.Outliers(known, 0)
    scores = found.scores(rows, outputs)
    assert set(scores) == {"IForest", "KNN", "ECOD", "max-softmax"}
    mean, scale = known.mean(axis=0), known.std(axis=0)
    theirs = KNN().fit((known - mean) / scale)
    assert scores["KNN"] == pytest.approx(theirs.decision_function((rows - mean) / scale), abs=1e-3)
    assert found.published["KNN"] == pytest.approx(theirs.threshold_, abs=1e-3)
    assert (scores["max-softmax"] == -outputs.max(axis=1)).all()
