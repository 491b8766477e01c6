"""`vedette harden`: mitigate, measure each mitigation against the model before, and keep what helped."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from attacks import gradients, registry
from attacks.errors import AttackError, ModelError
from attacks.surrogate import fit_surrogate
from attacks.threat import ThreatModel
from detectors.kernels import limit_blas_threads
from detectors.surrogate import interruptible
from streams import config
from streams.cli import print_json
from streams.errors import ConfigError, EndpointError
from streams.hardening.adversarial_training import train
from streams.hardening.committee import Committee
from streams.hardening.measure import JUDGES, Effect, Measured, Trial, effect, measure
from streams.hardening.preprocessing import Prepared
from streams.redteam.command import Known, bounded, read, terminal
from streams.redteam.findings import sentence, told
from streams.redteam.subject import load_estimator, of, save_network
from streams.training.sources import Session, settings_of
from streams.training.telling import Telling

FORMAT = "vedette-hardening/1"
MITIGATIONS = ("adversarial-training", "preprocessing", "ensemble", "adversarial-ensemble")
#: Share of the rows of --data that are held out where --test names none.
HELD_OUT = 1 / 3
#: Rows that a surrogate learns the model's answers on.
SURROGATE_ROWS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Rows to learn from, and a trial on rows that nothing learns from.

    Attributes
    ----------
    inputs : float64 (n, d)
    truth : int64 (n,)
    trial : Trial
    """

    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]
    trial: Trial


def run(
    session: Session,
    *,
    model: str,
    data: str,
    test: str | None,
    schema_path: str | None,
    threat: str,
    eps: float | None,
    budget: int | None,
    rows: int,
    only: str | None,
    attacks: str | None,
    levels: int,
    members: int,
    most_lost: float,
    out: str,
    seed: int,
    trust_pickle: bool,
    as_json: bool,
) -> int:
    """Mitigate, measure, write; returns 0, also when nothing helped: the table says so.

    Raises
    ------
    ConfigError
        A file, a setting or an option, in a sentence.
    EndpointError
        The estimator fails.
    """
    limit_blas_threads()
    settings = settings_of(session)
    declared = config.threat(settings, threat)
    wanted = chosen(only)
    folder = _folder(out)
    known = read(data, schema_path, settings)
    held_out = None if test is None else read(test, schema_path, settings, "--test")
    estimator = load_estimator(model, trust_pickle=trust_pickle)
    bounds = bounded(threat, declared, known, eps, budget)
    if bounds.eps is None:
        raise ConfigError(f"--threat: {threat} has no bound on the distance; pass --eps")
    task = prepare(known, held_out, bounds, rows, seed, _names(attacks))
    with Telling() as telling:
        done = harden(estimator, task, wanted, levels, members, seed, telling)
        told = _told(done, task, model, data if test is None else test, most_lost)
        told["saved"] = _save(done, told["recommended"], folder)
    (folder / "hardening.json").write_text(json.dumps(told, indent=1, allow_nan=False), encoding="utf-8")
    if as_json:
        print_json(told)
    else:
        show(told, terminal())
    return 0


def chosen(only: str | None) -> tuple[str, ...]:
    """The mitigations that --only names.

    Raises
    ------
    ConfigError
    """
    if only is None:
        return MITIGATIONS
    names = tuple(dict.fromkeys(name.strip() for name in only.split(",") if name.strip()))
    for name in names:
        if name not in MITIGATIONS:
            raise ConfigError(f"--only: no mitigation is called {name!r}; there are {', '.join(MITIGATIONS)}")
    if not names:
        raise ConfigError(f"--only: names no mitigation; there are {', '.join(MITIGATIONS)}")
    return names


