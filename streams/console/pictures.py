"""Pictures of evidence as SVG, drawn on the server so that a page needs no script to show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.schema import FeatureSchema

#: Side of a drawn pixel in SVG units.
CELL = 10
#: Features in the table of differences.
TOP_FEATURES = 12


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture with what it shows."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class ChangedFeature:
    """One row of the table of differences; `spread` is the difference in units of the feature's range, if it has one."""

    name: str
    value: float
    nearest: float
    difference: float
    spread: float | None


def panels(schema: FeatureSchema, shown: Sequence[float], nearest: Sequence[float], titles: tuple[str, str]) -> list[Panel]:
    """Input, nearest reference and signed difference; empty where the schema is no image."""
    if schema.image_shape is None:
        return []
    one, other = np.asarray(shown, dtype=np.float64), np.asarray(nearest, dtype=np.float64)
    low, high = float(np.min(schema.lows())), float(np.max(schema.highs()))
    if not np.isfinite([low, high]).all() or high <= low:
        low, high = float(min(one.min(), other.min())), float(max(one.max(), other.max(), one.min() + 1e-9))
    return [
        Panel(titles[0], _grey(schema, (one - low) / (high - low))),
        Panel(titles[1], _grey(schema, (other - low) / (high - low))),
        Panel("difference (red: more, blue: less)", _signed(schema, (one - other) / (high - low))),
    ]


def changed_features(schema: FeatureSchema, shown: Sequence[float], nearest: Sequence[float]) -> list[ChangedFeature]:
    """The features that differ most from the nearest reference row."""
    one, other = np.asarray(shown, dtype=np.float64), np.asarray(nearest, dtype=np.float64)
    ranges = schema.highs() - schema.lows()
    known = np.isfinite(ranges) & (ranges > 0)
    size = np.abs(one - other) / np.where(known, ranges, np.maximum(np.abs(other), 1e-9))
    rows = []
    for column in np.argsort(-size, kind="stable")[:TOP_FEATURES]:
        if one[column] == other[column]:
            continue
        spread = float(size[column]) if known[column] else None
        difference = float(one[column] - other[column])
        rows.append(
            ChangedFeature(schema.features[column].name, float(one[column]), float(other[column]), difference, spread)
        )
    return rows


def bars(values: Sequence[float], width: int = 720, height: int = 120) -> str:
    """A plain bar plot; used for traffic by minute."""
    peak = max(max(values, default=0.0), 1.0)
    step = width / max(len(values), 1)
    shapes = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * v / peak:.1f}" width="{max(step - 2, 1):.1f}" '
        f'height="{height * v / peak:.1f}"/>'
        for i, v in enumerate(values)
    )
    return (
        f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" aria-label="rows by minute" '
        f'preserveAspectRatio="none">{shapes}</svg>'
    )


def _grey(schema: FeatureSchema, values: NDArray[np.float64]) -> str:
    shades = np.clip(np.rint(values * 255), 0, 255).astype(int)
    return _cells(schema, [f"#{s:02x}{s:02x}{s:02x}" for s in _first_channel(schema, shades)])


def _signed(schema: FeatureSchema, values: NDArray[np.float64]) -> str:
    colours = []
    for value in np.clip(_first_channel(schema, values), -1, 1):
        fade = int(round(255 * (1 - abs(float(value)))))
        colours.append(f"#ff{fade:02x}{fade:02x}" if value > 0 else f"#{fade:02x}{fade:02x}ff")
    return _cells(schema, colours)


def _first_channel(schema: FeatureSchema, values: NDArray[np.generic]) -> NDArray[np.generic]:
    shape = schema.image_shape or (1, schema.width)
    return values.reshape(shape)[..., 0].ravel() if len(shape) == 3 else values.ravel()


def _cells(schema: FeatureSchema, colours: Sequence[str]) -> str:
    shape = schema.image_shape or (1, schema.width)
    high, wide = shape[0], shape[1]
    cells = "".join(
        f'<rect x="{(i % wide) * CELL}" y="{(i // wide) * CELL}" width="{CELL}" height="{CELL}" fill="{colour}"/>'
        for i, colour in enumerate(colours)
    )
    return f'<svg class="pixels" viewBox="0 0 {wide * CELL} {high * CELL}" aria-hidden="true">{cells}</svg>'
