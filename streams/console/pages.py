"""What stands on each page: templates, and the values that they are given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.console import pictures, plots, words
from streams.console.data import Dossier, Minute, Overview, Range
from streams.console.index import IncidentRow
from streams.console.pictures import ChangedFeature, Panel
from streams.console.queries import Queries, plane
from streams.incidents.runbook import Runbook
from streams.store.messages import SignalMessage, row_of

#: Pages in the order of the navigation.
NAVIGATION = (
    ("/", "Live"),
    ("/incidents", "Incidents"),
    ("/silences", "Silences"),
    ("/repeaters", "Repeaters"),
    ("/probes", "Probes"),
    ("/detectors", "Detectors"),
    ("/dead-letters", "Dead letters"),
    ("/accounting", "Accounting"),
)
#: How far the live page's plot looks back: range -> what its bars are.
RANGES: dict[Range, str] = {"hour": "minute", "day": "hour", "week": "three hours"}
#: Signals whose input an incident page shows.
EXHIBITS = 3


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One signal with its input beside the nearest reference."""

    title: str
    signal: SignalMessage
    answer: str
    nearest: str
    panels: list[Panel]
    features: list[ChangedFeature]
    measures: list[words.Measure]


class Pages:
    """Renders templates; every value is escaped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runbook = Runbook.of(settings.incidents)
        self._templates = Environment(
            loader=PackageLoader("streams.console"),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            class_name=lambda label, classes: words.class_name(classes, label),
            figure=words.figure,
            interval=lambda probe, least: plots.interval(probe.low, probe.recall, probe.high, least),
            limit=_limit,
            milliseconds=_milliseconds,
            moment=words.moment,
            odds=words.odds,
            place=words.place,
            percent=_percent,
            precise=_precise,
            pvalue=words.pvalue,
            ratio=words.ratio,
            size=words.size,
            spans=spans,
            state=words.STATES.__getitem__,
            strength=_strength,
            technique=words.technique,
            utc=words.utc,
            verdict=words.VERDICTS.__getitem__,
        )

    def render(self, template: str, *, model: ModelSettings | None, **values: Any) -> str:
        """One template for one model."""
        return self._templates.get_template(template).render(
            model=model,
            models=[each.name for each in self._settings.models],
            pages=NAVIGATION,
            objective_of=lambda probe: (
                None if model is None else self._settings.recall_objective(model, probe.attack, probe.kind)
            ),
            link=lambda path, query="": self.link(path, model, query),
            verdicts=words.VERDICTS,
            **values,
        )

    def link(self, path: str, model: ModelSettings | None, query: str = "") -> str:
        """A path of ours for a model; `query` is a part of an address."""
        parts = [urlencode({"model": model.name}) if model is not None else "", query]
        joined = "&".join(part for part in parts if part)
        return f"{path}?{joined}" if joined else path

    def live(self, look: Overview, course: Sequence[Minute] = (), back: Range = "hour") -> dict[str, Any]:
        """Values of ``live.html``; the plot is of `course`, by default of the last hour."""
        minutes = course or look.minutes
        return {"look": look, "plot": plots.traffic(minutes), "minutes": minutes, "back": back, "ranges": RANGES}

    def event(self, look: Overview, model: ModelSettings) -> bytes:
        """The live page's parts as JSON, for its script."""
        parts: dict[str, Any] = {
            "status": self.render("status.html", model=model, look=look),
            "figures": self.render("figures.html", model=model, look=look),
            "incidents": self.render("incident_rows.html", model=model, rows=look.incidents),
            "probes": self.render("probe_rows.html", model=model, look=look),
            "workers": self.render("worker_rows.html", model=model, look=look),
            "traffic": str(plots.traffic(look.minutes)),
            "open_pages": look.open_pages,
            "at": words.moment(int(look.at * 1e6)),
        }
        return msgspec.json.encode(parts)

    def incident(
        self, dossier: Dossier, schema: FeatureSchema | None, near: Sequence[tuple[IncidentRow, str]]
    ) -> dict[str, Any]:
        """Values of ``incident.html``."""
        incident = dossier.incident
        rows = {row_of(signal.id): signal for signal in dossier.signals}
        return {
            "incident": incident,
            "change": dossier.change,
            "signals": dossier.signals,
            "kept": dossier.kept,
            "inquiries": dossier.inquiries,
            "places": {said.signal: rows[key] for said in dossier.inquiries if (key := row_of(said.signal)) in rows},
            "sentence": words.sentence(incident),
            "missing": words.missing(incident),
            "advice": [part for part in self._runbook.text(incident.technique, incident.entity).split("\n\n") if part],
            "atlas": words.atlas_link(incident.technique),
            "rules": words.RULES,
            "classes": schema.classes if schema is not None else (),
            "growth": plots.timeline(dossier.signals),
            "near": near,
            "exhibits": [exhibit(schema, title, signal) for title, signal in chosen(dossier.signals)],
        }

    def queries(self, found: Queries, schema: FeatureSchema | None) -> dict[str, Any]:
        """Values of ``queries.html``."""
        classes = schema.classes if schema is not None else ()
        counts = Counter(found.labels.tolist()).most_common()
        order = {label: place for place, (label, _) in enumerate(counts)}
        kinds = [order[label] for label in found.labels.tolist()]
        said = [
            f"{words.utc(when)}, {partition}/{offset} row {row}: {words.class_name(classes, label)}"
            for (partition, offset, row), when, label in zip(
                found.where, found.times.tolist(), found.labels.tolist(), strict=True
            )
        ]
        points, share = plane(found.inputs, schema)
        return {
            "found": found,
            "share": share,
            "map": plots.plane(points, kinds, said) if len(found) else "",
            "course": plots.answers(kinds, said) if len(found) else "",
            "answers": [
                (min(place, plots.COLOURS - 1), words.class_name(classes, label), count)
                for place, (label, count) in enumerate(counts)
            ],
        }


