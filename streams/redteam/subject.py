"""The model under test: behind a URL, in a file, or an object of this environment; what of it can be read."""

from __future__ import annotations

import inspect
import itertools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attacks import gradients, trees
from attacks.contract import Access, GradientModel, Model
from attacks.errors import ModelError
from attacks.network import Activation, Network
from attacks.trees import LeafModel, TreeModel
from streams.errors import ConfigError
from streams.models import named
from streams.models.function import FunctionModel
from streams.models.named import Answers, is_function, is_onnx, is_url, made_by, object_of, takes_rows

#: What names the model, for errors.
OPTION = "--model"
#: Identity that an endpoint is told, unless another is named.
CLIENT = "vedette-redteam"
#: Files that run code when they are read.
PICKLES = (".joblib", ".pkl", ".pickle")
#: What --model may be.
FORMS = "a URL http://HOST:PORT/v2/models/NAME, a file (.onnx, .npz, .joblib, .pkl) or module:name"


@runtime_checkable
class Attackable(Protocol):
    """An estimator that tells by itself how attackers reach it."""

    def attacked(self) -> Model:
        """The model with scores, and with `logits` and `gradient`, or `leaves` and `thresholds`, where it has them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under test.

    Attributes
    ----------
    name : str
        As it was named.
    model : Model
        Answers; what it says counts.
    gradients : GradientModel or None
        The same model with gradients, for attackers who know it.
    trees : TreeModel or None
        The same model as a tree ensemble.
    """

    name: str
    model: Model
    gradients: GradientModel | None = None
    trees: TreeModel | None = None

    def in_hand(self, access: Access) -> GradientModel | TreeModel | None:
        """What an attack by ``gradients``, ``trees`` or ``leaves`` reads; None where this model hasn't got it.

        Raises
        ------
        ValueError
            For attacks that ask the model.
        """
        if access == "gradients":
            return self.gradients
        if access == "trees":
            return self.trees
        if access == "leaves":
            return self.trees if isinstance(self.trees, LeafModel) else None
        raise ValueError(f"{access} are asked for, not read")


def load(spec: str, *, trust_pickle: bool = False, client: str = CLIENT) -> Subject:
    """The model that --model names.

    Parameters
    ----------
    spec : str
        ``http://HOST:PORT/v2/models/NAME`` (Open Inference Protocol); a file ``.onnx``; ``.npz`` (layers, as
        `save_network` writes them), ``.joblib`` or ``.pkl`` (a fitted estimator); ``module:name``: an estimator, a
        function of rows (n, d) to scores (n, k), or a function without arguments that makes either.
    trust_pickle : bool
        Whether files that run code when they are read may be.
    client : str
        Identity that an endpoint is told.

    Raises
    ------
    ConfigError
        Says in a sentence what is wrong with the name or the file.
    EndpointError
        When what it names fails.
    """
    if is_url(spec) or is_onnx(spec):
        return Subject(spec, named.load(spec, client=client))
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix in PICKLES or suffix == ".npz":
        if not path.is_file():
            raise ConfigError(f"--model: {spec}: no such file")
        return of(_pickle(path, trust_pickle) if suffix in PICKLES else _network(path), spec)
    if ":" not in spec:
        raise ConfigError(f"--model: {spec!r} is not understood; it is {FORMS}")
    return _named(spec)


def load_estimator(spec: str, *, trust_pickle: bool = False) -> Any:
    """The estimator that --model names, for fitting copies of it; it need not be fitted.

    Raises
    ------
    ConfigError
        It is none.
    EndpointError
        The function that makes it fails.
    """
    path = Path(spec)
    if path.suffix.lower() in PICKLES:
        if not path.is_file():
            raise ConfigError(f"--model: {spec}: no such file")
        found = _pickle(path, trust_pickle)
    elif ":" in spec and not is_url(spec):
        found = object_of(spec, OPTION, FORMS)
        if is_function(found):
            found = None if takes_rows(found) else made_by(found, spec)
    else:
        found = None
    if not (hasattr(found, "fit") and hasattr(found, "get_params")) or inspect.isclass(found):
        raise ConfigError(
            f"--model: {spec}: no estimator that can be fitted; name one as module:name, a function module:name that "
            "returns one, or a file (.joblib, .pkl)"
        )
    return found


