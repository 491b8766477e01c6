"""A model that is a Python function of this environment, named ``module:function``."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import ConfigError, EndpointError


class FunctionModel:
    """Calls ``function(inputs (n, d)) -> scores (n, k)``.

    Parameters
    ----------
    name : str
        ``module:function``, or ``module:model.predict_proba`` for a method of an object in the module.

    Raises
    ------
    ConfigError
        When there is no such module or function.
    """

    def __init__(self, name: str) -> None:
        module, _, path = name.partition(":")
        if not module or not path:
            raise ConfigError(f"{name!r} is no function; it reads module:function")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{name}: {error}") from None
        if not callable(found):
            raise ConfigError(f"{name} is no function")
        self.name = name
        self._call = found

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores float64 (n, k) of rows (n, d).

        Raises
        ------
        EndpointError
            When the function raises, or does not return finite scores of these rows.
        """
        rows = np.ascontiguousarray(inputs, dtype=np.float64)
        try:
            values = np.asarray(self._call(rows), dtype=np.float64)
        except (Exception, SystemExit) as error:  # user code: whatever it raises becomes one sentence
            raise EndpointError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        if values.ndim != 2 or len(values) != len(rows) or not np.isfinite(values).all():
            raise EndpointError(f"{self.name} returned {values.shape} scores for {len(rows)} rows, or not finite ones")
        return values