def chosen(signals: Sequence[SignalMessage]) -> list[tuple[str, SignalMessage]]:
    """The signals that explain an incident best, each once: what paged first, what came last, the strongest.

    Parameters
    ----------
    signals
        Newest first.
    """
    if not signals:
        return []
    paged = [signal for signal in signals if signal.level == "page"]
    strongest = max(signals, key=lambda signal: signal.statistic / signal.threshold if signal.threshold > 0 else 0.0)
    candidates = [
        *((("What made it a page", paged[-1]),) if paged else ()),
        ("The newest signal", signals[0]),
        ("The strongest signal", strongest),
        ("How it began", signals[-1]),
    ]
    found: list[tuple[str, SignalMessage]] = []
    for title, signal in candidates:
        if all(signal.id != other.id for _, other in found):
            found.append((title, signal))
    return found[:EXHIBITS]


def exhibit(schema: FeatureSchema | None, title: str, signal: SignalMessage) -> Exhibit:
    """One signal: with pictures where the schema says that inputs are pictures, else with its oddest features."""
    classes = schema.classes if schema is not None else ()
    answer = words.class_name(classes, signal.label)
    nearest = words.class_name(classes, signal.nearest_label)
    drawn: list[Panel] = []
    fits = schema is not None and len(signal.input) == len(signal.nearest) == schema.width
    if schema is not None and fits:
        titles = (f"input, answered “{answer}”", f"nearest reference of “{nearest}”")
        drawn = pictures.panels(schema, signal.input, signal.nearest, titles)
    return Exhibit(
        title=title,
        signal=signal,
        answer=answer,
        nearest=nearest,
        panels=drawn,
        features=[] if drawn else pictures.changed_features(schema, signal.input, signal.nearest),
        measures=words.measures(signal.measures),
    )


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in short: 0-3, 7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _strength(signal: SignalMessage) -> str:
    return words.ratio(signal.statistic / signal.threshold) if signal.threshold > 0 else "–"


def _milliseconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.0f} s"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value == 0 or value >= 0.095 else f"{100 * value:.2g} %"


def _precise(value: float) -> str:
    return f"{value:,.4g}".replace("-", "−")


def _limit(value: float | None) -> str:
    return "any" if value is None else _precise(value)
