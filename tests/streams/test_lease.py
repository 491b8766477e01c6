from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from streams.lease import Lease
from streams.store.keys import ModelKeys

KEYS = ModelKeys("digits")
WaitUntil = Callable[..., object]


def test_second_process_stands_by_until_release(redis: Redis) -> None:
    first, second = Lease(redis, KEYS, "correlator"), Lease(redis, KEYS, "correlator")
    assert first.acquire()
    assert not second.acquire()
    assert second.token is None
    first.release()
    assert second.acquire()
    assert second.token == 2


def test_standby_takes_over_when_the_holder_falls_silent(redis: Redis, wait_until: WaitUntil) -> None:
    first = Lease(redis, KEYS, "correlator", seconds=0.2)
    second = Lease(redis, KEYS, "correlator", seconds=0.2)
    assert first.acquire()
    wait_until(second.acquire, 2.0, "the standby to take over")
    assert not first.renew()
    assert first.token is None
    assert redis.hget(KEYS.lease("correlator"), "holder") == second.holder.encode()


def test_late_holder_keeps_a_lease_that_nobody_took(redis: Redis, wait_until: WaitUntil) -> None:
    lease = Lease(redis, KEYS, "correlator", seconds=0.05)
    assert lease.acquire()
    wait_until(lambda: not redis.exists(KEYS.lease("correlator")), 2.0, "the lease to expire")
    assert lease.renew()
    assert redis.hget(KEYS.lease("correlator"), "token") == b"1"


def test_release_by_a_fenced_holder_takes_nothing_away(redis: Redis) -> None:
    first, second = Lease(redis, KEYS, "prober"), Lease(redis, KEYS, "prober")
    assert first.acquire()
    redis.delete(KEYS.lease("prober"))
    assert second.acquire()
    first.release()
    assert redis.hget(KEYS.lease("prober"), "holder") == second.holder.encode()


def test_holder_whose_reply_was_lost_gets_its_token_again(redis: Redis) -> None:
    lease = Lease(redis, KEYS, "correlator")
    assert lease.acquire()
    token = lease.token
    lease.drop()
    assert lease.acquire()
    assert lease.token == token


@pytest.mark.parametrize("other", ["prober", "trainer"])
def test_roles_have_leases_of_their_own(redis: Redis, other: str) -> None:
    assert Lease(redis, KEYS, "correlator").acquire()
    assert Lease(redis, KEYS, other).acquire()  # type: ignore[arg-type]  # the parameter is one of the roles


def test_kept_lease_outlives_its_time_and_tells_of_its_loss(redis: Redis, wait_until: WaitUntil) -> None:
    lease = Lease(redis, KEYS, "prober", seconds=0.2)
    assert lease.acquire()
    renewals = []
    renew = lease.renew

    def counted() -> bool:
        renewals.append(renew())
        return renewals[-1]

    lease.renew = counted  # type: ignore[method-assign]  # to see that the thread renews
    with lease.kept() as lost:
        wait_until(lambda: len(renewals) > 8, 5.0, "the thread to renew for twice the time to live")
        assert not lost.is_set()
        redis.incr(KEYS.fence("prober"))
        assert lost.wait(5.0)
