"""Campaigns on a small model: what they find is true, the same for a seed, and survives an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from streams.cli import invoke
from streams.redteam import subject
from tests.streams.redteam.conftest import Endpoint, Little

#: A campaign of seconds.
QUICK = ["--rows", "30", "--budget", "60", "--seed", "3"]


def run(*more: str, model: str = "little:model", report: str = "out", threat: str = "image-linf") -> int:
    base = ["redteam", "run", "--model", model, "--data", "little.npz", "--schema", "little.json"]
    return invoke([*base, "--threat", threat, "--eps", "0.15", "--report", report, *QUICK, *more])


def report(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "report.json").read_text())
    return found


def lasting(folder: str) -> dict[str, Any]:
    """A report without what differs from run to run: times."""
    found = report(folder)
    found.pop("timings")
    return found


def test_a_campaign_says_what_its_crafted_rows_do(little: Little, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", threat="image-linf-white-box") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == report()
    model = subject.load("little:model").model
    crafted = pyarrow.parquet.read_table("out/examples.parquet")
    rows = np.array(crafted["crafted"].to_pylist())
    originals = np.array(crafted["original"].to_pylist())
    success = crafted["success"].to_numpy()
    truth = crafted["truth"].to_numpy()
    assert success.any()
    assert not success.all()
    answers = np.argmax(model.predict(rows), axis=1)
    assert np.array_equal(answers != truth, success)
    assert np.array_equal(originals, little.inputs[crafted["row"].to_numpy()])
    assert (np.abs(rows - originals).max(axis=1) <= 0.15 * (1 + 1e-9)).all()
    assert (rows >= 0).all()
    assert (rows <= 1).all()
    for attack in told["attacks"]:
        mine = crafted.filter(np.array(crafted["attack"]) == attack["name"])
        assert attack["fooled"]["hits"] == int(mine["success"].to_numpy().sum())
        assert (mine["queries"].to_numpy() <= 60).all()
    fooled = {row for row, hit in zip(crafted["row"].to_pylist(), success, strict=True) if hit}
    assert told["robust_accuracy"]["hits"] == sum(told["outcomes"]["right"]) - len(fooled)
    assert told["robust_accuracy"]["low"] <= told["robust_accuracy"]["value"] <= told["robust_accuracy"]["high"]


def test_the_worst_case_is_no_better_than_any_attack_and_falls_with_distance(little: Little) -> None:
    assert run(threat="image-linf-white-box") == 0
    told = report()
    assert told["robust_accuracy"]["value"] <= min(one["robust_accuracy"]["value"] for one in told["attacks"])
    for curve in (told["curve"], *(one["curve"] for one in told["attacks"])):
        values = [point["value"] for point in curve]
        assert values == sorted(values, reverse=True)
        assert [point["eps"] for point in curve] == pytest.approx([0.0, 0.0375, 0.075, 0.15, 0.225, 0.3])


def test_a_linear_model_falls_exactly_where_its_boundary_is_near(little: Little) -> None:
    """Linf to the boundary of w x + b is |w x + b| / |w|_1: the ground truth of what white-box attacks can do."""
    assert run(threat="image-linf-white-box") == 0
    told = report()
    network = subject.load("little:model").gradients
    assert network is not None
    rows = np.array(told["outcomes"]["row"])
    right = np.array(told["outcomes"]["right"])
    slope = network.gradient(little.inputs[:1], np.array([[-1.0, 1.0]]))[0]
    margin = np.abs(network.logits(little.inputs[rows]) @ np.array([-1.0, 1.0])) / np.abs(slope).sum()
    # Inside of the box the corner of the ball can always be reached along the two features that matter.
    near = right & (margin <= 0.15 * 0.95)
    far = right & (margin > 0.15)
    robust = np.array(told["outcomes"]["robust"])
    assert robust[far].all()
    assert robust[near].mean() < 0.1


def test_the_same_seed_gives_the_same_report_and_another_one_does_not(little: Little) -> None:
    less = ["--attacks", "square,nes,hop_skip_jump"]
    assert run(*less, report="a") == run(*less, report="b") == 0
    assert lasting("a") == lasting("b")
    assert Path("a/examples.parquet").read_bytes() == Path("b/examples.parquet").read_bytes()
    assert run(*less, "--seed", "4", report="c") == 0
    assert lasting("c")["outcomes"] != lasting("a")["outcomes"]


@pytest.mark.parametrize("kept", [0, 2])
def test_a_campaign_that_goes_on_ends_as_one_that_was_never_stopped(little: Little, kept: int) -> None:
    less = ["--attacks", "square,simba,uniform_noise"]
    assert run(*less, report="whole") == 0
    assert run(*less, report="parts") == 0
    parts = sorted(Path("parts/parts").glob("*.npz"))
    for path in parts[kept:]:
        path.unlink()
    for name in ("report.json", "report.html", "examples.parquet"):
        Path("parts", name).unlink()
    if kept:
        parts[0].write_bytes(parts[0].read_bytes()[:100])  # the disk was full
    assert run(*less, report="parts") == 0
    assert lasting("parts") == lasting("whole")
    assert Path("parts/examples.parquet").read_bytes() == Path("whole/examples.parquet").read_bytes()


@pytest.mark.parametrize("held", ["[]", "3", "{"])
def test_a_folder_whose_campaign_is_damaged_is_refused_in_a_sentence(
    little: Little, capsys: pytest.CaptureFixture[str], held: str
) -> None:
    Path("damaged").mkdir()
    Path("damaged/campaign.json").write_text(held, encoding="utf-8")
    assert run("--no-curve", "--attacks", "uniform_noise", report="damaged") == 2
    assert "holds a campaign that differs" in capsys.readouterr().err


def test_ctrl_c_keeps_finished_parts_and_the_same_command_goes_on(little: Little) -> None:
    command = [sys.executable, "-m", "streams.cli", "redteam", "run", "--model", "little:slow", "--data", "little.npz"]
    command += ["--schema", "little.json", "--threat", "image-linf", "--eps", "0.15", "--report", "stopped", *QUICK]
    less = ["--no-curve", "--attacks", "square,uniform_noise"]
    command += less
    home = str(Path(subject.__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": home, "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(Path("stopped/parts").glob("*.npz")):
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not Path("stopped/report.json").exists()
    assert run(*less, model="little:slow", report="stopped") == 0
    assert run(*less, model="little:scores", report="whole") == 0
    stopped, whole = lasting("stopped"), lasting("whole")
    assert stopped.pop("model") == "little:slow"
    whole.pop("model")
    assert stopped == whole


def test_a_campaign_against_an_endpoint_goes_on_after_the_endpoint_broke_down(
    little: Little, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{endpoint.url}/v2/models/little"
    less = ["--no-curve", "--attacks", "square,uniform_noise", "--client-id", "drill"]
    assert run(*less, model=url, report="whole") == 0
    assert {client for _, client, _ in endpoint.seen} == {"drill"}
    asked = len(endpoint.seen)
    endpoint.seen.clear()
    endpoint.lasts = asked - 80  # at the end the latency of 60 rows is measured
    capsys.readouterr()
    assert run(*less, model=url, report="broken") == 22
    assert "status 500" in capsys.readouterr().err
    kept = list(Path("broken/parts").glob("*.npz"))
    assert len(kept) == 1
    endpoint.lasts = None
    assert run(*less, model=url, report="broken") == 0
    assert lasting("broken") == lasting("whole")
    assert lasting("whole")["withstood"]["value"] < 1.0


def test_a_folder_of_another_campaign_is_refused_until_it_is_thrown_away(
    little: Little, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--no-curve") == 0
    capsys.readouterr()
    assert run("--no-curve", "--seed", "9") == 2
    said = capsys.readouterr().err
    assert "out holds a campaign that differs in" in said
    assert "seed" in said
    assert run("--no-curve", "--seed", "9", "--again") == 0
    assert report()["seed"] == 9


def test_black_box_knowledge_reads_no_gradients(little: Little) -> None:
    assert run() == 0
    assert {one["reads"] for one in report()["attacks"]} <= {"labels", "scores"}
    left_out = {one["name"]: one["because"] for one in report()["left_out"]}
    assert left_out["pgd"] == "it reads gradients, knowledge is black-box"


def test_transfer_reads_a_surrogate_and_asks_nothing(little: Little) -> None:
    assert run("--budget", "0", threat="image-linf-transfer") == 0
    told = report()
    assert {one["of"] for one in told["attacks"]} == {"surrogate"}
    assert all(one["queries"] is None for one in told["attacks"])
    assert told["surrogate_rows"] == 130
    assert told["withstood"]["value"] < 1.0


def test_a_goal_leaves_out_rows_that_are_there_already(little: Little) -> None:
    Path("vedette.toml").write_text(
        '[[models]]\nname = "m"\ntopic = "t"\nbundle = "b"\n[threats.to-yes]\nnorm = "linf"\ngoal = "yes"\n'
    )
    assert run(threat="to-yes") == 0
    told = report()
    assert told["threat"]["goal"] == 1
    assert told["threat"]["name"] == "to-yes, eps 0.15"
    counted, truth = np.array(told["outcomes"]["counted"]), np.array(told["outcomes"]["truth"])
    assert np.array_equal(counted, truth == 0)
    assert told["rows"] == int(counted.sum())
    assert np.array(told["confusion"])[0, 1] == told["attacked"] - told["withstood"]["hits"]
    assert all(one["name"] != "hop_skip_jump" for one in told["attacks"])


def test_without_a_bound_the_distance_is_the_result(little: Little) -> None:
    Path("vedette.toml").write_text(
        '[[models]]\nname = "m"\ntopic = "t"\nbundle = "b"\n[threats.far]\nnorm = "l2"\nknowledge = "white-box"\n'
    )
    base = ["redteam", "run", "--model", "little:model", "--data", "little.npz", "--schema", "little.json"]
    assert invoke([*base, "--threat", "far", "--report", "out", *QUICK, "--attacks", "deepfool,hop_skip_jump"]) == 0
    told = report()
    assert told["threat"]["eps"] is None
    assert told["distance"]["p10"] < told["distance"]["median"] < told["distance"]["p90"]
    values = [point["value"] for point in told["curve"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_a_robust_accuracy_below_what_is_required_is_exit_code_1(little: Little) -> None:
    assert run("--require", "1.0", "--attacks", "square") == 1
    assert run("--require", "0.01", "--attacks", "square", report="other") == 0


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--threat", "nothing"], 2, "no threat model 'nothing'; there are embedding-l2"),
        (["--attacks", "fast"], 2, "--attacks: no attack is called 'fast'"),
        (["--attacks", ","], 2, "--attacks: names no attack"),
        (["--attacks", "pgd"], 2, "--attacks: pgd cannot be used under 'image-linf, eps 0.15': it reads gradients"),
        (["--budget", "1"], 2, "no attack fits the threat model"),
        (["--eps", "-1"], 2, "--eps: -1.0 is no distance"),
        (["--data", "gone.npz"], 2, "--data: gone.npz: no such file"),
        (["--schema", "gone.json"], 2, "gone.json: not a readable schema"),
        (["--model", "little:broken"], 22, "little:broken failed: RuntimeError: out of paper"),
        (["--model", "http://127.0.0.1:1/v2/models/m"], 22, "cannot be asked"),
        (["--report", "little.npz"], 2, "--report: little.npz is a file"),
        (["--report", "."], 2, "--report: . holds other files"),
        (["--bundle", "gone.vedette"], 12, "--bundle: "),
        (["--model", "little:constant", "--data", "ones.npz"], 2, "gets 0 of 5 rows"),
        (["--data", "three.npz", "--schema", "three.json"], 2, "answers with 2 classes, three.npz names class 2"),
    ],
)
def test_bad_input_is_one_sentence_with_its_exit_code(
    little: Little, capsys: pytest.CaptureFixture[str], more: list[str], code: int, sentence: str
) -> None:
    for name, labels in (("ones", np.ones(5)), ("three", np.array([0, 1, 2, 0, 1]))):
        with Path(f"{name}.npz").open("wb") as out:
            np.savez(out, inputs=little.inputs[:5], labels=labels.astype(np.int64))
    schema = json.loads(Path("little.json").read_text())
    Path("three.json").write_text(json.dumps({**schema, "classes": ["a", "b", "c"]}))
    assert run(*more) == code
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith("vedette: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in err
