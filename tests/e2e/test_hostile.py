"""Texts that only our own processes write run nothing either: Redis may be shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from redis import Redis

from streams.incidents.service import IncidentService
from streams.store.messages import ReasonMessage
from tests.e2e.conftest import HOSTILE, MODEL, nothing_ran

pytestmark = pytest.mark.browser

Visit = Callable[..., Page]


def test_a_hostile_detector_or_prober_runs_nothing_either(
    scene: Any, serve: Callable[..., Any], visit: Visit, redis: Redis
) -> None:
    """Texts that only our own processes write; Redis may be shared."""
    scene.worker(HOSTILE, bundle=HOSTILE)
    scene.probe(HOSTILE, threat=HOSTILE)
    scene.signal(
        rule=HOSTILE, technique=HOSTILE, entity_id=HOSTILE, clients=[HOSTILE], bundle=HOSTILE, topic="events",
        reasons=[ReasonMessage(detector=HOSTILE, p=0.1, text=HOSTILE)], measures={HOSTILE: 1.0},
    )  # fmt: skip
    (name,) = scene.correlate()
    IncidentService(redis, MODEL).acknowledge(name, HOSTILE[:80])
    served = serve()
    page = visit(served.url)
    expect(page.locator(f"tr[data-key='{name}']")).to_contain_text("<img src=x onerror=")
    for path in ("/", f"/incidents/{name}", "/incidents?state=all", "/probes", "/detectors", "/accounting"):
        page.goto(served.url + path)
        assert nothing_ran(page), path
