"""Plain words for what stands in Redis as names and numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from detectors.kernels.lines import MOST_OF_A_LINE
from detectors.queries.intent import (
    DESIGN_SHARE,
    LEAST_MOVED,
    LEAST_SIZE,
    LINES_APART,
    MOST_OF_A_PART,
    NARROW_FEATURES,
    Shape,
    shape_of,
)
from streams.incidents.monitoring import MODEL_REGRESSION, OBJECTIVE_MISSED
from streams.incidents.titles import TECHNIQUES, client_name, group_name
from streams.store.messages import Incident, ReasonMessage, SignalMessage

#: Name of the intent test among reasons; what it measures says more than its p-value.
INTENT = "intent"
#: Pages of the techniques.
ATLAS_URL = "https://atlas.mitre.org/techniques/"

RULES = {
    "input-sequence": "The client's inputs, taken together, look less and less like benign traffic.",
    "input-row": "An input by itself is odder than any that most benign clients send in a week.",
    "query-cluster": "The client sends many near-identical queries.",
    "query-intent": "The near-identical queries seek the model's decision boundary, as an attacker's do.",
    "index-cluster": "Near-identical queries come in through several accounts.",
    "index-intent": "Near-identical queries from several accounts seek the model's decision boundary.",
    "probes": "The prober's attacks are not seen, or do not come back.",
}

STATES = {"new": "new", "in_progress": "in progress", "suppressed": "suppressed", "resolved": "resolved"}
VERDICTS = {"true": "real attack", "false": "false alarm", "benign": "harmless"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One part of a decision, for people."""

    name: str
    value: str
    needed: str
    """What pages; empty where nothing is asked of it."""
    met: bool | None
    """Whether it is as a page needs it; None where nothing is asked of it."""
    text: str


Said = Mapping[str, float]


def measures(said: Said) -> list[Measure]:
    """The parts of the intent test in plain words, in order; measures that are not known here follow by name."""
    found = [tell(said[name], said) for name, tell in _MEASURES.items() if name in said]
    found += [
        Measure(name.replace("_", " "), _number(said[name], 3), "", None, "")
        for name in sorted(said)
        if name not in _MEASURES and name not in _SILENT
    ]
    return found


def _size(value: float, _: Said) -> Measure:
    text = "queries in the cluster so far"
    return Measure("Queries", _number(value, 0), f"at least {LEAST_SIZE}", value >= LEAST_SIZE, text)


def _touched(value: float, _: Said) -> Measure:
    text = (
        f"features that the queries change; up to {NARROW_FEATURES} is a what-if user, a sweep or a search for recourse"
    )
    return Measure("Features", _number(value, 0), f"more than {NARROW_FEATURES}", value > NARROW_FEATURES, text)


def _gate(value: float, _: Said) -> Measure:
    text = "features in which nine of ten queries differ from their common base"
    return Measure("Width", _number(value, 0), "", None, text)


def _wide(value: float, said: Said) -> Measure:
    text = f"of the queries differ from it in more than {NARROW_FEATURES} features"
    shape = _shape(said)
    if shape is not None and shape.narrow:
        text += (
            "; the cluster is narrow, so its middle must move, and only progress, halvings and feedback of scores count"
        )
    return Measure("Wide queries", f"{value:.0%}", "", None, text)


def _moved(value: float, said: Said) -> Measure:
    text = "features in which the last queries lie elsewhere than the first"
    shape = _shape(said)
    asked = shape is not None and shape.narrow
    needed = f"at least {LEAST_MOVED}" if asked else ""
    return Measure("Moved for good", _number(value, 0), needed, value >= LEAST_MOVED if asked else None, text)


def _design(value: float, said: Said) -> Measure:
    text = "of the features that change have two values only"
    if value >= DESIGN_SHARE:
        text += ", as an explainer's have; only progress and feedback of scores count"
    return Measure("Two-valued", f"{value:.0%}", "", None, text)


def _progress(value: float, said: Said) -> Measure:
    text = (
        f"the queries move the model's answer {_number(abs(value), 1)} standard deviations "
        f"{'more' if value >= 0 else 'less'} than random steps of the same size would"
    )
    shape = _shape(said)
    counts = shape is None or "progress" not in shape.scales() or "progress" in shape.brought(said)
    if value > 0 and not counts:
        text += "; not counted, they have come too little nearer to the boundary for that"
    return _part("Progress", "progress", value, said, text, counts)


def _following(value: float, said: Said) -> Measure:
    text = "the queries do not keep nearer to the model's decision boundary than random steps would"
    if value < 0:
        text = f"the queries keep {_times(-value)} nearer to the model's decision boundary than random steps would"
    return _part("Boundary following", "following", value, said, text)


