"""Benign clients: who they are, and what they send when. The same for the history and for the live traffic.

They differ in how much they send, in which digits they mostly send, and in the style of their pictures, which drifts.
Some requests are sent again (a retry repeats id and body), one in a hundred repeats an earlier picture exactly, and a
sensor looks at one picture for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.demo import digits
from streams.demo.digits import CLASSES, Pool, Style

#: Spread of the clients' rates (standard deviation of the logarithm).
RATE_SPREAD = 0.5
#: Concentration of the clients' mixes of digits; 1 makes every mix equally likely.
MIX_CONCENTRATION = 1.2
#: Share of exact duplicates, and how many of the client's requests they may lie back.
DUPLICATES, DUPLICATE_REACH = 0.01, 5
#: Share of requests that are sent again, at most, and when (seconds later).
RETRIES, RETRY_SECONDS = 0.01, (0.05, 0.6)
#: Requests a second of a sensor, and the noise of its pixels.
SENSOR_RATE, SENSOR_NOISE = 2.0, 0.01
#: A client's pictures turn to and fro by so many degrees (standard deviation) within so many seconds.
DRIFT_DEGREES, DRIFT_SECONDS = 2.0, 300.0
#: Decimals of a pixel that clients send.
DECIMALS = 5


@dataclass(frozen=True, slots=True)
class Population:
    """Some benign clients. m clients.

    Attributes
    ----------
    names : tuple of str
        Their identities.
    rates : float64 (m,)
        Requests a second.
    mixes : float64 (m, 10)
        How often each sends which digit.
    styles : float64 (m, 6)
        As `digits.columns`.
    drifts : float64 (m, 2)
        Amplitude in degrees and phase of the slow turning.
    retries : float64 (m,)
        Share of requests that are sent again.
    sensors : int
        The last so many clients are sensors.
    """

    names: tuple[str, ...]
    rates: NDArray[np.float64]
    mixes: NDArray[np.float64]
    styles: NDArray[np.float64]
    drifts: NDArray[np.float64]
    retries: NDArray[np.float64]
    sensors: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sensor_names(self) -> tuple[str, ...]:
        """Identities of the sensors."""
        return self.names[len(self.names) - self.sensors :]


@dataclass(frozen=True, slots=True)
class Requests:
    """What clients send, in order of time. n requests, one row each.

    Attributes
    ----------
    times : float64 (n,)
        Seconds since the beginning.
    clients : int64 (n,)
        Place in the population.
    numbers : int64 (n,)
        Number of the request; a retry has that of the request that it repeats.
    inputs : float64 (n, 64)
    truth : int64 (n,)
        True classes.
    """

    times: NDArray[np.float64]
    clients: NDArray[np.int64]
    numbers: NDArray[np.int64]
    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.times)


def population(prefix: str, rate: float, rng: np.random.Generator, clients: int = 200, sensors: int = 1) -> Population:
    """Clients who send `rate` requests a second together; the last `sensors` of them are sensors."""
    people = clients - sensors
    rates = rng.lognormal(0.0, RATE_SPREAD, people)
    rates *= (rate - sensors * SENSOR_RATE) / rates.sum()
    styles = [
        Style(
            turn=rng.normal(0.0, 4.0),
            scale=float(np.exp(rng.normal(0.0, 0.03))),
            shift=(rng.normal(0.0, 0.12), rng.normal(0.0, 0.12)),
            contrast=rng.uniform(0.8, 1.0),
            noise=rng.uniform(0.01, 0.05),
        )
        for _ in range(clients)
    ]
    return Population(
        names=tuple(f"{prefix}-{number:03d}" for number in range(people))
        + tuple(f"{prefix}-sensor-{number}" for number in range(sensors)),
        rates=np.concatenate([rates, np.full(sensors, SENSOR_RATE)]),
        mixes=rng.dirichlet(np.full(CLASSES, MIX_CONCENTRATION), clients),
        styles=digits.columns(styles),
        drifts=np.column_stack([rng.normal(0.0, DRIFT_DEGREES, clients), rng.uniform(0.0, 2 * np.pi, clients)]),
        retries=rng.uniform(0.0, RETRIES, clients),
        sensors=sensors,
    )


class Traffic:
    """The endless traffic of one population, stretch by stretch.

    Parameters
    ----------
    clients : Population
    pool : Pool
        The pictures that they send.
    rng : numpy.random.Generator
    """

    def __init__(self, clients: Population, pool: Pool, rng: np.random.Generator) -> None:
        self._clients = clients
        self._pool = pool
        self._rng = rng
        self._now = 0.0
        self._sent = 0
        self._people = len(clients) - clients.sensors
        self._by_class = [np.flatnonzero(pool.truth == digit) for digit in range(CLASSES)]
        shape = (len(clients), CLASSES)
        self._next = rng.integers(0, 1 << 30, shape)
        self._fixed = rng.integers(0, len(pool), clients.sensors)
        self._fixed_rows = self._send_style(
            pool.inputs[self._fixed], np.arange(self._people, len(clients)), np.zeros(clients.sensors)
        )
        self._last: dict[int, tuple[NDArray[np.float64], int]] = {}

    def stretch(self, seconds: float) -> Requests:
        """Everything that is sent in the next `seconds`; a retry may come a little later."""
        rng, clients = self._rng, self._clients
        counts = rng.poisson(clients.rates * seconds)
        sender = np.repeat(np.arange(len(clients)), counts)
        times = self._now + rng.uniform(0.0, seconds, len(sender))
        order = np.lexsort((times, sender))
        sender, times = sender[order], times[order]
        pictures, truth = self._pick(sender)
        inputs = self._send_style(pictures, sender, times)
        sensor = sender >= self._people
        watched = sender[sensor] - self._people
        inputs[sensor] = self._fixed_rows[watched] + rng.normal(0.0, SENSOR_NOISE, (len(watched), inputs.shape[1]))
        truth[sensor] = self._pool.truth[self._fixed[watched]]
        inputs = np.asarray(np.round(np.clip(inputs, 0.0, 1.0), DECIMALS), dtype=np.float64)
        self._repeat(sender, inputs, truth)
        numbers = self._sent + np.argsort(np.argsort(times, kind="stable"), kind="stable")
        again = np.flatnonzero(rng.random(len(sender)) < clients.retries[sender])
        late = rng.uniform(*RETRY_SECONDS, len(again))
        self._now += seconds
        self._sent += len(sender)
        every = np.concatenate([np.arange(len(sender)), again])
        moments = np.concatenate([times, times[again] + late])
        in_order = np.argsort(moments, kind="stable")
        which = every[in_order]
        return Requests(moments[in_order], sender[which], numbers[which], inputs[which], truth[which])

    def _pick(self, sender: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """A picture for each request (senders in order): the next of its digit that the client has not sent yet."""
        steps = np.cumsum(self._clients.mixes, axis=1)[sender]
        digit = np.minimum((self._rng.random((len(sender), 1)) > steps).sum(axis=1), CLASSES - 1)
        group = sender * CLASSES + digit
        order = np.argsort(group, kind="stable")
        firsts = np.searchsorted(group[order], group[order], side="left")
        place = np.empty(len(sender), dtype=np.int64)
        place[order] = np.arange(len(sender)) - firsts
        place += self._next.ravel()[group]
        self._next += np.bincount(group, minlength=self._next.size).reshape(self._next.shape)
        sizes = np.array([len(rows) for rows in self._by_class])
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        shuffled = np.concatenate(self._by_class)
        chosen = shuffled[first[digit] + (place + sender * 7919) % sizes[digit]]
        return self._pool.inputs[chosen], self._pool.truth[chosen].copy()

    def _send_style(
        self, pictures: NDArray[np.float64], sender: NDArray[np.int64], times: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        styles = self._clients.styles[sender].copy()
        amplitude, phase = self._clients.drifts[sender].T
        styles[:, 0] += amplitude * np.sin(2 * np.pi * times / DRIFT_SECONDS + phase)
        return digits.fresh(pictures, styles, self._rng)

    def _repeat(self, sender: NDArray[np.int64], inputs: NDArray[np.float64], truth: NDArray[np.int64]) -> None:
        """Turn some requests into exact repetitions of an earlier one of the same client."""
        places = np.flatnonzero(self._rng.random(len(sender)) < DUPLICATES)
        back = self._rng.integers(1, DUPLICATE_REACH + 1, len(places))
        firsts = np.searchsorted(sender, sender, side="left")
        for place, reach in zip(places, back, strict=True):
            if firsts[place] < place:
                earlier = max(firsts[place], place - reach)
                inputs[place], truth[place] = inputs[earlier], truth[earlier]
            elif (last := self._last.get(int(sender[place]))) is not None:
                inputs[place], truth[place] = last
        lasts = np.flatnonzero(np.diff(sender, append=-1))
        self._last |= {int(sender[at]): (inputs[at].copy(), int(truth[at])) for at in lasts}
