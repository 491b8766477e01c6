"""Any detector of PyOD by the name of its class, run as PyOD gives it."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Reference, View
from detectors.errors import DetectorError, FitError
from detectors.schema import FeatureSchema
from detectors.stored import stored
from detectors.view import standard_rows

#: How a registered name of a detector of PyOD starts; its class follows.
PREFIX = "pyod."
#: Reference rows that are kept, and learned from, at most.
MAX_ROWS = 2_000
#: Rows whose scores tell whether a fit was repeated, and how far they may be off.
WITNESSES, TOLERANCE = 8, 1e-6

#: What PyOD's classes raise when they are asked about one row: too few for their neighbours, statistics of a single
#: value, a method that the class does not have (NotImplementedError), or a fitted part that it lacks.
_NO_SINGLE_ROWS = (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError, AttributeError)

_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class Uncompiled:
    """A detector of PyOD that has no compiled form: milliseconds a row, for bundles that are not read at full speed.

    A bundle holds no pickled object but the rows and the seed, and `restore` fits again; it refuses when scores of some
    of the rows come out otherwise, as with another release of PyOD. Rows are scored one at a time, since batches change
    bits, and of COPOD and others the scores themselves.

    Blind to: what its class is blind to; nearly always inputs that stay near benign ones, of whatever class, as the
    predicted class is not looked at.

    References
    ----------
    Zhao, Nasrullah & Li, "PyOD: A Python Toolbox for Scalable Outlier Detection", JMLR 20(96), 2019; the paper of each
    class stands in PyOD's documentation.
    """

    name: ClassVar[str]

    def fit(self, reference: Reference, schema: FeatureSchema, rng: np.random.Generator) -> Self:
        """Fit on standardised rows, on a random part of them where there are many."""
        rows, _ = standard_rows(reference, schema, rng, MAX_ROWS)
        self._learn(rows, int(rng.integers(2**31)))
        try:
            self.witness_ = self._scores(rows[:WITNESSES])
        except _NO_SINGLE_ROWS as wrong:
            raise FitError(f"{self.name} cannot judge a row alone ({wrong}); choose another") from None
        if not np.isfinite(self.witness_).all():
            raise FitError(f"{self.name} gives rows of the reference scores that are not finite; choose another")
        return self

    def _learn(self, rows: NDArray[np.float64], seed: int) -> None:
        kind = _class(self.name)
        parameters = inspect.signature(kind).parameters
        options: dict[str, Any] = {"random_state": seed} if "random_state" in parameters else {}
        if "novelty" in parameters:
            options["novelty"] = True
        self.rows_, self.seed_ = rows, seed
        try:
            with _global_draws(seed):
                self._fitted = kind(**options).fit(rows)
        except (ValueError, TypeError, RuntimeError, np.linalg.LinAlgError) as wrong:
            raise FitError(f"{self.name} cannot be fitted on these rows: {wrong}") from None

    def _scores(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.empty(len(rows))
        for i in range(len(rows)):
            found[i] = np.ravel(self._fitted.decision_function(rows[i : i + 1].copy()))[0]
        return found

    def score(self, view: View) -> NDArray[np.float64]:
        """(n,) outlier scores; the worst of the witnesses where PyOD gives none that is finite."""
        found = self._scores(view.standardised)
        return np.where(np.isfinite(found), found, self.witness_.max())

    def explain(self, view: View, row: int) -> str:
        """The score beside those of reference rows."""
        found = float(self._scores(view.standardised[row : row + 1])[0])
        usual = float(np.median(self.witness_))
        return f"{self.name} finds the input an outlier: it scores {found:.4g}, reference rows about {usual:.4g}"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rows, the seed, and some scores."""
        return {"rows": self.rows_, "seed": np.array([self.seed_], dtype=np.int64), "witness": self.witness_}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """Fit again; ValueError when that gives other scores."""
        made = cls()
        rows = stored(arrays, "rows", np.float64, None, schema.width)
        seed = int(stored(arrays, "seed", np.int64, 1)[0])
        witness = stored(arrays, "witness", np.float64, min(WITNESSES, len(rows)))
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed {seed} is none")
        made._learn(rows, seed)
        made.witness_ = witness
        if not np.allclose(made._scores(rows[:WITNESSES]), witness, rtol=TOLERANCE, atol=TOLERANCE):
            raise ValueError(
                f"{cls.name} scores otherwise than when the bundle was fitted; use the same PyOD, or refit"
            )
        return made


@contextmanager
def _global_draws(seed: int) -> Iterator[None]:
    """Numpy's global generator at a seed, and afterwards as it was: some detectors of PyOD draw from it alone."""
    state = np.random.get_state()  # noqa: NPY002  (PyOD's generator is the global one; it is given back below)
    np.random.seed(seed)  # noqa: NPY002  (so that a fit can be repeated from the bundle)
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002  (nobody else's draws change)


@functools.cache
def uncompiled(name: str) -> type[Uncompiled]:
    """The class that runs a detector of PyOD, by its registered name ``pyod.<class>``.

    Raises
    ------
    DetectorError
        When PyOD has no such detector, or it needs a library that is not installed.
    """
    _class(name)
    return type(name.removeprefix(PREFIX), (Uncompiled,), {"name": name, "__doc__": Uncompiled.__doc__})


@functools.cache
def _class(name: str) -> type[Any]:
    import pyod.models
    from pyod.models.base import BaseDetector

    wanted = name.removeprefix(PREFIX)
    if not _CLASS.match(wanted):
        raise DetectorError(f"{name!r} is no name of a detector of PyOD; give {PREFIX}<class>, as {PREFIX}ABOD")
    modules = sorted(
        (module.name for module in pkgutil.iter_modules(pyod.models.__path__)),
        key=lambda module: (module.replace("_", "") != wanted.lower(), module),
    )
    for module in modules[:1]:  # the others have other names, and some need large libraries
        try:
            found = getattr(importlib.import_module(f"pyod.models.{module}"), wanted, None)
        except ImportError as missing:
            raise DetectorError(f"{name} needs a library that is not installed: {missing}") from None
        if inspect.isclass(found) and issubclass(found, BaseDetector):
            return found
    raise DetectorError(f"PyOD has no detector {wanted!r}; names are those of its classes, as {PREFIX}ABOD")
