"""Plots as SVG, drawn on the server so that a page needs no script to show them.

They carry class names only; their colours stand in the style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from streams.console.data import Minute
from streams.store.messages import SignalMessage

#: Units of the plots' view boxes.
TRAFFIC_SIZE, TIMELINE_SIZE, INTERVAL_SIZE = (720, 120), (720, 180), (120, 14)
COURSE_SIZE, SURVIVAL_SIZE, PLANE_SIZE, ANSWERS_SIZE = (360, 120), (260, 200), (360, 300), (720, 110)
#: Answers that have a colour of their own; further ones share the last.
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Point:
    """A share at a time, with its interval; `n` is what it is over."""

    at: int
    """Microseconds since the epoch."""
    value: float
    low: float
    high: float
    n: int


def traffic(minutes: Sequence[Minute]) -> Markup:
    """Rows by minute, or by some minutes each, as bars, with a pin over each that had tickets or pages."""
    width, height = TRAFFIC_SIZE
    pins = 16
    peak = max((minute.rows for minute in minutes), default=0) or 1
    step = width / max(len(minutes), 1)
    shapes = []
    for place, minute in enumerate(minutes):
        tall = (height - pins) * minute.rows / peak
        x, wide = place * step, max(step - 3, 1)
        when = _clock(minute.minute * 60) if minute.length == 1 else _hour(minute.minute * 60)
        said = f"{when} UTC: {minute.rows:,} rows"
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
    length = minutes[0].length if minutes else 1
    each, span = ("minute", f"{len(minutes)} minutes") if length == 1 else _hours(length, len(minutes))
    label = f"Rows by {each} over the last {span}: {total:,} in all, at most {peak:,} in one bar"
    return _svg("traffic", width, height, label, "".join(shapes))


def _hours(minutes: int, bars: int) -> tuple[str, str]:
    """What one bar and all of them are about."""
    hours = minutes // 60
    return ("hour" if hours == 1 else f"{hours} hours"), f"{hours * bars} hours"


def _hour(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


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


def course(points: Sequence[Point], objective: float | None, what: str) -> Markup:
    """A share over time from 0 to 1 with its 95 % band, and the objective as a line."""
    width, height = COURSE_SIZE
    left, right, top, bottom = 40, 10, 8, 8
    if not points:
        return Markup("")
    start, end = points[0].at, points[-1].at

    def x(at: int) -> float:
        return left + (width - left - right) * ((at - start) / (end - start) if end > start else 0.5)

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - min(max(share, 0.0), 1.0))

    shapes = []
    for share, name in ((0.0, "0"), (1.0, "100 %")):
        shapes.append(f'<line class="grid" x1="{left}" y1="{y(share):.1f}" x2="{width - right}" y2="{y(share):.1f}"/>')
        shapes.append(f'<text class="axis" x="{left - 5}" y="{y(share) + 4:.1f}" text-anchor="end">{name}</text>')
    if objective is not None:
        at = f"{y(objective):.1f}"
        shapes.append(f'<line class="objective" x1="{left}" y1="{at}" x2="{width - right}" y2="{at}"/>')
    if len(points) > 1:
        upper = [f"{x(point.at):.1f},{y(point.high):.1f}" for point in points]
        lower = [f"{x(point.at):.1f},{y(point.low):.1f}" for point in reversed(points)]
        shapes.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
        line = " ".join(f"{x(point.at):.1f},{y(point.value):.1f}" for point in points)
        shapes.append(f'<polyline class="line" points="{line}"/>')
    else:
        middle, only = x(start), points[0]
        shapes.append(
            f'<line class="bar" x1="{middle:.1f}" y1="{y(only.high):.1f}" x2="{middle:.1f}" y2="{y(only.low):.1f}"/>'
        )
    for point in points:
        said = f"{_clock(point.at / 1e6)} UTC: {point.value:.0%} of {point.n:,} ({point.low:.0%} to {point.high:.0%})"
        low = " low" if objective is not None and point.value < objective else ""
        place = f'cx="{x(point.at):.1f}" cy="{y(point.value):.1f}"'
        shapes.append(f'<circle class="value{low}" {place} r="3.5"><title>{said}</title></circle>')
    last = points[-1]
    return _svg("course", width, height, f"{what} over time; last {last.value:.0%}", "".join(shapes))


def survival(shares: NDArray[np.float64], rows: int) -> Markup:
    """Share of rows with a p-value of at most t against t, both logarithmic; uniform p-values lie on the diagonal.

    Parameters
    ----------
    shares : float64 (b,)
        Share of rows with p at most 10 ** (-place / 8).
    rows : int
        What the shares are over; the band is where 95 % of uniform samples of that size lie.
    """
    width, height = SURVIVAL_SIZE
    left, right, top, bottom = 44, 8, 8, 26
    decades = max(1.0, min(math.log10(max(rows, 10)), (len(shares) - 1) / 8))
    shown = int(decades * 8) + 1

    def x(t: float) -> float:
        return left + (width - left - right) * (1 + math.log10(t) / decades)

    def y(share: float) -> float:
        return top + (height - top - bottom) * min(1.0, -math.log10(max(share, 1e-12)) / decades)

    thresholds = 10.0 ** (-np.arange(shown) / 8)
    spread = 1.96 * np.sqrt(thresholds * (1 - thresholds) / max(rows, 1))
    floor = 10.0**-decades
    upper = [f"{x(t):.1f},{y(t + s):.1f}" for t, s in zip(thresholds, spread, strict=True)]
    lower = [f"{x(t):.1f},{y(max(t - s, floor)):.1f}" for t, s in zip(thresholds, spread, strict=True)]
    shapes = [f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>']
    for decade in range(int(decades) + 1):
        t, name = 10.0**-decade, "1" if decade == 0 else f"10⁻{_SUPERSCRIPTS[decade]}"
        shapes.append(f'<line class="grid" x1="{x(t):.1f}" y1="{top}" x2="{x(t):.1f}" y2="{height - bottom}"/>')
        shapes.append(f'<text class="axis" x="{x(t):.1f}" y="{height - 8}" text-anchor="middle">{name}</text>')
        shapes.append(f'<text class="axis" x="{left - 5}" y="{y(t) + 4:.1f}" text-anchor="end">{name}</text>')
    shapes.append(f'<line class="uniform" x1="{x(1)}" y1="{y(1)}" x2="{x(floor):.1f}" y2="{y(floor):.1f}"/>')
    seen = zip(thresholds.tolist(), shares[:shown].tolist(), strict=True)
    line = " ".join(f"{x(t):.1f},{y(share):.1f}" for t, share in seen if share > 0)
    shapes.append(f'<polyline class="line" points="{line}"/>')
    return _svg("survival", width, height, "share of rows with a p-value of at most t, against t", "".join(shapes))


_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸"


def plane(points: NDArray[np.float64], kinds: Sequence[int], names: Sequence[str]) -> Markup:
    """Queries in two dimensions, joined in their order; the first has a ring, the last a cross.

    Parameters
    ----------
    points : float64 (m, 2)
    kinds
        Number of each query's answer, most frequent first.
    names
        What each query says of itself.
    """
    width, height = PLANE_SIZE
    margin = 14.0
    low, high = points.min(axis=0), points.max(axis=0)
    scale = min(width - 2 * margin, height - 2 * margin) / max(float((high - low).max()), 1e-12)
    middle = np.array([width / 2, height / 2])
    at = middle + (points - (low + high) / 2) * np.array([scale, -scale])
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    shapes = [f'<polyline class="path" points="{line}"/>']
    for (x, y), kind, name in zip(at.tolist(), kinds, names, strict=True):
        said = f"<title>{escape(name)}</title>"
        shapes.append(f'<circle class="kind-{min(kind, COLOURS - 1)}" cx="{x:.1f}" cy="{y:.1f}" r="4">{said}</circle>')
    (first_x, first_y), (last_x, last_y) = at[0].tolist(), at[-1].tolist()
    shapes.append(f'<circle class="ring" cx="{first_x:.1f}" cy="{first_y:.1f}" r="7.5"/>')
    shapes.append(f'<path class="cross" d="M{last_x - 7:.1f} {last_y:.1f}h14M{last_x:.1f} {last_y - 7:.1f}v14"/>')
    return _svg("plane", width, height, f"{_many(len(kinds), 'query', 'queries')} in two dimensions", "".join(shapes))


def answers(kinds: Sequence[int], names: Sequence[str]) -> Markup:
    """The model's answer to each query, in the order of the log: one line of dots an answer."""
    width, height = ANSWERS_SIZE
    lines = min(max(kinds, default=0) + 1, COLOURS)
    step = (width - 16) / max(len(kinds), 1)
    shapes = []
    for place, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        kind = min(kind, COLOURS - 1)
        x, y = 8 + step * (place + 0.5), height * (kind + 0.5) / lines
        shapes.append(
            f'<circle class="kind-{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{min(4.0, max(step / 2, 1.5)):.1f}">'
            f"<title>{escape(name)}</title></circle>"
        )
    return _svg(
        "answers", width, height, f"the model's answers to {len(kinds)} queries in their order", "".join(shapes)
    )


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


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


def _many(count: int, what: str, many: str = "") -> str:
    return f"{count:,} {what if count == 1 else many or what + 's'}"