def _bisection(value: float, said: Said) -> Measure:
    text = "no two queries with different answers lie nearer together than the usual step"
    if value < 0:
        text = f"two queries with different answers lie {_times(-value)} nearer together than the usual step"
    shape = _shape(said)
    if shape is not None and shape.lines_apart >= LINES_APART:
        text += "; the boundary was searched on lines that go different ways, as somebody does who looks for recourse"
    return _part("Bisection", "bisection", value, said, text)


def _halvings(value: float, said: Said) -> Measure:
    text = (
        "queries that divide the way between two earlier ones with different answers, as a search for the boundary "
        f"does; of each line {MOST_OF_A_LINE} at most"
    )
    return _part("Halvings", "halvings", value, said, text)


def _by_scores(value: float, said: Said) -> Measure:
    text = (
        f"of two near queries the client goes on from the one that the model was "
        f"{'less' if value >= 0 else 'more'} sure of, {_number(abs(value), 1)} standard deviations beyond chance"
    )
    return _part("Feedback of scores", "by_scores", value, said, text)


def _by_answers(value: float, said: Said) -> Measure:
    text = "of two near queries with different answers the client goes on nearer to one side, beyond chance by so much"
    return _part("Feedback of answers", "by_answers", value, said, text)


def _part(name: str, key: str, value: float, said: Said, text: str, counts: bool = True) -> Measure:
    """One part of the sum: what would page alone, where one part can."""
    shape, asked = _shape(said), _asked(said)
    if shape is None:
        return Measure(name, _number(value, 2), "", None, text)
    scale = shape.scales().get(key)
    if scale is None:
        return Measure(name, _number(value, 2), "not counted here", None, text)
    if asked > MOST_OF_A_PART:
        return Measure(name, _number(value, 2), "not enough alone", None, text)
    enough = scale * math.sqrt(asked)
    met = counts and value / scale >= math.sqrt(asked)
    return Measure(name, _number(value, 2), f"{_number(enough, 1)} alone is enough", met, text)


def _shape(said: Said) -> Shape | None:
    """How the cluster spreads; None where another release has judged it, by other scales."""
    return shape_of(said) if said.keys() >= _SHAPE and all(math.isfinite(said[name]) for name in _SHAPE) else None


def _asked(said: Said) -> float:
    """The sum from which the cluster pages; thresholds of this site may ask for more than the test itself."""
    return said.get("asked", said.get("needed", 1.0))


def _score(value: float, said: Said) -> Measure:
    text = (
        f"what counts taken together: each as a share of what is enough alone, squared, {MOST_OF_A_PART:.0f} at most; "
        "of the two kinds of feedback the larger"
    )
    needed = _asked(said)
    return Measure("Sum", _number(value, 2), f"at least {needed:.3g}", value >= needed, text)


_MEASURES: dict[str, Callable[[float, Said], Measure]] = {
    "size": _size,
    "touched": _touched,
    "gate": _gate,
    "wide_share": _wide,
    "moved": _moved,
    "design": _design,
    "progress": _progress,
    "following": _following,
    "bisection": _bisection,
    "halvings": _halvings,
    "by_scores": _by_scores,
    "by_answers": _by_answers,
    "score": _score,
}
#: What must be said for the parts to have scales.
_SHAPE = {"touched", "moved", "gate", "wide_share", "cut_links", "design"}
#: Parts of the decision that only explain other parts.
_SILENT = ("page", "following_p", "cut_links", "lines_apart", "lost_margin", "needed", "asked")


def _times(log_ratio: float) -> str:
    return f"{math.exp(min(log_ratio, 50)):,.2g} times"


def _number(value: float, digits: int) -> str:
    return "–" if not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def technique(name: str) -> str:
    """What an ATLAS technique is called."""
    return TECHNIQUES.get(name, "Vedette itself" if not name.startswith("AML.") else name)


def atlas_link(name: str) -> str:
    """The technique's page; empty where it is no ATLAS technique."""
    parts = name.split(".")
    known = len(parts) in (2, 3) and parts[0] == "AML" and parts[1][:1] == "T" and "".join(parts[1:])[1:].isdigit()
    return ATLAS_URL + name if known else ""


