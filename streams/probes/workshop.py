"""Puts the prober's crafters together: schema, start rows, attacks and their threat models, endpoint, topic."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from attacks import extraction, registry
from attacks.contract import Attack, Model
from attacks.errors import AttackError, ThreatModelError
from attacks.surrogate import fit_surrogate
from attacks.threat import Domain, Norm, ThreatModel
from detectors import bundle
from detectors.schema import FeatureSchema
from streams import threats
from streams.config import ModelSettings, ProbeSettings, Settings, threat
from streams.errors import ConfigError, VedetteError
from streams.models.oip import OIPModel
from streams.probes.catalogue import CONTROLS, FUZZ, kind_of
from streams.probes.craft import (
    ControlDirect,
    ControlFrontDoor,
    Copy,
    Desk,
    Endpoint,
    ExtractionRun,
    QueryCampaign,
    RequestId,
    TransferBurst,
)
from streams.probes.data import Deck, ProbeData, load
from streams.probes.fuzzing import FuzzRun
from streams.probes.pace import CpuBudget
from streams.probes.prober import Crafter
from streams.probes.records import DirectSender
from streams.probes.schedules import schedules
from streams.store.messages import ProbeRequest

log = logging.getLogger("vedette.prober")

#: Norms of an attack whose threat model nobody named, in order of preference.
_BURST_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
_CAMPAIGN_NORMS: tuple[Norm, ...] = ("l2", "linf", "l1", "l0")

DeclaredThreat = Callable[[str], ThreatModel]


@dataclass(frozen=True, slots=True)
class Workshop:
    """Everything that makes and sends probes of one model.

    Attributes
    ----------
    crafters : dict of schedule name to crafters
    sender : DirectSender
    version : callable
        The watched model's version as it was seen last, empty where it is not known.
    make : callable
        The crafter that a request asks for; raises `ConfigError`.
    """

    crafters: dict[str, tuple[Crafter, ...]]
    sender: DirectSender
    version: Callable[[], str]
    make: Callable[[ProbeRequest], Crafter]


class Surrogate:
    """A surrogate in the attacker's hands, used within the prober's share of a core.

    Has the contract of a model with gradients.
    """

    def __init__(self, network: Any, cpu: CpuBudget, stop: threading.Event) -> None:
        self._network, self._cpu, self._stop = network, cpu, stop

    def predict(self, X: NDArray[np.float64], /) -> NDArray[np.float64]:
        return self._paid(self._network.predict(X))

    def logits(self, X: NDArray[np.float64], /) -> NDArray[np.float64]:
        return self._paid(self._network.logits(X))

    def gradient(self, X: NDArray[np.float64], weights: NDArray[np.float64], /) -> NDArray[np.float64]:
        return self._paid(self._network.gradient(X, weights))

    def _paid(self, answer: NDArray[np.float64]) -> NDArray[np.float64]:
        self._cpu.pay(self._stop)
        return answer


class SurrogateAttack:
    """An attack on a surrogate, whose crafted rows are then sent to the model (transfer: Papernot et al. 2016)."""

    def __init__(self, attack: Attack, threat: ThreatModel, cpu: CpuBudget | None = None) -> None:
        self.attack, self.threat = attack.name, threat.name
        self._attack, self._threat = attack, threat
        self._cpu = cpu

    def fit(self, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> object:
        return fit_surrogate(inputs, labels, rng)

    def craft(
        self, surrogate: object, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        model = surrogate if self._cpu is None else Surrogate(surrogate, self._cpu, threading.Event())
        return self._attack.craft(cast("Model", model), inputs, labels, self._threat, rng).inputs


class EndpointAttack:
    """An attack by the answers of the model's endpoint."""

    def __init__(self, attack: Attack, threat: ThreatModel) -> None:
        self.attack, self.threat = attack.name, threat.name
        self._attack, self._threat = attack, threat

    def craft(
        self, model: Endpoint, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        self._attack.craft(model, inputs, labels, self._threat, rng)


class EndpointThief:
    """An extraction by the answers of the model's endpoint."""

    def __init__(self, name: str, legal: Domain, queries: int) -> None:
        self.attack, self.threat = name, f"extraction, {queries} queries"
        self._extraction = extraction.kind(name)()
        self._legal, self._queries = legal, queries

    def steal(self, model: Endpoint, seeds: NDArray[np.float64], rng: np.random.Generator) -> Copy:
        return self._extraction.steal(model, seeds, self._legal, self._queries, rng)


@dataclass(slots=True)
class Bench:
    """Makes crafters, each once.

    Attributes
    ----------
    desk : Desk
    hostile, benign : Deck
        Attacks start from `hostile`, controls from `benign`: a row that served an attack is never a control.
    known : (inputs (m, d), labels (m,)) or None
        Rows with the model's predicted classes, for surrogates.
    legal : Domain
        Of attacks whose threat model nobody named.
    declared : callable
        The threat model of a name; raises `ConfigError`.
    """

    desk: Desk
    hostile: Deck
    benign: Deck
    known: tuple[NDArray[np.float64], NDArray[np.int64]] | None
    legal: Domain
    declared: DeclaredThreat
    _made: dict[tuple[str, str, str], Crafter] = field(default_factory=dict)

    def crafter(self, attack: str, kind: str = "", threat_name: str = "") -> Crafter:
        """The crafter of an attack.

        Raises
        ------
        ConfigError
            There is no such attack or threat model, or they do not go together.
        """
        sent_as = kind_of(attack, kind)
        name = (attack, sent_as, threat_name)
        if name not in self._made:
            try:
                self._made[name] = self._make(*name)
            except AttackError as refusal:
                raise ConfigError(f"{attack} cannot be sent: {refusal}") from None
        return self._made[name]

    def _make(self, attack: str, kind: str, threat_name: str) -> Crafter:
        settings = self.desk.settings
        if threat_name and kind not in ("burst", "campaign"):
            raise ConfigError(f"{attack} knows no threat model; leave {threat_name!r} out")
        if attack == CONTROLS[0]:
            return ControlDirect(self.desk, self.benign)
        if attack == CONTROLS[1]:
            return ControlFrontDoor(self.desk, self.benign)
        if attack == FUZZ:
            return FuzzRun(self.desk, self.hostile, self.legal)
        if kind == "extraction":
            return ExtractionRun(
                self.desk, self.hostile, EndpointThief(attack, self.legal, settings.extraction_queries)
            )
        found = registry.kind(attack)()
        model = self.declared(threat_name) if threat_name else own_threat(found, kind, self.legal, settings)
        _check(found, kind, model)
        if kind == "burst":
            return TransferBurst(self.desk, self.hostile, SurrogateAttack(found, model, self.desk.cpu), self.known)
        return QueryCampaign(self.desk, self.hostile, EndpointAttack(found, model))


def own_threat(attack: Attack, kind: str, legal: Domain, settings: ProbeSettings) -> ThreatModel:
    """The threat model of an attack that nobody named one for: by `eps`, `campaign_queries` and what it can keep."""
    bounded = attack.needs_eps or (kind == "burst" and "linf" in attack.norms)
    order = _BURST_NORMS if bounded or kind == "burst" else _CAMPAIGN_NORMS
    norm = next(norm for norm in order if norm in attack.norms)
    eps = settings.eps if bounded else None
    if eps is not None and norm == "l0":
        eps = max(1.0, round(eps))
    size = norm.capitalize() + ("" if eps is None else f" {eps:g}")
    if kind == "burst":
        return ThreatModel(f"{size}, transfer", norm, eps, legal, "transfer", settings.campaign_queries)
    queries = settings.campaign_queries
    return ThreatModel(f"{size}, black-box, {queries} queries", norm, eps, legal, "black-box", queries)


def _check(attack: Attack, kind: str, model: ThreatModel) -> None:
    where = f"{attack.name} under threat model {model.name!r}"
    if model.norm not in attack.norms:
        raise ConfigError(f"{where}: its norm is {model.norm}, the attack keeps {', '.join(sorted(attack.norms))}")
    if attack.needs_eps and model.eps is None:
        raise ConfigError(f"{where}: the attack needs a bound on the distance; give the threat model eps")
    if model.goal != "any" and not attack.targeted:
        raise ConfigError(f"{where}: the attack cannot aim at one class")
    if kind == "burst" and model.knowledge != "transfer":
        raise ConfigError(f"{where}: bursts are crafted on a surrogate; set knowledge = 'transfer'")
    if kind == "campaign" and model.budget < 1:
        raise ConfigError(f"{where}: its budget is 0 queries")


def domain(schema: FeatureSchema) -> Domain:
    """What an attacker may change, and what every legal input obeys, as plain arrays."""
    return Domain(
        low=schema.lows(),
        high=schema.highs(),
        integral=schema.integral(),
        mutable=schema.mutable(),
        groups=tuple(schema.groups().values()),
    )


@contextmanager
def workshop(settings: Settings, model: ModelSettings, key: bytes) -> Iterator[Workshop]:
    """Build everything and close it at the end.

    Raises
    ------
    ConfigError
        When `endpoint` or `probe_data` is missing or unusable, or a schedule asks for what there is not.
    BrokerError, MissingTopic
    """
    url = model.endpoint
    if url is None:
        raise ConfigError(f"models.{model.name}.endpoint: not set; the prober asks the model there (http://HOST:PORT)")
    schema = bundle.load(model.bundle).schema
    data = load(model, schema.width)
    known = None
    if data.surrogate_inputs is not None and data.surrogate_labels is not None:
        known = (data.surrogate_inputs, data.surrogate_labels)
    legal = domain(schema)
    rows = data.inputs[legal.holds(data.inputs)]
    if 2 * len(rows) < len(data.inputs):
        raise ConfigError(f"models.{model.name}.probe_data: most rows break the schema: {legal.complaint(data.inputs)}")
    # The same halves after every start: probes of one number start from the same rows.
    fixed = np.random.default_rng(int.from_bytes(hmac.digest(key, f"rows {model.name}".encode(), "sha256"), "big"))
    shuffled = rows[fixed.permutation(len(rows))]
    half = len(shuffled) // 2
    hostile, benign = Deck(shuffled[:half], fixed.spawn(1)[0]), Deck(shuffled[half:], fixed.spawn(1)[0])

    def connect(client: str, request_id: RequestId) -> Endpoint:
        return OIPModel(
            url, model.name, client_id=client, client_header=settings.probes.client_header, request_id=request_id
        )

    sender = DirectSender(settings.kafka, model, key)
    watch = VersionWatch(OIPModel(url, model.name), settings.probes.version_every_seconds)
    try:
        desk = Desk(settings.probes, model.topic, key, connect, sender, np.random.default_rng())
        bench = Bench(desk, hostile, benign, known, legal, declared_threats(settings, schema, data, legal))
        made = crafters(bench, settings.probes)
        watch.start()

        def make(request: ProbeRequest) -> Crafter:
            return bench.crafter(request.attack, request.kind, request.threat)

        yield Workshop(made, sender, watch.version, make)
    finally:
        watch.stop()
        sender.close()


def declared_threats(settings: Settings, schema: FeatureSchema, data: ProbeData, legal: Domain) -> DeclaredThreat:
    """Threat models by the names of the settings, from the prober's rows."""
    rows, labels = data.inputs, data.labels
    if labels is None and data.surrogate_inputs is not None:
        rows, labels = data.surrogate_inputs, data.surrogate_labels
    kept = legal.holds(rows)

    def declared(name: str) -> ThreatModel:
        classes = None if labels is None else labels[kept]
        try:
            return threats.model(name, threat(settings, name), schema, rows[kept], classes)
        except ThreatModelError as wrong:
            raise ConfigError(f"threats.{name}: {wrong}") from None

    return declared


def crafters(bench: Bench, settings: ProbeSettings) -> dict[str, tuple[Crafter, ...]]:
    """Those of every schedule.

    Raises
    ------
    ConfigError
        Names the schedule.
    """
    found: dict[str, tuple[Crafter, ...]] = {}
    for schedule in schedules(settings):
        made = []
        for attack in schedule.attacks:
            try:
                takes = attack not in (*CONTROLS, FUZZ, *extraction.names())
                made.append(bench.crafter(attack, schedule.kind * takes, schedule.threat * takes))
            except ConfigError as wrong:
                raise ConfigError(f"probes.schedules[{schedule.name}].attacks: {wrong}") from None
        found[schedule.name] = tuple(made)
    return found


class VersionWatch:
    """Looks at the model's version now and then, in a thread: the prober's main thread must not wait for it.

    Parameters
    ----------
    model : OIPModel
    every_seconds : float
    """

    def __init__(self, model: OIPModel, every_seconds: float) -> None:
        self._model = model
        self._every = every_seconds
        self._stop = threading.Event()
        self._version = ""
        self._thread = threading.Thread(target=self._run, name="model-version", daemon=True)

    def version(self) -> str:
        """As it was seen last; empty where it is not known."""
        return self._version

    def start(self) -> None:
        """Look once, then on in the thread."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End; does not wait for a look under way."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._look()

    def _look(self) -> None:
        try:
            found = self._model.version()
        except VedetteError as error:
            log.warning("the model's version is not known: %s", error)
            return
        if found != self._version:
            log.info("the model's version is %s", found or "not told")
            self._version = found


__all__ = [
    "Bench",
    "EndpointAttack",
    "SurrogateAttack",
    "Workshop",
    "crafters",
    "domain",
    "own_threat",
    "workshop",
]
