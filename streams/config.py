"""One frozen settings tree, read from vedette.toml and VEDETTE_* variables.

A variable names a setting by its path: ``VEDETTE_KAFKA__BOOTSTRAP=host:9092`` sets ``[kafka] bootstrap``. Lists of
tables (``[[models]]``) stand in the file only. A wrong key or value is a `ConfigError` with its path.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import inspect

from streams.errors import ConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
#: No number may be larger: the largest time still fits 64-bit microseconds.
LARGEST = 1e12
#: Minute, hour, day, month, weekday: cronsim would read a sixth as seconds.
CRON_FIELDS = 5
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]

#: Bytes of the secret keys of the client hash and of probe marks.
KEY_BYTES = {"client": 16, "probe": 32}


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class KafkaSettings(_Settings, frozen=True):
    """Where the broker is, and how to talk to it."""

    bootstrap: str = "127.0.0.1:9092"
    group: str = "vedette"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password_file: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None


class RedisSettings(_Settings, frozen=True):
    """Where Redis is. TLS by ``rediss://``."""

    url: str = "redis://127.0.0.1:6379/0"
    password_file: str | None = None


class SecretSettings(_Settings, frozen=True):
    """Files of hex-encoded secrets; VEDETTE_CLIENT_KEY and VEDETTE_PROBE_KEY hold them directly."""

    client_key_file: str | None = None
    probe_key_file: str | None = None


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ObjectiveSettings(_Settings, frozen=True):
    """What probes of one model must show. None: not judged."""

    recall: Share | None = None
    """Of bursts and campaigns; default: `probes.min_recall`."""
    recall_of: dict[str, Share] = {}
    """Attack -> the same for it alone, extractions too."""
    latency_ms: Positive | None = None
    """Half of the detected probes must be alerted within it."""
    robust_accuracy: Share | None = None
    """Share of crafted rows that the model answers as before."""
    model_error_rate: Share | None = None
    """Share of calls that the model's endpoint fails."""
    model_latency_ms: Positive | None = None
    """99 % of calls to the model's endpoint must be answered within it."""
    false_alarm_rate: Share | None = None
    """Share of benign controls that page."""


class EscalationSettings(_Settings, frozen=True):
    """Asking one model again about rows that raised something; the table being there switches it on."""

    model: str = ""
    """A URL http://HOST:PORT/v2/models/NAME, an ONNX file, or module:name; empty: the model's `endpoint`."""
    timeout_seconds: Positive = 10.0
    """For one answer of an endpoint."""
    questions_per_second: Annotated[float, msgspec.Meta(ge=0.01)] = 200.0
    """Rows that the model is asked about, at most."""
    waiting_rows: Count = 256
    """Rows that wait to be asked about; what comes beyond is dropped."""


class ModelSettings(_Settings, frozen=True):
    """One watched model: its events, its bundle, its endpoint."""

    name: ModelName
    topic: str
    bundle: str
    """Path of the bundle that `vedette fit` wrote."""
    format: Literal["auto", "native", "oip", "compact"] = "auto"
    client: Annotated[str, msgspec.Meta(pattern=r"^(key|(header|field|parameter):.+)$")] = "key"
    """Where the client's identity stands in an event."""
    endpoint: str | None = None
    """Base URL of the model's Open Inference Protocol endpoint, for probes."""
    probe_data: str | None = None
    """npz with `inputs` and `labels` (rows that probes start from) and `surrogate_*`, for probes."""
    objectives: ObjectiveSettings = ObjectiveSettings()
    """What probes must show; a breach opens an incident."""
    escalation: EscalationSettings | None = None
    """The model is asked again about rows that raised something; None: it is not."""


class WorkerSettings(_Settings, frozen=True):
    """The stream worker."""

    max_batch_rows: Count = 4000
    max_record_bytes: Count = 16 * 1024 * 1024
    max_record_rows: Count = 65_536
    clients_per_partition: Count = 20_000
    index_rows: Count = 10_000
    snapshot_seconds: Positive = 10.0
    watchdog_seconds: Positive = 60.0
    shutdown_seconds: Positive = 10.0
    web_host: str = "127.0.0.1"
    web_port: Port = 0
    """0 picks a free port; the worker's status in Redis tells which."""


