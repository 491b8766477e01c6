"""The `vedette` command.

Each subcommand imports its own room only when it runs, so that `vedette incidents list` does not pay for compiled
kernels. An error on purpose (`VedetteError`) becomes one sentence on standard error and the exit code of its class.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from streams.config import ModelSettings, Settings, load
from streams.errors import ConfigError, StoreError, VedetteError

#: The import packages of this distribution; their names are generic, so every start checks whose they are.
PACKAGES = ("detectors", "attacks", "streams")
#: More clients a week, or partitions of a topic, are taken for a slip: order statistics sum over the ones, and every
#: one of the others is replayed.
MOST_CLIENTS, MOST_PARTITIONS = 100_000_000, 10_000


@dataclass(slots=True)
class Session:
    """What the options before the subcommand said; settings are read only when a subcommand needs them."""

    config: str | None
    model: str | None
    _settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings tree, read once."""
        if self._settings is None:
            self._settings = load(self.config)
        return self._settings

    @property
    def model_settings(self) -> ModelSettings:
        """The model that --model names, or the only one."""
        return self.settings.model(self.model)


def verify_packages() -> None:
    """Make sure that the three packages come from one distribution, not from a stranger of the same name."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        found = importlib.import_module(name).__file__
        if found is None or Path(found).resolve().parent.parent != home:
            raise ConfigError(
                f"the package {name!r} resolves to {found or 'nothing'}, not to Vedette's in {home}; "
                "give Vedette a virtual environment of its own"
            )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "config_path", metavar="FILE", help="Settings file; default vedette.toml or VEDETTE_CONFIG.")
@click.option("--model", metavar="NAME", help="The watched model; may be left out where only one is declared.")
@click.version_option(package_name="vedette")
@click.pass_context
def vedette(context: click.Context, config_path: str | None, model: str | None) -> None:
    """Watch machine-learning models in production for adversarial inputs."""
    verify_packages()
    context.obj = Session(config_path, model)


@vedette.command()
@click.pass_obj
def ingest(session: Session) -> int:
    """Take request and response events by HTTP, join them, write records keyed by client to the model's topic."""
    from streams.ingest.service import run

    return run(session.settings, session.model_settings.name)


@vedette.command()
@click.pass_obj
def worker(session: Session) -> int:
    """Consume events, score them, record verdicts in Redis."""
    from streams.worker.app import run

    return run(session.settings, session.model_settings.name)


@vedette.command()
@click.pass_obj
def correlator(session: Session) -> int:
    """Make incidents of the workers' signals."""
    from streams.incidents.correlator import run

    return run(session.settings, session.model_settings.name)


@vedette.command()
@click.option("--check", is_flag=True, help="Send a test notification to every destination, and end.")
@click.option("--to", "only", metavar="NAME", help="With --check: to this destination alone.")
@click.option("--status", is_flag=True, help="Print what waits at every destination, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --check or --status: print JSON.")
@click.pass_obj
def notifier(session: Session, check: bool, only: str | None, status: bool, as_json: bool) -> int:
    """Tell Alertmanager, PagerDuty, Opsgenie, Slack and webhooks of incidents."""
    settings = session.settings
    if check or status:
        from streams.notify import check as desk

        if check:
            return desk.check(settings, settings.model(session.model or settings.models[0].name).name, only, as_json)
        models = [session.model_settings.name] if session.model else [model.name for model in settings.models]
        return desk.status(settings, models, as_json)
    from streams.notify.service import run

    return run(settings, session.model)


@vedette.command()
@click.pass_obj
def prober(session: Session) -> int:
    """Send probes on a schedule and follow each to its verdict."""
    from streams.probes.prober import run

    return run(session.settings, session.model_settings.name)


@vedette.command()
@click.pass_obj
def console(session: Session) -> int:
    """Serve the web console."""
    from streams.console.app import run

    return run(session.settings)


@vedette.command()
@click.option("--json", "as_json", is_flag=True, help="Print findings as JSON.")
@click.pass_obj
def doctor(session: Session, as_json: bool) -> int:
    """Examine broker, Redis, bundle, clocks and settings, and say what to mend."""
    from streams.doctor import run

    return run(session.settings, session.model_settings.name, as_json)


