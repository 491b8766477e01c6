"""Which detectors `vedette fit` fits, and the watched model that some of them read."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from detectors import registry
from detectors.errors import DetectorError
from streams.errors import ConfigError

#: Before a name it means: beside the default detectors.
ADDED = "+"


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

    Raises
    ------
    ConfigError
        When there is no such module or object, or the module fails.
    """
    if option is None:
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
    except Exception as failed:  # whatever the module does, its user reads one sentence
        raise ConfigError(f"--model: {module} cannot be imported: {type(failed).__name__}: {failed}") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    return found
