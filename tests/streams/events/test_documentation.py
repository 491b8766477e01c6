"""docs/formats.md says what is so: every example in it is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.schema import Feature, FeatureSchema
from streams.events import decoder
from streams.events.batch import DecodeOptions, Reason
from tests.streams.events.encoders import CLIENT_KEY, Sent, hashed

TEXT = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
IRIS = FeatureSchema(
    tuple(Feature(name) for name in ("sepal length", "sepal width", "petal length", "petal width")),
    ("setosa", "versicolor", "virginica"),
)
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]


def examples(heading: str, language: str) -> list[str]:
    section = re.split(r"\n#{2,3} ", TEXT.partition(f"# {heading}\n")[2])[0]
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found


def read(name: str, value: bytes, headers: Any = (), path: str = "key") -> Any:
    options = DecodeOptions("iris", IRIS, path, CLIENT_KEY)
    batch = decoder(name).decode([Sent(0, value, headers=headers)], options)
    assert batch.dead == ()
    assert np.allclose(batch.inputs[:2], ROWS[: len(batch)], rtol=1e-6)
    return batch


@pytest.mark.parametrize("name", ["native", "auto"])
def test_native_examples(name: str) -> None:
    labels = [
        read(name, text.encode(), path="field:client").labels.tolist() for text in examples("Native JSON", "json")
    ]
    assert labels == [[0], [0, 2, 1], [0, 2]]
    first = read(name, examples("Native JSON", "json")[0].encode(), path="field:client")
    assert first.clients.tolist() == [hashed("account-17")]


@pytest.mark.parametrize("name", ["oip", "auto"])
def test_open_inference_protocol_examples(name: str) -> None:
    (text,) = examples("Open Inference Protocol v2", "json")
    batch = read(name, text.encode(), path="parameter:client")
    assert batch.labels.tolist() == [0, 2]
    assert batch.clients.tolist() == [hashed("account-17")] * 2
    (code,) = examples("Open Inference Protocol v2", "python")
    made: dict[str, Any] = {}
    exec(code, made)
    assert read(name, made["value"], made["headers"]).labels.tolist() == [0, 2]


@pytest.mark.parametrize("name", ["compact", "auto"])
def test_compact_example(name: str) -> None:
    (code,) = examples("Compact records", "python")
    made: dict[str, Any] = {}
    exec(code, made)
    batch = read(name, made["value"])
    assert batch.labels.tolist() == [0, 2]
    assert batch.clients.tolist() == [0x7C5A2D9E3B1F4608, 0]
    assert batch.source_offsets.tolist() == [1041, 1042]


def test_schema_example() -> None:
    (text,) = examples("Feature schema", "json")
    schema = FeatureSchema.from_dict(json.loads(text))
    assert schema.width == 4
    assert set(schema.groups()) == {"colour"}


def test_every_reason_is_told_of() -> None:
    table = TEXT.partition("### What is refused\n")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == {reason.value for reason in Reason}