class ScheduleSettings(_Settings, frozen=True):
    """When to send which probes, by one of `every_seconds`, `cron` and `on_new_version`."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
    """`burst`, `campaign` or `control` replaces the schedule of that name."""
    attacks: dict[str, Positive] = {}
    """Attack -> weight in the mix."""
    kind: Literal["", "burst", "campaign"] = ""
    """How attacks go that can go both ways; empty: those by gradients as bursts, all others as campaigns."""
    threat: str = ""
    """Name of the threat model; empty: the attack's own."""
    every_seconds: Positive | None = None
    cron: str | None = None
    """Five fields (minute, hour, day, month, weekday), UTC."""
    on_new_version: bool = False
    """When the model's endpoint names another version than before."""
    mix: Literal["draw", "all"] = "draw"
    """One probe of an attack drawn by weight, or one of every attack."""
    at_once: Count = 1
    """Probes of it under way at once."""
    enabled: bool = True


class ProbeSettings(_Settings, frozen=True):
    """The prober."""

    burst_every_seconds: Positive = 300.0
    campaign_every_seconds: Positive = 900.0
    control_every_seconds: Positive = 300.0
    burst_size: Count = 20
    eps: Positive = 0.2
    campaign_queries: Count = 300
    queries_per_second: Positive = 20.0
    timeout_seconds: Positive = 30.0
    mark_ttl_seconds: Positive = 120.0
    min_recall: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8
    min_units: Count = 3
    """Finished probes of an attack before its recall is judged."""
    client_header: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+$(?!\n)")] = "X-Client-Id"
    control_inputs: Count = 60
    """Benign rows of one control, through the front door and straight to the topic."""
    concurrent_campaigns: Count = 1
    """Query campaigns under way at once, each as a client of its own; they share `queries_per_second`."""
    surrogate_rows: Count = 400
    """Rows that the endpoint is asked about to fit the surrogate, unless `probe_data` holds answers already."""
    schedules: tuple[ScheduleSettings, ...] = ()
    """Beside the three that the settings above make: `burst`, `campaign`, `control`."""
    extraction_queries: Count = 1000
    """Queries that an extraction may spend."""
    fuzz_requests: Count = 50
    """Malformed or odd requests of a fuzz probe."""
    requests_at_once: Count = 4
    """Probes on demand under way at once."""
    queries_per_minute: Positive | None = None
    """Holds beside `queries_per_second`; the smaller one counts."""
    cpu_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """Share of one core that making probes may take."""
    memory_mb: Annotated[int, msgspec.Meta(ge=256)] | None = 2048
    """Private memory of the prober; a probe that needs more is abandoned."""
    version_every_seconds: Positive = 30.0
    """Time between two looks at the model's version."""
    significance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01
    """Chance of naming a regression between two versions that are equal."""


class ConsoleSettings(_Settings, frozen=True):
    """The web console. It binds to loopback unless tokens are set."""

    host: str = "127.0.0.1"
    port: Port = 8600
    token_file: str | None = None
    tokens_file: str | None = None
    """File of named tokens with roles, as argon2 hashes; `vedette token` writes it."""


class IngestSettings(_Settings, frozen=True):
    """`vedette ingest`, which takes events by HTTP."""

    host: str = "127.0.0.1"
    """Who reaches it can write events: nobody but the model's logger should."""
    port: Port = 8700
    service: str = ""
    """Inference service whose events are taken, as they name it; empty: the model's name."""
    client: Annotated[str, msgspec.Meta(pattern=r"^((metadata|attribute|parameter):.+)$")] = "metadata:x-client-id"
    """Where the client's name stands.

    A header of the model's request, an attribute of the event, or a parameter of the request.
    """
    join_seconds: Positive = 60.0
    """A request without its response, or the other way round, is dropped after so long."""
    memory_mb: Count = 256
    """Events held at once; beyond it senders are asked to come again."""
    max_event_mb: Count = 16


