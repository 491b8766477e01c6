"""Inputs as people see them: as PNG pictures where the schema says so, else as the features that differ most."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.schema import FeatureSchema

#: Features in the table of differences.
TOP_FEATURES = 12
#: Largest picture, in pixels a side, that a page shows in full; larger ones are thinned.
LARGEST_SIDE = 256

#: Colours of the largest difference either way.
MORE, LESS = np.array([186, 32, 37]), np.array([28, 84, 178])


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture with what it shows; `source` is a PNG as a data URI."""

    title: str
    source: str
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class ChangedFeature:
    """One row of the table of differences; `spread` is the difference in units of the feature's range, if known."""

    name: str
    value: float
    nearest: float
    difference: float
    spread: float | None
    low: float | None = None
    high: float | None = None


def panels(
    schema: FeatureSchema, shown: Sequence[float], nearest: Sequence[float], titles: tuple[str, str]
) -> list[Panel]:
    """Input, nearest reference and signed difference; empty where the schema is no image.

    Parameters
    ----------
    shown, nearest
        d values each.
    titles
        What stands under the first two.
    """
    if schema.image_shape is None:
        return []
    one, other = _pixels(schema, shown), _pixels(schema, nearest)
    low, high = float(np.min(schema.lows())), float(np.max(schema.highs()))
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        low = float(min(one.min(), other.min()))
        high = max(float(max(one.max(), other.max())), low + 1e-9)
    scale = high - low
    largest = float(np.abs(one - other).max())
    return [
        _panel(titles[0], _shades((one - low) / scale)),
        _panel(titles[1], _shades((other - low) / scale)),
        _panel(f"difference: red more, blue less, at most {largest:.3g}", _signed((one - other) / (largest or 1.0))),
    ]


def changed_features(
    schema: FeatureSchema | None, shown: Sequence[float], nearest: Sequence[float]
) -> list[ChangedFeature]:
    """The features that differ most from the nearest reference row; without a schema they are numbered."""
    one, other = np.asarray(shown, dtype=np.float64), np.asarray(nearest, dtype=np.float64)
    if one.shape != other.shape or not one.size:
        return []
    fits = schema is not None and schema.width == len(one)
    ranges = schema.highs() - schema.lows() if schema is not None and fits else np.full(len(one), np.inf)
    known = np.isfinite(ranges) & (ranges > 0)
    size = np.abs(one - other) / np.where(known, ranges, np.maximum(np.abs(other), 1e-9))
    rows = []
    for column in np.argsort(-size, kind="stable")[:TOP_FEATURES].tolist():
        if one[column] == other[column]:
            continue
        feature = schema.features[column] if schema is not None and fits else None
        rows.append(
            ChangedFeature(
                name=feature.name if feature else f"feature {column}",
                value=float(one[column]),
                nearest=float(other[column]),
                difference=float(one[column] - other[column]),
                spread=float(size[column]) if known[column] else None,
                low=feature.low if feature else None,
                high=feature.high if feature else None,
            )
        )
    return rows


def _pixels(schema: FeatureSchema, values: Sequence[float]) -> NDArray[np.float64]:
    """(rows, columns, channels), thinned to `LARGEST_SIDE`; channels is 1 or 3."""
    shape = schema.image_shape or (1, schema.width)
    picture = np.asarray(values, dtype=np.float64).reshape((*shape, 1) if len(shape) == 2 else shape)
    if picture.shape[2] != 3:
        picture = picture[:, :, :1]
    step = max(1, math.ceil(max(picture.shape[:2]) / LARGEST_SIDE))
    return picture[::step, ::step]


def _shades(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(rows, columns, 3) of values in [0, 1]."""
    shades = np.clip(np.rint(np.nan_to_num(values) * 255), 0, 255).astype(np.uint8)
    return np.broadcast_to(shades, (*shades.shape[:2], 3))


def _signed(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(rows, columns, 3): white is no difference, red more, blue less; of several channels the largest difference."""
    values = np.nan_to_num(values)
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=2)[..., None], axis=2)
    share = np.clip(np.abs(largest), 0, 1)
    full = np.where(largest > 0, MORE, LESS)
    return np.rint(255 + (full - 255.0) * share).astype(np.uint8)


def _panel(title: str, colours: NDArray[np.uint8]) -> Panel:
    rows, columns = colours.shape[:2]
    return Panel(title, f"data:image/png;base64,{base64.b64encode(png(colours)).decode()}", rows, columns)


def png(colours: NDArray[np.uint8]) -> bytes:
    """A PNG of (rows, columns, 3) colours: 8 bits a channel, no filter, one IDAT chunk (PNG specification, 5, 11)."""
    rows, columns = colours.shape[:2]
    lines = np.zeros((rows, 1 + 3 * columns), dtype=np.uint8)
    lines[:, 1:] = colours.reshape(rows, -1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
