"""`vedette incidents`: list, show, watch, acknowledge, assign, note, silence, resolve, re-open and export."""

from __future__ import annotations

import getpass
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import click
import msgspec
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from streams.config import ModelSettings, Settings
from streams.incidents.ledger import as_text
from streams.incidents.runbook import Runbook
from streams.incidents.service import IncidentService, IncidentView, StateFilter
from streams.incidents.silences import describe
from streams.incidents.titles import TECHNIQUES
from streams.store.keys import ModelKeys
from streams.store.messages import (
    Incident,
    IncidentChange,
    InquiryMessage,
    LevelName,
    Matcher,
    SignalMessage,
    Verdict,
    row_of,
)

#: Evidence signals, clients, changes and features that `show` prints at most.
SHOWN_SIGNALS, SHOWN_CLIENTS, SHOWN_CHANGES, SHOWN_FEATURES = 5, 12, 12, 6
#: Changes that one look of `watch` reads, how long it waits for them, and problems of an export that are told.
WATCH_BATCH, WATCH_MILLISECONDS, SHOWN_PROBLEMS = 100, 1000, 5
#: Longest length of time that a command understands, before what is asked for says how long it may last.
LONGEST_SECONDS = 100 * 365 * 86_400
#: A resolved incident has served its purpose, a page has not.
COLOURS = {"page": "bold red", "ticket": "yellow"}


Entity = Literal["", "client", "cluster", "population", "monitoring"]


class Session(Protocol):
    """What the commands need of the command line's context object."""

    @property
    def settings(self) -> Settings: ...

    @property
    def model_settings(self) -> ModelSettings: ...


def list_command(
    service: IncidentService,
    console: Console,
    state: StateFilter | None = None,
    level: LevelName | None = None,
    limit: int = 50,
    as_json: bool = False,
) -> int:
    """Print incidents, last seen first."""
    found = service.list(state, level, limit)
    if as_json:
        _print_json(found)
    elif found:
        console.print(_table(found))
    else:
        console.print("No incidents." if state is None and level is None else "No such incidents.")
    return 0


def show_command(
    service: IncidentService,
    console: Console,
    incident: str,
    as_json: bool = False,
    runbook: Runbook | None = None,
) -> int:
    """Print one incident with its evidence."""
    view = service.show(incident)
    if as_json:
        _print_json(
            {
                "incident": view.incident,
                "version": view.version,
                "evidence": view.evidence,
                "inquiries": view.inquiries,
            }
        )
    else:
        console.print(_page(view, runbook or Runbook()))
    return 0


def acknowledge_command(
    service: IncidentService, console: Console, incident: str, by: str, as_json: bool = False
) -> int:
    """Take an incident."""
    return _changed(service.acknowledge(incident, by), console, as_json)


def resolve_command(
    service: IncidentService, console: Console, incident: str, by: str, verdict: str, note: str, as_json: bool = False
) -> int:
    """Close an incident with a verdict."""
    return _changed(service.resolve(incident, by, verdict, note), console, as_json)


def reopen_command(service: IncidentService, console: Console, incident: str, by: str, as_json: bool = False) -> int:
    """Take a resolved incident up again."""
    return _changed(service.reopen(incident, by), console, as_json)


def silence_command(
    service: IncidentService,
    console: Console,
    matcher: Matcher,
    by: str,
    comment: str,
    seconds: float,
    start: datetime | None = None,
    maintenance: bool = False,
    as_json: bool = False,
    now: int | None = None,
) -> int:
    """Keep what fits quiet for so long."""
    at = time.time_ns() // 1000 if now is None else now
    starts = at if start is None else round(start.replace(tzinfo=UTC).timestamp() * 1e6)
    made = service.silence(
        matcher,
        by,
        starts + round(seconds * 1e6),
        comment,
        starts=starts,
        kind="maintenance" if maintenance else "silence",
        now=at,
    )
    if as_json:
        _print_json(made)
    else:
        console.print(line(f"{made.id}  {made.kind} of {describe(made.matcher)} until {moment(made.ends)} UTC"))
    return 0


