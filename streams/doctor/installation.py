"""This machine's side: packages, secrets, console, bundle, and the model's endpoint."""

from __future__ import annotations

import importlib.metadata
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams import config
from streams.config import ModelSettings, Settings
from streams.doctor.finding import Finding, Findings, ok, problem, warning
from streams.errors import BundleMismatch, ConfigError, EndpointError, VedetteError

if TYPE_CHECKING:
    from detectors.contract import Scorer

#: How long the model's endpoint may take to answer.
ENDPOINT_SECONDS = 3.0


def packages() -> Findings:
    """Whose the three import packages are."""
    from streams.cli import PACKAGES, verify_packages

    remedy = "give Vedette a virtual environment or container of its own"
    try:
        verify_packages()
    except ConfigError as error:
        yield problem("packages", str(error), remedy, ConfigError)
        return
    owners = importlib.metadata.packages_distributions()
    strangers = sorted({owner for name in PACKAGES for owner in owners.get(name, ()) if owner.lower() != "vedette"})
    if strangers:
        text = f"{', '.join(strangers)} also installs a package named {', '.join(PACKAGES[:-1])} or {PACKAGES[-1]}"
        yield problem("packages", text, remedy, ConfigError)
    else:
        yield ok("packages", f"{', '.join(PACKAGES)} belong to vedette {importlib.metadata.version('vedette')}")


def secrets(settings: Settings, environ: Mapping[str, str]) -> Findings:
    """Whether the keys are there and nobody else can read them."""
    for which in ("client", "probe"):
        check = f"{which} key"
        try:
            config.secret(settings, which, environ)
        except ConfigError as error:
            yield problem(check, str(error), f"openssl rand -hex {config.KEY_BYTES[which]} > FILE", ConfigError)
            continue
        path = settings.secrets.client_key_file if which == "client" else settings.secrets.probe_key_file
        variable = f"VEDETTE_{which.upper()}_KEY"
        if variable in environ or path is None:
            yield ok(check, f"set by {variable}")
        elif os.name == "posix" and Path(path).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield warning(check, f"{path} can be read by other users", f"chmod 600 {path}")
        else:
            yield ok(check, f"in {path}")


def console(settings: Settings) -> Findings:
    """Whether strangers can reach the console."""
    from streams.console.access import read_token, read_tokens

    try:
        guarded = read_token(settings.console) is not None
        guarded |= read_tokens(settings.console) is not None
    except ConfigError as error:
        yield problem("console", str(error), "openssl rand -hex 16 > FILE, and set console.token_file", ConfigError)
        return
    yield ok("console", f"on {settings.console.host}, {'asks for a token' if guarded else 'open to this machine'}")


def notifications(settings: Settings) -> Findings:
    """Whether routes and destinations make sense, and their secrets can be read; nothing is sent."""
    from streams.notify.check import test_notice
    from streams.notify.routing import Routing

    if not settings.notify.destinations:
        return
    check, remedy = "notifications", "correct [notify] (docs/notifications.md), then vedette notifier --check"
    try:
        routing = Routing.of(settings.notify)
        notice = test_notice("vedette/doctor", settings.models[0].name, "trigger", 0)
        for notifier in routing.notifiers.values():
            notifier.call(notice, 0)
    except ConfigError as error:
        yield problem(check, str(error), remedy, ConfigError)
        return
    yield ok(check, f"to {', '.join(routing.notifiers)}; vedette notifier --check tries them")


