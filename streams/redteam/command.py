"""`vedette redteam run`: a campaign from a model, a file and a threat model to a report on disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attacks.errors import ModelError
from attacks.oracle import scores_of
from attacks.threat import ThreatModel
from detectors.kernels import limit_blas_threads
from detectors.schema import FeatureSchema
from streams import config, tables, threats
from streams.cli import print_json
from streams.config import Settings, ThreatSettings
from streams.errors import ConfigError, EndpointError
from streams.redteam import campaign as campaigns
from streams.redteam import findings, page
from streams.redteam.campaign import Campaign, Field
from streams.redteam.lineup import lineup
from streams.redteam.subject import Subject, load
from streams.redteam.witness import Witness
from streams.training.sources import Session, client_key, schema_of, settings_of
from streams.training.telling import Telling

#: What a folder of a report may hold, and what --again throws away.
OWN_FILES = ("campaign.json", "report.json", "report.html", "examples.parquet")
#: Rows whose answers are timed, each asked alone.
TIMED_ROWS = 30
#: Width of tables where they go into a file.
LOG_COLUMNS = 130
#: Examples and features on the page.
SHOWN_EXAMPLES, SHOWN_FEATURES = 12, 15


@dataclass(frozen=True, slots=True)
class Known:
    """A file's rows with their true classes: inputs float64 (n, d), truth int64 (n,)."""

    path: str
    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]
    schema: FeatureSchema


def run(
    session: Session,
    *,
    model: str,
    data: str,
    schema_path: str | None,
    threat: str,
    eps: float | None,
    budget: int | None,
    rows: int,
    attacks: str | None,
    bundle: str | None,
    report: str,
    seed: int,
    curve: bool,
    again: bool,
    trust_pickle: bool,
    client: str,
    require: float | None,
    as_json: bool,
) -> int:
    """Attack, write the report, print it; returns 0, 1 when `require` was missed, 130 after Ctrl-C.

    Raises
    ------
    ConfigError
        A file, a setting or an option, in a sentence.
    EndpointError
        The model fails.
    BundleMismatch
        The bundle is missing, damaged, or for other rows.
    """
    limit_blas_threads()
    settings = settings_of(session)
    declared = config.threat(settings, threat)
    folder = folder_of(report, again)
    known = read(data, schema_path, settings)
    subject = load(model, trust_pickle=trust_pickle, client=client)
    bounds = bounded(threat, declared, known, eps, budget)
    only = None if attacks is None else [name.strip() for name in attacks.split(",") if name.strip()]
    plan = lineup(subject, bounds, known.schema.image_shape, only)
    taken = campaigns.draw(known.inputs, known.truth, bounds, rows, seed)
    field = met(subject, known, taken)
    needs_surrogate = any(entry.target == "surrogate" for entry in plan.entries)
    campaign = Campaign(
        subject=subject,
        threat=bounds,
        schema=known.schema,
        field=field,
        lineup=plan,
        seed=seed,
        spare=spare(subject, known, taken, seed) if needs_surrogate else (field.inputs[:0], field.scores[:0]),
        witness=None if bundle is None else Witness.load(bundle, known.schema),
        curve=curve,
    )
    if len(campaign.attacked) == 0:
        right = int(field.right.sum())
        raise ConfigError(f"{subject.name} gets {right} of {len(field)} rows of {data} right, and none can be attacked")
    try:
        with Telling() as telling:
            found = campaigns.run(campaign, folder, telling)
            told = findings.report(campaign, found, {"model": model, "data": Path(data).name})
            told["timings"]["model"] = findings.timings(
                {
                    "untouched": list(campaigns.timed(subject, field.inputs[:TIMED_ROWS], time.perf_counter)),
                    "crafted": list(campaigns.timed(subject, _crafted(campaign, found), time.perf_counter)),
                }
            )
            _write(campaign, found, told, folder)
    except KeyboardInterrupt:
        parts = len(list((folder / "parts").glob("*.npz")))
        print(f"vedette: stopped; {parts} parts lie in {folder}, the same command goes on from there", file=sys.stderr)
        return 130
    if as_json:
        print_json(told)
    else:
        show(told, folder, terminal())
    reached = told["robust_accuracy"]["value"]
    return int(require is not None and reached is not None and reached < require)


def folder_of(report: str, again: bool) -> Path:
    """The folder of a report: new, empty, or that of an earlier campaign.

    Raises
    ------
    ConfigError
    """
    folder = Path(report)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--report: {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "campaign.json").exists():
        raise ConfigError(f"--report: {folder} holds other files; name a new or empty folder")
    if again and folder.is_dir():
        for path in [*(folder / name for name in OWN_FILES), *(folder / "parts").glob("*.npz")]:
            path.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise ConfigError(f"--report: {folder} cannot be made: {wrong.strerror}") from None
    return folder


def read(data: str, schema_path: str | None, settings: Settings | None, option: str = "--data") -> Known:
    """Rows with true classes: a column or array `truth`, else `label` or `labels` are taken for it.

    Raises
    ------
    ConfigError
    """
    key, _ = client_key(settings)
    try:
        found, schema = tables.read(data, schema_of(schema_path), key)
    except ConfigError as wrong:
        raise ConfigError(f"{option}: {wrong}") from None
    truth = found.labels if found.truth is None else found.truth
    classes = len(schema.classes)
    if (truth < 0).any() or (truth >= classes).any():
        raise ConfigError(f"{option}: {data}: a true class is outside 0 to {classes - 1}")
    return Known(data, found.inputs, truth.astype(np.int64), schema)


