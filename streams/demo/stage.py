"""`vedette demo`: everything on one machine, with a real model, real traffic and real attacks.

The stage starts servers, the watched model, Vedette's processes, benign clients and attackers, shows what happens, and
takes everything away again. Whatever takes long runs beside each other: the broker starts while the model is trained,
kernels are compiled and the bundle is fitted in a process of their own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
from redis import Redis

from streams import children, config, embedded
from streams.audit import AuditReport, audit
from streams.config import KEY_BYTES, RedisSettings, Settings
from streams.demo import figures
from streams.demo.attackers import ATTACKERS, Line, read_journal
from streams.demo.figures import Who
from streams.demo.names import Names
from streams.demo.prepare import BUDGET, WEEK_SECONDS, Files, FitSummary, last_said
from streams.demo.processes import Processes
from streams.demo.report import Report, judge
from streams.demo.screen import AttackerState, Scene, Screen, screen
from streams.demo.watch import Watch
from streams.errors import ConfigError, VedetteError
from streams.store.client import connect
from streams.topics import ensure

#: Partitions of the event topic, and workers that share them.
PARTITIONS, WORKERS = 2, 1
#: Requests a second of the benign clients together.
RATE = 245.0
#: Length of a headless demo's traffic.
HEADLESS_SECONDS = 60.0
#: How long each step of the start may take.
FIT_SECONDS, START_SECONDS = 300.0, 120.0
#: How long the end waits for workers and correlator to finish what was sent.
SETTLE_SECONDS = 30.0
#: Pause between two looks at everything.
LOOK_SECONDS = 0.25
#: Ports that are tried for the console after the wanted one.
PORTS_TRIED = 50
#: Processes that end by themselves.
PASSING = ("kernels", "prepare")
#: Signals that end the demo.
ENDING = (signal.SIGTERM, signal.SIGHUP)
#: After which time an interruption that Python dropped is raised again.
AGAIN_SECONDS = 0.05
#: Settings of the prober: attacks follow each other quickly enough to tell recall within a minute.
PROBES: Mapping[str, float | int] = {
    "burst_every_seconds": 6.0,
    "campaign_every_seconds": 5.0,
    "control_every_seconds": 20.0,
    "campaign_queries": 150,
    "concurrent_campaigns": 2,
    "control_inputs": 40,
    "queries_per_second": 50.0,
    "timeout_seconds": 8.0,
}
#: What the demo's processes are told about threads of linear algebra: two cores serve a dozen processes.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
#: Ends when nobody holds its standard input any more, and removes the demo's directory: also after a kill.
JANITOR = 'trap "" INT TERM HUP; cat >/dev/null; sleep 1; rm -rf "$0"'


class StageError(VedetteError):
    """A part of the demo did not start or did not finish."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    headless: bool
    seconds: float | None
    report: Path | None
    kafka: str | None
    redis: str | None
    port: int
    seed: int


def run(
    *,
    headless: bool,
    seconds: float | None,
    report: str | None,
    kafka: str | None,
    redis: str | None,
    port: int,
    seed: int,
) -> int:
    """The `vedette demo` command.

    Returns
    -------
    int
        0, or 1 when a demo that ended by itself did not show what it must, or 130 when the start was interrupted.

    Raises
    ------
    VedetteError
        When a part cannot be started, or ended by itself.
    """
    began = time.monotonic()
    length = seconds or (HEADLESS_SECONDS if headless else None)
    wanted = Wanted(headless, length, _writable(report), kafka, redis, port, seed)
    for name in [name for name in os.environ if name.startswith("VEDETTE_")]:
        del os.environ[name]  # the demo has settings of its own; variables would change them in every process
    with _ended_by_signals(), ExitStack() as stack:
        directory = stack.enter_context(_directory())
        processes = Processes(directory)
        stack.callback(_in_peace, processes.stop_all)
        return Stage(wanted, directory, processes, stack, screen(headless), began).run()