def bundle(model: ModelSettings) -> tuple[Scorer | None, Finding]:
    """The bundle, where it loads."""
    from detectors.bundle import changed_packages, load
    from detectors.errors import DetectorError
    from detectors.manifest import read_origin

    remedy = "make one with `vedette fit`, or name another with models.bundle"
    try:
        scorer = load(Path(model.bundle))
        made = read_origin(model.bundle)
    except DetectorError as error:
        return None, problem("bundle", str(error), remedy, BundleMismatch)
    shape = f"{scorer.schema.width} features, {len(scorer.schema.classes)} classes"
    text = f"{model.bundle}: {shape}, digest {scorer.digest[:12]}"
    text += f", of {made.named()}" * bool(made.named()) + f", made by {made.made_by()}" * bool(made.made_by())
    if made.model and made.model != model.name:
        text = f"{text}; it was fitted for another model than {model.name}"
        return scorer, warning("bundle", text, "name the model's own bundle with models.bundle, or fit one")
    changes = changed_packages(scorer, made)
    if changes:
        remedy = "install the same versions as at the fit, or fit anew"
        return scorer, warning("bundle", f"{text}; {'; '.join(changes)}", remedy)
    return scorer, ok("bundle", text)


def escalation(
    settings: Settings, model: ModelSettings, environ: Mapping[str, str], in_force: str | None = None
) -> Findings:
    """Whether the bundle has inquiries, and the model that they ask answers; nothing where escalation is off.

    `in_force` is the path of the bundle that Redis names, if it does.
    """
    if model.escalation is None:
        return
    from detectors.bundle import load_escalation
    from detectors.errors import DetectorError
    from streams.incidents.escalation import model_to_ask

    path = in_force or model.bundle
    where, remedy = "escalation", "set models.escalation right, or leave the table out"
    try:
        tier, _ = load_escalation(path)
        asked = model_to_ask(settings, model, model.escalation, environ)()
    except (DetectorError, OSError) as error:
        yield problem(where, str(error), "make a bundle with `vedette fit --inquiries all`", BundleMismatch)
        return
    except (ConfigError, EndpointError) as error:
        yield problem(where, str(error), remedy, type(error))
        return
    if tier is None:
        text = f"{path} has no inquiries"
        yield problem(where, text, "fit it with `vedette fit --inquiries all`", ConfigError)
        return
    # Any row will do: what counts is that probabilities of the schema's classes come back.
    row, label = np.zeros((1, tier.width)), np.zeros(1, dtype=np.int32)
    try:
        tier.judge(row, label, asked.predict)
    except (DetectorError, EndpointError) as error:
        yield warning(where, f"the model cannot be asked: {error}", "incidents get no answers of it until it can")
        return
    yield ok(where, f"{', '.join(tier.names)}: {tier.questions} questions a row, answered")


def endpoint(model: ModelSettings) -> Finding:
    """Whether the watched model can be asked, for probes."""
    if model.endpoint is None:
        text = "models.endpoint is not set: no probe tests whether the detectors still see"
        return warning("endpoint", text, "set it and models.probe_data")
    url = f"{model.endpoint.rstrip('/')}/v2/health/ready"
    remedy = "probes through the front door cannot be sent until it does"
    if not url.startswith(("http://", "https://")):
        return problem("endpoint", f"models.endpoint {model.endpoint!r} is no http or https URL", remedy, ConfigError)
    try:
        with urllib.request.urlopen(url, timeout=ENDPOINT_SECONDS) as answer:  # noqa: S310 - the scheme was checked
            status = answer.status
    except (OSError, ValueError, urllib.error.URLError) as error:
        return warning("endpoint", f"{url} does not answer: {error}", remedy)
    return _version(model) or ok("endpoint", f"{url} answers with {status}")


def _version(model: ModelSettings) -> Finding | None:
    """Whether the endpoint serves another version of the model than the bundle says that it was fitted for."""
    from detectors.errors import DetectorError
    from detectors.manifest import read_origin
    from streams.models.oip import OIPModel

    assert model.endpoint is not None
    try:
        fitted = read_origin(model.bundle).model_version
        if not fitted:
            return None
        asked = OIPModel(model.endpoint, model.name, timeout_seconds=ENDPOINT_SECONDS)
        serves = asked.version()
        asked.close()
    except (DetectorError, OSError, VedetteError):
        return None  # of the bundle its own check tells; an endpoint need not tell its version
    if serves in ("", fitted):
        return None
    text = f"{model.endpoint} serves version {serves} of {model.name}; the bundle was fitted for version {fitted}"
    return warning("endpoint", text, "fit a bundle on the answers of the version that is served")
