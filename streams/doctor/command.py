"""The command: every check in order, a table or JSON, and the exit code.

Every finding is `ok`, a `warning` (works, but something is lost or at risk) or a `problem` (a process would refuse to
start, lose events or decide wrongly). The exit code is that of the first problem (docs/operations.md lists them);
warnings alone leave it 0.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.config import Settings
from streams.doctor import installation, kafka_side, redis_side
from streams.doctor.finding import Finding, Status, many

COLOURS: Mapping[Status, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def run(settings: Settings, model_name: str, as_json: bool) -> int:
    """The `vedette doctor` command; returns the exit code of the first problem, else 0."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # its retries are told as one finding
    findings = examine(settings, model_name)
    code = next((finding.exit_code for finding in findings if finding.status == "problem"), 0)
    if as_json:
        told = [
            {"check": f.check, "status": f.status, "text": f.text, "remedy": f.remedy, "exit_code": f.exit_code}
            for f in findings
        ]
        document = {"model": model_name, "exit_code": code, "findings": told}
        click.echo(msgspec.json.format(msgspec.json.encode(document)))
    else:
        show(findings, Console())
    return code


def show(findings: Sequence[Finding], console: Console) -> None:
    """A table for people, and one line that sums it up."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = escape(finding.text)
        if finding.remedy:
            text += f"\n[dim]-> {escape(finding.remedy)}[/dim]"
        table.add_row(f"[{COLOURS[finding.status]}]{finding.status}[/]", finding.check, text)
    console.print(table)
    counted = Counter(finding.status for finding in findings)
    console.print(f"{counted['ok']} ok, {many(counted['warning'], 'warning')}, {many(counted['problem'], 'problem')}")


def examine(
    settings: Settings,
    model_name: str,
    *,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Look at everything; never raises for what it finds.

    Parameters
    ----------
    environ : mapping, optional
        Where secrets may stand; default: the process's environment.
    clock : callable
        Seconds since the epoch.
    """
    environ = os.environ if environ is None else environ
    model = settings.model(model_name)
    findings = [*installation.packages(), *installation.secrets(settings, environ), *installation.console(settings)]
    findings += installation.notifications(settings)
    scorer, told = installation.bundle(model)
    findings.append(told)
    store, told = redis_side.reach(settings)
    findings.append(told)
    if store is not None:
        findings += redis_side.examine(store, settings, clock)
    findings += kafka_side.examine(settings, model, scorer, store, environ, clock)
    in_force = None
    if store is not None:
        findings += redis_side.workers(store, model, clock)
        in_force = redis_side.bundle_in_force(store, model)
        store.close()
    findings.append(installation.endpoint(model))
    findings += installation.escalation(settings, model, environ, in_force)
    return findings
