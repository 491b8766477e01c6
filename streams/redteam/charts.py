"""Plots of reports as SVG without script; their colours stand in the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

#: Units of the view boxes.
WIDE, SMALL, BARS_WIDTH = (960, 340), (300, 170), 960
#: Colours; further lines repeat them dashed.
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """A named line of (x, y), with a band (x, low, high) where there is one; `kind` chooses its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    band: Sequence[tuple[float, float, float]] = ()


def kind(place: int) -> str:
    """Classes of the line in that place."""
    return f"kind-{place % COLOURS}" + (" dashed" if place >= COLOURS else "")


def shares(name: str, curve: Sequence[Mapping[str, Any]], kind: str, *, band: bool = True) -> Line:
    """A line of the report's points {eps, value, low, high}; points over no rows are left out."""
    told = [point for point in curve if point["value"] is not None]
    edges = [(point["eps"], point["low"], point["high"]) for point in told] if band else []
    return Line(name, [(point["eps"], point["value"]) for point in told], kind, edges)


def plot(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    size: tuple[int, int] = WIDE,
    mark: float | None = None,
    logarithmic: bool = False,
    start: float = 1.0,
) -> Markup:
    """Shares from 0 to 1 against a distance, a rate or a number of queries; `mark` draws a line upwards.

    A logarithmic axis begins at `start` and covers a decade at least.
    """
    width, height = size
    left, right, top, bottom = 46, 22, 10, 40
    xs = [x for line in lines for x, _ in line.points] + ([mark] if mark is not None else [])
    least, most = (start, max([*xs, 10.0 * start])) if logarithmic else (0.0, max([*xs, 1e-12]))

    def x(value: float) -> float:
        part = math.log(max(value, least) / least) / math.log(most / least) if logarithmic else value / most
        return left + (width - left - right) * part

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - min(max(value, 0.0), 1.0))

    shapes = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes.append(f'<line class="grid" x1="{left}" y1="{y(share):.1f}" x2="{width - right}" y2="{y(share):.1f}"/>')
        if share in (0.0, 0.5, 1.0):
            shapes.append(_text(left - 6, y(share) + 4, f"{share:.0%}", "end"))
    for value in ticks(least, most, logarithmic):
        shapes.append(
            f'<line class="tick" x1="{x(value):.1f}" y1="{y(0):.1f}" x2="{x(value):.1f}" y2="{y(0) + 4:.1f}"/>'
        )
        shapes.append(_text(x(value), height - bottom + 17, f"{value:,.4g}", "middle"))
    shapes.append(_text((left + width - right) / 2, height - 5, x_name, "middle"))
    if mark is not None:
        shapes.append(f'<line class="mark" x1="{x(mark):.1f}" y1="{top}" x2="{x(mark):.1f}" y2="{height - bottom}"/>')
    for line in lines:
        if line.band:
            upper = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in line.band]
            lower = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in reversed(line.band)]
            shapes.append(f'<polygon class="band {line.kind}" points="{" ".join(upper + lower)}"/>')
    for line in lines:
        path = " ".join(f"{x(at):.1f},{y(share):.1f}" for at, share in line.points)
        shapes.append(
            f'<polyline class="line {line.kind}" points="{path}"><title>{escape(line.name)}</title></polyline>'
        )
        if len(line.points) <= 12:
            shapes += [
                f'<circle class="dot {line.kind}" cx="{x(at):.1f}" cy="{y(share):.1f}" r="3">'
                f"<title>{escape(line.name)}: {share:.1%} at {at:,.4g}</title></circle>"
                for at, share in line.points
            ]
    label = f"{y_name} against {x_name}: " + "; ".join(
        f"{line.name} {line.points[-1][1]:.0%} at {line.points[-1][0]:,.4g}" for line in lines if line.points
    )
    return _svg("plot", width, height, label, shapes)


def reached(name: str, queries: Sequence[int], rows: int, most: int, kind: str) -> Line:
    """Share of the rows that were fooled within so many queries, as steps."""
    points = [(1.0, 0.0)]
    for place, spent in enumerate(sorted(queries)):
        points += [(float(max(spent, 1)), place / max(rows, 1)), (float(max(spent, 1)), (place + 1) / max(rows, 1))]
    return Line(name, [*points, (float(max(most, 1)), len(queries) / max(rows, 1))], kind)