def bounded(
    name: str, declared: ThreatSettings, known: Known, eps: float | None = None, budget: int | None = None
) -> ThreatModel:
    """The declared threat model for these rows, with another distance or budget where they are given.

    Raises
    ------
    ConfigError
    """
    if eps is not None:
        if not eps > 0 or not np.isfinite(eps):
            raise ConfigError(f"--eps: {eps} is no distance; it is a positive number")
        if declared.norm == "l0" and eps != round(eps):
            raise ConfigError(f"--eps: {eps}; under l0 it is a whole number of features")
        declared = config.ThreatSettings(
            **{key: getattr(declared, key) for key in declared.__struct_fields__ if key not in ("eps", "eps_quantile")},
            eps=eps,
        )
        name = f"{name}, eps {eps:g}"
    made = threats.model(name, declared, known.schema, known.inputs, known.truth)
    return made if budget is None else campaigns.replaced(made, budget=budget)


def met(subject: Subject, known: Known, taken: NDArray[np.intp]) -> Field:
    """The rows `taken` of a file with the model's answers.

    Raises
    ------
    ConfigError
        The model has fewer classes than the file, or takes other rows.
    EndpointError
    """
    inputs, truth = known.inputs[taken], known.truth[taken]
    try:
        scores = scores_of(subject.model, inputs)
    except ModelError as wrong:
        raise EndpointError(f"{subject.name}: {wrong}") from None
    if scores.shape[1] <= known.truth.max():
        raise ConfigError(
            f"{subject.name} answers with {scores.shape[1]} classes, {known.path} names class {int(known.truth.max())}"
        )
    return Field(inputs, truth, taken.astype(np.int64), scores)


def spare(
    subject: Subject, known: Known, taken: NDArray[np.intp], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows that are not attacked, and the model's answers.

    Raises
    ------
    ConfigError
        There are too few.
    """
    rest = np.setdiff1d(np.arange(len(known.inputs)), taken)
    rest = np.sort(np.random.default_rng([seed, 3]).permutation(rest)[: campaigns.SURROGATE_ROWS])
    if len(rest) < campaigns.LEAST_SURROGATE_ROWS:
        raise ConfigError(
            f"--data: a surrogate learns from rows that are not attacked, and only {len(rest)} are left; "
            "pass a smaller --rows, more data, or --attacks without those by gradients"
        )
    return known.inputs[rest], scores_of(subject.model, known.inputs[rest])


def terminal() -> Console:
    """Standard output, wide enough for tables where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_COLUMNS)


def show(told: Mapping[str, Any], folder: Path | None, console: Console) -> None:
    """The report for a terminal."""

    def said(share: Mapping[str, Any]) -> str:
        return f"{page.percent(share)} ({page.interval(share)})"

    head = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    threat = f"{told['threat']['name']}: {findings.sentence(told['threat'], told['classes'])}"
    for name, value in (
        ("model", told["model"]),
        ("threat model", threat),
        ("rows", f"{told['rows']:,} of {told['data']}, {told['attacked']:,} attacked, seed {told['seed']}"),
        ("accuracy without attack", said(told["clean_accuracy"])),
    ):
        head.add_row(name, Text(value))
    worst = f"{said(told['robust_accuracy'])}, worst case over {len(told['attacks'])} attacks"
    head.add_row("robust accuracy", Text(worst, style="bold"))
    if told["detection"] is not None:
        seen = (
            f"{said(told['detection']['crafted_seen'])}; of untouched {page.percent(told['detection']['benign_seen'])}"
        )
        head.add_row("seen by the bundle", Text(seen))
    console.print(head)
    table = Table(box=None, pad_edge=False)
    for name in ("attack", "reads", "fooled", "robust accuracy", "distance", "queries"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("attack", "reads") else "right")
    for attack in sorted(told["attacks"], key=lambda one: -one["fooled"]["hits"]):
        distance, queries = attack["distance"], attack["queries"]
        table.add_row(
            attack["name"],
            attack["reads"] + (" (surrogate)" if attack["of"] == "surrogate" else ""),
            page.percent(attack["fooled"]),
            said(attack["robust_accuracy"]),
            "-" if distance is None else f"{distance['median']:.4g}",
            "-" if queries is None or "median" not in queries else f"{queries['median']:,.0f}",
        )
    console.print(table)
    if folder is not None:
        console.print(Text(f"report: {folder / 'report.html'}", style="dim"))


def _crafted(campaign: Campaign, found: Mapping[str, Any]) -> NDArray[np.float64]:
    """Some crafted rows that fooled the model (m, d)."""
    own = campaign.own
    rows = [part.crafted[own][part.success[own]] for parts in found.values() for part in parts]
    return np.concatenate([*rows, campaign.field.inputs[:0]])[:TIMED_ROWS]


def _write(campaign: Campaign, found: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> None:
    pyarrow.parquet.write_table(findings.examples(campaign, found), folder / "examples.parquet")
    (folder / "report.json").write_text(json.dumps(told, indent=1, allow_nan=False), encoding="utf-8")
    html = page.render(
        told,
        campaign.schema,
        findings.shown(campaign, found, SHOWN_EXAMPLES),
        findings.changed_most(campaign, found, SHOWN_FEATURES) if campaign.schema.image_shape is None else [],
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
