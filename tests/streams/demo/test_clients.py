"""The demo's benign traffic is as real traffic is: figures of many rows, under a fixed seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from streams.demo import digits
from streams.demo.clients import DUPLICATES, SENSOR_RATE, Requests, Traffic, population
from streams.demo.model import Perceptron
from streams.demo.stage import RATE
from streams.demo.traffic import live_population

SEED = 20
SECONDS = 120.0


@pytest.fixture(scope="module")
def traffic(pools: digits.Pools) -> Requests:
    people = live_population(RATE, SEED)
    return Traffic(people, pools.live, np.random.default_rng(SEED)).stretch(SECONDS)


def test_no_picture_is_in_two_pools(pools: digits.Pools) -> None:
    names = ("model", "reference", "history", "live", "hostile", "probe")
    rows = [row.tobytes() for name in names for row in getattr(pools, name).inputs]
    assert len(rows) == 1797
    assert len(set(rows)) == 1797
    for name in ("history", "live"):
        assert set(getattr(pools, name).truth) == set(range(10))


def test_the_split_follows_from_the_seed(pools: digits.Pools) -> None:
    assert np.array_equal(digits.split(SEED).live.inputs, pools.live.inputs)
    assert not np.array_equal(digits.split(SEED + 1).live.inputs, pools.live.inputs)


def test_more_than_two_hundred_requests_a_second_come_from_two_hundred_clients(traffic: Requests) -> None:
    assert len(traffic) / SECONDS > 225
    assert len(set(traffic.clients.tolist())) == 200
    assert np.all(np.diff(traffic.times) >= 0)
    busiest = np.sort(np.bincount(traffic.clients[traffic.times < 10], minlength=200))
    assert busiest[-1] < 0.1 * busiest.sum(), "no client owns the traffic"


def test_rows_are_legal_and_fresh(traffic: Requests, pools: digits.Pools) -> None:
    assert traffic.inputs.min() >= 0
    assert traffic.inputs.max() <= 1
    pictures = {row.tobytes() for row in pools.live.inputs}
    assert not any(row.tobytes() in pictures for row in traffic.inputs)


def test_clients_differ_in_rate_and_in_what_they_send(traffic: Requests) -> None:
    counts = np.bincount(traffic.clients)[:-1]
    assert np.quantile(counts, 0.9) > 2.5 * np.quantile(counts, 0.1)
    shares = np.array([np.bincount(traffic.truth[traffic.clients == c], minlength=10) for c in range(199)])
    favourite = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    assert 0.2 < np.median(favourite) < 0.6
    means = np.array([traffic.inputs[traffic.clients == c].mean() for c in range(199)])
    assert means.std() > 0.02, "styles and mixes show"


def test_about_one_request_in_a_hundred_repeats_an_earlier_one_exactly(traffic: Requests) -> None:
    numbers, first = np.unique(traffic.numbers, return_index=True)
    sent = Counter(zip(traffic.clients[first].tolist(), [row.tobytes() for row in traffic.inputs[first]], strict=True))
    repeated = sum(count - 1 for count in sent.values())
    assert 0.6 * DUPLICATES < repeated / len(numbers) < 1.4 * DUPLICATES


def test_a_retry_repeats_number_body_and_client_a_little_later(traffic: Requests) -> None:
    order = np.lexsort((traffic.times, traffic.numbers))
    again = np.flatnonzero(np.diff(traffic.numbers[order]) == 0)
    share = len(again) / len(traffic)
    assert 0.002 < share < 0.01
    earlier, later = order[again], order[again + 1]
    assert np.array_equal(traffic.inputs[earlier], traffic.inputs[later])
    assert np.array_equal(traffic.clients[earlier], traffic.clients[later])
    delay = traffic.times[later] - traffic.times[earlier]
    assert delay.min() > 0
    assert delay.max() < 1


def test_the_sensor_sends_near_identical_rows_for_ever(traffic: Requests, pools: digits.Pools) -> None:
    mine = traffic.inputs[traffic.clients == 199]
    assert len(mine) / SECONDS == pytest.approx(SENSOR_RATE, rel=0.2)
    spread = np.abs(mine - np.median(mine, axis=0))
    assert np.quantile(spread, 0.99) < 0.05
    assert len({row.tobytes() for row in mine}) > 0.95 * len(mine), "near-identical, not identical"
    people = live_population(RATE, SEED)
    assert people.sensor_names == (people.names[199],)


def test_the_model_errs_on_some_of_it(traffic: Requests, perceptron: Perceptron) -> None:
    right = np.argmax(perceptron.predict(traffic.inputs), axis=1) == traffic.truth
    assert 0.85 < right.mean() < 0.99


def test_stretches_go_on_where_the_last_one_ended(pools: digits.Pools) -> None:
    people = population("p", 50.0, np.random.default_rng(0), clients=20)
    traffic = Traffic(people, pools.live, np.random.default_rng(1))
    parts = [traffic.stretch(5.0) for _ in range(4)]
    numbers = np.concatenate([part.numbers for part in parts])
    assert set(np.unique(numbers).tolist()) == set(range(numbers.max() + 1))
    for place, part in enumerate(parts):
        assert part.times.min() >= 5.0 * place
        assert part.times.max() < 5.0 * (place + 1) + 1
    rate = sum(len(part) for part in parts) / 20
    assert rate == pytest.approx(50, rel=0.15)


def test_the_same_seed_makes_the_same_traffic(pools: digits.Pools) -> None:
    def made(seed: int) -> Requests:
        people = population("p", 50.0, np.random.default_rng(seed), clients=20)
        return Traffic(people, pools.live, np.random.default_rng(seed)).stretch(5.0)

    assert np.array_equal(made(1).inputs, made(1).inputs)
    assert not np.array_equal(made(1).inputs[:50], made(2).inputs[:50])


def test_a_population_without_sensors_can_be_of_one(pools: digits.Pools) -> None:
    people = population("one", 20.0, np.random.default_rng(0), clients=1, sensors=0)
    assert people.sensor_names == ()
    assert len(Traffic(people, pools.live, np.random.default_rng(0)).stretch(2.0)) > 10
