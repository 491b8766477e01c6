"""`vedette fit` as a command on real files."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from rich.console import Console

from detectors import bundle as bundles
from detectors import registry
from detectors.calibration.report import FitReport
from detectors.manifest import read_origin, read_report
from streams import tables
from streams.cli import Session, invoke
from streams.redteam import charts
from streams.training.findings import Findings, show
from streams.training.sources import Span, events_of
from tests.streams.training.conftest import CLASSES, KEY, WEEK, Files, fit_arguments


def reported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    sentences = [line for line in err.splitlines() if line.startswith("vedette: ")]
    assert len(sentences) == 1
    assert "Traceback" not in err
    return sentences[0]


def test_bundle_pages_and_the_report_says_what_is_promised(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shop.vedette"
    assert invoke([*fit_arguments(files), "--benign", files.benign, "--out", str(out), "--json"]) == 0
    told = reported(capsys)
    ensemble = bundles.load(out, files.shop.schema)
    assert told["digest"] == ensemble.digest
    assert told["mode"] == ensemble.policy.mode == "at-once"
    assert (told["events"], told["clients"]) == (3600, 120)
    assert told["client_weeks"] >= told["client_weeks_needed"]
    assert told["clients_per_week"] == 12
    assert told["rank"] >= 1
    assert told["excess"] <= 0.05
    low, high = told["pages_a_week_90"]
    assert 0 <= low <= told["expected_pages"] <= high <= told["budget"] == 1
    assert told["week_seconds"] == WEEK
    assert told["thresholds"]["client-cluster"] > 0
    assert told["proposed_repeaters"] is not None
    assert read_report(out).data_digest == told["data_digest"]


def test_the_same_rows_in_any_format_and_the_same_seed_make_the_same_bundle(
    files: Files, bundle: str, tmp_path: Path
) -> None:
    table = pyarrow.parquet.read_table(files.benign)
    pyarrow.csv.write_csv(table, tmp_path / "benign.csv")
    rows, _ = tables.read(files.benign, files.shop.schema, bytes.fromhex(KEY))
    np.savez(
        tmp_path / "benign.npz",
        inputs=rows.inputs,
        labels=rows.labels,
        outputs=rows.outputs,
        clients=rows.clients,
        times=rows.times,
    )
    digest = bundles.load(bundle).digest
    for name in ("benign.csv", "benign.npz"):
        out = str(tmp_path / f"{name}.vedette")
        assert invoke([*fit_arguments(files), "--benign", str(tmp_path / name), "--out", out, "--json"]) == 0
        assert bundles.load(out).digest == digest
    other = str(tmp_path / "other.vedette")
    assert invoke([*fit_arguments(files), "--benign", files.benign, "--out", other, "--seed", "1", "--json"]) == 0
    assert bundles.load(other).digest != digest


def test_reference_alone_makes_a_bundle_that_only_tickets(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "only.vedette")
    assert invoke(["--model", "shop", *fit_arguments(files), "--model-version", "7", "--out", out, "--json"]) == 0
    told = reported(capsys)
    assert (told["origin"]["model"], told["origin"]["model_version"]) == ("shop", "7")
    assert read_origin(out).named() == "shop, version 7"
    assert told["origin"]["packages"]["numpy"] == np.__version__
    assert told["mode"] == bundles.load(out).policy.mode == "tickets"
    assert told["pages_a_week_90"] is None
    assert "no benign events" in told["reason"]


def test_too_few_client_weeks_say_how_many_would_do(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "few.vedette")
    arguments = [*fit_arguments(files), "--benign", files.benign, "--out", out]
    assert invoke([*arguments, "--clients-per-week", "1000"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "tickets only" in told
    assert f"{read_report(out).client_weeks_needed:,} client-weeks to page at this budget" in told


def test_schema_is_inferred_where_none_is_given(files: Files, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(files.benign).drop_columns(["client", "time"])
    pyarrow.parquet.write_table(table.slice(0, 1200), tmp_path / "reference.parquet")
    out = str(tmp_path / "inferred.vedette")
    assert invoke(["fit", "--reference", "reference.parquet", "--benign", files.benign, "--out", out, "--json"]) == 0
    schema = bundles.load(out).schema
    assert [feature.name for feature in schema.features] == [f"f{i}" for i in range(10)]
    assert len(schema.classes) == len(CLASSES)


def test_crafted_rows_weigh_the_detectors(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    odd = np.clip(files.shop.rows(300, rng) + 3.0 * rng.normal(size=(300, 10)), -10, 10)
    np.savez(tmp_path / "crafted.npz", inputs=odd, outputs=files.shop.scores(odd))
    out = str(tmp_path / "weighed.vedette")
    arguments = [*fit_arguments(files), "--benign", files.benign, "--crafted", "crafted.npz", "--out", out]
    assert invoke([*arguments, "--json"]) == 0
    told = reported(capsys)
    assert told["fusion"] == "logistic"
    assert len(set(told["weights"])) > 1


def test_attacks_that_rows_and_files_name_are_left_out_one_by_one(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(6)
    far = np.clip(files.shop.rows(200, rng) + 3.0 * rng.normal(size=(200, 10)), -10, 10)
    near = files.shop.rows(100, rng)
    both = np.concatenate([far, near])
    names = np.array(["far"] * 200 + ["none"] * 100)
    np.savez(tmp_path / "both.npz", inputs=both, outputs=files.shop.scores(both), families=names)
    np.savez(
        tmp_path / "corner.npz", inputs=np.full((50, 10), 10.0), outputs=files.shop.scores(np.full((50, 10), 10.0))
    )
    arguments = [*fit_arguments(files), "--out", str(tmp_path / "x.vedette"), "--no-report"]
    assert invoke([*arguments, "--crafted", "both.npz", "--crafted", "corner.npz", "--json"]) == 0
    told = reported(capsys)
    attacks = {one["family"]: one for one in told["examination"]["left_out"]}
    assert {name: one["rows"] for name, one in attacks.items()} == {"far": 200, "none": 100, "corner": 50}
    assert attacks["far"]["area"] > 0.8
    assert attacks["none"]["area"] == pytest.approx(0.5, abs=0.15)
    summary = told["leave_one_out"]
    assert summary["area_worst_attack"] == "none"
    assert summary["area_worst"] == attacks["none"]["area"]
    assert summary["found_mean"] == pytest.approx(np.mean([one["found"] for one in attacks.values()]))


def test_the_same_crafted_rows_in_one_file_or_two_make_the_same_bundle(files: Files, tmp_path: Path) -> None:
    """Families are for the report; weights use all rows."""
    rng = np.random.default_rng(7)
    rows = np.clip(files.shop.rows(120, rng) + 3.0 * rng.normal(size=(120, 10)), -10, 10)
    for name, part in (("whole", rows), ("first", rows[:60]), ("second", rows[60:])):
        np.savez(tmp_path / f"{name}.npz", inputs=part, outputs=files.shop.scores(part))
    digests = set()
    for given in (["whole"], ["first", "second"]):
        crafted = [part for name in given for part in ("--crafted", f"{name}.npz")]
        out = str(tmp_path / f"{len(given)}.vedette")
        assert invoke([*fit_arguments(files), *crafted, "--out", out, "--no-report", "--json"]) == 0
        digests.add(bundles.load(out).digest)
    assert len(digests) == 1


def test_families_that_do_not_fit_the_rows_are_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = files.shop.rows(20, np.random.default_rng(8))
    np.savez(tmp_path / "odd.npz", inputs=rows, outputs=files.shop.scores(rows), families=np.array(["pgd"]))
    assert invoke([*fit_arguments(files), "--crafted", "odd.npz", "--out", "x.vedette"]) == 2
    assert "`families` has shape (1,) beside 20 rows" in refused(capsys)


def test_tables_name_attacks_in_a_column(files: Files, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(files.benign).slice(0, 4).append_column("family", [["pgd", "pgd", None, "cw"]])
    pyarrow.parquet.write_table(table, tmp_path / "crafted.parquet")
    rows, _ = tables.read(tmp_path / "crafted.parquet", files.shop.schema, bytes.fromhex(KEY))
    assert rows.families is not None
    assert rows.families.tolist() == ["pgd", "pgd", "", "cw"]


def test_without_a_client_key_the_report_says_what_that_means(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VEDETTE_CLIENT_KEY")
    assert invoke([*fit_arguments(files), "--out", str(tmp_path / "x.vedette"), "--json"]) == 0
    assert any("no client key is set" in note for note in reported(capsys)["notes"])


def test_a_wrong_client_key_is_refused_and_not_shown(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEDETTE_CLIENT_KEY", "secret-but-no-hex")
    assert invoke([*fit_arguments(files), "--out", str(tmp_path / "x.vedette")]) == 2
    told = refused(capsys)
    assert "VEDETTE_CLIENT_KEY" in told
    assert "secret-but-no-hex" not in told


def test_settings_give_the_length_of_a_week(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vedette.toml").write_text(
        'week_seconds = 1800.0\n[[models]]\nname = "shop"\ntopic = "t"\nbundle = "b"\n'
    )
    arguments = ["fit", "--schema", files.schema, "--reference", files.reference, "--benign", files.benign]
    assert invoke([*arguments, "--out", str(tmp_path / "x.vedette"), "--json"]) == 0
    told = reported(capsys)
    assert told["week_seconds"] == 1800.0
    assert told["clients_per_week"] > 100


def test_a_broken_settings_file_is_not_passed_over(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vedette.toml").write_text("week_seconds = -1\n")
    assert invoke([*fit_arguments(files), "--out", str(tmp_path / "x.vedette")]) == 2
    assert "vedette.toml" in refused(capsys)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--out", "nowhere/x.vedette"], "nowhere is no folder"),
        (["--out", "."], "can't be written"),
        (["--reference", "missing.npz"], "missing.npz: no such file"),
        (["--week-seconds", "0"], "--week-seconds"),
        (["--from", "2026-01-01"], "need --benign topic"),
        (["--benign", "topic", "--from", "yesterday"], "--from: 'yesterday' is no time"),
        (["--benign", "topic"], "no settings file"),
        (["--crafted", "missing.npz"], "missing.npz: no such file"),
        (["--report", "x.html", "--no-report"], "--report and --no-report"),
        (["--report", "x.vedette"], "is where the bundle goes"),
    ],
)
def test_wrong_options_are_one_sentence(
    files: Files, change: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*fit_arguments(files), "--out", "x.vedette", *change]
    assert invoke(arguments) == 2
    assert expected in refused(capsys)
    assert not Path("x.vedette").exists()


def test_benign_events_without_clients_are_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.parquet.read_table(files.benign).drop_columns(["client"])
    pyarrow.parquet.write_table(table, "nobody.parquet")
    assert invoke([*fit_arguments(files), "--benign", "nobody.parquet", "--out", "x.vedette"]) == 2
    assert "names no clients" in refused(capsys)


def test_too_few_events_are_refused_with_what_would_do(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(files.benign).slice(0, 300), "few.parquet")
    assert invoke([*fit_arguments(files), "--benign", "few.parquet", "--out", "x.vedette"]) == 2
    told = refused(capsys)
    assert "cannot fit" in told
    assert "at least 600" in told


def test_events_without_times_count_as_one_week(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.parquet.read_table(files.benign).drop_columns(["time"])
    pyarrow.parquet.write_table(table, "timeless.parquet")
    arguments = [*fit_arguments(files), "--benign", "timeless.parquet", "--out", "x.vedette"]
    assert invoke([*arguments, "--json"]) == 0
    told = reported(capsys)
    assert any("has no times" in note for note in told["notes"])
    assert told["client_weeks"] > 0


def lines_of(path: Path, events: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return str(path)


def test_json_lines_carry_their_own_times(files: Files, tmp_path: Path) -> None:
    shop = files.shop
    events = shop.lines(shop.traffic(5, 4, np.random.default_rng(4)))
    for event in events[:10]:
        event["time"] = f"2026-09-21T14:{int(event['id']) + 10}:00+00:00"
    rows, _ = tables.read(lines_of(tmp_path / "a.jsonl", events), shop.schema, bytes.fromhex(KEY))
    first = datetime.fromisoformat(events[0]["time"]).timestamp()
    assert rows.times[0] == round(first * 1e6)
    assert np.all(np.diff(rows.times[:10]) == 60_000_000)
    assert rows.times[10:] == pytest.approx(np.array([event["time"] for event in events[10:]]) * 1e6, abs=500)


def test_json_lines_without_times_keep_their_order(files: Files, tmp_path: Path) -> None:
    shop = files.shop
    events = shop.lines(shop.traffic(5, 4, np.random.default_rng(4)))
    for event in events:
        del event["time"]
    rows, _ = tables.read(lines_of(tmp_path / "a.jsonl", events), shop.schema, bytes.fromhex(KEY))
    assert np.all(np.diff(rows.times) > 0)


@pytest.mark.parametrize(("time", "expected"), [("noon", "time"), (None, "has no time")])
def test_a_line_with_a_wrong_or_missing_time_is_named(
    files: Files, time: Any, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    events = files.shop.lines(files.shop.traffic(5, 4, np.random.default_rng(4)))
    events[7]["time"] = time
    path = lines_of(Path("a.jsonl"), events)
    assert invoke([*fit_arguments(files), "--benign", path, "--out", "x.vedette"]) == 2
    told = refused(capsys)
    assert "line 8" in told
    assert expected in told


def test_the_page_holds_the_promise_and_what_was_found(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    odd = np.clip(files.shop.rows(200, rng) + 3.0 * rng.normal(size=(200, 10)), -10, 10)
    np.savez(tmp_path / "probes.npz", inputs=odd, outputs=files.shop.scores(odd))
    out, page = tmp_path / "paged.vedette", tmp_path / "fit.html"
    arguments = [*fit_arguments(files), "--benign", files.benign, "--probes", "probes.npz", "--out", str(out)]
    assert invoke([*arguments, "--report", str(page), "--json"]) == 0
    told, text = reported(capsys), page.read_text(encoding="utf-8")
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert told["digest"] in text
    assert f"Beta-binomial (12, {told['rank']}, {told['client_weeks'] + 1 - told['rank']})" in text
    assert "Nothing pages" not in text
    fused = next(one for one in told["examination"]["curves"] if one["detector"] == "fused")
    assert fused["area"] > 0.8
    assert f"{fused['area']:.3f}" in text
    whole = [one for one in told["examination"]["uniformity"] if one["label"] is None]
    assert [one["detector"] for one in whole] == [*told["detectors"], "fused"]
    for one in whole:
        assert one["excess"] < 0.15
        assert sum(one["bins"]) == pytest.approx(1.0)
    assert told["examination"]["source"] == "probes"
    report = read_report(out)
    assert report.examination is not None
    assert FitReport.from_dict(report.to_dict()) == report
    assert told["leave_one_out"]["found_worst"] <= told["leave_one_out"]["found_mean"] <= 1.0


def test_bars_of_weights_are_as_long_as_weights_are_large() -> None:
    drawn = str(charts.bars([("one", 0.3), ("other", 0.1)], "", logarithmic=False))
    long, short = (float(width) for width in re.findall(r'class="bar"[^>]* width="([0-9.]+)"', drawn))
    assert long / short == pytest.approx(3, rel=0.01)


def test_the_page_says_what_the_data_cannot_support(files: Files, tmp_path: Path) -> None:
    page = tmp_path / "fit.html"
    out = str(tmp_path / "only.vedette")
    assert invoke([*fit_arguments(files), "--out", out, "--report", str(page), "--json"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Nothing pages: there are no benign events with clients and order" in text
    assert "--probes" in text


def test_the_page_lies_beside_the_bundle_unless_it_is_not_wanted(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "beside.vedette"
    assert invoke([*fit_arguments(files), "--out", str(out), "--no-report", "--json"]) == 0
    assert reported(capsys)["page"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"beside.vedette"}
    assert invoke([*fit_arguments(files), "--out", str(out), "--json"]) == 0
    told = reported(capsys)
    assert told["page"] == f"{out}.html"
    text = Path(told["page"]).read_text(encoding="utf-8")
    assert "<title>Fit: " in text
    assert "(of the fit)" not in text
    assert told["examination"]["source"] == "rehearsed"
    assert told["examination"]["crafted"] > 0
    assert {one["family"] for one in told["examination"]["left_out"]} <= {"random signs", "one step", "boundary"}
    assert "Rehearsed attacks held out" in text
    assert "Leave one attack out" in text


def test_the_terminal_tells_everything_in_a_hundred_columns(files: Files, bundle: str) -> None:
    report = read_report(bundle)
    found = Findings(bundle, "d" * 32, report, WEEK, 3600, 120, 1.0, classes=CLASSES)
    console = Console(width=100, record=True, file=io.StringIO())
    show(found, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    assert f"P(0) {found.false_pages[0][1]:.3f} P(1) {found.false_pages[1][1]:.3f}" in flat
    assert f"{report.between_clients:.1%} of the variance of scores" in flat
    assert report.examination is not None
    fused, worst = report.examination.fused, report.examination.farthest("trust_ratio")
    assert fused is not None and worst is not None
    assert f"AUC {fused.area:.3f}, TPR {fused.at_rate:.1%} at 1% FPR" in flat
    (row,) = [line.split() for line in text.splitlines() if line.startswith("trust_ratio")]
    assert row[-3:-1] == [CLASSES[worst.label or 0], f"{worst.distance:.3f}"]
    assert len(row) == 10
    assert any(line.startswith("left-out attacks") for line in text.splitlines())
    assert sum(line.startswith("more data") for line in text.splitlines()) == len(report.more) > 0
    told = found.to_dict()
    assert sum(one["chance"] for one in told["false_pages"]) == pytest.approx(1.0, abs=2e-3)
    json.dumps(told)


@pytest.mark.parametrize("width", [80, 95])
def test_a_narrow_terminal_cuts_no_number(files: Files, bundle: str, width: int) -> None:
    report = read_report(bundle)
    console = Console(width=width, record=True, file=io.StringIO())
    show(Findings(bundle, "d" * 32, report, WEEK, 3600, 120, 1.0, classes=CLASSES), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert report.examination is not None
    curve = next(one for one in report.examination.curves if one.detector == "isolation_forest")
    (row,) = [line.split() for line in text.splitlines() if line.startswith("isolation_forest ") and "," not in line]
    assert row[2:4] == [f"{curve.area:.3f}", f"{curve.at_rate:.1%}"]
    assert len(row) == 7


def test_false_pages_have_the_beta_binomial_chances(files: Files, bundle: str) -> None:
    report = read_report(bundle)
    found = Findings(bundle, "", report, WEEK, 1, 1, 0.0)
    chances = found.false_pages
    assert sum(chance for _, chance in chances) == pytest.approx(1.0, abs=2e-3)
    assert sum(n * chance for n, chance in chances) == pytest.approx(report.expected_pages, abs=0.02)
    over = sum(chance for n, chance in chances if n > report.budget_clients)
    assert over == pytest.approx(report.excess, abs=2e-3)


def test_probes_that_do_not_fit_the_schema_are_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "probes.npz", inputs=np.zeros((3, 4)), labels=np.zeros(3, dtype=np.int32))
    out = str(tmp_path / "none.vedette")
    assert invoke([*fit_arguments(files), "--probes", "probes.npz", "--out", out]) == 2
    assert "4" in refused(capsys)


def test_inquiries_are_fitted_with_the_model_at_hand(
    files: Files, bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "weights.npz", weights=files.shop.weights)
    (tmp_path / "shopmodel.py").write_text(
        "import numpy as np\n"
        "weights = np.load('weights.npz')['weights']\n"
        "def answer(rows):\n"
        "    powers = np.exp(rows @ weights - (rows @ weights).max(axis=1, keepdims=True))\n"
        "    return powers / powers.sum(axis=1, keepdims=True)\n"
        "def backwards(rows):\n"
        "    return answer(rows)[:, ::-1]\n"
        "def logits(rows):\n"
        "    return rows @ weights\n"
        "def leaves(rows):\n"
        "    raise SystemExit(3)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = str(tmp_path / "asking.vedette")
    arguments = [*fit_arguments(files), "--benign", files.benign, "--out", out, "--json", "--inquiries"]
    try:
        assert invoke([*arguments, "feature_squeezing", "--model", "shopmodel:answer"]) == 0
        reported(capsys)
        fitted, plain = bundles.load(out), bundles.load(bundle)
        assert fitted.escalation is not None
        assert fitted.escalation.names == ("feature_squeezing",)
        assert int(fitted.escalation.counts.sum()) == 2000
        mine = {name: array for name, array in fitted.arrays().items() if not name.startswith("inquiries.")}
        assert {name: array.tobytes() for name, array in mine.items()} == {
            name: array.tobytes() for name, array in plain.arrays().items()
        }
        assert invoke([*arguments, "feature_squeezing", "--model", "shopmodel:backwards"]) == 2
        assert "of 2000 benign rows the label that was recorded" in refused(capsys)
        assert invoke([*arguments, "all", "--model", "http://127.0.0.1:9/v2/models/m"]) == 22
        assert "cannot be asked" in refused(capsys)
        for name, code, said in (("logits", 2, "no probabilities"), ("leaves", 22, "failed: SystemExit: 3")):
            assert invoke([*arguments, "all", "--model", f"shopmodel:{name}"]) == code
            told = capsys.readouterr().err
            assert said in told
            assert "fitting detectors" not in told, "a model that can't be asked is refused before the work"
    finally:
        sys.modules.pop("shopmodel", None)


def test_detectors_of_embeddings_are_fitted_on_those_of_files(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)

    def layers(scores: Any) -> Any:
        """An embedding that lies in the region of its class."""
        centres = np.random.default_rng(4).normal(0, 5, (len(CLASSES), 4))
        return centres[scores.argmax(axis=1)] + rng.normal(size=(len(scores), 4))

    shop = files.shop
    schema = replace(shop.schema, embedding_width=4)
    (tmp_path / "schema.json").write_text(json.dumps(schema.to_dict()))
    known = np.load(files.reference)
    np.savez(tmp_path / "reference.npz", **known, embeddings=layers(known["outputs"]))
    traffic = shop.traffic(40, 20, rng)
    layer = layers(shop.scores(traffic.inputs)).tolist()
    events = [{**event, "embedding": one} for event, one in zip(shop.lines(traffic), layer, strict=True)]
    lines_of(tmp_path / "benign.jsonl", events)
    arguments = ["fit", "--schema", "schema.json", "--week-seconds", str(WEEK), "--clients-per-week", "12", "--json"]
    chosen = ["--detectors", "+embedding_trust_ratio,+embedding_dknn", "--benign", "benign.jsonl"]
    assert invoke([*arguments, "--reference", "reference.npz", *chosen, "--out", "site.vedette"]) == 0
    reported(capsys)
    ensemble = bundles.load(tmp_path / "site.vedette", schema)
    assert ensemble.detectors == (*registry.DEFAULT, "embedding_trust_ratio", "embedding_dknn")
    inputs = shop.rows(200, rng)
    scores = shop.scores(inputs)
    np.savez(tmp_path / "rows.npz", inputs=inputs, outputs=scores, embeddings=layers(np.roll(scores, 1, axis=1)))
    rows, _ = tables.read(tmp_path / "rows.npz", schema, bytes.fromhex(KEY))
    verdicts = ensemble.score(rows.batch(), ensemble.new_state())
    for name in ("embedding_trust_ratio", "embedding_dknn"):
        assert np.median(verdicts.pvalues[:, verdicts.detectors.index(name)]) < 0.01
    assert invoke([*arguments, "--reference", files.reference, *chosen, "--out", "other.vedette"]) == 2
    assert "no reference row carries one" in refused(capsys)


def test_a_model_that_nothing_reads_is_told(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nobody_reads_this.py").write_text("model = object()\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "shop.vedette"
    arguments = [
        *fit_arguments(files),
        "--model",
        "nobody_reads_this:model",
        "--out",
        str(out),
        "--no-report",
        "--json",
    ]
    assert invoke(arguments) == 0
    told = reported(capsys)
    assert any(note.startswith("--model was not read") for note in told["notes"])
    assert told["client_weeks"] == 0
    assert any("How many clients come a week isn't known" in sentence for sentence in told["refused"])
    assert FitReport.from_dict(json.loads(json.dumps(read_report(out).to_dict()))).tickets_a_week.startswith(
        "not known"
    )


def test_a_place_that_nothing_can_be_written_to_is_refused_before_the_fit(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*fit_arguments(files), "--out", "/proc/shop.vedette"]) == 2
    assert "--out: /proc/shop.vedette can't be written: " in refused(capsys)


def test_what_is_read_is_not_written_over(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(files.reference).read_bytes()
    assert invoke([*fit_arguments(files), "--out", files.reference]) == 2
    assert "is what is read, and would be written over" in refused(capsys)
    assert Path(files.reference).read_bytes() == before


@pytest.mark.parametrize("version", ["two\nlines", "x" * 201])
def test_a_version_that_no_bundle_could_be_read_with_is_refused(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    assert invoke([*fit_arguments(files), "--model-version", version, "--out", str(tmp_path / "a.vedette")]) == 2
    assert "--model-version: write at most 200 printable characters" in refused(capsys)


@pytest.mark.parametrize("length", ["inf", "nan", "0", "1e300"])
def test_a_week_must_have_a_length(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], length: str
) -> None:
    arguments = [option for option in fit_arguments(files) if option not in ("--week-seconds", str(WEEK))]
    assert invoke([*arguments, "--week-seconds", length, "--out", str(tmp_path / "a.vedette")]) == 2
    assert "--week-seconds: " in refused(capsys)


def test_reference_values_that_have_no_squares_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 2)) * np.array([1.0, 1e200])
    np.savez(tmp_path / "rows.npz", inputs=inputs, labels=np.arange(300) % 2)
    assert invoke(["fit", "--reference", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "a.vedette")]) == 2
    assert "feature 'feature_1' of the reference reaches" in refused(capsys)


def test_times_that_cannot_be_microseconds_are_told(files: Files, tmp_path: Path) -> None:
    rows, _ = tables.read(files.benign, files.shop.schema, bytes.fromhex(KEY))
    seconds = 1_790_000_000 + np.arange(len(rows))
    np.savez(tmp_path / "a.npz", inputs=rows.inputs, labels=rows.labels, clients=rows.clients, times=seconds)
    session = Session(None, None)
    found = events_of(str(tmp_path / "a.npz"), session, files.shop.schema, bytes(16), Span(), lambda *_: None)  # type: ignore[arg-type]  # nobody is told of progress
    (said,) = found.notes
    assert "reach from 1970-01-01 00:29:50 to 1970-01-01" in said and "microseconds since 1970" in said
