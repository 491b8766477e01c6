"""Dashboard and alerting rules speak of metrics that really exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from redis import Redis

from streams.config import DestinationSettings, IngestSettings, ModelSettings, NotifySettings
from streams.ingest.service import Ingest
from streams.store.messages import CalibrationStatus
from streams.worker.metrics import Metrics, Standing, render
from tests.streams.console.conftest import scene, serve

__all__ = ["scene", "serve"]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "vedette.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "vedette.json"
_SERIES = re.compile(r"(vedette_[a-z_]+)(?:\{([^}]*)\})?")
#: Labels that Prometheus adds when it scrapes.
SCRAPED = {"instance", "job"}


@pytest.fixture
def known(
    scene: Any, serve: Callable[..., Any], redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, set[str]]:
    """Metric -> its labels, as a console, a worker and an ingest really tell them."""
    bundle = tmp_path / "bundle"
    bundle.touch()
    redis.hset(scene.keys.bundle, "path", str(bundle))
    monkeypatch.setattr("streams.console.budgets.read_report", lambda _: SimpleNamespace(budget=1))
    scene.worker()
    scene.traffic()
    scene.probe()
    scene.attack()
    redis.xgroup_create(scene.keys.alerts, "siem", id="0")
    watched = CalibrationStatus(bundle="b", since=0, at=0, risk=0.04, ticket_limit=9)
    redis.hset(scene.keys.calibration, "m", msgspec.json.encode(watched))
    told = NotifySettings(destinations=(DestinationSettings(name="oncall", kind="pagerduty"),))
    metrics = Metrics()
    metrics.dead["width"] = 1
    metrics.signals["query-intent", "page"] = 1
    texts = (
        serve(notify=told).get("/metrics").text,
        render("digits", metrics, Standing({0: 3}, {0: 9}, True, True)),
        Ingest(IngestSettings(), ModelSettings(name="digits", topic="t", bundle="b")).metrics(),
    )
    found: dict[str, set[str]] = {}
    for line in "\n".join(texts).splitlines():
        if not line.startswith("#"):
            name, _, labels = line.partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def expressions() -> list[str]:
    """Every expression of the rules and of the dashboard."""
    yaml = pytest.importorskip("yaml")
    rules = yaml.safe_load(RULES.read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return found + [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_metric_and_label_exists(known: dict[str, set[str]]) -> None:
    for expression in expressions():
        used = _SERIES.findall(expression)
        assert used, expression
        for name, matchers in used:
            assert name in known, f"no metric {name}"
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                assert label in known[name], f"{name} has no label {label}"
        labels = {label for names in re.findall(r"\bby \(([^)]*)\)", expression) for label in names.split(", ")}
        assert labels <= set().union(*(known[name] for name, _ in used)) | SCRAPED


def test_every_metric_that_is_told_is_documented(known: dict[str, set[str]]) -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text()
    for name in known:
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert family in text, f"docs/operations.md says nothing of {family}"


def test_every_rule_says_what_to_do() -> None:
    yaml = pytest.importorskip("yaml")
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_panels_have_names_places_and_numbers_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24


def test_promtool_accepts_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's prometheus) is not installed")
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(RULES.with_name("vedette.test.yml"))]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