@vedette.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--wait", "wait_seconds", default=30.0, show_default=True, help="How long to wait for the worker.")
@click.pass_obj
def audit(session: Session, as_json: bool, wait_seconds: float) -> int:
    """Re-count the raw topic and prove that no row was lost or counted twice."""
    from streams.audit import run

    return run(session.settings, session.model_settings.name, as_json=as_json, wait_seconds=wait_seconds)


@vedette.command()
@click.option("--partitions", default=4, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--replication", default=1, show_default=True, type=click.IntRange(1, 7))
@click.pass_obj
def topics(session: Session, partitions: int, replication: int) -> int:
    """Create the topics that the declared models need, where they do not exist yet."""
    from streams.topics import ensure

    for model in session.settings.models:
        for name in ensure(session.settings.kafka, model.topic, partitions, replication):
            click.echo(f"created {name}")
    return 0


@vedette.command()
@click.option("--reference", required=True, metavar="FILE", help="Benign rows (Parquet, CSV, npz or JSON lines).")
@click.option(
    "--benign",
    metavar="FILE|topic",
    help="Benign events with clients and order: a file, or 'topic' for the model's topic.",
)
@click.option(
    "--schema", "schema_path", metavar="FILE", help="Feature schema (JSON); inferred from the reference if left out."
)
@click.option(
    "--crafted",
    multiple=True,
    metavar="FILE",
    help="Crafted rows that train the fusion of detectors, in place of attacks rehearsed at the fit. May be repeated: "
    "each file is an attack, unless its rows name theirs (npz `families`, or a column `family`).",
)
@click.option(
    "--probes",
    metavar="FILE",
    help="Crafted rows that nothing is learned from: the report says what is found. Default: attacks rehearsed anew.",
)
@click.option(
    "--detectors",
    metavar="NAMES",
    help="Detectors of single inputs or of clients' histories, separated by commas, instead of the default ones; '+' "
    "before a name adds it. 'extended' and 'trees' name sets.",
)
@click.option(
    "--spread",
    type=click.Choice(["median", "tail"]),
    default="median",
    show_default=True,
    help="Unit of a detector's score within a class: its median deviation, or the way to its 95 % quantile.",
)
@click.option(
    "--fusion",
    type=click.Choice(["product", "mean"]),
    default="product",
    show_default=True,
    help="How detectors become one: weighted -ln p, or the mean of e-values.",
)
@click.option(
    "--model",
    "model_object",
    metavar="MODEL",
    help="The watched model: MODULE:NAME, a Python object, for detectors that read it at their fit (oc_score); that, a "
    "URL http://HOST:PORT/v2/models/NAME or a FILE.onnx for --inquiries. Runs its module.",
)
@click.option(
    "--inquiries",
    metavar="NAMES",
    help="Inquiries that ask the watched model again about rows that raised something: all, or names with commas.",
)
@click.option("--model-version", metavar="TEXT", help="Version of the watched model, kept in the bundle.")
@click.option("--out", required=True, metavar="FILE", help="Where to write the bundle.")
@click.option(
    "--report", "report_to", metavar="FILE.html", help="Where to write the report as one HTML page; default: OUT.html."
)
@click.option("--no-report", is_flag=True, help="Write no HTML page.")
@click.option("--budget", default=1, show_default=True, type=click.IntRange(0), help="False pages a week, at most.")
@click.option(
    "--clients-per-week",
    type=click.IntRange(1, MOST_CLIENTS),
    help="Clients expected in a week; default: those of --benign.",
)
@click.option("--week-seconds", type=float, help="Length of the budget's period; default from the settings.")
@click.option(
    "--partitions",
    type=click.IntRange(1, MOST_PARTITIONS),
    help="Partitions of the event topic (for the index's budget).",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--from", "begin", metavar="TIME", help="With --benign topic: events from this broker time on (ISO 8601)."
)
@click.option("--until", "end", metavar="TIME", help="With --benign topic: events before this broker time.")
@click.option(
    "--at-most", "most", type=click.IntRange(1), help="With --benign topic: the newest records only; default 1,000,000."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def fit(session: Session, /, begin: str | None, end: str | None, most: int | None, **options: Any) -> int:
    """Fit and calibrate a bundle from reference rows and benign events."""
    from streams.training.fit import run
    from streams.training.sources import span_of

    return run(session, span=span_of(options["benign"], begin, end, most), **options)


@vedette.command()
@click.argument("pilot", metavar="FILE|topic")
@click.option("--bundle", metavar="FILE", help="Bundle to calibrate; default: the model's from the settings.")
@click.option("--out", required=True, metavar="FILE", help="Where to write the calibrated bundle.")
@click.option(
    "--report", "report_to", metavar="FILE.html", help="Where to write the report as one HTML page; default: OUT.html."
)
@click.option("--no-report", is_flag=True, help="Write no HTML page.")
@click.option(
    "--false-alarms", is_flag=True, help="Count approved false alarms of this bundle, from Redis, as client-weeks too."
)
@click.option(
    "--repeaters", is_flag=True, help="Clients approved as repeaters, from Redis, don't set what near-duplicates page."
)
@click.option("--budget", default=1, show_default=True, type=click.IntRange(0), help="False pages a week, at most.")
@click.option(
    "--clients-per-week",
    type=click.IntRange(1, MOST_CLIENTS),
    help="Clients expected in a week; default: those of PILOT.",
)
@click.option("--week-seconds", type=float, help="Length of the budget's period; default from the settings.")
@click.option(
    "--partitions",
    type=click.IntRange(1, MOST_PARTITIONS),
    help="Partitions of the event topic (for the index's budget).",
)
@click.option("--from", "begin", metavar="TIME", help="With topic: events from this broker time on (ISO 8601).")
@click.option("--until", "end", metavar="TIME", help="With topic: events before this broker time.")
@click.option("--at-most", "most", type=click.IntRange(1), help="With topic: the newest records; default 1,000,000.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def calibrate(
    session: Session, /, pilot: str, begin: str | None, end: str | None, most: int | None, **options: Any
) -> int:
    """Set a bundle's thresholds by the events of its pilot."""
    from streams.training.calibrate import run
    from streams.training.sources import span_of

    return run(session, pilot=pilot, span=span_of(pilot, begin, end, most), **options)


@vedette.command()
@click.argument("file")
@click.option("--bundle", metavar="FILE", help="Bundle to score with; default: the model's from the settings.")
@click.option("--out", metavar="FILE", help="Write verdicts, a row each, as Parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_obj
def score(session: Session, file: str, bundle: str | None, out: str | None, as_json: bool) -> int:
    """Score a file of events without Kafka or Redis."""
    from streams.training.score import run

    return run(session, file, bundle, out, as_json)


@vedette.command()
@click.argument("name")
@click.option("--role", default="viewer", show_default=True, type=click.Choice(["viewer", "responder"]))
@click.option("--remove", "removed", is_flag=True, help="Take the name's token out instead.")
@click.option("--file", "file", metavar="FILE", help="Where tokens stand; default: console.tokens_file.")
@click.pass_obj
def token(session: Session, name: str, role: Literal["viewer", "responder"], removed: bool, file: str | None) -> int:
    """Make a token for the console, and print it once; its hash goes into the file."""
    from streams.console import tokens

    where = file or session.settings.console.tokens_file
    if where is None:
        raise ConfigError("console.tokens_file: not set; set it, or name a file with --file")
    if removed:
        tokens.remove(Path(where), name)
        click.echo(f"the token of {name} is out of {where}", err=True)
        return 0
    click.echo(tokens.make(Path(where), name, role))
    click.echo(f"{name} is a {role} in {where}; the token above stands nowhere else", err=True)
    return 0


@vedette.command()
@click.option("--incident", required=True, metavar="ID", help="Incident whose events are read again.")
@click.option("--bundle", metavar="FILE", help="Bundle that decides; default: the model's from the settings.")
@click.option(
    "--before", type=click.IntRange(0), help="Records before the first query in evidence, read too; default 2,000."
)
@click.option("--at-most", "most", type=click.IntRange(1), help="Records of a partition, at most; default 200,000.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def replay(
    session: Session, incident: str, bundle: str | None, before: int | None, most: int | None, as_json: bool
) -> int:
    """Run an incident's events from Kafka through a bundle again: what would have paged?"""
    from streams.replay import MOST_RECORDS, WARM_UP_RECORDS, run

    return run(
        session.settings,
        session.model_settings.name,
        incident,
        bundle,
        before=WARM_UP_RECORDS if before is None else before,
        most=MOST_RECORDS if most is None else most,
        as_json=as_json,
    )


@vedette.command()
@click.option("--headless", is_flag=True, help="No live view; end after --seconds and judge the main job.")
@click.option(
    "--seconds", type=click.FloatRange(min=10), help="Length of the traffic; default: until Ctrl-C (headless: 60)."
)
@click.option("--report", metavar="FILE", help="Write the figures as JSON.")
@click.option("--kafka", metavar="HOST:PORT", help="Use this broker instead of the embedded one.")
@click.option("--redis", metavar="URL", help="Use this Redis instead of the embedded one.")
@click.option("--port", default=8600, show_default=True, help="Port of the console; the next free one if it is taken.")
@click.option("--seed", default=20, show_default=True)
def demo(**options: Any) -> int:
    """Everything on an embedded broker and Redis: a real model, real traffic, real attacks."""
    from streams.demo.stage import run

    return run(**options)


@vedette.group()
def redteam() -> None:
    """Attack a model under a threat model, and report how robust it is."""


@redteam.command("run")
@click.option(
    "--model",
    required=True,
    metavar="URL|FILE|module:name",
    help="http://HOST:PORT/v2/models/NAME, a file (.onnx, .npz, .joblib, .pkl), or an estimator or function of this "
    "environment.",
)
@click.option("--data", required=True, metavar="FILE", help="Rows with true classes that the model never learned from.")
@click.option("--schema", "schema_path", metavar="FILE", help="Feature schema (JSON); inferred if left out.")
@click.option("--threat", required=True, metavar="NAME", help="Threat model: shipped, or declared as [threats.NAME].")
@click.option("--eps", type=float, help="Another largest distance than the threat model's.")
@click.option("--budget", type=click.IntRange(0), help="Queries a start row and attack; default: the threat model's.")
@click.option("--rows", default=200, show_default=True, type=click.IntRange(1), help="Rows drawn from the data.")
@click.option("--attacks", metavar="NAME,...", help="Only these; default: all that the threat model permits.")
@click.option("--bundle", metavar="FILE", help="Also tell what this bundle's detectors would have seen.")
@click.option("--report", required=True, metavar="FOLDER", help="Where report, examples and partial results go.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--curve/--no-curve", default=True, show_default=True, help="Try other distances too, for the plots.")
@click.option("--again", is_flag=True, help="Throw away what the folder holds of an earlier campaign.")
@click.option("--trust-pickle", is_flag=True, help="Read --model from a pickle, which runs the code in it.")
@click.option(
    "--client-id", "client", default="vedette-redteam", show_default=True, help="Who an endpoint is told asks."
)
@click.option("--require", type=click.FloatRange(0, 1), help="Exit with 1 when robust accuracy is below this share.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def redteam_run(session: Session, /, **options: Any) -> int:
    """Run a campaign; after Ctrl-C the same command goes on."""
    from streams.redteam.command import run

    return run(session, **options)


@redteam.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def redteam_compare(first: str, second: str, as_json: bool) -> int:
    """Compare two reports: did the model of B get more or less robust than that of A?"""
    from streams.redteam.compare import run

    return run(first, second, as_json=as_json)


@vedette.command()
@click.option(
    "--model",
    required=True,
    metavar="module:name|FILE",
    help="An estimator of this environment, a function that returns one, or a file (.joblib, .pkl).",
)
@click.option("--data", required=True, metavar="FILE", help="Rows with true classes to learn from.")
@click.option("--test", metavar="FILE", help="Rows that nothing learns from; default: a third of --data.")
@click.option("--schema", "schema_path", metavar="FILE", help="Feature schema (JSON); inferred if left out.")
@click.option("--threat", required=True, metavar="NAME", help="Threat model: shipped, or declared as [threats.NAME].")
@click.option("--eps", type=float, help="Another largest distance than the threat model's.")
@click.option("--budget", type=click.IntRange(0), help="Queries a start row and attack; default: the threat model's.")
@click.option(
    "--rows", default=300, show_default=True, type=click.IntRange(10), help="Held-out rows that are attacked."
)
@click.option("--only", metavar="NAME,...", help="Only these mitigations; default: all.")
@click.option("--attacks", metavar="NAME,...", help="Attacks that judge; default: a strong one of each kind.")
@click.option("--levels", default=4, show_default=True, type=click.IntRange(2), help="Values of a squeezed feature.")
@click.option("--members", default=3, show_default=True, type=click.IntRange(2), help="Classifiers of an ensemble.")
@click.option(
    "--most-lost", default=0.02, show_default=True, type=click.FloatRange(0, 1), help="Accuracy that may be lost."
)
@click.option("--out", required=True, metavar="FOLDER", help="Where models and figures go.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--trust-pickle", is_flag=True, help="Read --model from a pickle, which runs the code in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.pass_obj
def harden(session: Session, /, **options: Any) -> int:
    """Make a model more robust, and measure each mitigation before and after."""
    from streams.hardening.command import run

    return run(session, **options)


@vedette.group()
def probe() -> None:
    """Probes of the watched model: start some now, show what was found."""


@probe.command("now")
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="May be given again; default: all scheduled.")
@click.option("--kind", default="", type=click.Choice(["", "burst", "campaign"]), help="Default: as the attack goes.")
@click.option("--threat", default="", metavar="NAME", help="Threat model; default: the attack's own.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 50), help="Probes of each attack.")
@click.option("--by", metavar="NAME", help="Who asks; default: the user.")
@click.option(
    "--wait", "wait_seconds", default=0.0, metavar="SECONDS", help="Wait for the outcomes; exit with 1 if one is bad."
)
@click.option("--json", "as_json", is_flag=True, help="Print requests, or with --wait outcomes, as JSON.")
@click.pass_obj
def probe_now(session: Session, /, attacks: tuple[str, ...], **options: Any) -> int:
    """Ask the active prober for probes."""
    from streams.probes.terminal import now

    return now(session, attacks, **options)


@probe.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def probe_list(as_json: bool) -> int:
    """What can be sent."""
    from streams.probes.terminal import catalogue

    return catalogue(as_json)


@probe.command("results")
@click.option("--json", "as_json", is_flag=True, help="Print summaries and comparisons as JSON.")
@click.pass_obj
def probe_results(session: Session, as_json: bool) -> int:
    """Recall, robust accuracy and latency by attack, threat model and model version, and versions compared."""
    from streams.probes.terminal import results

    return results(session, as_json)


def _add_incidents() -> None:
    from streams.incidents.repeaters_terminal import repeaters
    from streams.incidents.terminal import incidents

    vedette.add_command(incidents)
    vedette.add_command(repeaters)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `vedette` command."""
    sys.exit(invoke(arguments))


def invoke(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    _add_incidents()
    command: Callable[..., Any] = vedette.main
    try:
        return int(command(args=arguments, prog_name="vedette", standalone_mode=False) or 0)
    except VedetteError as error:
        click.echo(f"vedette: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:
        from redis.exceptions import RedisError

        if not isinstance(error, RedisError):
            raise
        click.echo(f"vedette: Redis cannot be read: {error}", err=True)
        return StoreError.exit_code


def print_json(value: Any) -> None:
    """Print plain data for programs."""
    click.echo(json.dumps(value, indent=2, sort_keys=False))


if __name__ == "__main__":
    main()