class IncidentSettings(_Settings, frozen=True):
    """Incidents."""

    quiet_ticket_hours: Positive = 24.0
    """A ticket that nobody works on is resolved by itself after so long without a signal."""
    quiet_page_hours: Positive = 168.0
    """The same for a page."""
    runbook: dict[str, str] = {}
    """Technique (ATLAS id, with ``*`` and ``?``) -> what to do, in the words of who runs the site."""


class DestinationSettings(_Settings, frozen=True):
    """Somewhere that notifications go."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
    kind: str
    """`alertmanager`, `pagerduty`, `opsgenie`, `slack`, `webhook`, or one that a package adds."""
    url: str | None = None
    url_file: str | None = None
    """File that holds the URL, where the URL itself is a secret (Slack)."""
    secret_file: str | None = None
    """File that holds the routing key, API key, bearer token or signing secret."""
    chat: bool = False
    """Nobody is called by it, so tickets may go there; Slack always is chat."""
    timeout_seconds: Positive = 10.0
    ca_file: str | None = None
    """Certificates that the destination's is checked against; default: the system's."""
    proxy: str | None = None


class RouteSettings(_Settings, frozen=True):
    """Which incidents go where. Every route that fits applies; an empty list fits anything."""

    destinations: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    levels: Annotated[tuple[Literal["page", "ticket"], ...], msgspec.Meta(min_length=1)] = ("page",)
    severities: tuple[Literal["low", "medium", "high", "critical"], ...] = ()
    models: tuple[str, ...] = ()
    """Names, with ``*`` and ``?``."""
    techniques: tuple[str, ...] = ()
    """ATLAS ids, or `monitoring-blind`, with ``*`` and ``?``."""
    group_by: Annotated[tuple[Literal["incident", "model", "technique", "entity"], ...], msgspec.Meta(min_length=1)] = (
        "incident",
    )
    group_wait_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """How long the first notification of a group waits for more."""
    group_interval_seconds: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    """Least time between two notifications that tell of more incidents of a group."""
    repeat_hours: Annotated[float, msgspec.Meta(ge=0)] = 4.0
    """What nobody has acknowledged is told again after so long; 0: never."""
    resolved: bool = True
    """Whether resolutions are told."""


class InhibitionSettings(_Settings, frozen=True):
    """While an incident of the source is open, those of the target are held back."""

    source: Annotated[str, msgspec.Meta(min_length=1)]
    """Technique of the incident that mutes, with ``*`` and ``?``.

    ``monitoring``: monitoring is blind, or the calibration stale.
    """
    target: Annotated[str, msgspec.Meta(min_length=1)] = "AML.*"
    """Techniques that are muted, with ``*`` and ``?``."""


class NotifySettings(_Settings, frozen=True):
    """Notifications."""

    console_url: str = ""
    """Address of the console as people reach it, for links."""
    give_up_hours: Positive = 24.0
    """A notification that could not be delivered for so long becomes a dead letter."""
    destinations: tuple[DestinationSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    inhibitions: tuple[InhibitionSettings, ...] = ()


class TracingSettings(_Settings, frozen=True):
    """OpenTelemetry traces."""

    endpoint: str = ""
    """Address that takes OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: no traces."""


ThreatName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,47}$")]


class ThreatSettings(_Settings, frozen=True):
    """What an attacker may do (`streams.threats` makes a threat model of it and of rows of the model)."""

    norm: Literal["l0", "l1", "l2", "linf"] = "linf"
    eps: Positive | None = None
    """Largest distance from the start row, in `scale`; under l0 a whole number of features."""
    eps_quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """Instead of `eps`: half the distance within which this share of rows has a row of another class."""
    scale: Literal["feature", "range", "deviation"] = "feature"
    """One unit of distance: the feature's own unit, its range, or its standard deviation."""
    mutable: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("*",)
    """Names of features that can be changed, with ``*`` and ``?``, of those that the schema calls mutable."""
    immutable: tuple[str, ...] = ()
    """Names of features that can't, with ``*`` and ``?``; goes before `mutable`."""
    bounds: Literal["data", "schema"] = "data"
    """Where the schema has no bound: that of the rows at hand, or none."""
    relations: bool = False
    """Whether linear relations that all rows fulfil must hold for crafted ones."""
    knowledge: Literal["black-box", "transfer", "white-box"] = "black-box"
    budget: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """Queries a start row."""
    goal: str | int = "any"
    """`any` class but the start row's, or the name or number of the class to reach."""

    def __post_init__(self) -> None:
        if self.eps is not None and self.eps_quantile is not None:
            raise ValueError("`eps` and `eps_quantile` are both given; leave one out")
        if self.norm == "l0" and self.eps is not None and self.eps != round(self.eps):
            raise ValueError(f"`eps` is {self.eps}; under l0 it is a whole number of features")
        if isinstance(self.goal, int) and self.goal < 0:
            raise ValueError(f"`goal` is {self.goal}; it is `any`, or the name or number of a class")


