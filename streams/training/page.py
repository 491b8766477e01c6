"""The report of a fit or a calibration as one HTML page that needs nothing else: styles and plots stand in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from detectors.calibration.examination import CONFIDENCE, FUSED, LEVELS, RATES, Curve, Uniformity
from detectors.calibration.report import ordinal
from streams.redteam import charts
from streams.training.findings import (
    CRAFTED_FROM,
    Findings,
    LeaveOneOut,
    chance_in_words,
    lines,
    period_in_words,
    refusals,
)

#: The page, and the styles that reports share.
TEMPLATES = (Path(__file__).parent, Path(charts.__file__).parent)
#: False positive rates whose shares are told in the table.
TOLD_RATES = (0.001, 0.01, 0.1)
#: Histograms of p-values.
HISTOGRAM = (300, 150)
#: Classes that are told apart in the table, those whose p-values are most too small.
SHOWN_CLASSES = 40


def render(found: Findings) -> str:
    """The page of what was found."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["ordinal"], environment.filters["chance"] = ordinal, chance_in_words
    report = found.report
    return environment.get_template("report_of_fit.html").render(
        found=found,
        report=report,
        refused=refusals(report),
        week=period_in_words(found.week_seconds),
        pages=_pages(found),
        interval=found.pages_a_week,
        examined=_examined(found),
        weights=charts.bars(
            sorted(zip(report.detectors, report.weights, strict=True), key=lambda one: -one[1]), "", logarithmic=False
        ),
        lines=lines(found),
        levels=LEVELS,
        rates=TOLD_RATES,
        confidence=CONFIDENCE,
    )


def _pages(found: Findings) -> Any:
    chances = found.false_pages
    if not chances:
        return None
    budget = found.report.budget_clients
    return charts.columns(
        [(float(n), chance) for n, chance in chances],
        1.0,
        "false pages a week (each bar begins at its number)",
        "chance",
        marks=[(budget + 1.0, f"over the budget of {budget}")],
    )


def _examined(found: Findings) -> Mapping[str, Any] | None:
    examined = found.report.examination
    if examined is None or not examined.benign:
        return None
    whole = [one for one in examined.uniformity if one.label is None]
    parts = sorted((one for one in examined.uniformity if one.label is not None), key=lambda one: -one.excess)
    return {
        "benign": examined.benign,
        "crafted": examined.crafted,
        "against": examined.against,
        "source": examined.source,
        "crafted_from": CRAFTED_FROM[examined.source],
        "left_out": sorted(examined.left_out, key=lambda one: one.found),
        "summary": LeaveOneOut.of(examined.left_out),
        "fixed": examined.fixed,
        "whole": [{**_told(one), "plot": _histogram(one)} for one in whole],
        "classes": [{**_told(one), "class": found.class_name(one.label)} for one in parts[:SHOWN_CLASSES]],
        "unshown": max(0, len(parts) - SHOWN_CLASSES),
        "roc": _roc(examined.curves),
        "curves": [
            {
                "name": one.detector,
                "kind": _kind(place, one.detector),
                "area": one.area,
                "found": [one.found[_nearest(rate)] for rate in TOLD_RATES],
            }
            for place, one in enumerate(examined.curves)
        ],
    }


def _told(one: Uniformity) -> dict[str, Any]:
    return {
        "name": one.detector,
        "rows": one.rows,
        "distance": one.distance,
        "excess": one.excess,
        "shares": one.shares,
        "chance": one.chance,
    }


def _histogram(one: Uniformity) -> Any:
    width = 1.0 / len(one.bins)
    values = [(place * width, share) for place, share in enumerate(one.bins)]
    return charts.columns(values, width, "p-value", "share of benign rows", size=HISTOGRAM, level=width)


def _roc(curves: Sequence[Curve]) -> Any:
    drawn = [
        charts.Line(one.detector, list(zip(RATES, one.found, strict=True)), _kind(place, one.detector))
        for place, one in enumerate(curves)
    ]
    if not drawn:
        return None
    return charts.plot(drawn, "false positive rate", "found", logarithmic=True, start=RATES[0])


def _kind(place: int, name: str) -> str:
    return "worst" if name == FUSED else charts.kind(place)


def _nearest(rate: float) -> int:
    return min(range(len(RATES)), key=lambda place: abs(RATES[place] - rate))
