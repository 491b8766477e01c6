"""Export of judged queries: what has none, and what expires meanwhile, stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from detectors.schema import FeatureSchema
from streams.config import ModelSettings, Settings
from streams.errors import ConfigError, UnknownIncident
from streams.incidents import export as exports
from streams.incidents.correlator import Correlator
from streams.incidents.monitoring import open_blind, resolve_blind
from streams.incidents.service import IncidentService, IncidentView
from streams.lease import Lease
from streams.store.keys import ModelKeys
from tests.streams.incidents.conftest import SignalFactory

KEYS = ModelKeys("digits")
MODEL = ModelSettings(name="digits", topic="events", bundle="none")


class Expiring(IncidentService):
    """Every incident is forgotten between the list and the look."""

    asked = 0

    def show(self, incident: str) -> IncidentView:
        self.asked += 1
        raise UnknownIncident(f"no incident {incident!r}; it may have expired")


def test_monitoring_is_passed_over_and_what_expired_stops_nothing(
    redis: Redis, make_signal: SignalFactory, send: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_schema", lambda _: FeatureSchema.image((1, 2), ["0", "1"]))
    open_blind(redis, KEYS, "no probe was seen", 1)
    resolve_blind(redis, KEYS, 2)
    service = Expiring(redis, "digits")
    settings = Settings(models=(MODEL,))
    with pytest.raises(ConfigError, match="has queries to export"):
        exports.export(settings, MODEL, service, "true", tmp_path / "out.parquet", "none")
    assert service.asked == 0, "monitoring holds no queries"

    lease = Lease(redis, KEYS, "correlator", seconds=60)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease)
    assert callable(send)
    send(make_signal(30))
    correlator.load()
    assert correlator.step(1) == 1
    (incident,) = service.list("open")
    service.resolve(incident.id, "somebody", "true")
    with pytest.raises(ConfigError, match="has queries to export"):
        exports.export(settings, MODEL, service, "true", tmp_path / "out.parquet", "none")
    assert service.asked == 1
