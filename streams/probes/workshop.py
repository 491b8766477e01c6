"""Puts the prober's crafters together: schema, start rows, attacks and their threat models, endpoint, topic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from attacks import registry
from attacks.contract import Model
from attacks.surrogate import fit_surrogate
from attacks.threat import Domain, ThreatModel
from detectors import bundle
from detectors.schema import FeatureSchema
from streams.config import ModelSettings, ProbeSettings, Settings
from streams.errors import ConfigError
from streams.models.oip import OIPModel
from streams.probes.craft import (
    ControlDirect,
    ControlFrontDoor,
    Desk,
    Endpoint,
    QueryCampaign,
    RequestId,
    TransferBurst,
)
from streams.probes.data import Deck, load
from streams.probes.prober import Crafter
from streams.probes.records import DirectSender


@dataclass(frozen=True, slots=True)
class Workshop:
    """Everything that makes and sends probes of one model.

    Attributes
    ----------
    crafters : dict of schedule name to crafters
        ``burst``, ``campaign``, ``control``.
    sender : DirectSender
    """

    crafters: dict[str, tuple[Crafter, ...]]
    sender: DirectSender


class TransferPgd:
    """PGD within an Linf ball on a surrogate (Madry et al. 2018; transfer: Papernot et al. 2016)."""

    attack = "transfer_pgd"

    def __init__(self, domain: Domain, eps: float) -> None:
        self.threat = f"Linf {eps:g}, transfer"
        self._attack = registry.kind(self.attack)()
        self._threat = ThreatModel(
            name=self.threat, norm="linf", eps=eps, domain=domain, knowledge="transfer", budget=0, goal="any"
        )

    def fit(self, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> object:
        return fit_surrogate(inputs, labels, rng)

    def craft(
        self, surrogate: object, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        return self._attack.craft(cast("Model", surrogate), inputs, labels, self._threat, rng).inputs


class HopSkipJump:
    """HopSkipJump, L2, by predicted classes alone (Chen, Jordan & Wainwright 2020)."""

    attack = "hop_skip_jump"

    def __init__(self, domain: Domain, queries: int) -> None:
        self.threat = f"L2, black-box, {queries} queries"
        self._attack = registry.kind(self.attack)()
        self._threat = ThreatModel(
            name=self.threat, norm="l2", eps=None, domain=domain, knowledge="black-box", budget=queries, goal="any"
        )

    def craft(
        self, model: Endpoint, inputs: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        self._attack.craft(model, inputs, labels, self._threat, rng)


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
def workshop(settings: Settings, model: ModelSettings, key: bytes, rng: np.random.Generator) -> Iterator[Workshop]:
    """Build everything and close it at the end.

    Raises
    ------
    ConfigError
        When `endpoint` or `probe_data` is missing or unusable.
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
    shuffled = data.inputs[rng.permutation(len(data.inputs))]
    half = len(shuffled) // 2
    hostile, benign = Deck(shuffled[:half], rng.spawn(1)[0]), Deck(shuffled[half:], rng.spawn(1)[0])

    def connect(client: str, request_id: RequestId) -> Endpoint:
        return OIPModel(
            url, model.name, client_id=client, client_header=settings.probes.client_header, request_id=request_id
        )

    sender = DirectSender(settings.kafka, model, key)
    try:
        desk = Desk(settings.probes, model.topic, key, connect, sender, rng)
        yield Workshop(crafters(desk, hostile, benign, known, domain(schema), settings.probes), sender)
    finally:
        sender.close()


def crafters(
    desk: Desk,
    hostile: Deck,
    benign: Deck,
    known: tuple[NDArray[np.float64], NDArray[np.int64]] | None,
    legal: Domain,
    settings: ProbeSettings,
) -> dict[str, tuple[Crafter, ...]]:
    """Attacks start from `hostile`, controls from `benign`: a row that served an attack is never a control."""
    return {
        "burst": (TransferBurst(desk, hostile, TransferPgd(legal, settings.eps), known),),
        "campaign": (QueryCampaign(desk, hostile, HopSkipJump(legal, settings.campaign_queries)),),
        "control": (ControlDirect(desk, benign), ControlFrontDoor(desk, benign)),
    }
