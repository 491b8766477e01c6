"""What the demo shows: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streams.store.messages import Incident, ProbeSummary

#: Incidents on the view.
SHOWN_INCIDENTS = 8
#: Redraws a second.
REDRAWS = 4
#: Seconds between two lines of figures where there is no terminal.
SAY_SECONDS = 10.0
#: A progress line is repeated without a terminal when so much more has been done.
SAY_SHARE = 0.25


@dataclass(slots=True)
class AttackerState:
    """One attacker as the view shows it."""

    name: str
    accounts: int
    diluted: int
    queries: int = 0
    ticket: int | None = None
    page: int | None = None
    """The attacker's own queries when the first ticket and the first page were seen."""


@dataclass(slots=True)
class Scene:
    """Everything that the view shows while traffic flows."""

    attackers: list[AttackerState]
    console: str
    week: str
    started: float
    incidents: Sequence[Incident] = ()
    probes: Sequence[ProbeSummary] = ()
    rows: int = 0
    rows_per_second: float = 0.0
    lag: int = 0
    workers: int = 0
    until: float | None = None


class Screen(Protocol):
    """Where the demo is watched."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def progress(self, name: str, what: str, share: float) -> None:
        """A part of the start: what is being done, and the share done."""

    def show(self, scene: Scene) -> None:
        """The demo as it is now."""

    def say(self, text: str) -> None:
        """One line that stays."""


def screen(headless: bool) -> Screen:
    """A live view if there is a terminal and it is wanted."""
    console = Console()
    return LiveScreen(console) if console.is_terminal and not headless else PlainScreen(console)


@dataclass(slots=True)
class PlainScreen:
    """Lines, a few."""

    console: Console
    _said: dict[str, tuple[str, float]] = field(default_factory=dict)
    _next: float = 0.0
    _pages: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def progress(self, name: str, what: str, share: float) -> None:
        before, done = self._said.get(name, ("", -1.0))
        kind = what.partition(":")[0]
        if kind != before or share - done >= SAY_SHARE:
            self._said[name] = (kind, share)
            self.say(f"{name}: {what}")

    def show(self, scene: Scene) -> None:
        now = time.monotonic()
        for attacker in scene.attackers:
            if attacker.page is not None and attacker.name not in self._pages:
                self._pages.add(attacker.name)
                self.say(f"PAGE: {_named(attacker)}, seen after {attacker.page} of its queries")
        if now < self._next:
            return
        self._next = now + SAY_SECONDS
        pages = sum(incident.level == "page" for incident in scene.incidents)
        flow = f"{scene.rows:,} rows, {scene.rows_per_second:.0f} a second, lag {scene.lag}"
        tickets = len(scene.incidents) - pages
        self.say(
            f"{now - scene.started:3.0f} s: {flow}; open: {pages} pages, {tickets} tickets; {_recall(scene.probes)}"
        )

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class LiveScreen:
    """A view that redraws itself."""

    console: Console
    _live: Live = field(init=False)
    _parts: dict[str, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._live = Live(console=self.console, refresh_per_second=REDRAWS, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def progress(self, name: str, what: str, share: float) -> None:
        self._parts[name] = (what, share)
        table = Table.grid(padding=(0, 2))
        for part, (doing, done) in self._parts.items():
            table.add_row(part, ProgressBar(total=1.0, completed=min(1.0, done), width=24), Text(doing))
        self._live.update(Panel(table, title="Vedette demo starts", title_align="left"))

    def show(self, scene: Scene) -> None:
        self._live.update(view(scene, time.monotonic()))

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)


def view(scene: Scene, now: float) -> RenderableType:
    """The live view."""
    left = "" if scene.until is None else f", {max(0.0, scene.until - now):.0f} s to go"
    head = Text.assemble(
        ("console  ", "dim"),
        (scene.console, "bold underline"),
        ("   Ctrl-C ends everything\n", "dim"),
        f"{now - scene.started:.0f} s{left} · {scene.rows:,} rows · {scene.rows_per_second:.0f} rows/s · "
        f"lag {scene.lag} · {scene.workers} worker{'s' if scene.workers != 1 else ''}\n",
        (scene.week, "dim"),
    )
    parts: list[RenderableType] = [head, _attackers(scene.attackers)]
    if scene.incidents:
        parts.append(_incidents(scene.incidents))
    parts.append(Text(_recall(scene.probes), style="dim"))
    return Panel(Group(*parts), title="Vedette demo", title_align="left")


def _attackers(attackers: Sequence[AttackerState]) -> Table:
    table = Table(title="attackers", title_justify="left", expand=True)
    table.add_column("attack")
    for name in ("own queries", "ticket after", "page after"):
        table.add_column(name, justify="right")
    for attacker in attackers:
        style = "red" if attacker.page is not None else "yellow" if attacker.ticket is not None else ""
        cells = (attacker.queries, attacker.ticket, attacker.page)
        table.add_row(_named(attacker), *("-" if cell is None else f"{cell:,}" for cell in cells), style=style)
    return table


def _incidents(incidents: Sequence[Incident]) -> Table:
    table = Table(title="open incidents", title_justify="left", expand=True)
    for name in ("level", "what", "signals"):
        table.add_column(name, justify="right" if name == "signals" else "left")
    for incident in incidents[:SHOWN_INCIDENTS]:
        style = "red" if incident.level == "page" else "yellow"
        table.add_row(Text(incident.level, style=style), Text(incident.title), f"{incident.signals:,}")
    if len(incidents) > SHOWN_INCIDENTS:
        table.add_row("", Text(f"and {len(incidents) - SHOWN_INCIDENTS} more"), "")
    return table


def _named(attacker: AttackerState) -> str:
    name = attacker.name.replace("_", " ")
    if attacker.accounts > 1:
        return f"{name} ({attacker.accounts} accounts)"
    return f"{name} (1 query in {attacker.diluted + 1})" if attacker.diluted else name


def _recall(probes: Sequence[ProbeSummary]) -> str:
    found = [f"{one.attack} {one.detected} of {one.n}" for one in probes if one.kind != "control"]
    return f"probes detected: {', '.join(found)}" if found else "no probe has finished yet"
