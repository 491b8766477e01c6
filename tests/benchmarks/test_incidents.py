"""The incident benchmark, a tenth of it: one campaign is a handful of incidents, and every page is timed."""

from __future__ import annotations

import json

import pytest

from benchmarks import incidents


def test_a_tenth_of_the_benchmark_groups_a_campaign_and_times_pages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS", raising=False)
    assert incidents.main(["--quick", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["context"]["clients"] == 1_000
    assert said["context"]["incidents"] >= 1_000
    assert said["context"]["alerts"] >= 100_000
    assert said["open_incidents"] >= 2
    assert said["page_alerts"] >= 1
    assert said["notifications"] >= 1
    counts = {"open_incidents", "page_alerts", "notifications"}
    times = {"list_p95_ms", "live_p95_ms", "incident_p95_ms", "api_list_p95_ms"}
    assert {target["figure"] for target in said["targets"]} == counts | times
    assert all(target["met"] for target in said["targets"] if target["figure"] in counts)
    assert all(said[name] > 0 for name in times)


def test_an_occupied_database_is_left_alone(redis_url: str, redis: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from redis import Redis

    client = Redis.from_url(redis_url)
    client.set("somebody's", "key")
    monkeypatch.setenv("REDIS", redis_url)
    with pytest.raises(SystemExit, match="is not empty"):
        incidents.main(["--quick"])
    assert client.get("somebody's") == b"key"
    client.close()