#: Threat models that need no declaration. Settings may declare one of the same name, which goes before.
THREATS: dict[str, ThreatSettings] = {
    "image-linf": ThreatSettings(eps=8 / 255, scale="range"),
    "image-linf-white-box": ThreatSettings(eps=8 / 255, scale="range", knowledge="white-box"),
    "image-linf-transfer": ThreatSettings(eps=16 / 255, scale="range", knowledge="transfer", budget=0),
    "image-l2": ThreatSettings(norm="l2", eps_quantile=0.25, scale="range"),
    "image-l0": ThreatSettings(norm="l0", eps=5),
    "tabular-l0": ThreatSettings(norm="l0", eps=3, relations=True),
    "tabular-l2": ThreatSettings(norm="l2", eps_quantile=0.25, scale="deviation", relations=True),
    "tabular-linf": ThreatSettings(eps=0.1, scale="range", relations=True),
    "tabular-linf-white-box": ThreatSettings(eps=0.1, scale="range", relations=True, knowledge="white-box"),
    "embedding-l2": ThreatSettings(norm="l2", eps_quantile=0.25, bounds="schema"),
    "embedding-l2-white-box": ThreatSettings(norm="l2", eps_quantile=0.25, bounds="schema", knowledge="white-box"),
}


class Settings(_Settings, frozen=True):
    """Everything Vedette can be told."""

    models: Annotated[tuple[ModelSettings, ...], msgspec.Meta(min_length=1)]
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    secrets: SecretSettings = SecretSettings()
    worker: WorkerSettings = WorkerSettings()
    probes: ProbeSettings = ProbeSettings()
    console: ConsoleSettings = ConsoleSettings()
    ingest: IngestSettings = IngestSettings()
    incidents: IncidentSettings = IncidentSettings()
    notify: NotifySettings = NotifySettings()
    tracing: TracingSettings = TracingSettings()
    threats: dict[ThreatName, ThreatSettings] = {}
    """Threat models by name, beside `THREATS`."""
    week_seconds: Positive = 604_800.0
    """Length of the period that the page budget is stated for."""

    def model(self, name: str | None) -> ModelSettings:
        """The model of that name; with None, the only one."""
        if name is None:
            if len(self.models) > 1:
                raise ConfigError(f"several models are declared; name one of: {', '.join(m.name for m in self.models)}")
            return self.models[0]
        for model in self.models:
            if model.name == name:
                return model
        raise ConfigError(f"no model {name!r} is declared; declared: {', '.join(m.name for m in self.models)}")

    def recall_objective(self, model: ModelSettings, attack: str, kind: str) -> float | None:
        """The share of an attack's probes that must be detected; None where their recall is not judged."""
        own = model.objectives
        if attack in own.recall_of:
            return own.recall_of[attack]
        if kind not in ("burst", "campaign"):
            return None
        return self.probes.min_recall if own.recall is None else own.recall


