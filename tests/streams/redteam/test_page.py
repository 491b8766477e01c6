"""The HTML report: complete, self-contained, and safe with names that strangers chose."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from streams.cli import invoke
from streams.redteam import charts
from tests.streams.redteam.conftest import Little

ATTACKS = "square,hop_skip_jump,pgd"


def written(*more: str) -> str:
    base = ["redteam", "run", "--model", "little:model", "--data", "little.npz", "--schema", "little.json"]
    base += ["--threat", "image-linf-white-box", "--eps", "0.15", "--rows", "30", "--budget", "60"]
    assert invoke([*base, "--report", "out", "--attacks", ATTACKS, *more]) == 0
    return Path("out/report.html").read_text()


def test_the_page_needs_nothing_but_itself(little: Little) -> None:
    page = written()
    assert "<script" not in page
    assert not re.search(r'(?:src|href)\s*=\s*"(?!data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_headline_and_every_attack_stand_on_the_page_with_intervals(little: Little) -> None:
    page = written()
    told = json.loads(Path("out/report.json").read_text())
    for share in (told["robust_accuracy"], *(one["fooled"] for one in told["attacks"])):
        assert f"{share['value']:.1%}" in page
        assert f"{share['low']:.1%} to {share['high']:.1%}" in page
    for name in ATTACKS.split(","):
        assert page.count(name) >= 3
    assert "Queries to success" in page
    assert "Features changed most" in page
    assert "<td>f0</td>" in page  # one of the two features that the model looks at


def test_pictures_stand_on_the_page_where_rows_are_pictures(little: Little) -> None:
    schema = json.loads(Path("little.json").read_text())
    Path("little.json").write_text(json.dumps({**schema, "image_shape": [2, 3]}))
    page = written()
    assert page.count('src="data:image/png;base64,') >= 6
    assert "Features changed most" not in page


def test_names_of_strangers_are_text(little: Little) -> None:
    schema = json.loads(Path("little.json").read_text())
    schema["features"][0]["name"] = "<script>alert(1)</script>"
    schema["classes"] = ["<b>no</b>", "yes"]
    Path("little.json").write_text(json.dumps(schema))
    page = written()
    assert "<script" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page


@pytest.mark.parametrize("most", [1e-9, 0.1, 3.0, 784.0])
def test_ticks_are_few_and_round(most: float) -> None:
    found = charts.ticks(0.0, most, False)
    assert 3 <= len(found) <= 7
    assert found[0] == 0.0
    assert found[-1] <= most * (1 + 1e-9)


@pytest.mark.browser
def test_chromium_shows_the_page_without_complaint(little: Little) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    from playwright.sync_api import sync_playwright

    schema = json.loads(Path("little.json").read_text())
    for feature in schema["features"]:
        feature["name"] = f"a_rather_long_name_of_a_feature_called_{feature['name']}"
    Path("little.json").write_text(json.dumps(schema))
    written()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 900, "height": 900})
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(Path("out/report.html").resolve().as_uri())
            assert page.locator("svg.plot").count() >= 5
            assert page.locator("svg.plot").first.bounding_box()["height"] > 200  # type: ignore[index]
            assert page.evaluate("document.documentElement.scrollWidth") <= 900
            wide = "[...document.querySelectorAll('figure')].filter(f => f.scrollWidth > f.clientWidth).length"
            assert page.evaluate(wide) == 0
            assert complaints == []
        finally:
            browser.close()
