"""`vedette probe`: start probes now, list what can be sent, show what was found."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import click
import msgspec
from rich.console import Console
from rich.table import Table

from streams.config import ModelSettings, Settings
from streams.probes.catalogue import entries
from streams.probes.outcome import faults
from streams.probes.regression import Comparison, compare, sentence
from streams.probes.requests import answers, ask, scheduled
from streams.probes.store import ProbeStore
from streams.store.client import connect
from streams.store.messages import ProbeOutcome, ProbeRequest, ProbeSummary

#: Pause between two looks at what came of a request.
LOOK_SECONDS = 0.25
#: Columns of text where no terminal tells them.
WIDTH = 160
#: Of the table of results; intervals are Wilson's, 95 %.
COLUMNS = ("attack", "threat model", "version", "n", "recall", "robust accuracy", "alert p50", "model p99")


class Session(Protocol):
    """What the commands need of the command line's context object."""

    @property
    def settings(self) -> Settings: ...

    @property
    def model_settings(self) -> ModelSettings: ...


class Findings(msgspec.Struct, frozen=True):
    """What `vedette probe results --json` prints."""

    summaries: list[ProbeSummary]
    """By attack, threat model and model version."""
    comparisons: list[Comparison]


def now(
    session: Session,
    attacks: Sequence[str],
    *,
    kind: str,
    threat: str,
    count: int,
    by: str | None,
    wait_seconds: float,
    as_json: bool,
) -> int:
    """`vedette probe now`: ask the active prober for probes, and perhaps wait for what comes of them.

    Returns
    -------
    int
        1 when one that was waited for was missed, paged falsely, abandoned, or has no outcome; else 0.

    Raises
    ------
    ConfigError, Conflict
        Requests before the one that is refused stay.
    """
    settings, store = session.settings, _store(session)
    who = by or getpass.getuser()
    made = [
        ask(store, settings, attack=attack, by=who, kind=kind, threat_name=threat, count=count)
        for attack in attacks or scheduled(settings)
    ]
    if not wait_seconds:
        _print(made, as_json, [f"{one.id} {one.attack}: {one.count} asked for" for one in made])
        return 0
    found = wait(store, made, wait_seconds)
    _print(found, as_json, [told(outcome) for outcome in found])
    missing = sum(one.count for one in made) - len(found)
    if missing:
        click.echo(f"{missing} have no outcome yet; is `vedette prober` running?", err=True)
    return int(missing > 0 or any(failed(outcome) for outcome in found))


def catalogue(as_json: bool) -> int:
    """`vedette probe list`: what can be sent."""
    found = entries()
    plain = [{"attack": entry.attack, "kinds": list(entry.kinds)} for entry in found]
    _print(plain, as_json, [f"{entry.attack}: {' or '.join(entry.kinds)}" for entry in found])
    return 0


def results(session: Session, as_json: bool) -> int:
    """`vedette probe results`: recall, robust accuracy and latency, and versions compared."""
    store = _store(session)
    findings = Findings(store.breakdown(), compare(store.outcomes(), session.settings.probes.significance))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
        return 0
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        table.add_column(title)
    for part in findings.summaries:
        table.add_row(
            part.attack,
            part.threat,
            part.model_version or "-",
            str(part.n),
            f"{part.recall:.0%} ({part.low:.0%} to {part.high:.0%})",
            _share(part.robust_accuracy, part.robust_low, part.robust_high),
            "-" if part.latency_p50_ms is None else f"{part.latency_p50_ms:.0f} ms",
            "-" if part.model_p99_ms is None else f"{part.model_p99_ms:.0f} ms",
        )
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table if findings.summaries else "No probe has finished yet.")
    for found in findings.comparisons:
        click.echo(("WORSE: " if found.worse else "") + sentence(found))
    return 0


def wait(store: ProbeStore, made: Sequence[ProbeRequest], seconds: float) -> list[ProbeOutcome]:
    """Outcomes of requests, all of them or those that came within the time."""
    until = time.monotonic() + seconds
    while True:
        found = [outcome for one in made for outcome in answers(store, one.id)]
        if len(found) >= sum(one.count for one in made) or time.monotonic() >= until:
            return found
        time.sleep(LOOK_SECONDS)


def failed(outcome: ProbeOutcome) -> bool:
    """Whether an outcome is not what it ought to be."""
    if outcome.abandoned:
        return True
    return outcome.detected if outcome.kind in ("control", "fuzz") else not outcome.detected


def told(outcome: ProbeOutcome) -> str:
    """An outcome in one line."""
    head = f"{outcome.attack} ({outcome.threat}): "
    if outcome.abandoned:
        return f"{head}abandoned: {outcome.abandoned}"
    if outcome.kind == "fuzz":
        answered = outcome.answers
        return f"{head}{faults(answered)} faults in {answered.calls} requests, {answered.refused} refused"
    if outcome.kind == "control":
        return f"{head}{'paged falsely' if outcome.detected else 'quiet, as it should be'}"
    seen = f"paged after {outcome.queries_to_page} queries" if outcome.detected else "missed"
    return f"{head}{seen}, {outcome.arrived} of {outcome.inputs} rows came back"


def _share(share: float | None, low: float | None, high: float | None) -> str:
    return "-" if share is None or low is None or high is None else f"{share:.0%} ({low:.0%} to {high:.0%})"


def _store(session: Session) -> ProbeStore:
    model = session.model_settings
    return ProbeStore(connect(session.settings.redis), model.name, model.topic)


def _print(values: Sequence[Any], as_json: bool, lines: Sequence[str]) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(values), indent=2).decode())
        return
    for line in lines:
        click.echo(line)