def sentence(incident: Incident) -> str:
    """What happens, in full sentences: who, what, since when, how strongly, and what the model's owner should know."""
    if incident.technique == OBJECTIVE_MISSED:
        return "The newest probes leave little doubt that an objective of this model is missed. No attack is claimed."
    if incident.technique == MODEL_REGRESSION:
        return "Matched probes show that the model's newest version bears an attack worse than the version before."
    if incident.entity == "monitoring":
        return "Probes that should be detected are not. Until this is resolved, silence proves nothing."
    if incident.entity == "population":
        return (
            f"More incidents began at once than a person can look at, so {incident.signals:,} "
            f"signal{_s(incident.signals)} of {_accounts(len(incident.clients))} were put together here."
        )
    who = f"Client {client_name(incident.entity_id)}"
    if incident.entity == "cluster":
        several = len(incident.clients) > 1
        who = f"A group of {_accounts(len(incident.clients)) if several else group_name(len(incident.clients))}"
    took = duration(incident.last_seen - incident.first_seen)
    within = f" within {took}" if incident.last_seen > incident.first_seen else ""
    times = f"; the strongest was {ratio(incident.max_ratio)} its threshold" if incident.max_ratio > 0 else ""
    return f"{who} {_deed(incident)}. {incident.signals:,} signal{_s(incident.signals)}{within}{times}."


def missing(incident: Incident) -> str:
    """Why a ticket is not a page; empty for a page."""
    if incident.level == "page" or incident.entity in ("population", "monitoring"):
        return ""
    if incident.pilot:
        return "This would have paged, but Vedette runs in pilot: nobody was called."
    if incident.repeater:
        return "This would have paged, but the client is approved as a repeater: nobody was called."
    if any(rule.endswith("-cluster") for rule in incident.rules):
        return (
            "A ticket, nobody was called: near-identical queries alone also come from sensors, retries and what-if "
            "users. It becomes a page when the intent test finds clearly enough that the queries work towards another "
            "answer."
        )
    if set(incident.rules) == {"input-row"}:
        return (
            "A ticket, nobody was called: a single input never pages, however odd it is. It becomes a page when the "
            "client's inputs, taken together, or its near-identical queries show an attack."
        )
    return "A ticket, nobody was called: the evidence is above the ticket's threshold and below the page's."


def odds(reason: ReasonMessage) -> str:
    """A p-value in words."""
    if reason.detector == INTENT:
        return "its parts stand below"
    if not reason.p > 0 or not math.isfinite(reason.p):
        return "rarer than any benign input seen"
    if reason.p > 0.5:
        return "nothing unusual"
    often = f"1 in {round(1 / reason.p):,}"
    if reason.extrapolated:
        return f"about {often} benign inputs, estimated from the tail of those seen"
    return f"{often} benign inputs looks as odd"


def pvalue(reason: ReasonMessage) -> str:
    """A p-value as a number."""
    if not math.isfinite(reason.p) or reason.detector == INTENT:
        return "–"
    return f"{'≈' if reason.extrapolated else ''}\u2009{reason.p:.2g}".strip()


def moment(microseconds: int) -> str:
    """A time as ISO 8601 in UTC; the page's script shows it in the reader's zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(max(microseconds, 0), _LATEST) / 1e6))


#: The end of the year 9999: later times come from a broken clock.
_LATEST = 253_402_300_799 * 1_000_000


def utc(microseconds: int) -> str:
    """A time for people, in UTC."""
    return moment(microseconds).replace("T", " ").replace("Z", " UTC")


def duration(microseconds: float) -> str:
    """A length of time in the largest sensible unit."""
    seconds = microseconds / 1e6
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} second{_s(round(seconds))}"


def figure(value: float | None) -> str:
    """A number for people."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def ratio(value: float) -> str:
    """A multiple."""
    return f"{value:,.2f}×" if abs(value) < 10 else f"{value:,.0f}×"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def class_name(classes: Sequence[str], label: int) -> str:
    """What a class is called."""
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def place(signal: SignalMessage) -> str:
    """Where the raw record stands in Kafka."""
    return f"{signal.topic}/{signal.partition}/{signal.offset} row {signal.row}"


def _deed(incident: Incident) -> str:
    rules = incident.rules
    if any(rule.endswith("-intent") for rule in rules):
        return (
            f"sent {incident.queries:,} near-identical queries that seek a decision boundary of the model, "
            "as those of an attacker do who learns from every answer"
        )
    if any(rule.endswith("-cluster") for rule in rules):
        return f"sent {incident.queries:,} near-identical queries"
    if "input-sequence" in rules:
        return "sends inputs that, taken together, are unlike benign traffic"
    if "input-row" in rules:
        return "sent an input that is odder than any that most benign clients send in a week"
    return f"made the rules {', '.join(sorted(rules))} speak"


def _accounts(count: int) -> str:
    return f"{count:,} account{_s(count)}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
