from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detectors.schema import Feature, FeatureSchema
from streams.console import pictures, plots, words
from streams.console.data import Minute
from streams.console.pages import chosen, spans
from streams.store.messages import ReasonMessage

Fixture = Any


def opened(panel: pictures.Panel) -> np.ndarray:
    data = base64.b64decode(panel.source.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_png_is_what_another_reader_reads() -> None:
    colours = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(colours)))), colours)


def test_panels_show_input_reference_and_signed_difference() -> None:
    schema = FeatureSchema.image((1, 3), ["a", "b"], 0, 16)
    one, other, difference = pictures.panels(schema, [0, 16, 8], [0, 8, 16], ("input", "reference"))
    assert opened(one)[0, :, 0].tolist() == [0, 255, 128]
    assert opened(other)[0, :, 0].tolist() == [0, 128, 255]
    assert opened(difference)[0].tolist() == [[255, 255, 255], pictures.MORE.tolist(), pictures.LESS.tolist()]
    assert difference.title == "difference: red more, blue less, at most 8"


def test_colour_pictures_keep_their_colours_and_large_ones_are_thinned() -> None:
    schema = FeatureSchema.image((300, 200, 3), ["a", "b"])
    values = np.zeros((300, 200, 3))
    values[..., 1] = 1.0
    panel = pictures.panels(schema, values.ravel().tolist(), values.ravel().tolist(), ("", ""))[0]
    assert (panel.rows, panel.columns) == (150, 100)
    assert opened(panel)[0, 0].tolist() == [0, 255, 0]


def test_pictures_without_stated_ranges_use_what_they_hold() -> None:
    schema = FeatureSchema(tuple(Feature(f"f{i}") for i in range(4)), ("a", "b"), (2, 2))
    panel = pictures.panels(schema, [-5, 0, 5, 0], [0, 0, 0, 0], ("", ""))[0]
    assert opened(panel)[..., 0].ravel().tolist() == [0, 128, 255, 128]
    assert pictures.panels(schema, [1, 1, 1, 1], [1, 1, 1, 1], ("", ""))


def test_features_that_differ_most_come_first(loans: FeatureSchema) -> None:
    rows = pictures.changed_features(loans, [150_000, 40, 0.5, 12], [50_000, 31, 0.5, 12])
    assert [(row.name, row.difference) for row in rows] == [("income", 100_000), ("age", 9)]
    assert rows[0].spread == pytest.approx(0.5)
    assert pictures.changed_features(loans, [1, 2], [1, 2, 3]) == []
    assert pictures.changed_features(None, [1, 2], [1, 3])[0].name == "feature 1"


def test_traffic_marks_minutes_with_tickets_and_pages() -> None:
    plot = plots.traffic([Minute(0, 10), Minute(1, 20, tickets=1), Minute(2, 5, tickets=2, pages=1)])
    assert plot.count('class="rows"') == 2
    assert plot.count("under-way") == 1
    assert plot.count('class="ticket"') == plot.count('class="page"') == 1
    assert "00:02:00 UTC: 5 rows so far, 2 tickets, 1 page" in plot
    assert plots.traffic([Minute(0)]).count("<rect") == 2


@given(st.lists(st.tuples(st.floats(), st.floats(), st.integers(0, 2**60)), max_size=20))
@settings(max_examples=200, deadline=None)
def test_timeline_draws_whatever_statistics_come(values: list[tuple[float, float, int]]) -> None:
    plot = plots.timeline([signal(statistic=a, threshold=b, time=when) for a, b, when in values])
    assert "nan" not in plot
    assert not re.search(r"\binf\b", plot)