def silences_command(
    service: IncidentService, console: Console, ended: bool = False, as_json: bool = False, now: int | None = None
) -> int:
    """Print silences and maintenance windows, those in force first."""
    at = time.time_ns() // 1000 if now is None else now
    found = [silence for silence in service.silences() if ended or silence.ends > at]
    if as_json:
        _print_json(found)
        return 0
    if not found:
        console.print("No silences.")
        return 0
    table = Table("id", "", "what", "from (UTC)", "until (UTC)", "by", "why", box=None, pad_edge=False)
    for silence in sorted(found, key=lambda one: (one.starts > at, one.ends <= at, one.ends)):
        state = "ended" if silence.ends <= at else "in force" if silence.starts <= at else "to come"
        what = f"{silence.kind} of {describe(silence.matcher)}"
        cells = (silence.id, state, what, moment(silence.starts), moment(silence.ends), silence.by, silence.comment)
        table.add_row(*(line(cell) for cell in cells), style="dim" if state == "ended" else "")
    console.print(table)
    return 0


def watch_command(
    redis: Redis,
    keys: ModelKeys,
    console: Console,
    stop: threading.Event,
    every_signal: bool = False,
    as_json: bool = False,
) -> int:
    """Print changes of incidents as they come, until `stop` is set; waits while Redis is away."""
    position, away = "$", False
    while not stop.is_set():
        try:
            if position == "$":  # a fixed place, so that nothing is missed between two reads
                newest: Any = redis.xrevrange(keys.log, count=1)
                position = as_text(newest[0][0]) if newest else "0-0"
            answer: Any = redis.xread({keys.log: position}, count=WATCH_BATCH, block=WATCH_MILLISECONDS)
        except RedisError as error:
            if not away:
                console.print(line(f"Redis is away, waiting: {error}", "dim"))
            away = True
            stop.wait(1.0)
            continue
        away = False
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]
        for name, fields in [entry for entries in streams for entry in entries]:
            position = as_text(name)
            try:
                change = msgspec.json.decode(fields[b"m"], type=IncidentChange)
            except (KeyError, msgspec.MsgspecError):
                continue
            if change.change == "signal" and not every_signal:
                continue
            if as_json:
                click.echo(msgspec.json.encode(change))
            else:
                style = COLOURS.get(change.level, "") if change.state != "resolved" else "dim"
                text = f"{moment(change.at)}  {change.incident or change.id}  {change.level}  {change.what}"
                console.print(line(f"{text} ({change.by})", style))
    return 0