def load(path: str | Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from a TOML file and the environment.

    Raises
    ------
    ConfigError
        With the path of the setting and what is allowed there.
    """
    environ = os.environ if environ is None else environ
    where = Path(path or environ.get("VEDETTE_CONFIG", "vedette.toml"))
    try:
        data: dict[str, Any] = tomllib.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no settings file at {where}; name one with --config or VEDETTE_CONFIG") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{where} is not valid TOML: {wrong}") from None
    except OSError as wrong:
        raise ConfigError(f"{where} cannot be read: {wrong.strerror}") from None
    _apply_variables(data, environ)
    return parse(data, str(where))


def parse(data: Mapping[str, Any], source: str) -> Settings:
    """Settings from plain data; `source` names it in errors.

    Raises
    ------
    ConfigError
    """
    try:
        settings = msgspec.convert(data, Settings, strict=True)
    except msgspec.ValidationError as wrong:
        raise ConfigError(f"{source}: {_wrong_threat(data) or _plain(str(wrong))}") from None
    huge = _huge(data)
    if huge is not None:
        raise ConfigError(f"{source}: {huge}; a number here is finite, at most {LARGEST:g}")
    names = [model.name for model in settings.models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: models: the name {name!r} is declared twice")
    for model in settings.models:
        if model.escalation is not None and not model.escalation.model and model.endpoint is None:
            raise ConfigError(
                f"{source}: models[{model.name}].escalation: names no model to ask; set escalation.model, or endpoint"
            )
    _check_schedules(settings.probes.schedules, source)
    return settings


def _huge(data: Any, path: str = "") -> str | None:
    """The first number that is too large, with its path; None where there is none."""
    if isinstance(data, int | float) and not abs(data) <= LARGEST:
        return f"{path} is {data}"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(data, Mapping):
        parts = ((f"{path}.{key}" if path else str(key), value) for key, value in data.items())
    elif isinstance(data, list | tuple):
        parts = ((f"{path}[{place}]", value) for place, value in enumerate(data))
    return next((found for where, value in parts if (found := _huge(value, where)) is not None), None)


def _check_schedules(schedules: tuple[ScheduleSettings, ...], source: str) -> None:
    names = [schedule.name for schedule in schedules]
    for schedule in schedules:
        where = f"{source}: probes.schedules[{schedule.name}]"
        if names.count(schedule.name) > 1:
            raise ConfigError(f"{where}: the name is declared twice")
        if not schedule.enabled:
            continue
        if not schedule.attacks:
            raise ConfigError(f"{where}.attacks: empty; give each attack a weight: attacks = {{ hop_skip_jump = 1.0 }}")
        if (schedule.every_seconds is not None) + (schedule.cron is not None) + schedule.on_new_version != 1:
            raise ConfigError(f"{where}: set one of every_seconds, cron and on_new_version")
        if schedule.cron is not None:
            try:
                CronSim(schedule.cron, datetime.now(UTC))
                wrong = "" if len(schedule.cron.split()) == CRON_FIELDS else "Wrong number of fields"
            except CronSimError as error:
                wrong = str(error)
            if wrong:
                raise ConfigError(f"{where}.cron: {wrong}; five fields, as in '30 3 * * mon'")


def _wrong_threat(data: Mapping[str, Any]) -> str:
    """What is wrong about a threat model, with its name, which the path of msgspec lacks; empty where nothing is."""
    tables = data.get("threats")
    for name, table in tables.items() if isinstance(tables, dict) else ():
        try:
            msgspec.convert({name: table}, dict[ThreatName, ThreatSettings], strict=True)
        except msgspec.ValidationError as wrong:
            message = str(wrong)
            if "`key`" in message:
                return f"threats: the name {name!r} does not match {message.split(' regex ')[1].split(' - at ')[0]}"
            return _plain(message.replace("$[...]", f"$.threats[{name}]")).replace(
                f"threats[{name}]", f"threats.{name}"
            )
    return ""


_SECRET_VARIABLES = {"VEDETTE_CONFIG", "VEDETTE_CLIENT_KEY", "VEDETTE_PROBE_KEY"}
_SECTIONS = {"KAFKA", "REDIS", "SECRETS", "WORKER", "PROBES", "CONSOLE", "INGEST", "INCIDENTS", "NOTIFY", "TRACING"}


def _apply_variables(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    for variable, text in environ.items():
        if not variable.startswith("VEDETTE_") or variable in _SECRET_VARIABLES:
            continue
        section, _, key = variable.removeprefix("VEDETTE_").partition("__")
        if not key:
            _refuse_single_underscore(variable)
            continue
        if section not in _SECTIONS:
            allowed = ", ".join(f"VEDETTE_{name}__..." for name in sorted(_SECTIONS))
            raise ConfigError(f"{variable}: no such section of settings; allowed: {allowed}")
        table = data.setdefault(section.lower(), {})
        if isinstance(table, dict):
            table[key.lower()] = _value(text, _kind(f"{section.lower()}.{key.lower()}"))


def _refuse_single_underscore(variable: str) -> None:
    """A variable that nearly names a setting would be left out without a word."""
    for section in sorted(_SECTIONS):
        start = f"VEDETTE_{section}_"
        key = variable.removeprefix(start)
        if key != variable and _kind(f"{section.lower()}.{key.lower()}") is not None:
            raise ConfigError(f"{variable}: write {start}_{key}, with two underscores behind the section")


def _value(text: str, kind: inspect.Type | None) -> Any:
    """A variable's text as the setting's type, where it can be read as that; else as it is, to be refused."""
    if kind is None or isinstance(kind, inspect.StrType | inspect.LiteralType | inspect.UnionType):
        return text
    try:
        return msgspec.convert(text, {inspect.IntType: int, inspect.FloatType: float}[type(kind)], strict=False)
    except (KeyError, msgspec.ValidationError):
        return text


def _kind(path: str) -> inspect.Type | None:
    """What is allowed at a path such as ``models[0].format``; None where there is no such setting."""
    kind: inspect.Type = inspect.type_info(Settings)
    for name in filter(None, re.sub(r"\[[^]]*]", ".[]", path).split(".")):
        if name == "[]" and isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        elif name == "[]" and isinstance(kind, inspect.DictType):
            kind = kind.value_type
        elif isinstance(kind, inspect.StructType):
            found = next((field.type for field in kind.fields if field.encode_name == name), None)
            if found is None:
                return None
            kind = found
    return kind


def _allowed(kind: inspect.Type | None) -> str:
    """The keys of a table, or the choices of a setting; empty where its type says enough."""
    if isinstance(kind, inspect.StructType):
        return ", ".join(field.encode_name for field in kind.fields)
    if isinstance(kind, inspect.UnionType):
        return ", ".join(filter(None, map(_allowed, kind.types)))
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(map(repr, kind.values))
    return ""


def _plain(message: str) -> str:
    """A message of msgspec with the path in front, and what is allowed there behind."""
    found = re.fullmatch(r"(.*?) - at `\$\.?(.*)`", message)
    what, path = (found.group(1), found.group(2)) if found else (message, "")
    allowed = ""
    if "unknown field" in what or "enum value" in what:
        allowed = _allowed(_kind(path))
    return f"{path}: " * bool(path) + what + f"; allowed: {allowed}" * bool(allowed)


def threat(settings: Settings | None, name: str) -> ThreatSettings:
    """The threat model that settings declare under that name, or else the shipped one.

    Raises
    ------
    ConfigError
        Names all there are.
    """
    declared = {} if settings is None else settings.threats
    found = declared.get(name) or THREATS.get(name)
    if found is None:
        raise ConfigError(f"no threat model {name!r}; there are {', '.join(sorted({*declared, *THREATS}))}")
    return found


def secret(settings: Settings, which: Literal["client", "probe"], environ: Mapping[str, str] | None = None) -> bytes:
    """The secret key of the client hash (16 bytes) or of probe marks (32 bytes).

    Raises
    ------
    ConfigError
        When it is set nowhere, unreadable, or not hex of the right length. The message never shows the secret.
    """
    environ = os.environ if environ is None else environ
    variable = f"VEDETTE_{which.upper()}_KEY"
    path = settings.secrets.client_key_file if which == "client" else settings.secrets.probe_key_file
    length = KEY_BYTES[which]
    if variable in environ:
        source, text = variable, environ[variable]
    elif path is not None:
        source = path
        try:
            text = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"secrets.{which}_key_file: cannot read {path}") from None
    else:
        setting = f"secrets.{which}_key_file"
        raise ConfigError(f"{setting}: not set; write {length} random bytes as hex into a file, or into {variable}")
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != length:
        raise ConfigError(f"{source}: must hold {2 * length} hex digits ({length} bytes)")
    return key
