from __future__ import annotations

import msgspec
import pytest
from redis import Redis

from streams.errors import Fenced
from streams.incidents.monitoring import open_blind, resolve_blind
from streams.lease import Lease
from streams.store.keys import ModelKeys
from streams.store.messages import Alert

KEYS = ModelKeys("digits")


def changes(redis: Redis) -> list[str]:
    return [msgspec.json.decode(fields[b"m"], type=Alert).change for _, fields in redis.xrange(KEYS.alerts)]


def test_blind_is_one_incident_until_it_is_resolved(redis: Redis) -> None:
    first = open_blind(redis, KEYS, "recall of transfer_pgd is 0.40", 1_000)
    second = open_blind(redis, KEYS, "recall of transfer_pgd is 0.20", 2_000)
    assert first.id == second.id
    assert (second.title, second.level) == ("Monitoring is blind: recall of transfer_pgd is 0.20", "page")
    assert [change.what for change in second.history][-1] == "recall of transfer_pgd is 0.20"
    assert changes(redis) == ["opened"]
    closed = resolve_blind(redis, KEYS, 3_000)
    assert closed is not None
    assert (closed.state, closed.resolved_at) == ("resolved", 3_000)
    assert resolve_blind(redis, KEYS, 4_000) is None
    third = open_blind(redis, KEYS, "no verdicts", 5_000)
    assert third.id != first.id
    assert changes(redis) == ["opened", "resolved", "opened"]


def test_same_reason_again_adds_no_history(redis: Redis) -> None:
    for now in (1, 2, 3):
        incident = open_blind(redis, KEYS, "no verdicts", now)
    assert len(incident.history) == 1
    assert (incident.last_seen, incident.signals) == (3, 3)


def test_fenced_prober_says_nothing(redis: Redis) -> None:
    lease = Lease(redis, KEYS, "prober")
    assert lease.acquire()
    open_blind(redis, KEYS, "no verdicts", 1, token=lease.token)
    redis.incr(KEYS.fence("prober"))
    with pytest.raises(Fenced):
        open_blind(redis, KEYS, "no verdicts", 2, token=lease.token)
    with pytest.raises(Fenced):
        resolve_blind(redis, KEYS, 2, token=lease.token)
    assert changes(redis) == ["opened"]
