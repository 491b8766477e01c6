"""Every page on a wide screen in light and dark and on a phone; with VEDETTE_SCREENSHOTS=docs/images, its pictures.

The scene is filled through Redis, so that pages show hours of history without hours of running.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from playwright.sync_api import Page, expect
from redis import Redis
from sklearn.datasets import load_digits

from streams.topics import DEAD_SUFFIX
from tests.e2e.conftest import MODEL
from tests.streams.console.conftest import Scene

pytestmark = pytest.mark.browser

Visit = Callable[..., Page]

ACCESSIBILITY = (Path(__file__).parents[1] / "streams" / "console" / "accessibility.js").read_text(encoding="utf-8")
PAGES = (
    "live",
    "incidents",
    "incident",
    "silences",
    "repeaters",
    "probes",
    "detectors",
    "accounting",
    "dead-letters",
    "login",
)
TOKEN = "a token of more than sixteen characters"


@pytest.mark.parametrize(
    ("kind", "scheme", "width"), [("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)]
)
def test_every_page_fits_the_screen_and_can_be_read_by_all(
    redis: Redis,
    kafka: str,
    topic: Callable[..., str],
    serve: Callable[..., Any],
    visit: Visit,
    pictures_directory: Path | None,
    kind: str,
    scheme: str,
    width: int,
) -> None:
    events = topic(1)
    scene = Scene(redis, topic=events)
    walk(kafka, events, records=60)
    scene._offsets[0] = 40
    scene.worker()
    scene.worker("a-very-long-host-name.of-a-cluster.example.internal:12345:abcdef", (2, 3))
    scene.traffic()
    scene.probe()
    scene.probe("hop_skip_jump", "campaign", n=9, units=9, detected=6, recall=0.66, low=0.35, high=0.88)
    scene.probe("control_direct", "control", n=30, units=30, detected=0, recall=0.0, low=0.0, high=0.11)
    scene.attack("77aa000000000001", page=False, bundle="b" * 300)
    scene.history()
    scene.silence()
    scene.repeaters()
    name = scene.attack()
    served, guarded = serve(kafka=kafka, topic=events), serve(token=TOKEN)
    page = visit(served.url, color_scheme=scheme, viewport={"width": width, "height": 844})
    expect(page.locator("#pulse")).to_have_class("pulse live")
    for title in PAGES:
        path = {"live": "/", "incident": f"/incidents/{name}"}.get(title, f"/{title}")
        page.goto((guarded if title == "login" else served).url + path)
        if title == "incident":
            expect(page.locator("#queries svg.plane circle").first).to_be_visible(timeout=60_000)  # read from Kafka
        assert page.evaluate("document.documentElement.scrollWidth") <= width, title
        assert page.evaluate(ACCESSIBILITY) == [], title
        if pictures_directory is not None:
            picture = pictures_directory / f"console-{title}-{kind}.png"
            page.screenshot(path=picture, full_page=True)
            _in_few_colours(picture)


def walk(kafka: str, topic: str, records: int) -> None:
    """Events of a client that walks along the boundary between two digits, and dead letters of some kinds."""
    rng = np.random.default_rng(5)
    pixels, truth = load_digits(return_X_y=True)
    three, eight = pixels[truth == 3][0], pixels[truth == 8][0]
    producer = KafkaProducer(bootstrap_servers=kafka)
    for number in range(records):
        share = 0.5 + 0.5 * (0.8**number) * (-1) ** number + 0.02 * rng.standard_normal()
        inputs = np.clip(share * three + (1 - share) * eight + 0.4 * rng.standard_normal(64), 0, 16)
        outputs = [0.0] * 10
        outputs[3], outputs[8] = float(np.clip(share, 0, 1)), float(np.clip(1 - share, 0, 1))
        event = {"id": f"r{number}", "model": MODEL, "inputs": inputs.round(3).tolist(), "outputs": outputs}
        producer.send(topic, json.dumps(event).encode(), key=b"guest")
    for place, (reason, detail, value) in enumerate(
        (
            ("width", "63 inputs where the schema has 64", b'{"id": "r7", "model": "digits", "inputs": [0.0, 0.0, 5.0'),
            ("unreadable", "not JSON: unexpected end", b'{"id": "r9", "inputs": [0.0, 1.'),
            ("model", "another model: 'loans'", b'{"id": "r12", "model": "loans", "inputs": [1.0]}'),
        )
    ):
        headers = {
            "vedette-source": f"{topic}/0/{place}",
            "vedette-rows": "*",
            "vedette-reason": reason,
            "vedette-detail": detail,
        }
        told = [(name, text.encode()) for name, text in headers.items()]
        producer.send(topic + DEAD_SUFFIX, value, headers=told)
    producer.flush()
    producer.close()


def _in_few_colours(picture: Path) -> None:
    """A quarter of the bytes for the same to the eye, where Pillow is there (the extra `bench` brings it)."""
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(picture) as full:
        few = full.convert("RGB").quantize(96, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)
