"""The report as one HTML page that needs nothing else: styles, plots and pictures stand in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from detectors.schema import FeatureSchema
from streams.console.pictures import changed_features, panels
from streams.redteam import charts
from streams.redteam.findings import sentence

TEMPLATES = Path(__file__).parent


def render(
    report: Mapping[str, Any],
    schema: FeatureSchema,
    examples: Sequence[Mapping[str, Any]],
    features: Sequence[Mapping[str, Any]],
) -> str:
    """The page of a report, its examples (`findings.shown`) and the features changed most (`findings.changed_most`)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval, "number": number}
    attacks = report["attacks"]
    return environment.get_template("report.html").render(
        report=report,
        threat=sentence(report["threat"], report["classes"]),
        plots=_plots(report),
        swatches=[(attack["name"], charts.kind(place)) for place, attack in enumerate(attacks)],
        confusion=_confusion(report),
        examples=[_example(schema, example, report["classes"]) for example in examples],
        features=features,
        timings=report["timings"],
    )


def percent(share: Mapping[str, Any] | None) -> str:
    """A share of the report in words."""
    if share is None or share["value"] is None:
        return "-"
    return f"{share['value']:.1%}"


def interval(share: Mapping[str, Any] | None) -> str:
    """Its 95 % interval."""
    if share is None or share["value"] is None:
        return ""
    return f"{share['low']:.1%} to {share['high']:.1%}"


def number(value: float | None) -> str:
    """Four digits."""
    return "-" if value is None else f"{value:,.4g}"


def _plots(report: Mapping[str, Any]) -> dict[str, Any]:
    attacks, eps = report["attacks"], report["threat"]["eps"]
    distance = f"distance ({report['threat']['norm']})"
    lines = [
        charts.shares(attack["name"], attack["curve"], charts.kind(place), band=False)
        for place, attack in enumerate(attacks)
    ]
    worst = charts.shares("worst case", report["curve"], "worst")
    asked = [(place, attack) for place, attack in enumerate(attacks) if attack["queries"] is not None]
    most = report["threat"]["budget"]
    steps = [
        charts.reached(attack["name"], attack["queries"]["to_success"], report["attacked"], most, charts.kind(place))
        for place, attack in asked
    ]
    each = []
    for place, attack in enumerate(attacks):
        line = charts.shares(attack["name"], attack["curve"], charts.kind(place))
        plot = charts.plot([line], distance, "robust accuracy", size=charts.SMALL, mark=eps)
        recall = None
        if "detection" in attack and eps is not None:
            seen = charts.shares(attack["name"], attack["detection"]["recall"], charts.kind(place))
            if seen.points:
                recall = charts.plot([seen], distance, "recall", size=charts.SMALL, mark=eps)
        each.append({"name": attack["name"], "plot": plot, "recall": recall})
    return {
        "robust": charts.plot([*lines, worst], distance, "robust accuracy", mark=eps),
        "queries": charts.plot(steps, "queries", "fooled", logarithmic=True) if steps else None,
        "each": each,
        "craft": charts.bars(sorted(report["timings"]["milliseconds_a_row"].items(), key=lambda one: one[1]), "ms"),
    }


def _confusion(report: Mapping[str, Any]) -> dict[str, Any]:
    """Lines and columns of classes that take part, with a heat from 0 to 10 in each cell."""
    counts, classes = report["confusion"], report["classes"]
    names = [classes[place] if place < len(classes) else str(place) for place in range(len(counts))]
    most = max((cell for line in counts for cell in line), default=0) or 1
    return {
        "names": names,
        "lines": [
            (names[place], [(cell, -(-10 * cell // most)) for cell in line], sum(line))
            for place, line in enumerate(counts)
        ],
    }


def _example(schema: FeatureSchema, example: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    before, after = name(example["before"]), name(example["after"])
    pictures = panels(schema, example["crafted"], example["original"], (f"crafted: {after}", f"original: {before}"))
    if pictures:
        pictures = [pictures[1], pictures[0], pictures[2]]
    return {
        **example,
        "names": (before, after),
        "panels": pictures,
        "changes": [] if pictures else changed_features(schema, example["crafted"], example["original"])[:6],
    }


__all__ = ["interval", "number", "percent", "render"]