def prepare(
    known: Known,
    held_out: Known | None,
    threat: ThreatModel,
    rows: int,
    seed: int,
    attacks: tuple[str, ...] = JUDGES,
) -> Task:
    """Deal rows to learning and to the trial; a third of each class is held out where no other rows are given.

    Raises
    ------
    ConfigError
        There is nothing to learn from, or nothing legal to attack.
    """
    rng = np.random.default_rng([seed, 11])
    if held_out is None:
        held = np.zeros(len(known.inputs), dtype=np.bool_)
        for label in np.unique(known.truth):
            mine = rng.permutation(np.flatnonzero(known.truth == label))
            held[mine[: round(HELD_OUT * len(mine))]] = True
        inputs, truth = known.inputs[~held], known.truth[~held]
        tested, answers = known.inputs[held], known.truth[held]
    else:
        if held_out.inputs.shape[1] != known.inputs.shape[1]:
            raise ConfigError(
                f"--test: {held_out.path} has {held_out.inputs.shape[1]} features, {known.path} has "
                f"{known.inputs.shape[1]}"
            )
        inputs, truth, tested, answers = known.inputs, known.truth, held_out.inputs, held_out.truth
    classes = np.unique(truth)
    if len(classes) < 2 or not np.array_equal(classes, np.arange(len(classes))):
        raise ConfigError(f"--data: {known.path}: classes of rows to learn from are {classes.tolist()}, not 0 to k - 1")
    legal = np.flatnonzero(threat.domain.holds(tested) & (answers != threat.goal if threat.goal != "any" else True))
    if len(legal) == 0:
        raise ConfigError(f"no held-out row is legal under {threat.name!r}: {threat.domain.complaint(tested)}")
    attacked = np.sort(rng.permutation(legal)[:rows])
    return Task(inputs, truth, Trial(tested, answers, attacked, threat, seed, attacks, known.schema.image_shape))


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The model before, fitted on the same rows as the rest, and what each mitigation made."""

    before: tuple[Any, Measured]
    after: dict[str, tuple[Any, Measured, Effect]]


def harden(
    estimator: Any,
    task: Task,
    wanted: tuple[str, ...],
    levels: int,
    members: int,
    seed: int,
    telling: Callable[[str, float], None],
) -> Done:
    """Fit a copy of the estimator and every mitigation, and put each through the trial.

    Raises
    ------
    ConfigError, EndpointError
    """
    X, y, threat = task.inputs, task.truth, task.trial.threat
    trained: dict[int, Any] = {}

    def seeded(number: int) -> Any:
        fresh = clone(estimator)
        states = [name for name in fresh.get_params() if name.split("__")[-1] == "random_state"]
        return fresh.set_params(**{name: _state(seed, number) for name in states})

    def adversarial(number: int) -> Any:
        if number not in trained:
            rng = np.random.default_rng([seed, 12, number])
            trained[number] = train(seeded(number), X, y, threat, rng, telling)
        return trained[number]

    def prepared(_: int) -> Any:
        domain = threat.domain
        return Prepared(seeded(0), domain.low, domain.high, levels).fit(X, y)

    makers: dict[str, Callable[[int], Any]] = {
        "adversarial-training": adversarial,
        "preprocessing": prepared,
        "ensemble": lambda _: Committee.of(lambda number: seeded(number).fit(X, y), members),
        "adversarial-ensemble": lambda _: Committee.of(adversarial, members),
    }
    telling("fitting", 0.0)
    try:
        with interruptible():
            warnings.simplefilter("ignore", ConvergenceWarning)
            before = seeded(0).fit(X, y)
            trial = _with_surrogate(task.trial, before, X, seed)
            measured = measure(before, trial, None, telling, "before")
            after = {}
            for name in wanted:
                telling(name, 0.0)
                made = makers[name](0)
                found = measure(made, trial, measured, telling, name)
                after[name] = (made, found, effect(measured, found))
    except (AttackError, ModelError) as refusal:
        raise ConfigError(f"cannot harden: {refusal}") from None
    except (ValueError, TypeError) as wrong:
        raise EndpointError(f"{type(estimator).__name__} failed: {wrong}") from wrong
    return Done((before, measured), after)


def recommended(done: Done, most_lost: float) -> str | None:
    """The mitigation with the highest robust accuracy of those that helped and cost at most `most_lost` of accuracy."""
    fit = {
        name: measured.robust_accuracy.value
        for name, (_, measured, found) in done.after.items()
        if found.helped and found.accuracy.value >= -most_lost
    }
    return max(fit, key=lambda name: fit[name]) if fit else None


def show(told: Mapping[str, Any], console: Console) -> None:
    """The table, and what it comes to."""

    def said(share: Mapping[str, Any]) -> str:
        return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"

    head = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in (
        ("model", told["model"]),
        ("threat model", f"{told['threat']['name']}: {sentence(told['threat'])}"),
        ("attacks", ", ".join(told["attacks"])),
        ("rows", f"{told['learned']:,} to learn from; {told['held_out']:,} held out, {told['attacked']:,} attacked"),
    ):
        head.add_row(name, Text(value))
    console.print(head)
    table = Table(box=None, pad_edge=False)
    for name in ("", "accuracy", "robust accuracy, worst case", "ms, one row", "ms a row of 100"):
        table.add_column(name, no_wrap=True, justify="left" if not name else "right")
    for name, one in (("before", told["before"]), *told["after"].items()):
        speed = one["latency_ms"]
        mark = " *" if name == told["recommended"] else ""
        table.add_row(
            name + mark,
            said(one["clean_accuracy"]),
            said(one["robust_accuracy"]),
            f"{speed['one_row']:.3f}",
            f"{speed['row_of_a_hundred']:.4f}",
        )
    console.print(table)
    for name, one in told["after"].items():
        console.print(Text(f"{name} {one['verdict']}"))
    if told["recommended"] is None:
        console.print(Text("nothing is recommended: no mitigation helped within the accuracy that may be lost"))
    else:
        console.print(Text(f"* recommended, saved as {told['saved']['recommended']['path']}", style="bold"))


def _names(attacks: str | None) -> tuple[str, ...]:
    """The attacks that --attacks names."""
    if attacks is None:
        return JUDGES
    names = tuple(name.strip() for name in attacks.split(",") if name.strip())
    for name in names:
        try:
            registry.kind(name)
        except AttackError as unknown:
            raise ConfigError(f"--attacks: {unknown}") from None
    if not names:
        raise ConfigError("--attacks: names no attack")
    return names


def _state(seed: int, number: int) -> int:
    return int(np.random.default_rng([seed, 13, number]).integers(2**31))


def _with_surrogate(trial: Trial, before: Any, X: NDArray[np.float64], seed: int) -> Trial:
    """A surrogate of the model before, where its own gradients cannot be read."""
    subject = of(before, "model")
    if subject.gradients is not None or trial.threat.knowledge == "black-box":
        return trial
    rng = np.random.default_rng([seed, 14])
    rows = X[rng.permutation(len(X))[:SURROGATE_ROWS]]
    answers = np.argmax(subject.model.predict(rows), axis=1)
    surrogate = fit_surrogate(rows, answers, rng, "mlp")
    return Trial(
        trial.inputs,
        trial.truth,
        trial.attacked,
        trial.threat,
        trial.seed,
        trial.attacks,
        trial.image_shape,
        surrogate,
    )


def _folder(out: str) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "hardening.json").exists():
        raise ConfigError(f"--out: {folder} holds other files; name a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise ConfigError(f"--out: {folder} cannot be made: {wrong.strerror}") from None
    return folder


def _told(done: Done, task: Task, model: str, data: str, most_lost: float) -> dict[str, Any]:
    trial = task.trial
    return {
        "format": FORMAT,
        "model": model,
        "data": Path(data).name,
        "threat": told(trial.threat),
        "seed": trial.seed,
        "learned": len(task.inputs),
        "held_out": len(trial.inputs),
        "attacked": len(trial.attacked),
        "attacks": list(done.before[1].withstood),
        "before": done.before[1].to_dict(),
        "after": {
            name: {
                **measured.to_dict(),
                "clean_change": found.accuracy.to_dict(),
                "robust_change": found.robust.to_dict(),
                "helped": found.helped,
                "verdict": found.sentence(most_lost),
            }
            for name, (_, measured, found) in done.after.items()
        },
        "most_lost": most_lost,
        "recommended": recommended(done, most_lost),
    }


def _save(done: Done, best: str | None, folder: Path) -> dict[str, Any]:
    """Every model as a joblib file, plain layers also as npz, and the recommended one under a name of its own."""
    import joblib  # type: ignore[import-untyped]  # it ships no types

    saved: dict[str, Any] = {}
    for name, made in (("before", done.before[0]), *((name, one[0]) for name, one in done.after.items())):
        path = folder / f"{name}.joblib"
        joblib.dump(made, path)
        saved[name] = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        try:
            save_network(gradients.adapt(made), folder / f"{name}.npz")
        except ModelError:
            continue
        saved[name]["layers"] = str(folder / f"{name}.npz")
    if best is not None:
        path = folder / "model.joblib"
        path.write_bytes((folder / f"{best}.joblib").read_bytes())
        saved["recommended"] = {"path": str(path), "is": best, "sha256": saved[best]["sha256"]}
    else:
        (folder / "model.joblib").unlink(missing_ok=True)
    return saved


__all__ = ["MITIGATIONS", "Done", "Task", "chosen", "harden", "prepare", "recommended", "run", "show"]
