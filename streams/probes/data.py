"""The rows that probes start from."""

from __future__ import annotations

import itertools
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.config import ModelSettings
from streams.errors import ConfigError

#: Fewest rows; below it attacks and controls would repeat themselves within minutes.
LEAST_ROWS = 20


@dataclass(frozen=True, slots=True)
class ProbeData:
    """Benign rows, and optionally what the watched model answered on some of them.

    Attributes
    ----------
    inputs : float64 (n, d)
        Rows that attacks and controls start from.
    surrogate_inputs : float64 (m, d) or None; surrogate_labels : int64 (m,) or None
        Rows with the watched model's predicted class, for the surrogate of transfer attacks.
    labels : int64 (n,) or None
        Classes of `inputs`, for threat models by a distance quantile.
    """

    inputs: NDArray[np.float64]
    surrogate_inputs: NDArray[np.float64] | None = None
    surrogate_labels: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None


def load(model: ModelSettings, width: int) -> ProbeData:
    """Read the npz that `probe_data` names: `inputs`, and `surrogate_inputs` with `surrogate_labels` where known.

    Raises
    ------
    ConfigError
        Names the setting, the file and the array.
    """
    where = f"models.{model.name}.probe_data"
    if model.probe_data is None:
        raise ConfigError(f"{where}: not set; the prober needs an npz with benign rows `inputs` (n, {width})")
    path = Path(model.probe_data)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays: dict[str, NDArray[Any]] = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{where}: cannot read {path}: {error}") from None
    if "inputs" not in arrays:
        raise ConfigError(f"{where}: {path} lacks the array `inputs`; it has {', '.join(sorted(arrays)) or 'none'}")
    inputs = _rows(arrays["inputs"], "inputs", where, width)
    if len(inputs) < LEAST_ROWS:
        raise ConfigError(f"{where}: {path} has {len(inputs)} rows; give at least {LEAST_ROWS}, better hundreds")
    labels = _classes(arrays["labels"], "labels", inputs, "inputs", where) if "labels" in arrays else None
    if "surrogate_inputs" not in arrays or "surrogate_labels" not in arrays:
        return ProbeData(inputs, labels=labels)
    known = _rows(arrays["surrogate_inputs"], "surrogate_inputs", where, width)
    answered = _classes(arrays["surrogate_labels"], "surrogate_labels", known, "surrogate_inputs", where)
    return ProbeData(inputs, known, answered, labels)


def _classes(labels: NDArray[Any], name: str, rows: NDArray[Any], of: str, where: str) -> NDArray[np.int64]:
    if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{where}: `{name}` must be {len(rows)} whole numbers, one a row of `{of}`")
    return labels.astype(np.int64)


def _rows(array: NDArray[Any], name: str, where: str, width: int) -> NDArray[np.float64]:
    if array.ndim != 2 or array.shape[1] != width or not np.issubdtype(array.dtype, np.number):
        raise ConfigError(f"{where}: `{name}` must be numbers of shape (n, {width}), not {array.dtype} {array.shape}")
    rows = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise ConfigError(f"{where}: `{name}` holds values that are not finite")
    return rows


class Deck:
    """Deals rows to threads, without repetition until all have been dealt, then shuffles again.

    A row that comes back soon would look like a repeated query to the detectors, and be judged for that. `deal` goes on
    where it stopped; `lot` and `walk` give the same rows for the same name and number, so that what was sent to one
    version of a model can be sent to the next.

    Parameters
    ----------
    rows : float64 (n, d)
    rng : numpy.random.Generator
    """

    def __init__(self, rows: NDArray[np.float64], rng: np.random.Generator) -> None:
        self._rows = rows
        self._rng = rng
        self._seed = int(rng.integers(1 << 63))
        self._order = rng.permutation(len(rows))
        self._next = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """At most `n` different rows that stay in the deck, for questions that no detector sees."""
        return self._rows[rng.permutation(len(self._rows))[:n]]

    def lot(self, name: str, number: int, n: int) -> NDArray[np.float64]:
        """Lot `number` (from 0 on) of `n` rows, (n, d), of the endless deal of that name."""
        places = range(number * n, (number + 1) * n)
        whole = len(self._rows)
        orders = {deal: self._shuffled(name, deal) for deal in {place // whole for place in places}}
        return self._rows[[orders[place // whole][place % whole] for place in places]]

    def walk(self, name: str, number: int) -> Iterator[NDArray[np.float64]]:
        """Rows (1, d) without end, in an order that the name and the number fix."""
        for deal in itertools.count():
            for place in self._shuffled(f"{name} {number}", deal):
                yield self._rows[place : place + 1]

    def _shuffled(self, name: str, deal: int) -> NDArray[np.intp]:
        seeds = [self._seed, zlib.crc32(name.encode()), deal]
        return np.random.default_rng(seeds).permutation(len(self._rows))

    def deal(self, n: int) -> NDArray[np.float64]:
        """The next `n` rows, (n, d)."""
        places: list[int] = []
        with self._lock:
            while len(places) < n:
                if self._next == len(self._order):
                    self._order = self._rng.permutation(len(self._rows))
                    self._next = 0
                taken = self._order[self._next : self._next + n - len(places)]
                places += taken.tolist()
                self._next += len(taken)
        return self._rows[places]
