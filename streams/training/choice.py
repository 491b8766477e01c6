"""Which detectors and inquiries `vedette fit` fits, and the watched model that they read or ask."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectors import registry
from detectors.errors import DetectorError
from detectors.responses.contract import Ask
from detectors.responses.escalation import KINDS
from streams.config import Settings, secret
from streams.errors import ConfigError
from streams.models import named
from streams.models.marked import CLIENT, Marks

#: Before a name it means: beside the default detectors.
ADDED = "+"
#: All inquiries.
ALL = "all"
#: What is said where questions to an endpoint carry no mark.
UNMARKED = (
    "no probe key is set, so the questions of inquiries carried no mark: if the endpoint's requests are logged, "
    "workers take them for traffic of the client vedette-escalation (VEDETTE_PROBE_KEY and a settings file)"
)


def detectors_of(option: str | None) -> tuple[str, ...]:
    """Names of the detectors that ``--detectors`` asks for, the default ones where it is left out.

    The name of a set (`registry.SETS`) stands for its detectors. Names are separated by commas. Those with a `+` before
    them are added to the default ones, and then all have it.

    Raises
    ------
    ConfigError
        When a name is not known, or only some have the `+`.
    """
    if option is None:
        return registry.DEFAULT
    if option.strip() in registry.SETS:
        return registry.SETS[option.strip()]
    names = [name.strip() for name in option.split(",") if name.strip()]
    added = [name.startswith(ADDED) for name in names]
    if any(added) and not all(added):
        raise ConfigError("--detectors: put '+' before every name, or before none")
    if not names:
        raise ConfigError(f"--detectors: no names; there are {', '.join(registry.names())}")
    chosen = [name.removeprefix(ADDED) for name in names]
    try:
        for name in chosen:
            registry.kind(name)
    except DetectorError as unknown:
        raise ConfigError(f"--detectors: {unknown}") from None
    return (*registry.DEFAULT, *chosen) if added[0] else tuple(chosen)


def model_of(option: str | None) -> Any:
    """The object that ``--model MODULE:NAME`` names; modules are also looked for in the working folder.

    None where it names an endpoint or an ONNX file: those are asked, not read.

    Raises
    ------
    ConfigError
        When there is no such module or object, or the module fails.
    """
    if option is None or named.is_url(option) or named.is_onnx(option):
        return None
    module, colon, name = option.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"--model: {option!r} is not MODULE:NAME, as scoring.model:forest")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as missing:
        raise ConfigError(f"--model: {missing}") from None
    except (Exception, SystemExit) as failed:  # whatever the module does, its user reads one sentence
        raise ConfigError(f"--model: {module} cannot be imported: {type(failed).__name__}: {failed}") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    return found


def inquiries_of(option: str | None, model: str | None) -> tuple[str, ...]:
    """Names of the inquiries that ``--inquiries`` asks for; none where it is left out.

    Raises
    ------
    ConfigError
        A name is not known or given twice, or `model`, what ``--model`` says, doesn't go with them.
    """
    if option is None:
        if model is not None and (named.is_url(model) or named.is_onnx(model)):
            raise ConfigError(f"--model: {model}: only inquiries ask an endpoint or a file; add --inquiries all")
        return ()
    names = tuple(KINDS) if option.strip() == ALL else tuple(filter(None, map(str.strip, option.split(","))))
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(f"--inquiries: {option!r} is not `{ALL}`, or names of {', '.join(KINDS)}, each once")
    if model is None:
        raise ConfigError(f"--inquiries ask the watched model; name it with --model: {named.FORMS}")
    return names


def ask_of(model: str, settings: Settings | None, topic: Callable[[], str]) -> tuple[Ask, tuple[str, ...]]:
    """The watched model that ``--model`` names, to be asked, and what a person should know of it.

    Questions to an endpoint carry a mark where settings and a probe key are at hand.

    Raises
    ------
    ConfigError, EndpointError
        As `streams.models.named.load`.
    """
    if not named.is_url(model):
        return named.load(model, client=CLIENT).predict, ()
    if settings is None or (settings.secrets.probe_key_file is None and "VEDETTE_PROBE_KEY" not in os.environ):
        return named.load(model, client=CLIENT).predict, (UNMARKED,)
    marks, header = Marks(secret(settings, "probe"), topic()), settings.probes.client_header
    return named.load(model, client=CLIENT, client_header=header, request_id=marks).predict, ()