def signal(**changes: Any) -> Any:
    import msgspec

    from streams.store.messages import SignalMessage

    plain = SignalMessage(
        id="1", model="m", topic="t", partition=0, offset=0, row=0, time=1, at=1, rule="query-cluster", level="ticket",
        technique="AML.T0043", entity="client", entity_id="a", statistic=1, threshold=1, reasons=[], members=[],
        clients=[], input=[], nearest=[], label=0, nearest_label=0, measures={}, bundle="",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


@given(st.floats(), st.floats(), st.floats())
def test_interval_stays_on_its_scale(low: float, value: float, high: float) -> None:
    plot = plots.interval(low, value, high, 0.8)
    assert all(0 <= float(x) <= 120 for x in re.findall(r' (?:x|cx|x1|x2)="([^"]+)"', plot))


def test_exhibits_are_what_explains_most_each_once() -> None:
    first, second, page, last = (signal(id=str(i), statistic=s, level=v) for i, (s, v) in enumerate(
        [(1.0, "ticket"), (9.0, "ticket"), (2.0, "page"), (3.0, "page")]
    ))  # fmt: skip
    found = chosen([last, page, second, first])
    assert [(title, one.id) for title, one in found] == [
        ("What made it a page", "2"),
        ("The newest signal", "3"),
        ("The strongest signal", "1"),
    ]
    assert [title for title, _ in chosen([first])] == ["The newest signal"]
    assert chosen([]) == []


def test_words_of_pvalues() -> None:
    assert words.odds(ReasonMessage("x", 0.02, "")) == "1 in 50 benign inputs looks as odd"
    assert words.odds(ReasonMessage("x", 0.0002, "", extrapolated=True)).startswith("about 1 in 5,000 benign inputs")
    assert words.odds(ReasonMessage("x", 0.0, "")) == "rarer than any benign input seen"
    assert words.odds(ReasonMessage("x", 0.9, "")) == "nothing unusual"
    assert words.odds(ReasonMessage("intent", 0.01, "")) == "its parts stand below"


#: How a wide cluster spreads.
SPREAD = {"touched": 40.0, "gate": 40.0, "wide_share": 1.0, "moved": 9.0, "cut_links": 0.0, "design": 0.0}


def told(said: dict[str, float]) -> dict[str, words.Measure]:
    return {part.name: part for part in words.measures(said)}


def test_measures_say_what_a_page_needs() -> None:
    found = told({**SPREAD, "touched": 5.0, "size": 16.0, "following": -1.8, "page": 1.0, "new": 2.0})
    shape = ["Features", "Width", "Wide queries", "Moved for good", "Two-valued"]
    assert list(found) == ["Queries", *shape, "Boundary following", "new"]
    assert (found["Queries"].met, found["Features"].met, found["Boundary following"].met) == (True, False, True)
    assert found["Boundary following"].value == "−1.80"
    assert "6 times nearer" in found["Boundary following"].text
    assert words.measures({"progress": float("nan")})[0].value == "–"
    found = told({**SPREAD, "progress": 4.0, "bisection": -2.5, "score": 1.0, "needed": 1.25})
    assert not found["Progress"].met
    assert "not counted" in found["Progress"].text
    assert (found["Sum"].needed, found["Sum"].met) == ("at least 1.25", False)
    assert told({**SPREAD, "progress": 3.5, "bisection": -2.5, "score": 2.1})["Progress"].met


def test_a_site_that_asks_for_more_says_so_of_every_part() -> None:
    said = {"progress": 4.0, "following": -2.5, "bisection": -2.0, "by_scores": 3.4, "by_answers": 1.0}
    said["halvings"] = 4.0
    said |= {**SPREAD, "score": 4.5, "needed": 1.0, "asked": 1.44}
    parts = {name: part for name, part in told(said).items() if name not in told(SPREAD)}
    assert {name: (part.needed, part.met) for name, part in parts.items()} == {
        "Progress": ("4.1 alone is enough", False),
        "Boundary following": ("−2.0 alone is enough", True),
        "Bisection": ("−3.0 alone is enough", False),
        "Halvings": ("3.6 alone is enough", True),
        "Feedback of scores": ("3.6 alone is enough", False),
        "Feedback of answers": ("3.6 alone is enough", False),
        "Sum": ("at least 1.44", True),
    }
    more = told({**said, "asked": 2.25})
    assert {more[name].needed for name in parts if name != "Sum"} == {"not enough alone"}
    assert more["Sum"].needed == "at least 2.25"


def test_parts_that_do_not_count_of_a_cluster_say_so() -> None:
    said = {
        **SPREAD,
        "moved": 2.0,
        "gate": 4.0,
        "wide_share": 0.1,
        "following": -9.0,
        "by_scores": 9.0,
        "progress": 5.0,
    }
    narrow = told(said)
    assert (narrow["Moved for good"].needed, narrow["Moved for good"].met) == ("at least 3", False)
    assert "narrow" in narrow["Wide queries"].text
    assert {narrow[name].needed for name in ("Boundary following", "Feedback of scores")} == {"not counted here"}
    assert "too little" not in narrow["Progress"].text
    moved = told({**said, "moved": 3.0})
    assert (moved["Feedback of scores"].met, moved["Boundary following"].met) == (True, None)
    design = told({**said, "gate": 40.0, "wide_share": 1.0, "design": 1.0})
    assert "explainer" in design["Two-valued"].text
    assert (design["Feedback of scores"].needed, design["Boundary following"].needed) == (
        "3.5 alone is enough",
        "not counted here",
    )


def test_what_another_release_has_judged_is_not_held_against_todays_scales() -> None:
    said = {
        "size": 24.0,
        "gate": 4.0,
        "wide_share": 0.9,
        "progress": 3.0,
        "bisection": -1.4,
        "score": 2.49,
        "page": 1.0,
    }
    found = told(said)
    assert {found[name].needed for name in ("Width", "Wide queries", "Progress", "Bisection")} == {""}
    assert {found[name].met for name in ("Width", "Wide queries", "Progress", "Bisection")} == {None}
    assert found["Sum"].met


def test_atlas_links_only_for_techniques() -> None:
    assert words.atlas_link("AML.T0043.001") == "https://atlas.mitre.org/techniques/AML.T0043.001"
    assert words.atlas_link("AML.T0015") == "https://atlas.mitre.org/techniques/AML.T0015"
    for name in ("monitoring-blind", "AML.T0043/../x", "AML.Tx", "javascript:1", "AML.T0043.001.2"):
        assert words.atlas_link(name) == ""


def test_short_words() -> None:
    assert spans([3, 0, 1, 2, 7]) == "0-3, 7"
    assert spans([]) == ""
    assert words.moment(0) == "1970-01-01T00:00:00Z"
    assert words.moment(10**19) == "9999-12-31T23:59:59Z"
    assert words.duration(90_000_000) == "90 seconds"
    assert words.duration(1_000_000) == "1 second"
    assert words.figure(None) == words.figure(float("nan")) == "–"
    assert words.figure(1234.5) == "1,234"
    assert words.class_name(["a"], 3) == "class 3"
