"""ONNX files for tests: a linear classifier in the forms that converters leave."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WEIGHTS = np.random.default_rng(3).normal(size=(6, 3))
FLOAT, DOUBLE, INT64 = 1, 11, 7


def expected(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(rows @ WEIGHTS)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def value(name: str, kind: int, shape: list[Any]) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> str:
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, constants)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), str(path))
    return str(path)


def weights(kind: int, width: int = 6) -> Any:
    values = np.resize(WEIGHTS, (width, 3))
    return onnx.helper.make_tensor("w", kind, values.shape, values.ravel().tolist())


def flat(path: Path, kind: int = DOUBLE, sides: list[Any] | None = None, batch: Any = "n", softmax: bool = True) -> str:
    """Rows (n, 6), or laid out in other sides and flattened again, to probabilities (n, 3)."""
    node = onnx.helper.make_node
    last = [node("Softmax", ["z"], ["p"], axis=1)] if softmax else [node("Identity", ["z"], ["p"])]
    known = [side for side in sides or [6] if isinstance(side, int)]
    made = weights(kind, math.prod(known) if sides and len(known) == len(sides) else 6)
    nodes = [node("Flatten", ["x"], ["r"]), node("MatMul", ["r", "w"], ["z"]), *last]
    return write(path, nodes, [value("x", kind, [batch, *(sides or [6])])], [value("p", kind, [batch, 3])], [made])


def converted(
    path: Path, zipmap: bool, labels: list[Any] | None = None, names: tuple[str, str] = ("label", "prob")
) -> str:
    """As skl2onnx writes a logistic regression: a label, and probabilities, which ZipMap may turn into dicts."""
    node = onnx.helper.make_node
    scores = "scores" if zipmap else names[1]
    classifier = node(
        "LinearClassifier",
        ["x"],
        [names[0], scores],
        domain="ai.onnx.ml",
        classlabels_ints=[0, 1, 2],
        coefficients=WEIGHTS.T.ravel().tolist(),
        intercepts=[0.0, 0.0, 0.0],
        post_transform="SOFTMAX",
    )
    nodes, outputs = [classifier], [value(names[0], INT64, ["n"])]
    if zipmap:
        chosen: list[Any] = labels or [0, 1, 2]
        words = isinstance(chosen[0], str)
        key = {"classlabels_strings" if words else "classlabels_int64s": chosen}
        nodes.append(node("ZipMap", [scores], [names[1]], domain="ai.onnx.ml", **key))
        inner = onnx.helper.make_tensor_type_proto(FLOAT, None)
        mapped = onnx.helper.make_map_type_proto(8 if words else INT64, inner)
        outputs.append(onnx.helper.make_value_info(names[1], onnx.helper.make_sequence_type_proto(mapped)))
    else:
        outputs.append(value(names[1], FLOAT, ["n", 3]))
    return write(path, nodes, [value("x", FLOAT, ["n", 6])], outputs, [])


def two_inputs(path: Path) -> str:
    node = onnx.helper.make_node
    inputs = [value("a", FLOAT, ["n", 3]), value("b", FLOAT, ["n", 3])]
    return write(path, [node("Add", ["a", "b"], ["p"])], inputs, [value("p", FLOAT, ["n", 3])], [])


def two_outputs(path: Path, first: str, second: str) -> str:
    node = onnx.helper.make_node
    nodes = [node("MatMul", ["x", "w"], [first]), node("Softmax", [first], [second], axis=1)]
    outputs = [value(first, DOUBLE, ["n", 3]), value(second, DOUBLE, ["n", 3])]
    return write(path, nodes, [value("x", DOUBLE, ["n", 6])], outputs, [weights(DOUBLE)])
