"""Pictures for pages, drawn on the server so that a page needs no script to show them: SVG plots, PNG inputs.

Plots carry class names only; their colours stand in the style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import base64
import math
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from detectors.schema import FeatureSchema
from streams.console.data import Minute
from streams.store.messages import SignalMessage

#: Features in the table of differences.
TOP_FEATURES = 12
#: Units of the plots' view boxes.
TRAFFIC_SIZE, TIMELINE_SIZE, INTERVAL_SIZE = (720, 120), (720, 180), (120, 14)
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


def traffic(minutes: Sequence[Minute]) -> Markup:
    """Rows by minute as bars, with a pin over each minute that had tickets or pages."""
    width, height = TRAFFIC_SIZE
    pins = 16
    peak = max((minute.rows for minute in minutes), default=0) or 1
    step = width / max(len(minutes), 1)
    shapes = []
    for place, minute in enumerate(minutes):
        tall = (height - pins) * minute.rows / peak
        x, wide = place * step, max(step - 3, 1)
        said = f"{_clock(minute.minute * 60)} UTC: {minute.rows:,} rows"
        kind = "rows"
        if place == len(minutes) - 1:
            kind, said = "rows under-way", said + " so far"
        if minute.tickets or minute.pages:
            said += f", {_many(minute.tickets, 'ticket')}, {_many(minute.pages, 'page')}"
        shapes.append(
            f'<g><title>{said}</title><rect class="hover" x="{x:.1f}" y="0" width="{step:.1f}" height="{height}"/>'
            f'<rect class="{kind}" x="{x:.1f}" y="{height - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="1"/>'
        )
        if minute.pages or minute.tickets:
            level = "page" if minute.pages else "ticket"
            shapes.append(_mark(level, x + wide / 2, pins / 2, ""))
        shapes.append("</g>")
    total = sum(minute.rows for minute in minutes)
    label = f"Rows by minute over the last {len(minutes)} minutes: {total:,} in all, at most {peak:,} in one minute"
    return _svg("traffic", width, height, label, "".join(shapes))


def timeline(signals: Sequence[SignalMessage]) -> Markup:
    """Each signal's statistic over its threshold against broker time; the line is the threshold.

    Parameters
    ----------
    signals
        In any order; those without a threshold are left out.
    """
    width, height = TIMELINE_SIZE
    left, right, top, bottom = 48, 12, 12, 12
    shown = sorted((s for s in signals if s.threshold > 0), key=lambda s: (s.time, s.offset, s.row))
    if not shown:
        return Markup("")
    ratios = np.array([signal.statistic / signal.threshold for signal in shown])
    ratios = np.clip(np.nan_to_num(ratios, nan=0.0, posinf=1e9, neginf=0.0), 1e-3, 1e9)
    heights = np.log(ratios)
    low, high = min(float(heights.min()), math.log(0.8)), max(float(heights.max()), math.log(1.6))
    start, end = shown[0].time, shown[-1].time
    span = max(end - start, 1)

    def x(when: int) -> float:
        return left + (width - left - right) * ((when - start) / span if end > start else 0.5)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - low) / (high - low))

    shapes = [
        f'<line class="threshold" x1="{left}" y1="{y(0):.1f}" x2="{width - right}" y2="{y(0):.1f}"/>',
        f'<text class="axis" x="{left - 6}" y="{y(0) + 4:.1f}" text-anchor="end">1×</text>',
    ]
    if high > math.log(2.2):
        shapes.append(
            f'<text class="axis" x="{left - 6}" y="{y(high) + 4:.1f}" text-anchor="end">{math.exp(high):,.3g}×</text>'
        )
    for signal, ratio, value in zip(shown, ratios.tolist(), heights.tolist(), strict=True):
        said = escape(f"{_clock(signal.time // 1_000_000)} UTC, {signal.rule}: {ratio:.3g} × its threshold")
        shapes.append(_mark(signal.level, x(signal.time), y(value), f"<title>{said}</title>"))
    label = f"{_many(len(shown), 'signal')} over time; the strongest is {float(ratios.max()):.3g} times its threshold"
    return _svg("timeline", width, height, label, "".join(shapes))


def interval(low: float, value: float, high: float, objective: float | None = None) -> Markup:
    """A share with its interval on a scale from 0 to 1, and the objective as a line."""
    width, height = INTERVAL_SIZE
    low, value, high = (min(max(v, 0.0), 1.0) if math.isfinite(v) else 0.0 for v in (low, value, high))
    middle = height / 2
    shapes = [
        f'<rect class="scale" x="0" y="{middle - 1}" width="{width}" height="2" rx="1"/>',
        f'<rect class="band" x="{low * width:.1f}" y="3" width="{max((high - low) * width, 2):.1f}" height="8"/>',
        f'<circle class="value" cx="{min(max(value * width, 4), width - 4):.1f}" cy="{middle}" r="4"/>',
    ]
    if objective is not None:
        shapes.append(
            f'<line class="objective" x1="{objective * width:.1f}" y1="0" x2="{objective * width:.1f}" y2="{height}"/>'
        )
    label = f"{value:.0%}, interval {low:.0%} to {high:.0%}"
    return _svg("interval", width, height, label, "".join(shapes))


def _mark(level: str, x: float, y: float, inside: str) -> str:
    """A page is a diamond, a ticket a circle, so that nobody has to tell their colours apart."""
    if level == "page":
        return f'<path class="page" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z">{inside}</path>'
    return f'<circle class="ticket" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{inside}</circle>'


def _svg(kind: str, width: float, height: float, label: str, shapes: str) -> Markup:
    """`shapes` is ours, or has been escaped."""
    return Markup(  # noqa: S704 - the label is escaped here, shapes are numbers and escaped texts
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{shapes}</svg>'
    )


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


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