class Stage:
    """One demo.

    Parameters
    ----------
    wanted : Wanted
    directory : Path
        Holds everything that the demo writes.
    processes : Processes
    stack : ExitStack
        Takes everything away.
    view : Screen
    began : float
        Monotonic time at which the command was typed.
    """

    def __init__(
        self,
        wanted: Wanted,
        directory: Path,
        processes: Processes,
        stack: ExitStack,
        view: Screen,
        began: float,
    ) -> None:
        self.wanted = wanted
        self.directory = directory
        self.processes = processes
        self.stack = stack
        self.view = view
        self.began = began
        self.files = Files(directory)
        self.journal = directory / "journal.jsonl"
        self.go = directory / "go"
        shared = wanted.kafka is not None or wanted.redis is not None
        self.names = Names.among_others() if shared else Names.alone()
        self.port = _free_port(wanted.port)
        self.endpoint = f"http://127.0.0.1:{embedded.free_ports(1)[0]}"
        self.settings_file = directory / "vedette.toml"

    def run(self) -> int:
        """Start, play, end; returns the exit code."""
        started = False
        try:
            with self.view:
                settings, redis = self._start()
                watch = Watch(redis, self.names.model, self.names.topic, PARTITIONS)
                scene = self._begin(watch)
                started = True
                startup = time.monotonic() - self.began
                self._play(watch, scene)
                report = self._finish(settings, redis, watch, startup)
        except KeyboardInterrupt:
            self.view.say("ending everything ...")
            return 0 if started and not self.wanted.headless else 130
        if self.wanted.report is not None:
            self.wanted.report.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        failed = judge(report, self.wanted.seconds or 0.0)
        self._tell(report, failed)
        return int(bool(failed))

    def _start(self) -> tuple[Settings, Redis]:
        """Everything up to the moment at which traffic may flow."""
        keys = {name: self.directory / f"{name}.key" for name in KEY_BYTES}
        for name, path in keys.items():
            path.write_text(secrets.token_hex(KEY_BYTES[name]), encoding="ascii")
            path.chmod(0o600)
        self._spawn("kernels", "streams.demo.kernels")
        rate, partitions, seed = str(RATE), str(PARTITIONS), str(self.wanted.seed)
        fit = ["streams.demo.prepare", "--directory", str(self.directory), "--rate", rate, "--partitions", partitions]
        self._spawn("prepare", *fit, "--seed", seed, "--client-key-file", str(keys["client"]))
        bootstrap, url = self._servers()
        self.settings_file.write_text(self._toml(bootstrap, url, keys), encoding="utf-8")
        settings = config.load(self.settings_file, {})
        redis = connect(settings.redis)
        self.stack.callback(redis.close)
        if self.wanted.kafka is not None or self.wanted.redis is not None:
            self.stack.callback(_in_peace, lambda: self._clean(settings))
        ensure(settings.kafka, self.names.topic, PARTITIONS)
        self._await(self.files.model.exists, FIT_SECONDS, "the model", "prepare")
        served = [
            "--model",
            str(self.files.model),
            "--name",
            self.names.model,
            "--port",
            self.endpoint.rpartition(":")[2],
        ]
        self._spawn("server", "streams.demo.server", *served, "--kafka", bootstrap, "--topic", self.names.topic)
        self._vedette("correlator")
        self._vedette("console")
        asked = ["--url", self.endpoint, "--name", self.names.model, "--seed", seed, "--after", str(self.go)]
        self._spawn("attackers", "streams.demo.attackers", *asked, "--journal", str(self.journal))
        self._spawn("traffic", "streams.demo.traffic", *asked, "--rate", rate)
        self._await(self.files.summary.exists, FIT_SECONDS, "the bundle", "prepare")
        for number in range(WORKERS):
            self._vedette("worker", f"worker-{number}")
        self._await(lambda: _answers(f"{self.endpoint}/v2/health/ready"), START_SECONDS, "the model's server", "server")
        self._vedette("prober")
        return settings, redis

    def _servers(self) -> tuple[str, str]:
        """Addresses of a broker and a Redis: those named, else our own."""
        url, bootstrap = self.wanted.redis, self.wanted.kafka
        if url is None:
            server = embedded.start_redis(self.directory)
            self.stack.callback(_in_peace, server.stop)
            url = server.address
        if bootstrap is None:

            def progress(what: str, share: float) -> None:
                self.view.progress("broker", what, share)
                self._show_fit()

            server = embedded.start_kafka(progress, self.directory)
            self.stack.callback(_in_peace, server.stop)
            bootstrap = server.address
        return bootstrap, url

    def _begin(self, watch: Watch) -> Scene:
        """Wait for the worker, then open the doors."""

        def ready() -> bool:
            watch.look()
            return watch.assigned == PARTITIONS

        self._await(ready, START_SECONDS, "the worker", "worker-0")
        self.go.touch()
        summary = msgspec.json.decode(self.files.summary.read_bytes(), type=FitSummary)
        week = (
            f"a “week” is {WEEK_SECONDS:.0f} s here: at most {BUDGET} false page in it; thresholds from "
            f"{summary.client_weeks:,} client-weeks, {summary.events:,} benign events"
        )
        self.view.say(week)
        states = [AttackerState(one.name, one.accounts, one.diluted) for one in ATTACKERS]
        now = time.monotonic()
        until = None if self.wanted.seconds is None else now + self.wanted.seconds
        return Scene(states, f"http://127.0.0.1:{self.port}", week, now, until=until)

    def _play(self, watch: Watch, scene: Scene) -> None:
        """Watch until the time is over; for ever without one."""
        who = msgspec.json.decode(self.files.who.read_bytes(), type=Who)
        journal = _Follower(self.journal)
        by_name = {state.name: state for state in scene.attackers}
        self.view.say(f"console: {scene.console}")
        while scene.until is None or time.monotonic() < scene.until:
            self.processes.check(finished=PASSING)
            for line in journal.read():
                by_name[line.attacker].queries += line.own
            for seen in watch.look():
                for name in {who.attackers[client] for client in seen.clients if client in who.attackers}:
                    state = by_name[name]
                    if state.ticket is None:
                        state.ticket = state.queries
                    if state.page is None and seen.level == "page":
                        state.page = state.queries
            scene.incidents, scene.probes = watch.incidents, watch.probes
            scene.rows, scene.rows_per_second = watch.totals.get("rows", 0), watch.rows_per_second
            scene.lag, scene.workers = watch.lag, len(watch.workers)
            self.view.show(scene)
            time.sleep(LOOK_SECONDS)

    def _finish(self, settings: Settings, redis: Redis, watch: Watch, startup: float) -> Report:
        """Let everything come to rest, and take the figures."""
        self.view.say("traffic ends; counting everything again ...")
        codes = self.processes.stop("attackers", "traffic", "prober")
        codes |= self.processes.stop("server")
        for name, code in codes.items():
            if code not in (0, -signal.SIGTERM):  # which ends a process that has only begun to start
                raise StageError(f"the {name} process ended with exit code {code}; its last words:\n{self._tail(name)}")
        found = audit(settings, self.names.model, redis, wait_seconds=SETTLE_SECONDS)
        self._await(watch.settled, SETTLE_SECONDS, "the correlator to apply every signal", "correlator")
        if not found.passed:
            for part in found.partitions:
                for finding in part.findings:
                    self.view.say(f"audit, partition {part.partition}: {finding}")
        return self._report(settings, watch, found, startup)

    def _report(self, settings: Settings, watch: Watch, found: AuditReport, startup: float) -> Report:
        who = msgspec.json.decode(self.files.who.read_bytes(), type=Who)
        journal = read_journal(self.journal)
        wanted = frozenset(line.request for lines in journal.values() for line in lines)
        where = figures.places(settings.kafka, self.names.topic, wanted)
        evidence = [seen for incident in watch.incidents for seen in watch.evidence(incident.id)]
        benign, sensors = figures.wronged(watch.signals, who)
        return Report(
            records_produced=sum(part.records for part in found.partitions),
            rows_scored=sum(part.totals["scored"] for part in found.partitions),
            rows_invalid=sum(part.totals["invalid"] for part in found.partitions),
            rows_lost=found.rows_lost,
            rows_double_counted=found.rows_double_counted,
            attackers=figures.attackers(ATTACKERS, journal, where, watch.signals, evidence),
            budget_n=BUDGET,
            benign_clients=len(who.benign),
            benign_clients_paged=len(benign),
            sensors_paged=len(sensors),
            probe_recall=figures.recall(watch.probes),
            latency_ms=figures.latency(watch),
            startup_seconds=round(startup, 2),
        )

    def _tell(self, report: Report, failed: list[str]) -> None:
        self.view.say(
            f"{report.records_produced:,} records, {report.rows_scored:,} rows scored, {report.rows_lost} lost, "
            f"{report.rows_double_counted} counted twice; {report.benign_clients_paged} of {report.benign_clients} "
            f"benign clients paged (budget {report.budget_n}), {report.sensors_paged} sensors"
        )
        for attacker in report.attackers:
            self.view.say(
                f"{attacker.attack}: ticket after {_count(attacker.queries_before_ticket)}, "
                f"page after {_count(attacker.queries_before_page)} of its own queries"
            )
        for attack, recall in report.probe_recall.items():
            self.view.say(f"probes {attack}: {recall.detected} of {recall.n} detected")
        for sentence in failed:
            self.view.say(f"FAILED: {sentence}")
        if not failed:
            self.view.say("the main job holds")

    def _await(self, condition: Callable[[], bool], seconds: float, what: str, by: str) -> None:
        """Look again and again until it holds; every child must live meanwhile.

        `by` is the process that is waited for, whose last words an error tells.
        """
        until = time.monotonic() + seconds
        while not condition():
            self.processes.check(finished=PASSING)
            self._show_fit()
            if time.monotonic() >= until:
                raise StageError(f"waited {seconds:.0f} s in vain for {what}; its last words:\n{self._tail(by)}")
            time.sleep(LOOK_SECONDS / 5)

    def _show_fit(self) -> None:
        said = last_said(self._tail("prepare"))
        if said is not None:
            self.view.progress("model and bundle", *said)

    def _tail(self, name: str) -> str:
        return self.processes.tail(name)

    def _vedette(self, command: str, name: str | None = None) -> None:
        self._spawn(name or command, "streams.cli", "--config", str(self.settings_file), command)

    def _spawn(self, name: str, *command: str) -> None:
        self.processes.start(name, command, ONE_THREAD)

    def _clean(self, settings: Settings) -> None:
        """Take away what is ours on servers of others."""
        self.processes.stop_all()
        if self.wanted.kafka is not None:
            self.names.clean_broker(settings.kafka)
        if self.wanted.redis is not None:
            with connect(RedisSettings(url=settings.redis.url)) as redis:
                self.names.clean_redis(redis)

    def _toml(self, bootstrap: str, url: str, keys: Mapping[str, Path]) -> str:
        probes = "\n".join(f"{name} = {value}" for name, value in PROBES.items())
        return f"""\
week_seconds = {WEEK_SECONDS}

[kafka]
bootstrap = {json.dumps(bootstrap)}
group = {json.dumps(self.names.group)}

[redis]
url = {json.dumps(url)}

[secrets]
client_key_file = {json.dumps(str(keys["client"]))}
probe_key_file = {json.dumps(str(keys["probe"]))}

[probes]
{probes}

[console]
port = {self.port}

[[models]]
name = {json.dumps(self.names.model)}
topic = {json.dumps(self.names.topic)}
bundle = {json.dumps(str(self.files.bundle))}
format = "oip"
client = "key"
endpoint = {json.dumps(self.endpoint)}
probe_data = {json.dumps(str(self.files.probes))}
"""


