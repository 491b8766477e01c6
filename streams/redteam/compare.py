"""`vedette redteam compare`: which of two models is more robust, on the rows that both campaigns attacked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.cli import print_json
from streams.errors import ConfigError
from streams.redteam.command import terminal
from streams.redteam.findings import FORMAT, sentence
from streams.redteam.intervals import Change, change, holm

#: P-values above it are chance.
SIGNIFICANT = 0.05
#: What two campaigns must share to be compared.
SHARED = ("norm", "eps", "knowledge", "budget", "goal", "scaled", "movable", "relations")


def run(first: str, second: str, *, as_json: bool) -> int:
    """Compare two reports and print it; returns 0.

    Raises
    ------
    ConfigError
        A report cannot be read, or they are not comparable.
    """
    found = compare(load(first), load(second))
    if as_json:
        print_json(found)
    else:
        _show(found, terminal())
    return 0


def load(path: str) -> dict[str, Any]:
    """A report from its folder or its JSON file.

    Raises
    ------
    ConfigError
    """
    where = Path(path)
    if where.is_dir():
        where = where / "report.json"
    try:
        found = json.loads(where.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{where}: no report; `vedette redteam run --report` writes one when it is done") from None
    except ValueError as wrong:
        raise ConfigError(f"{where}: not a readable report: {wrong}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(f"{where}: not a report of this version ({FORMAT})")
    lacking = [key for key in ("model", "threat", "attacks", "outcomes") if key not in found]
    lacking += [f"threat.{key}" for key in SHARED if "threat" in found and key not in found["threat"]]
    if lacking:
        raise ConfigError(f"{where}: not a whole report, it lacks {', '.join(lacking)}")
    return found


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The change from the first report to the second, on the rows that both have.

    Worst case over the attacks that both ran; each attack by itself with p-values adjusted for their number (Holm).

    Raises
    ------
    ConfigError
        Different threat models, no common rows, or no common attacks.
    """
    for key in SHARED:
        a, b = first["threat"][key], second["threat"][key]
        if a != b and not (isinstance(a, float) and isinstance(b, float) and np.isclose(a, b, rtol=1e-9)):
            raise ConfigError(f"the reports cannot be compared: {key} is {a} in the first, {b} in the second")
    mine, yours = first["outcomes"], second["outcomes"]
    places = {name: place for place, name in enumerate(mine["digest"])}
    pairs = [(places[name], place) for place, name in enumerate(yours["digest"]) if name in places]
    pairs = [(a, b) for a, b in pairs if mine["counted"][a] and yours["counted"][b]]
    if not pairs:
        raise ConfigError("the reports cannot be compared: no row is in both; use the same --data, --rows and --seed")
    both = [attack["name"] for attack in first["attacks"] if attack["name"] in yours["fooled_by"]]
    if not both:
        raise ConfigError("the reports cannot be compared: no attack is in both")
    a, b = (np.array(side, dtype=np.intp) for side in zip(*pairs, strict=True))
    right = np.array(mine["right"])[a], np.array(yours["right"])[b]
    robust = _robust(mine, both)[a], _robust(yours, both)[b]
    each = {name: change(_robust(mine, [name])[a], _robust(yours, [name])[b]) for name in both}
    adjusted = holm([one.p for one in each.values()])
    worst = change(*robust)
    return {
        "first": first["model"],
        "second": second["model"],
        "threat": first["threat"],
        "rows": len(pairs),
        "attacks": both,
        "only_in_one": sorted({*mine["fooled_by"], *yours["fooled_by"]} - set(both)),
        "clean_accuracy": _told(right, change(*right)),
        "robust_accuracy": _told(robust, worst),
        "verdict": verdict(worst),
        "each": [
            {"name": name, **one.to_dict(), "adjusted_p": p, "verdict": verdict(one, p)}
            for (name, one), p in zip(each.items(), adjusted, strict=True)
        ],
    }


def verdict(found: Change, p: float | None = None) -> str:
    """`more robust`, `less robust`, or `no significant difference`: the second against the first."""
    p = found.p if p is None else p
    if p > SIGNIFICANT:
        return "no significant difference"
    return "more robust" if found.gained > found.lost else "less robust"


def _robust(outcomes: Mapping[str, Any], attacks: list[str]) -> NDArray[np.bool_]:
    """(n,) rows that are right and that none of these attacks turned."""
    robust = np.array(outcomes["right"], dtype=np.bool_)
    for name in attacks:
        robust[outcomes["fooled_by"][name]] = False
    return robust


def _told(sides: tuple[NDArray[np.bool_], NDArray[np.bool_]], found: Change) -> dict[str, Any]:
    return {"first": float(sides[0].mean()), "second": float(sides[1].mean()), "change": found.to_dict()}


def _show(found: Mapping[str, Any], console: Console) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("first", found["first"]),
        ("second", found["second"]),
        ("threat model", f"{found['threat']['name']}: {sentence(found['threat'])}"),
        ("rows in both", f"{found['rows']:,}, attacked by {', '.join(found['attacks'])}"),
        ("only in one report", ", ".join(found["only_in_one"]) or "nothing"),
        ("accuracy", _line(found["clean_accuracy"])),
        ("robust accuracy", _line(found["robust_accuracy"])),
    ):
        table.add_row(name, Text(value))
    table.add_row("the second is", Text(found["verdict"], style="bold"))
    console.print(table)
    each = Table(box=None, pad_edge=False)
    for name in ("attack", "change of robust accuracy", "p, adjusted", ""):
        each.add_column(name, no_wrap=True)
    for one in found["each"]:
        each.add_row(one["name"], _points(one), f"{one['adjusted_p']:.2g}", one["verdict"])
    console.print(each)


def _line(told: Mapping[str, Any]) -> str:
    p = told["change"]["p"]
    return f"{told['first']:.1%} -> {told['second']:.1%}: {_points(told['change'])}, p = {p:.2g} (exact McNemar)"


def _points(one: Mapping[str, Any]) -> str:
    low, high = 100 * one["low"], 100 * one["high"]
    return f"{100 * one['value']:+.1f} points ({low:+.1f} to {high:+.1f}; {one['gained']} gained, {one['lost']} lost)"
