"""Every page on a wide screen in light and dark and on a phone; with VEDETTE_SCREENSHOTS=docs/images, its pictures.

The scene is filled through Redis, so that pages show hours of history without hours of running.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

Visit = Callable[..., Page]

ACCESSIBILITY = (Path(__file__).parents[1] / "streams" / "console" / "accessibility.js").read_text(encoding="utf-8")
PAGES = ("live", "incidents", "incident", "silences", "probes", "detectors", "accounting", "dead-letters", "login")
TOKEN = "a token of more than sixteen characters"


@pytest.mark.parametrize(
    ("kind", "scheme", "width"), [("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)]
)
def test_every_page_fits_the_screen_and_can_be_read_by_all(
    scene: Any,
    serve: Callable[..., Any],
    visit: Visit,
    pictures_directory: Path | None,
    kind: str,
    scheme: str,
    width: int,
) -> None:
    scene.worker()
    scene.worker("a-very-long-host-name.of-a-cluster.example.internal:12345:abcdef", (2, 3))
    scene.traffic()
    scene.probe()
    scene.probe("hop_skip_jump", "campaign", n=9, units=9, detected=6, recall=0.66, low=0.35, high=0.88)
    scene.probe("control_direct", "control", n=30, units=30, detected=0, recall=0.0, low=0.0, high=0.11)
    scene.attack("77aa000000000001", page=False, bundle="b" * 300)
    scene.history()
    scene.silence()
    name = scene.attack()
    served, guarded = serve(), serve(token=TOKEN)
    page = visit(served.url, color_scheme=scheme, viewport={"width": width, "height": 844})
    expect(page.locator("#pulse")).to_have_class("pulse live")
    for title in PAGES:
        path = {"live": "/", "incident": f"/incidents/{name}"}.get(title, f"/{title}")
        page.goto((guarded if title == "login" else served).url + path)
        if title == "incident":
            expect(page.locator("#queries svg.plane circle").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, title
        assert page.evaluate(ACCESSIBILITY) == [], title
        if pictures_directory is not None:
            page.screenshot(path=pictures_directory / f"console-{title}-{kind}.png", full_page=True)
