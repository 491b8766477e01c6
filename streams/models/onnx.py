"""A model in an ONNX file, run by ONNX Runtime (extra ``onnx``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.errors import ConfigError, EndpointError

#: Element types of an input that rows are turned into, and of outputs that can be scores.
INPUTS: dict[str, type[np.floating]] = {"tensor(double)": np.float64, "tensor(float)": np.float32}
SCORES = ("tensor(double)", "tensor(float)", "tensor(float16)")
#: Beginning of the type of what ZipMap puts out: a dict a row.
DICTS = "seq(map("
#: What says in an output's name that it holds probabilities.
PROBABILITIES = "prob"


class OnnxModel:
    """Runs a graph on one thread of the CPU.

    The graph has one input of float or double, (n, d), or (n, ...) with fixed sides of which at most two are longer
    than 1, so that there is one way to lay a row out. Scores are its only output of floating-point type, or, of
    several, the one with ``prob`` in its name. Dicts of ZipMap, which skl2onnx adds unless told otherwise, are read
    where their keys are the classes' numbers 0 to k - 1.

    Parameters
    ----------
    path : Path
    option : str
        Setting or option that named the file, for errors.

    Raises
    ------
    ConfigError
        When ONNX Runtime is not installed, the file can't be read, or its input or outputs are of another kind.
    """

    def __init__(self, path: Path, option: str = "--model") -> None:
        where = f"{option}: {path}"
        if not path.is_file():
            raise ConfigError(f"{where}: no such file")
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError(f"{where}: ONNX files need the extra onnx; pip install 'vedette[onnx]'") from None
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 4  # what fails is raised, and said once
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has a tree of errors of its own, without a public root
            raise ConfigError(f"{where} cannot be read: {_first_line(error)}") from None
        self.name = str(path)
        self._input, self._kind, self._sides = _input(self._session.get_inputs(), where)
        self._output, self._dicts = _output(self._session.get_outputs(), where)

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores float64 (n, k) of rows (n, d).

        Raises
        ------
        EndpointError
            When the graph refuses the rows, or does not answer with finite scores of them.
        """
        rows = np.ascontiguousarray(inputs, dtype=self._kind)
        width = math.prod(self._sides) if self._sides else None
        if rows.ndim != 2 or width not in (None, rows.shape[1]):
            raise EndpointError(f"{self.name} takes rows of {width} features, not an array of shape {rows.shape}")
        shaped = rows.reshape(len(rows), *self._sides) if self._sides else rows
        try:
            found: Any = self._session.run([self._output], {self._input: shaped})[0]
        except Exception as error:  # as above
            raise EndpointError(f"{self.name} failed: {_first_line(error)}") from None
        values = self._columns(found) if self._dicts else np.asarray(found, dtype=np.float64)
        if values.ndim != 2 or len(values) != len(rows) or values.shape[1] < 2 or not np.isfinite(values).all():
            raise EndpointError(f"{self.name} returned {values.shape} scores for {len(rows)} rows, or not finite ones")
        return values

    def _columns(self, found: list[dict[Any, float]]) -> NDArray[np.float64]:
        """(n, k) from a dict a row."""
        classes = range(len(found[0])) if found else range(0)
        if any(set(row) != set(classes) for row in found):
            raise EndpointError(
                f"{self.name} answers with dicts whose keys are {sorted(found[0])[:5]}, not the classes' numbers from "
                "0 on; convert the model without ZipMap (skl2onnx: options={'zipmap': False})"
            )
        return np.array([[row[label] for label in classes] for row in found], dtype=np.float64).reshape(len(found), -1)


def _input(inputs: list[Any], where: str) -> tuple[str, type[np.floating], tuple[int, ...]]:
    """Name and element type of the only input, and the sides that a row is laid out in; none where rows stay flat."""
    told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs[:5]) or "none"
    if len(inputs) != 1 or inputs[0].type not in INPUTS:
        raise ConfigError(f"{where}: takes no rows (n, d) as one input of float or double; its inputs: {told}")
    one = inputs[0]
    if not one.shape:  # any shape
        return one.name, INPUTS[one.type], ()
    batch, *sides = one.shape
    if isinstance(batch, int):
        raise ConfigError(f"{where}: takes {batch} rows at a time; export it with a free batch size")
    fixed = tuple(side for side in sides if isinstance(side, int))
    if len(sides) == 1 and not fixed:
        return one.name, INPUTS[one.type], ()
    if not sides or len(fixed) < len(sides) or sum(side > 1 for side in fixed) > 2:
        raise ConfigError(f"{where}: a row (d,) can be laid out as {told} in several ways; export it with rows (n, d)")
    return one.name, INPUTS[one.type], fixed


def _output(outputs: list[Any], where: str) -> tuple[str, bool]:
    """Name of the output that holds scores, and whether it holds dicts."""
    found = [one for one in outputs if one.type in SCORES and len(one.shape or (0, 0)) == 2]
    if len(found) > 1:
        found = [one for one in found if PROBABILITIES in one.name.lower()]
    if not found:
        found = [one for one in outputs if one.type.startswith(DICTS)]
    if len(found) != 1:
        told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs[:5]) or "none"
        raise ConfigError(
            f"{where}: no single output of scores (n, k), nor one of several with `{PROBABILITIES}` in its name; its "
            f"outputs: {told}"
        )
    return found[0].name, found[0].type.startswith(DICTS)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
