"""`vedette score` as a command on real files: an attacker among benign clients pages, they don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from detectors import bundle as bundles
from detectors.manifest import read_report
from streams import tables
from streams.cli import invoke
from streams.events.identity import hash_clients
from tests.streams.training.conftest import CLASSES, KEY, WIDTH, Files, Traffic

HOSTILE = "mallory"
#: Queries of the attacker.
QUERIES = 80


def besieged(files: Files) -> Traffic:
    """Benign traffic of new clients, and one who closes in on the boundary from both sides."""
    rng = np.random.default_rng(11)
    shop = files.shop
    benign = shop.traffic(20, 30, rng, "visitor")
    start, other = shop.rows(2, rng)
    while shop.scores(other[None]).argmax() == shop.scores(start[None]).argmax():
        other = shop.rows(1, rng)[0]
    queries, low, high = [], start, other
    for turn in range(QUERIES):
        middle = (low + high) / 2 + (0.02 * rng.normal(size=WIDTH) if turn >= 12 else 0.0)
        queries.append(middle)
        if turn < 12:
            same = shop.scores(middle[None]).argmax() == shop.scores(start[None]).argmax()
            low, high = (middle, high) if same else (low, middle)
    times = rng.choice(benign.times, QUERIES, replace=False)
    inputs = np.concatenate([benign.inputs, queries])
    return Traffic(inputs, benign.clients + [HOSTILE] * QUERIES, np.concatenate([benign.times, np.sort(times)]))


@pytest.fixture(scope="module")
def attacked(files: Files) -> str:
    path = str(files.folder / "attacked.parquet")
    pyarrow.parquet.write_table(pa.table(files.shop.columns(besieged(files))), path)
    return path


def hashed(name: str) -> str:
    return f"{int(hash_clients([name.encode()], bytes.fromhex(KEY))[0]):016x}"


def reported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_attacker_pages_and_others_within_the_budget(
    attacked: str, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["score", attacked, "--bundle", bundle, "--json"]) == 0
    told = reported(capsys)
    assert told["rows"] == 20 * 30 + QUERIES
    assert told["clients"] == 21
    paged = {signal["client"] for signal in told["signals"] if signal["level"] == "page"}
    assert hashed(HOSTILE) in paged
    assert len(paged) <= 1 + read_report(bundle).budget
    assert told["clients_paged"] == len(paged)
    assert sum(told["pages"].values()) >= 1
    assert all(signal["reasons"] for signal in told["signals"])


def test_rows_of_the_summary_are_rows_of_the_file(
    attacked: str, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events are scored in the order of their times, and told by their places in the file."""
    assert invoke(["score", attacked, "--bundle", bundle, "--json"]) == 0
    table = pyarrow.parquet.read_table(attacked)
    for signal in reported(capsys)["signals"]:
        assert hashed(table.column("client")[signal["row"]].as_py()) == signal["client"]


def test_verdicts_are_written_a_row_for_each_event(attacked: str, bundle: str, tmp_path: Path) -> None:
    assert invoke(["score", attacked, "--bundle", bundle, "--out", "verdicts.parquet", "--json"]) == 0
    found = pyarrow.parquet.read_table("verdicts.parquet")
    given = pyarrow.parquet.read_table(attacked)
    ensemble = bundles.load(bundle)
    assert found.column("row").to_pylist() == list(range(len(given)))
    assert found.column("client").to_pylist() == [hashed(name) for name in given.column("client").to_pylist()]
    stamps = np.asarray(pa.compute.cast(found.column("time"), pa.int64()))
    assert stamps == pytest.approx(np.asarray(given.column("time")) * 1e6, abs=2)
    assert set(found.column("label").to_pylist()) <= set(CLASSES)
    assert {"page"} <= set(found.column("level").to_pylist()) <= {"silent", "ticket", "page"}
    for name in ensemble.detectors:
        p = np.asarray(found.column(f"p_{name}"))
        assert ((p > 0) & (p <= 1)).all()
        assert np.isfinite(np.asarray(found.column(f"score_{name}"))).all()
    rows, _ = tables.read(attacked, ensemble.schema, bytes.fromhex(KEY))
    verdicts = ensemble.score(rows.batch(), ensemble.new_state(clients=50))
    order = np.argsort(rows.times, kind="stable")
    assert np.array_equal(np.asarray(found.column("p"))[order], verdicts.fused)


def test_the_summary_for_people_names_the_attacker_first(
    attacked: str, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["score", attacked, "--bundle", bundle]) == 0
    out = capsys.readouterr().out
    assert f"client {hashed(HOSTILE)}" in out
    assert 0 < out.index("\npage  ") < out.index(f"client {hashed(HOSTILE)}")
    assert "680 of 21 clients" in out


def test_rows_without_clients_are_scored_as_nobodys(
    files: Files, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files.shop.rows(50, np.random.default_rng(5))
    np.savez("rows.npz", inputs=inputs, outputs=files.shop.scores(inputs))
    assert invoke(["score", "rows.npz", "--bundle", bundle, "--json"]) == 0
    told = reported(capsys)
    assert (told["rows"], told["clients"], told["anonymous_rows"]) == (50, 0, 50)


def test_json_lines_are_scored(files: Files, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = files.shop.lines(files.shop.traffic(4, 5, np.random.default_rng(6)))
    Path("events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert invoke(["score", "events.jsonl", "--bundle", bundle, "--json"]) == 0
    assert reported(capsys)["clients"] == 4


def test_the_settings_name_the_bundle(
    attacked: str, bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vedette.toml").write_text(f'[[models]]\nname = "shop"\ntopic = "t"\nbundle = "{bundle}"\n')
    assert invoke(["score", attacked, "--json"]) == 0
    assert reported(capsys)["digest"] == bundles.load(bundle).digest


def test_no_time_is_made_up_and_no_input_written_over(
    files: Files, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files.shop.rows(5, np.random.default_rng(5))
    np.savez("rows.npz", inputs=inputs, outputs=files.shop.scores(inputs))
    assert invoke(["score", "rows.npz", "--bundle", bundle, "--out", "v.parquet", "--json"]) == 0
    assert pyarrow.parquet.read_table("v.parquet").column("time").null_count == 5
    assert invoke(["score", "rows.npz", "--bundle", bundle, "--out", "rows.npz"]) == 2
    assert "would be written over" in capsys.readouterr().err
    np.load("rows.npz")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["rows.npz"], 2, "--bundle: not given"),
        (["rows.npz", "--bundle", "none.vedette"], 12, "no bundle at none.vedette"),
        (["rows.npz", "--bundle", "damaged.vedette"], 12, "damaged"),
        (["missing.csv", "--bundle", "BUNDLE"], 2, "missing.csv: no such file"),
        (["narrow.npz", "--bundle", "BUNDLE"], 2, "rows have 3 features, the schema has 10"),
        (["rows.npz", "--bundle", "BUNDLE", "--out", "nowhere/v.parquet"], 2, "nowhere is no folder"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    files: Files, bundle: str, arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = files.shop.rows(5, np.random.default_rng(5))
    np.savez("rows.npz", inputs=inputs, outputs=files.shop.scores(inputs))
    np.savez("narrow.npz", inputs=inputs[:, :3], labels=np.zeros(5, dtype=np.int32))
    whole = Path(bundle).read_bytes()
    Path("damaged.vedette").write_bytes(whole[: len(whole) // 2])
    arguments = [bundle if argument == "BUNDLE" else argument for argument in arguments]
    assert invoke(["score", *arguments]) == code
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err