class Length(click.ParamType):
    """A length of time: 90s, 30m, 2h, 1.5d."""

    name = "length"
    _UNITS: ClassVar[dict[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no length of time; write 90s, 30m, 2h or 1.5d", param, ctx)
        seconds = float(found.group(1)) * self._UNITS[found.group(2)]
        if seconds > LONGEST_SECONDS:
            self.fail(f"{str(value)[:20]!r} is longer than a hundred years", param, ctx)
        return seconds


@click.group()
def incidents() -> None:
    """Incidents: list, show, watch, acknowledge, assign, note, silence, resolve, re-open, export."""


#: Options that commands share.
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BY = click.option("--by", default=getpass.getuser, show_default="your user name", help="Who acts.")


@incidents.command("list")
@click.option("--state", type=click.Choice(["open", "new", "in_progress", "suppressed", "resolved"]))
@click.option("--level", type=click.Choice(["ticket", "page"]))
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@JSON
@click.pass_obj
def _list(session: Session, state: StateFilter | None, level: LevelName | None, limit: int, as_json: bool) -> int:
    """Incidents, last seen first."""
    return list_command(_service(session), Console(), state, level, limit, as_json)


@incidents.command("show")
@click.argument("incident")
@JSON
@click.pass_obj
def _show(session: Session, incident: str, as_json: bool) -> int:
    """One incident with its evidence."""
    runbook = Runbook.of(session.settings.incidents)
    return show_command(_service(session), Console(), incident, as_json, runbook)


@incidents.command("watch")
@click.option("--signals", "every_signal", is_flag=True, help="Every signal too, not only what changed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line (docs/schemas/incident-change.json).")
@click.pass_obj
def _watch(session: Session, every_signal: bool, as_json: bool) -> int:
    """Changes as they come, until Ctrl-C."""
    from streams.store.client import connect

    keys = ModelKeys(session.model_settings.name)
    return watch_command(
        connect(session.settings.redis), keys, Console(soft_wrap=True), threading.Event(), every_signal, as_json
    )


@incidents.command("export")
@click.option("--verdict", default="true", show_default=True, type=click.Choice(["true", "false", "benign"]))
@click.option("--out", required=True, metavar="FILE", help="Parquet file to write.")
@click.option("--bundle", metavar="FILE", help="Bundle whose schema names the features; default: the model's.")
@JSON
@click.pass_obj
def _export(session: Session, verdict: Verdict, out: str, bundle: str | None, as_json: bool) -> int:
    """Queries of incidents that were judged, for adversarial training."""
    from streams.incidents.export import export

    model = session.model_settings
    told = export(session.settings, model, _service(session), verdict, Path(out), bundle or model.bundle)
    if as_json:
        _print_json({**asdict(told), "out": out})
        return 0
    Console().print(line(f"{out}: {told.queries:,} queries of {told.incidents:,} incidents resolved as {verdict}"))
    if told.from_evidence:
        Console().print(line(f"{told.from_evidence:,} of them from the evidence: their records are no longer kept"))
    if told.lost:
        Console().print(line(f"{told.lost:,} queries are lost with their records", "yellow"))
    for problem in told.problems[:SHOWN_PROBLEMS]:
        Console().print(line(problem, "dim"))
    return 0


@incidents.command("ack")
@click.argument("incident")
@BY
@JSON
@click.pass_obj
def _acknowledge(session: Session, incident: str, by: str, as_json: bool) -> int:
    """Take an incident: it is in progress and yours."""
    return acknowledge_command(_service(session), Console(), incident, by, as_json)


@incidents.command("resolve")
@click.argument("incident")
@click.option("--verdict", required=True, type=click.Choice(["true", "false", "benign"]))
@click.option("--note", default="", help="Why; stands in the incident's history.")
@BY
@JSON
@click.pass_obj
def _resolve(session: Session, incident: str, verdict: str, note: str, by: str, as_json: bool) -> int:
    """Close an incident: a true attack, a false alarm, or real but benign."""
    return resolve_command(_service(session), Console(), incident, by, verdict, note, as_json)


@incidents.command("approve-verdict")
@click.argument("incident")
@BY
@JSON
@click.pass_obj
def _approve_verdict(session: Session, incident: str, by: str, as_json: bool) -> int:
    """Vouch for a false alarm that somebody else resolved: `vedette calibrate --false-alarms` counts it then."""
    return _changed(_service(session).approve_verdict(incident, by), Console(), as_json)


@incidents.command("reopen")
@click.argument("incident")
@BY
@JSON
@click.pass_obj
def _reopen(session: Session, incident: str, by: str, as_json: bool) -> int:
    """Take a resolved incident up again."""
    return reopen_command(_service(session), Console(), incident, by, as_json)


@incidents.command("assign")
@click.argument("incident")
@click.argument("name")
@BY
@JSON
@click.pass_obj
def _assign(session: Session, incident: str, name: str, by: str, as_json: bool) -> int:
    """Give an incident to somebody."""
    return _changed(_service(session).assign(incident, by, name), Console(), as_json)


@incidents.command("note")
@click.argument("incident")
@click.argument("text")
@BY
@JSON
@click.pass_obj
def _note(session: Session, incident: str, text: str, by: str, as_json: bool) -> int:
    """Write into an incident's history."""
    return _changed(_service(session).note(incident, by, text), Console(), as_json)


@incidents.command("silence")
@click.option("--technique", default="", metavar="PATTERN", help="ATLAS id; * and ? stand for anything.")
@click.option("--entity", default="", type=click.Choice(["", "client", "cluster", "population", "monitoring"]))
@click.option("--level", default="", type=click.Choice(["", "ticket", "page"]))
@click.option("--rule", default="", metavar="PATTERN", help="Must fit every rule that spoke.")
@click.option("--client", default="", metavar="PATTERN", help="Client hash; must fit every client of the incident.")
@click.option("--for", "seconds", required=True, type=Length(), help="How long: 90s, 30m, 2h, 1.5d.")
@click.option("--from", "start", type=click.DateTime(), help="When it starts, UTC; default: now.")
@click.option("--maintenance", is_flag=True, help="A maintenance window: may be about everything.")
@click.option("--comment", default="", help="Why.")
@BY
@JSON
@click.pass_obj
def _silence(
    session: Session,
    technique: str,
    entity: Entity,
    level: Literal["", "ticket", "page"],
    rule: str,
    client: str,
    seconds: float,
    start: datetime | None,
    maintenance: bool,
    comment: str,
    by: str,
    as_json: bool,
) -> int:
    """Keep incidents that fit quiet until an end; they are counted, shown, and announced afterwards if still open."""
    matcher = Matcher(technique=technique, entity=entity, level=level, rule=rule, client=client)
    service = _service(session)
    return silence_command(service, Console(), matcher, by, comment, seconds, start, maintenance, as_json)


@incidents.command("silences")
@click.option("--ended", is_flag=True, help="Those that ended within a week too.")
@JSON
@click.pass_obj
def _silences(session: Session, ended: bool, as_json: bool) -> int:
    """Silences and maintenance windows."""
    return silences_command(_service(session), Console(), ended, as_json)


@incidents.command("unsilence")
@click.argument("silence")
@BY
@JSON
@click.pass_obj
def _unsilence(session: Session, silence: str, by: str, as_json: bool) -> int:
    """End a silence now."""
    ended = _service(session).end_silence(silence, by)
    if as_json:
        _print_json(ended)
    else:
        Console().print(line(f"{ended.id}  {ended.kind} of {describe(ended.matcher)} has ended"))
    return 0


def _service(session: Session) -> IncidentService:
    from streams.store.client import connect

    return IncidentService(connect(session.settings.redis), session.model_settings.name)


def _changed(incident: Incident, console: Console, as_json: bool) -> int:
    if as_json:
        _print_json(incident)
    else:
        who = f" by {incident.assignee}" if incident.assignee else ""
        console.print(line(f"{incident.id}  {_state(incident)}{who}  {incident.title}"))
    return 0


def _print_json(value: object) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def _table(found: Sequence[Incident]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("id", "level", "state", "last seen (UTC)", "signals", "incident"):
        table.add_column(name, no_wrap=name != "incident", justify="right" if name == "signals" else "left")
    for one in found:
        colour = "dim" if one.state == "resolved" else COLOURS[one.level]
        cells = (one.id, one.level, _state(one), moment(one.last_seen), f"{one.signals:,}", one.title)
        table.add_row(*(line(cell) for cell in cells), style=colour)
    return table


def _page(view: IncidentView, runbook: Runbook) -> RenderableType:
    one = view.incident
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    rows = [
        ("incident", f"{one.id}, change {view.version}"),
        ("level", f"{one.level}, severity {one.severity}"),
        (
            "state",
            _state(one) + (f", {one.assignee}" if one.assignee else "") + (f" by {one.silence}" if one.silence else ""),
        ),
        ("technique", f"{one.technique} {TECHNIQUES.get(one.technique, '')} (MITRE ATLAS {one.atlas_version})"),
        ("entity", f"{one.entity} {one.entity_id}"),
        ("seen", f"{moment(one.first_seen)} to {moment(one.last_seen)} UTC"),
        ("signals", f"{one.signals:,}: " + ", ".join(f"{rule} {count:,}" for rule, count in one.rules.items())),
        ("strongest", f"{one.max_ratio:.2f} times its threshold"),
        ("clients", _bounded(one.clients, SHOWN_CLIENTS)),
        ("partitions", ", ".join(map(str, one.partitions))),
        ("bundle", one.bundle),
        ("what to do", " ".join(runbook.text(one.technique, one.entity).split())),
    ]
    for name, value in rows:
        facts.add_row(name, line(value))
    parts: list[RenderableType] = [line(one.title, style=COLOURS[one.level]), facts]
    if one.history:
        history = Table("when (UTC)", "who", "what", title="History", title_justify="left", box=None, pad_edge=False)
        for change in one.history[-SHOWN_CHANGES:]:
            history.add_row(moment(change.at), line(change.by), line(change.what))
        parts += [line(), history]
    asked = {row_of(said.signal): said for said in view.inquiries}
    for signal in view.evidence[:SHOWN_SIGNALS]:
        parts += [line(), _evidence(signal, asked.get(row_of(signal.id)))]
    if len(view.evidence) > SHOWN_SIGNALS:
        parts += [
            line(),
            line(f"{len(view.evidence) - SHOWN_SIGNALS} more signals in --json and on the console", "dim"),
        ]
    return Group(*parts)


def _evidence(signal: SignalMessage, asked: InquiryMessage | None) -> RenderableType:
    where = f"{signal.topic}/{signal.partition}/{signal.offset} row {signal.row}"
    lines = [
        line(f"{signal.rule} at {where}, {moment(signal.time)} UTC", style="bold"),
        line(f"  statistic {signal.statistic:.3g} against {signal.threshold:.3g}; answered class {signal.label}"),
        line(
            f"  {len(signal.members)} queries in evidence, offsets {_bounded([str(m[0]) for m in signal.members], 8)}"
        ),
    ]
    for reason in signal.reasons:
        p = f"p {'<' if reason.extrapolated else '='} {reason.p:.2g}"
        lines.append(line(f"  {reason.detector}: {reason.text} ({p})"))
    for said in () if asked is None else asked.answers:
        share = f"p = {said.p:.2g} of {said.rows:,} benign rows"
        lines.append(
            line(f"  model asked again, {said.inquiry}: {said.score:.3g} ({share}; {said.questions} questions)")
        )
    if signal.nearest and len(signal.nearest) == len(signal.input):
        changed = sorted(range(len(signal.input)), key=lambda i: -abs(signal.input[i] - signal.nearest[i]))
        parts = [
            f"[{i}] {signal.nearest[i]:.3g} -> {signal.input[i]:.3g}"
            for i in changed[:SHOWN_FEATURES]
            if signal.input[i] != signal.nearest[i]
        ]
        lines.append(line(f"  against the nearest reference: {'; '.join(parts) or 'no difference'}"))
    return Group(*lines)


def line(text: str = "", style: str = "") -> Text:
    """Text that is shown as it is: no markup, and nothing that a terminal would obey."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), style)


def _state(incident: Incident) -> str:
    state = incident.state.replace("_", " ")
    return f"{state} ({incident.verdict})" if incident.verdict else state


def _bounded(values: Sequence[str], most: int) -> str:
    rest = f" and {len(values) - most:,} more" if len(values) > most else ""
    return (", ".join(values[:most]) or "none") + rest


def moment(microseconds: int) -> str:
    """A time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(microseconds / 1e6))
