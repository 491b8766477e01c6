"""`vedette calibrate`: a bundle that only tickets pages after its pilot."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet
import pytest
from redis import Redis

from detectors import bundle as bundles
from detectors.manifest import read_origin, read_report
from streams.cli import invoke
from streams.incidents.ledger import Ledger, fold
from streams.incidents.repeaters import Repeaters
from streams.incidents.service import IncidentService
from streams.store.keys import ModelKeys
from tests.streams.incidents.conftest import signal
from tests.streams.training.conftest import WEEK, Files, fit_arguments

OPTIONS = ["--week-seconds", str(WEEK), "--clients-per-week", "12", "--partitions", "2", "--json"]


@pytest.fixture(scope="module")
def silent(files: Files) -> str:
    """A bundle of the reference alone."""
    out = str(files.folder / "silent.vedette")
    assert invoke(["--model", "shop", *fit_arguments(files), "--out", out, "--json"]) == 0
    return out


def reported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capsys.readouterr().out
    found: dict[str, Any] = json.loads(out[out.rindex('{\n  "bundle"') :])
    return found


def test_a_pilot_makes_a_bundle_page_and_every_client_of_it_counts(
    files: Files, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["calibrate", files.benign, "--bundle", silent, "--out", "paging.vedette", *OPTIONS]) == 0
    told = reported(capsys)
    before, after = bundles.load(silent), bundles.load("paging.vedette")
    assert before.policy.mode == "tickets"
    assert told["mode"] == after.policy.mode != "tickets"
    assert told["client_weeks"] == 120
    assert told["excess"] <= 0.05
    assert before.digest != after.digest == told["digest"]
    old, new = before.arrays(), after.arrays()
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"walk.thresholds"}
    assert read_report("paging.vedette").data_digest != read_report(silent).data_digest
    assert read_origin("paging.vedette") == read_origin(silent)
    assert read_origin(silent).model == "shop"


def test_the_page_of_a_calibration_marks_what_comes_from_the_fit(
    files: Files, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["calibrate", files.benign, "--bundle", silent, "--out", "paging.vedette", *OPTIONS]) == 0
    told, text = reported(capsys), Path("paging.vedette.html").read_text(encoding="utf-8")
    before, after = read_report(silent).examination, read_report("paging.vedette").examination
    assert before is not None and after is not None
    assert "<title>Calibration: paging.vedette</title>" in text
    for title in ("held out against benign rows (of the fit)", "Leave one attack out (of the fit)"):
        assert title in text
    assert "3600 rows of the pilot" in text
    assert told["calibrated"] and not read_report(silent).calibrated
    assert (after.curves, after.left_out, after.fixed, after.against) == (
        before.curves,
        before.left_out,
        before.fixed,
        before.against,
    )
    assert after.benign == 3600 > before.benign
    assert {one.rows for one in after.uniformity if one.label is None} == {3600}
    assert told["between_clients"] != read_report(silent).between_clients or told["between_clients"] == 0.0
    assert any("rank j = " in sentence for sentence in told["more"])


def test_at_most_rank_clients_of_the_pilot_would_have_paged(
    files: Files, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thresholds are order statistics of the pilot's own maxima, so scoring it again crosses them that often."""
    assert invoke(["calibrate", files.benign, "--bundle", silent, "--out", "paging.vedette", *OPTIONS]) == 0
    rank = reported(capsys)["rank"]
    assert invoke(["score", files.benign, "--bundle", "paging.vedette", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["clients_paged"] <= rank


def test_a_short_pilot_still_tickets_and_says_how_much_would_do(
    files: Files, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", files.benign, "--bundle", silent, "--out", "x.vedette", *OPTIONS, "--budget", "0"]
    assert invoke(arguments) == 0
    told = reported(capsys)
    assert told["mode"] == "tickets"
    assert told["client_weeks_needed"] > 120
    assert any(f"{told['client_weeks_needed']} client-weeks would do" in sentence for sentence in told["more"])
    assert any("would page today with a budget of " in sentence for sentence in told["more"])


def test_approved_false_alarms_move_thresholds_within_their_cap(
    files: Files, silent: str, redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", files.benign, "--budget", "3", *OPTIONS]
    assert invoke([*arguments, "--bundle", silent, "--out", "one.vedette"]) == 0
    plain = reported(capsys)
    assert plain["rank"] > 1
    made = bundles.load("one.vedette")
    scale = float(made.tables.thresholds[3])
    ledger = Ledger(redis, ModelKeys("shop"))
    desk = IncidentService(redis, "shop")
    for number, by in enumerate(("ada", "bob", "ada")):
        page = signal(
            number, client=f"{number + 1:016x}", model="shop", level="page", rule="input-sequence", bundle=made.digest,
            statistic=scale * 1e6, threshold=scale, time=10**15 + number, nearest=[1e3 * number, 0.0],
        )  # fmt: skip
        text = msgspec.json.encode(page).decode()
        (draft,) = fold("shop", ledger.book("shop-events:0", [page]), [(page, text)], now=1).drafts
        ledger.apply([draft])
        desk.resolve(draft.incident.id, by, "false")
        if number < 2:
            desk.approve_verdict(draft.incident.id, "carla")
    settings = Path("vedette.toml")
    settings.write_text(
        f'[redis]\nurl = "{redis_url}"\n[[models]]\nname = "shop"\ntopic = "shop-events"\nbundle = "one.vedette"\n'
    )
    assert invoke(["--config", str(settings), *arguments, "--out", "two.vedette", "--false-alarms"]) == 0
    told = reported(capsys)
    counted = min(2, plain["rank"] - 1)
    assert any(f"{counted} of 2 approved false alarms count" in note for note in told["notes"]), told["notes"]
    assert (told["rank"], told["client_weeks"]) == (plain["rank"], plain["client_weeks"])
    assert all(told["thresholds"][name] >= value for name, value in plain["thresholds"].items())
    assert told["thresholds"]["input-sequence"] < scale * 1e6
    assert told["digest"] != plain["digest"]
    other = ["--config", str(settings), *arguments, "--bundle", silent, "--out", "three.vedette", "--false-alarms"]
    assert invoke(other) == 0
    notes = reported(capsys)["notes"]
    assert any("2 approved false alarms of shop are left out: another bundle" in note for note in notes), notes


def test_nothing_to_take_from_redis_is_told_and_what_cannot_be_read_ends_it(
    files: Files, silent: str, redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Path("vedette.toml")
    settings.write_text(
        f'[redis]\nurl = "{redis_url}"\n[[models]]\nname = "shop"\ntopic = "shop-events"\nbundle = "{silent}"\n'
    )
    arguments = ["--config", str(settings), "calibrate", files.benign, "--out", "none.vedette", *OPTIONS]
    assert invoke([*arguments, "--false-alarms", "--repeaters"]) == 0
    notes = reported(capsys)["notes"]
    assert any("there are no approved false alarms of shop in Redis" in note for note in notes), notes
    assert any("no client is approved as a repeater in Redis now" in note for note in notes), notes
    keys = ModelKeys("shop")
    for option, key in (("--false-alarms", keys.incidents), ("--repeaters", keys.repeaters)):
        redis.set(key, "x")
        assert invoke([*arguments, option]) == 11
        told = capsys.readouterr().err
        assert "cannot be read: WRONGTYPE" in told
        assert "Traceback" not in told


def test_rows_after_the_last_whole_week_are_told(files: Files, silent: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", files.benign, "--bundle", silent, "--out", "short.vedette", *OPTIONS]
    assert invoke(arguments) == 0
    assert not any("last whole week" in note for note in reported(capsys)["notes"])
    assert invoke([*arguments, "--week-seconds", str(0.75 * WEEK)]) == 0
    times = pyarrow.parquet.read_table(files.benign)["time"].to_numpy()
    rest = int((times - times.min() >= 0.75 * WEEK).sum())
    said = f"{rest:,} rows ({rest / len(times):.0%}) come after the last whole week and set no thresholds"
    assert said in reported(capsys)["notes"]


def test_approved_repeaters_are_left_out_of_what_near_duplicates_page(
    files: Files, silent: str, redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that two people vouch for now; what is only proposed counts as ever."""
    known = Repeaters(redis, ModelKeys("shop"))
    ends = time.time_ns() // 1000 + 3_600_000_000
    for client in ("a" * 16, "b" * 16):
        known.propose(client, "ada", ends, "a sensor")
    known.approve("a" * 16, "bob")
    settings = Path("vedette.toml")
    settings.write_text(
        f'[redis]\nurl = "{redis_url}"\n[[models]]\nname = "shop"\ntopic = "shop-events"\nbundle = "{silent}"\n'
    )
    arguments = ["--config", str(settings), "calibrate", files.benign, "--out", "excused.vedette", *OPTIONS]
    assert invoke(arguments) == 0
    plain = reported(capsys)
    assert invoke([*arguments, "--repeaters"]) == 0
    told = reported(capsys)
    assert any("approved repeaters: 1, 0 of them in the pilot" in note for note in told["notes"]), told["notes"]
    assert not any("approved repeaters" in note for note in plain["notes"])
    assert (told["thresholds"], told["rank"]) == (plain["thresholds"], plain["rank"])
    assert told["data_digest"] != plain["data_digest"]


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (["nobody.parquet"], 2, "names no clients"),
        (["topic"], 2, "no settings file"),
        (["missing.parquet"], 2, "no such file"),
        (["nobody.parquet", "--until", "2026-01-01"], 2, "need --benign topic"),
        (["nobody.parquet", "--bundle", "none.vedette"], 12, "no bundle at none.vedette"),
    ],
)
def test_what_cannot_be_calibrated_is_one_sentence(
    files: Files, silent: str, change: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.parquet.read_table(files.benign).drop_columns(["client"])
    pyarrow.parquet.write_table(table, "nobody.parquet")
    assert invoke(["calibrate", "--bundle", silent, "--out", "x.vedette", *OPTIONS, *change]) == code
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err