def of(found: Any, name: str) -> Subject:
    """An object of this environment as a model under test.

    Raises
    ------
    ConfigError
        It has neither scores nor anything that could be asked for them.
    """
    if hasattr(found, "fit") and hasattr(found, "get_params") and not hasattr(found, "classes_"):
        raise ConfigError(f"--model: {name}: {type(found).__name__} is not fitted")
    if isinstance(found, Attackable):
        found = found.attacked()
    if isinstance(found, GradientModel):
        return Subject(name, found, gradients=found)
    if isinstance(found, TreeModel):
        return Subject(name, found, trees=found)
    if hasattr(found, "predict_proba") or hasattr(found, "decision_function"):
        return Subject(name, Answers(found, name), _adapted(gradients, found), _adapted(trees, found))
    if hasattr(found, "predict"):
        return Subject(name, found)
    raise ConfigError(f"--model: {name} is a {type(found).__name__}, which has neither predict_proba nor predict")


def save_network(network: Network, path: Path) -> None:
    """Write layers as an npz that `load` reads, without any code in it."""
    arrays: dict[str, NDArray[Any]] = {f"weights_{i}": w for i, w in enumerate(network.weights)}
    arrays |= {f"biases_{i}": b for i, b in enumerate(network.biases)}
    with path.open("wb") as out:
        np.savez(out, allow_pickle=False, activation=np.array(network.activation), **arrays)


def _adapted(reader: Any, estimator: Any) -> Any:
    try:
        return reader.adapt(estimator)
    except ModelError:
        return None


def _named(spec: str) -> Subject:
    found = object_of(spec, OPTION, FORMS)
    if inspect.isclass(found):
        raise ConfigError(f"--model: {spec} is a class; name a fitted estimator, or a function that returns one")
    if is_function(found):
        if takes_rows(found):
            return Subject(spec, FunctionModel(spec))
        found = made_by(found, spec)
    return of(found, spec)


def _pickle(path: Path, trusted: bool) -> Any:
    if not trusted:
        raise ConfigError(
            f"--model: {path}: reading a pickle runs whatever code is in it; pass --trust-pickle if you made the file "
            "yourself or know who did"
        )
    import joblib  # type: ignore[import-untyped]  # it ships no types

    try:
        return joblib.load(path)
    except (Exception, SystemExit) as error:  # reading a pickle can raise anything
        raise ConfigError(f"--model: {path} cannot be read: {type(error).__name__}: {error}") from None


def _network(path: Path) -> Network:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as wrong:
        raise ConfigError(f"--model: {path} cannot be read: {wrong}") from None
    layers = sum(name.startswith("weights_") for name in arrays)
    names = {f"{kind}_{i}" for kind in ("weights", "biases") for i in range(layers)}
    if not layers or not names <= set(arrays):
        held = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise ConfigError(f"--model: {path} holds no layers weights_0, biases_0, ...; it has {held}")
    weights = tuple(np.asarray(arrays[f"weights_{i}"], dtype=np.float64) for i in range(layers))
    biases = tuple(np.asarray(arrays[f"biases_{i}"], dtype=np.float64) for i in range(layers))
    activation = str(arrays.get("activation", np.array("relu")))
    fits = all(w.ndim == 2 and b.shape == (w.shape[1],) for w, b in zip(weights, biases, strict=True))
    fits = fits and all(a.shape[1] == b.shape[0] for a, b in itertools.pairwise(weights))
    if not fits or activation not in get_args(Activation):
        raise ConfigError(f"--model: {path}: its layers do not fit one another, or {activation!r} is no activation")
    return Network(weights, biases, cast("Activation", activation))