class _Follower:
    """Reads the journal's new lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> list[Line]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as journal:
            journal.seek(self._at)
            text = journal.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return [msgspec.json.decode(line, type=Line) for line in whole.splitlines()]


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory that is removed at the end, however the end comes: a child sees to it when we are killed."""
    directory = Path(tempfile.mkdtemp(prefix="vedette-demo-"))
    janitor = subprocess.Popen(
        ["/bin/sh", "-c", JANITOR, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield directory
    finally:
        _in_peace(lambda: shutil.rmtree(directory, ignore_errors=True))
        children.signal_session(janitor, signal.SIGKILL)
        janitor.communicate()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, at whatever moment.

    What a handler raises inside a destructor or a weak reference's callback (every import runs some) is dropped by
    Python, which tells `sys.unraisablehook` only: then it is raised again a moment later.
    """

    def end(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            tell(what)

    before = {number: signal.signal(number, end) for number in (*ENDING, signal.SIGALRM)}
    tell, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        sys.unraisablehook = tell
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_peace(work: Callable[[], object]) -> None:
    """Do something that a second Ctrl-C must not interrupt."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING, signal.SIGALRM)}
    try:
        work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _writable(report: str | None) -> Path | None:
    """The report's path, tried before anything is started."""
    if report is None:
        return None
    path = Path(report)
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"--report: cannot write {path}: {error.strerror}") from None
    return path


def _free_port(wanted: int) -> int:
    """The wanted port on loopback, or the next free one."""
    for port in range(wanted, min(wanted + PORTS_TRIED, 65_536)):
        with socket.socket() as held, suppress(OSError):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", port))
            return port
    raise ConfigError(f"--port: none of {wanted} to {wanted + PORTS_TRIED - 1} is free")


def _answers(url: str) -> bool:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own server on loopback
        with direct.open(url, timeout=1) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def _count(queries: int | None) -> str:
    return "never" if queries is None else str(queries)
