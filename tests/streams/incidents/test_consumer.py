"""The client for alert consumers on real Redis: at least once, each with a stable id, nothing lost without a word."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from streams import embedded
from streams.errors import ConfigError
from streams.incidents import AlertConsumer, Delivery
from streams.incidents.correlator import Correlator
from streams.incidents.service import IncidentService
from streams.lease import Lease
from streams.store.keys import ModelKeys
from streams.store.messages import Alert, SignalMessage

SignalFactory = Callable[..., SignalMessage]
Send = Callable[[SignalMessage], None]
WaitUntil = Callable[..., Any]
KEYS = ModelKeys("digits")


def alert(number: int, **changes: Any) -> Alert:
    plain = Alert(
        id=f"{number // 4:016x}#{number % 4 + 1}", incident=f"{number // 4:016x}", model="digits", change="opened",
        level="page", state="new", technique="AML.T0043.001", entity="client", entity_id="a", title="Evasion",
        first_seen=1, last_seen=2, at=3,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def publish(redis: Redis, *alerts: Alert) -> list[str]:
    return [redis.xadd(KEYS.alerts, {"m": msgspec.json.encode(each)}).decode() for each in alerts]


def consumer(redis: Redis, name: str = "one", **options: Any) -> AlertConsumer:
    return AlertConsumer(
        redis, "digits", "ticketing", consumer=name, **{"start": "beginning", "block_seconds": 0.05, **options}
    )


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.alert.id for delivery in deliveries]


def test_what_the_correlator_and_people_do_is_delivered_in_order(
    redis: Redis, make_signal: SignalFactory, send: Send
) -> None:
    lease = Lease(redis, KEYS, "correlator", seconds=60)
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease)
    for offset in range(3):
        send(make_signal(offset))
    send(make_signal(3, rule="query-intent", level="page"))
    correlator.load()
    while correlator.step(1):
        continue
    name = redis.zrange(KEYS.incidents, 0, 0)[0].decode()
    desk = IncidentService(redis, "digits")
    desk.acknowledge(name, "ada")
    desk.resolve(name, "ada", "true")
    one = consumer(redis)
    deliveries = one.poll()
    assert [(each.alert.change, each.alert.level, each.deliveries) for each in deliveries] == [
        ("opened", "ticket", 1),
        ("raised", "page", 1),
        ("acknowledged", "page", 1),
        ("resolved", "page", 1),
    ]
    assert len(set(ids(deliveries))) == 4
    assert one.acknowledge(*deliveries) == 4
    assert one.acknowledge(*deliveries) == 0
    assert one.poll() == []
    assert one.lag().pending == 0


def test_a_group_begins_where_it_is_told(redis: Redis) -> None:
    publish(redis, alert(0))
    late = AlertConsumer(redis, "digits", "late", block_seconds=0.05)
    assert late.poll() == []
    publish(redis, alert(1))
    assert ids(late.poll()) == [alert(1).id]
    early = AlertConsumer(redis, "digits", "early", start="beginning", block_seconds=0.05)
    assert ids(early.poll()) == [alert(0).id, alert(1).id]


def test_consumers_of_a_group_share_and_groups_do_not(redis: Redis) -> None:
    publish(redis, *(alert(number) for number in range(20)))
    one, two = consumer(redis, "one", batch=7), consumer(redis, "two", batch=7)
    got = [ids(one.poll()), ids(two.poll()), ids(one.poll()), ids(two.poll())]
    assert sorted(name for part in got for name in part) == sorted(alert(number).id for number in range(20))
    other = AlertConsumer(redis, "digits", "siem", start="beginning", block_seconds=0.05)
    assert len(other.poll()) == 20


def test_restart_under_the_old_name_gets_at_once_what_was_left(redis: Redis) -> None:
    publish(redis, *(alert(number) for number in range(5)))
    before = consumer(redis)
    first, second, *_ = before.poll()
    before.acknowledge(first)
    after = consumer(redis, batch=2)
    again = after.poll() + after.poll()
    assert ids(again) == [alert(number).id for number in range(1, 5)]
    assert {each.deliveries for each in again} == {2}
    after.acknowledge(*again)
    assert after.poll() == []
    publish(redis, alert(9))
    assert ids(after.poll()) == [alert(9).id]
    assert second.alert.id == again[0].alert.id


def test_the_dead_are_taken_over_and_the_living_are_not(redis: Redis, wait_until: WaitUntil) -> None:
    publish(redis, alert(0), alert(1))
    dead = consumer(redis, "dead", batch=1)
    assert ids(dead.poll()) == [alert(0).id]
    living = consumer(redis, "living", batch=1, reclaim_seconds=0.4)
    (mine,) = living.poll()
    assert mine.alert.id == alert(1).id
    until = time.monotonic() + 30
    taken: list[Delivery] = []
    while not taken and time.monotonic() < until:
        living.extend(mine)
        taken = living.poll()
    assert [(each.alert.id, each.deliveries) for each in taken] == [(alert(0).id, 2)]
    living.acknowledge(*taken, mine)
    assert living.lag().pending == 0


def test_an_alert_that_nobody_can_handle_becomes_a_dead_letter(redis: Redis) -> None:
    (entry,) = publish(redis, alert(0))
    publish(redis, alert(1))
    seen: Counter[str] = Counter()
    for _ in range(10):
        one = consumer(redis, max_deliveries=3)
        for delivery in one.poll():
            seen[delivery.alert.id] += 1
            assert delivery.deliveries == seen[delivery.alert.id]
            if delivery.alert.id != alert(0).id:
                one.acknowledge(delivery)
    assert seen == {alert(0).id: 3, alert(1).id: 1}
    (dead,) = one.dead_letters()
    assert (dead.entry, dead.deliveries) == (entry, 3)
    assert dead.reason == "not acknowledged after 3 deliveries"
    assert msgspec.json.decode(dead.body, type=Alert) == alert(0)
    assert one.lag().pending == 0


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_alert_that_kills_its_consumer_takes_no_other_along(redis: Redis, most: int) -> None:
    publish(redis, *(alert(number) for number in range(8)))
    deadly, handled = alert(3).id, Counter[str]()
    for _ in range(most + 1):
        one = consumer(redis, max_deliveries=most, block_seconds=0.01)
        while deliveries := one.poll():
            for delivery in deliveries:
                if delivery.alert.id == deadly:
                    break
                handled[delivery.alert.id] += 1
                one.acknowledge(delivery)
            else:
                continue
            break
    assert handled == {alert(number).id: 1 for number in range(8) if number != 3}
    (dead,) = one.dead_letters()
    assert msgspec.json.decode(dead.body, type=Alert).id == deadly and dead.deliveries == most
    assert one.lag().pending == 0


def test_what_is_no_alert_becomes_a_dead_letter_and_stops_nothing(redis: Redis) -> None:
    for body in (b"", b"\xff\xfe", b"[1]", b'{"id": 3}'):
        redis.xadd(KEYS.alerts, {"m": body})
    redis.xadd(KEYS.alerts, {"other": "field"})
    publish(redis, alert(7))
    one = consumer(redis)
    assert ids(one.poll()) == [alert(7).id]
    dead = one.dead_letters()
    assert len(dead) == 5
    assert all(each.reason.startswith("cannot be read: ") for each in dead)
    assert one.lag().pending == 1


def test_a_responder_can_give_up_at_once(redis: Redis) -> None:
    publish(redis, alert(0))
    one = consumer(redis)
    (delivery,) = one.poll()
    assert one.give_up(delivery, "no such customer")
    assert not one.give_up(delivery, "no such customer")
    assert one.acknowledge(delivery) == 0
    assert [each.reason for each in one.dead_letters()] == ["no such customer"]


def test_loss_by_trimming_is_told_to_the_group_that_lost(redis: Redis) -> None:
    notice = alert(3, change="trimmed-from", entity="consumer-group", entity_id="ticketing", incident="")
    publish(redis, notice, msgspec.structs.replace(notice, entity_id="siem"), alert(0))
    one = consumer(redis)
    first, second = one.poll()
    assert (first.alert.change, second.alert.id) == ("trimmed-from", alert(0).id)
    assert one.lag().pending == 2  # the other group's notice is done with


def test_pending_alerts_that_were_trimmed_do_not_stay_pending(redis: Redis) -> None:
    publish(redis, alert(0), alert(1))
    assert len(consumer(redis).poll()) == 2
    redis.xtrim(KEYS.alerts, maxlen=1, approximate=False)
    again = consumer(redis)
    assert ids(again.poll()) == [alert(1).id]
    assert again.lag().pending == 1
    redis.xtrim(KEYS.alerts, maxlen=0, approximate=False)
    other = consumer(redis, "other", reclaim_seconds=0.001)
    assert other.poll() == []
    assert other.lag().pending == 0


def test_emptied_redis_begins_again_and_misses_nothing(redis: Redis) -> None:
    one = AlertConsumer(redis, "digits", "ticketing", block_seconds=0.05)
    one.poll()
    redis.flushdb()
    publish(redis, alert(0))
    assert one.poll() == []
    assert ids(one.poll()) == [alert(0).id]


def test_close_of_what_never_read_says_nothing(redis: Redis) -> None:
    consumer(redis).close()
    one = consumer(redis)
    one.poll()
    redis.flushdb()
    one.close()


def test_close_leaves_the_group_without_losing_alerts(redis: Redis) -> None:
    publish(redis, alert(0))
    one, two = consumer(redis, "one"), consumer(redis, "two")
    (delivery,) = one.poll()
    assert two.poll() == []
    one.close()
    two.close()
    assert [each["name"] for each in redis.xinfo_consumers(KEYS.alerts, "ticketing")] == [b"one"]
    one.acknowledge(delivery)
    one.close()
    assert redis.xinfo_consumers(KEYS.alerts, "ticketing") == []


def test_text_clients_and_both_protocols_work(redis: Redis, redis_url: str) -> None:
    publish(redis, alert(0))
    for place, options in enumerate(({"decode_responses": True}, {"protocol": 3}, {"protocol": 2})):
        client = Redis.from_url(redis_url, **options)
        one = AlertConsumer(client, "digits", f"group{place}", start="beginning", block_seconds=0.05)
        deliveries = one.poll()
        assert ids(deliveries) == [alert(0).id]
        again = AlertConsumer(client, "digits", f"group{place}", consumer=one.consumer, block_seconds=0.05)
        assert again.poll()[0].deliveries == 2
        assert one.acknowledge(*deliveries) == 1
        assert one.lag().pending == 0
        client.close()


@pytest.mark.parametrize(
    "options",
    [{"group": "a b"}, {"group": ""}, {"start": "old"}, {"max_deliveries": 0}, {"batch": 0}, {"reclaim_seconds": 0}],
)
def test_senseless_settings_are_refused(redis: Redis, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AlertConsumer(redis, "digits", **{"group": "g", **options})
    with pytest.raises(ConfigError):
        AlertConsumer(redis, "No Model", "g")


def test_iteration_waits_for_redis_and_ends_when_told(wait_until: WaitUntil) -> None:
    server = embedded.start_redis()
    client = Redis.from_url(server.address, socket_timeout=5)
    got: list[str] = []
    one = AlertConsumer(client, "digits", "ticketing", start="beginning", block_seconds=0.1)

    def work() -> None:
        for delivery in one:
            got.append(delivery.alert.id)
            one.acknowledge(delivery)

    thread = threading.Thread(target=work)
    try:
        publish(client, alert(0))
        thread.start()
        wait_until(lambda: len(got) == 1, 10, "the first alert")
        server.pause()
        server.resume()
        wait_until(lambda: _published(client, alert(1)), 20, "Redis")
        wait_until(lambda: len(got) == 2, 30, "the alert after the outage")
    finally:
        one.stop()
        if thread.is_alive():
            thread.join(20)
        server.stop()
    assert not thread.is_alive()
    assert got == [alert(0).id, alert(1).id]


def _published(client: Redis, one: Alert) -> bool:
    try:
        publish(client, one)
    except Exception:  # it is starting
        return False
    return True


def test_consumers_killed_at_any_moment_lose_no_alert(
    redis: Redis, redis_url: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    count, rng = 600, random.Random(5)
    main = Path(__file__).with_name("consumer_main.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> None:
        command = [sys.executable, str(main), redis_url, "siem", name, str(tmp_path / f"{name}.txt")]
        running.append(subprocess.Popen(command, env=environment))

    def seen() -> Counter[str]:
        lines = [line.split() for path in tmp_path.glob("*.txt") for line in path.read_text().splitlines()]
        return Counter(parts[0] for parts in lines if len(parts) == 2)

    try:
        for place in range(2):
            start(f"c{place}")
        publish(redis, *(alert(number) for number in range(count)))
        for round_ in range(4):
            wait_until(lambda least=60 * (round_ + 1): len(seen()) >= least, 60, "alerts to be handled")
            victim = running.pop(rng.randrange(len(running)))
            victim.send_signal(signal.SIGKILL)
            victim.wait(10)
            start(f"r{round_}")
        wait_until(lambda: len(seen()) == count, 120, "every alert to be handled")
        wait_until(lambda: redis.xpending(KEYS.alerts, "siem")["pending"] == 0, 60, "every alert to be acknowledged")
    finally:
        for process in running:
            process.kill()
            process.wait(10)
    assert redis.xlen(KEYS.dead_alerts("siem")) == 0