def bars(values: Sequence[tuple[str, float]], unit: str, *, logarithmic: bool = True) -> Markup:
    """Named values as horizontal bars, from 0 or on a logarithmic scale from a thousandth of the largest."""
    high = max((value for _, value in values), default=1.0) or 1.0
    step, left = 24, 150
    shapes = []
    for place, (name, value) in enumerate(values):
        part = max(0.0, 1 + math.log10(max(value, 1e-12) / high) / 3) if logarithmic else value / high
        wide = (BARS_WIDTH - left - 110) * part
        at = place * step
        shapes.append(_text(left - 8, at + 16, name, "end"))
        shapes.append(f'<rect class="bar" x="{left}" y="{at + 5}" width="{max(wide, 1):.1f}" height="14" rx="2"/>')
        shapes.append(_text(left + wide + 6, at + 16, f"{value:,.3g} {unit}", "start"))
    label = "; ".join(f"{name}: {value:,.3g} {unit}" for name, value in values)
    return _svg("bars", BARS_WIDTH, step * max(len(values), 1), label, shapes)


def columns(
    values: Sequence[tuple[float, float]],
    width: float,
    x_name: str,
    y_name: str,
    *,
    size: tuple[int, int] = WIDE,
    level: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Upright bars, `width` of the horizontal axis each, of (left edge, share).

    `level` draws a line across, each of `marks` one upwards at its place, with its name.
    """
    whole, height = size
    left, right, top, bottom = 46, 22, 18 if marks else 10, 40
    begin = min((at for at, _ in values), default=0.0)
    end = max([*(at + width for at, _ in values), *(at for at, _ in marks)], default=1.0)
    end = end if end > begin else begin + width
    most = max([*(share for _, share in values), level or 0.0, 1e-12]) * 1.05

    def x(value: float) -> float:
        return left + (whole - left - right) * (value - begin) / (end - begin)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / most)

    shapes = []
    for share in ticks(0.0, most, logarithmic=False):
        shapes.append(f'<line class="grid" x1="{left}" y1="{y(share):.1f}" x2="{whole - right}" y2="{y(share):.1f}"/>')
        shapes.append(_text(left - 6, y(share) + 4, f"{share:.3g}" if most < 0.02 else f"{share:.0%}", "end"))
    for at, share in values:
        wide = max(x(at + width) - x(at) - 1, 0.5)
        shapes.append(
            f'<rect class="bar" x="{x(at):.1f}" y="{y(share):.1f}" width="{wide:.1f}" '
            f'height="{max(y(0) - y(share), 0):.1f}"><title>{share:.2%} at {at:,.4g}</title></rect>'
        )
    shapes += [
        _text(x(at), height - bottom + 17, f"{at:,.4g}", "middle") for at in ticks(begin, end, logarithmic=False)
    ]
    if level is not None:
        shapes.append(f'<line class="mark" x1="{left}" y1="{y(level):.1f}" x2="{whole - right}" y2="{y(level):.1f}"/>')
    for at, name in marks:
        shapes.append(f'<line class="mark" x1="{x(at):.1f}" y1="{top}" x2="{x(at):.1f}" y2="{height - bottom}"/>')
        shapes.append(_text(x(at), top - 5, name, "end" if x(at) > whole / 2 else "start"))
    shapes.append(_text((left + whole - right) / 2, height - 5, x_name, "middle"))
    high = max(values, key=lambda one: one[1], default=(0.0, 0.0))
    return _svg("plot", whole, height, f"{y_name} against {x_name}: at most {high[1]:.1%}, at {high[0]:,.4g}", shapes)


def ticks(least: float, most: float, logarithmic: bool) -> list[float]:
    """Round values between two others: powers of ten, or about five steps of 1, 2 or 5."""
    if logarithmic:
        low, high = math.ceil(math.log10(least) - 1e-9), math.floor(math.log10(most) + 1e-9)
        return [10.0**power for power in range(low, high + 1)]
    raw = (most - least) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    return [least + step * place for place in range(int((most - least) / step * (1 + 1e-9)) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(kind: str, width: float, height: float, label: str, shapes: Sequence[str]) -> Markup:
    """`shapes` are numbers and escaped texts."""
    return Markup(  # noqa: S704 - the label is escaped here
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(shapes)}</svg>"
    )
