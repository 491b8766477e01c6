"""A model by the name that settings and options give it: an endpoint's URL, an ONNX file, or an object in a module."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from streams.errors import ConfigError, EndpointError
from streams.models.contract import Model
from streams.models.function import FunctionModel
from streams.models.oip import TIMEOUT_SECONDS, OIPModel, RequestId
from streams.models.onnx import OnnxModel

#: Rows of one request to an endpoint: callers ask thousands at once, servers bound the size of a request.
ROWS_PER_REQUEST = 64
#: What a name may be.
FORMS = "a URL http://HOST:PORT/v2/models/NAME, a file (.onnx) or module:name"


@dataclass(frozen=True, slots=True)
class Requests:
    """An endpoint that is asked in requests of bounded size."""

    endpoint: OIPModel

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (n, k) of rows (n, d)."""
        parts = [inputs[first : first + ROWS_PER_REQUEST] for first in range(0, len(inputs), ROWS_PER_REQUEST)]
        return np.concatenate([self.endpoint.predict(part) for part in parts])


@dataclass(frozen=True, slots=True)
class Answers:
    """The scores of an estimator, as scikit-learn's have them."""

    estimator: Any
    name: str

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities (n, k); where there are none, decision values."""
        try:
            if hasattr(self.estimator, "predict_proba"):
                values = np.asarray(self.estimator.predict_proba(inputs), dtype=np.float64)
            else:
                values = np.asarray(self.estimator.decision_function(inputs), dtype=np.float64)
        except (Exception, SystemExit) as error:  # an estimator of a stranger: whatever it raises becomes one sentence
            raise EndpointError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        if values.ndim == 1:
            values = np.column_stack([-values, values])
        if values.shape[0] != len(inputs) or not np.isfinite(values).all():
            raise EndpointError(
                f"{self.name} returned {values.shape} scores for {len(inputs)} rows, or not finite ones"
            )
        return values


@dataclass(frozen=True, slots=True)
class Predictions:
    """An object of a stranger's whose `predict` gives scores."""

    model: Any
    name: str

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Whatever the object answers; who asks looks at it."""
        try:
            return np.asarray(self.model.predict(inputs), dtype=np.float64)
        except (Exception, SystemExit) as error:  # as above
            raise EndpointError(f"{self.name} failed: {type(error).__name__}: {error}") from error


def load(
    spec: str,
    *,
    option: str = "--model",
    client: str,
    client_header: str = "X-Client-Id",
    request_id: RequestId | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Model:
    """The model of that name.

    Parameters
    ----------
    spec : str
        ``http://HOST:PORT/v2/models/NAME`` (Open Inference Protocol), a file ``.onnx``, or ``module:name``: a function
        of rows (n, d) to scores (n, k), an estimator, or a function without arguments that makes one.
    option : str
        Setting or option that holds the name, for errors.
    client, client_header, request_id, timeout_seconds
        What an endpoint is told, and how long one answer of it may take.

    Raises
    ------
    ConfigError
        Says in a sentence what is wrong with the name or the file.
    EndpointError
        When the function that makes the model fails.
    """
    if is_url(spec):
        return endpoint(spec, option, client, client_header, request_id, timeout_seconds)
    if is_onnx(spec):
        return OnnxModel(Path(spec), option)
    understood(spec, option)
    found = object_of(spec, option, FORMS)
    if inspect.isclass(found):
        raise ConfigError(f"{option}: {spec} is a class; name a fitted estimator, or a function that returns one")
    if is_function(found):
        if takes_rows(found):
            return FunctionModel(spec)
        found = made_by(found, spec)
    if hasattr(found, "fit") and hasattr(found, "get_params") and not hasattr(found, "classes_"):
        raise ConfigError(f"{option}: {spec}: {type(found).__name__} is not fitted")
    if hasattr(found, "predict_proba") or hasattr(found, "decision_function"):
        return Answers(found, spec)
    if hasattr(found, "predict"):
        return Predictions(found, spec)
    raise ConfigError(f"{option}: {spec} is a {type(found).__name__}, which has neither predict_proba nor predict")


def understood(spec: str, option: str) -> None:
    """ConfigError where a name has none of the forms that `load` knows; nothing is loaded."""
    if not is_url(spec) and not is_onnx(spec) and ":" not in spec:
        raise ConfigError(f"{option}: {spec!r} is not understood; it is {FORMS}")


def is_url(spec: str) -> bool:
    """Whether it names an endpoint."""
    return spec.startswith(("http://", "https://"))


def is_onnx(spec: str) -> bool:
    """Whether it names an ONNX file."""
    return not is_url(spec) and Path(spec).suffix.lower() == ".onnx"


def endpoint(
    spec: str,
    option: str,
    client: str,
    client_header: str = "X-Client-Id",
    request_id: RequestId | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Requests:
    """The endpoint that ``http://HOST:PORT/v2/models/NAME`` names."""
    try:
        parts = urlsplit(spec)
    except ValueError as wrong:
        raise ConfigError(f"{option}: {spec}: {wrong}") from None
    base, found, rest = parts.path.partition("/v2/models/")
    name = unquote(rest.removesuffix("/").removesuffix("/infer"))
    if not parts.netloc or not found or not name or "/" in name:
        raise ConfigError(f"{option}: {spec} names no model; it reads http://HOST:PORT/v2/models/NAME")
    root = f"{parts.scheme}://{parts.netloc}{base}"
    return Requests(
        OIPModel(
            root,
            name,
            client_id=client,
            client_header=client_header,
            request_id=request_id,
            timeout_seconds=timeout_seconds,
        )
    )


def object_of(spec: str, option: str, forms: str) -> Any:
    """What ``module:name`` names; modules of the working directory count."""
    module, _, path = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{option}: {spec}: {error}; it is {forms}") from None
    except (Exception, SystemExit) as failed:  # whatever the module does, its user reads one sentence
        raise ConfigError(f"{option}: {module} cannot be imported: {type(failed).__name__}: {failed}") from None
    return found


def is_function(found: Any) -> bool:
    """Functions, methods, and functions with a cache."""
    return inspect.isroutine(found) or (callable(found) and hasattr(found, "cache_info"))


def made_by(function: Any, spec: str) -> Any:
    """What a stranger's function returns."""
    try:
        return function()
    except (Exception, SystemExit) as error:  # whatever it raises becomes one sentence
        raise EndpointError(f"{spec} failed: {type(error).__name__}: {error}") from error


def takes_rows(function: Any) -> bool:
    """Whether a function asks for an argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
