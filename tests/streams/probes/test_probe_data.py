"""The rows that probes start from: what is refused, and how they are dealt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.config import ModelSettings
from streams.errors import ConfigError
from streams.probes.data import Deck, load


def model(path: Path | None) -> ModelSettings:
    return ModelSettings(name="digits", topic="t", bundle="b", probe_data=None if path is None else str(path))


def stored(path: Path, **arrays: Any) -> Path:
    np.savez(path / "rows.npz", **arrays)
    return path / "rows.npz"


def test_rows_and_known_answers_are_read(tmp_path: Path) -> None:
    rows = np.arange(60.0).reshape(30, 2)
    data = load(model(stored(tmp_path, inputs=rows.astype(np.float32))), 2)
    np.testing.assert_array_equal(data.inputs, rows)
    assert data.inputs.dtype == np.float64
    assert data.surrogate_inputs is None
    data = load(model(stored(tmp_path, inputs=rows, surrogate_inputs=rows[:3], surrogate_labels=[0, 1, 0])), 2)
    assert data.surrogate_labels is not None
    assert data.surrogate_labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rows": np.zeros((30, 2))}, "lacks the array `inputs`; it has rows"),
        ({"inputs": np.zeros((30, 3))}, r"shape \(n, 2\), not float64 \(30, 3\)"),
        ({"inputs": np.zeros(30)}, "shape"),
        ({"inputs": np.full((30, 2), "x")}, "numbers"),
        ({"inputs": np.full((30, 2), np.nan)}, "not finite"),
        ({"inputs": np.zeros((3, 2))}, "has 3 rows"),
        (
            {"inputs": np.zeros((30, 2)), "surrogate_inputs": np.zeros((4, 2)), "surrogate_labels": [1, 2]},
            "`surrogate_labels` must be 4 whole numbers",
        ),
        (
            {"inputs": np.zeros((30, 2)), "surrogate_inputs": np.zeros((2, 2)), "surrogate_labels": [1.0, 2.0]},
            "whole numbers",
        ),
    ],
)
def test_unusable_rows_are_refused_by_name(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load(model(stored(tmp_path, **arrays)), 2)
    assert "models.digits.probe_data" in str(refused.value)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.digits\.probe_data: not set"):
        load(model(None), 2)
    with pytest.raises(ConfigError, match="cannot read"):
        load(model(tmp_path / "nothing.npz"), 2)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and then nonsense")
    with pytest.raises(ConfigError, match="cannot read"):
        load(model(tmp_path / "broken.npz"), 2)
    np.savez(tmp_path / "pickled.npz", inputs=np.array([object()]))
    with pytest.raises(ConfigError, match="cannot read"):
        load(model(tmp_path / "pickled.npz"), 2)


def test_no_row_is_dealt_twice_before_all_have_been() -> None:
    rows = np.arange(10.0)[:, None]
    deck = Deck(rows, np.random.default_rng(0))
    first = np.concatenate([deck.deal(4), deck.deal(6)])
    assert sorted(first[:, 0]) == list(range(10))
    assert sorted(deck.deal(25)[:20, 0].tolist()) == sorted([*range(10), *range(10)])
