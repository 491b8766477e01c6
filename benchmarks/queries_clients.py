"""Benign clients of any data set: ordinary ones that differ and drift, and kinds that legitimately repeat themselves.

The rows of a data set are few and real traffic does not repeat itself, so every row that is sent is made anew: pictures
are turned, shifted, scaled and get noise; a row of a table takes some values of a neighbour of its class, and all are
scaled a little. Each client has a style and a mix of classes of its own, and the style drifts over its week. One row in
a hundred, and up to another one in a hundred as retries, is an exact copy of one of the client's last five. The model
answers wrong where it answers wrong. Everything that is sent is legal: what is yes or no stays so, and one-hot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.threat import Domain
from benchmarks import repeaters
from benchmarks.crafted import Part

Rows = NDArray[np.float64]

#: Events of a client in a week: median, spread of the logarithm, and most.
MEDIAN_EVENTS, EVENTS_SPREAD, MOST_EVENTS = 100.0, 0.8, 1500
#: Share of exact copies, of retries at most, and how many rows they may lie back.
COPIES, RETRIES, REACH = 0.01, 0.01, 5
#: Concentration of the clients' mixes of classes.
MIX_CONCENTRATION = 1.2
#: Neighbours of its class that a row of a table may take values of, and the share of values it takes.
NEIGHBOURS, TAKEN = 10, 0.3
#: Spread of a table's values (logarithm): of a row's own, of a client's style, and of its drift over a week.
OWN_SPREAD, STYLE_SPREAD, DRIFT_SPREAD = 0.05, 0.05, 0.03
#: Pictures: turn in degrees, shift as a share of the side, logarithm of the scale; of a row, and of a client's style.
ROW_CHANGE, STYLE_CHANGE, DRIFT_DEGREES = (6.0, 0.035, 0.05), (4.0, 0.015, 0.03), 2.0
#: Rows of a client of a special kind in a week.
SPECIAL_ROWS = repeaters.ROWS
#: Mailings a week, the share of ordinary clients that each reaches, the part of the week that it takes, the features
#: that differ, and by how much.
MAILINGS, REACHED, MAILED, MAIL_FEATURES, MAIL_SPREAD = 2, 0.3, 0.2, 10, 0.1
#: Objects that many ask about, the share of rows that ask for one of them, the features that change, and by how much.
OBJECTS, ASKED, OBJECT_FEATURES, OBJECT_SPREAD = 3, 0.01, 4, 0.02
#: Halvings of a client who looks for recourse on a straight line.
HALVINGS = 8


class Supply:
    """Fresh rows of one part of a task's rows.

    Parameters
    ----------
    part : Part
    shape : (int, int) or None
        Of pictures.
    domain : Domain
        What rows are legal.
    """

    def __init__(self, part: Part, shape: tuple[int, ...] | None, domain: Domain) -> None:
        self.x, self.truth = part.x, part.truth
        self.domain = domain
        self.classes = np.unique(part.truth)
        self._shape = shape
        self._near = None if shape is not None else _neighbours(part.x, part.truth)

    def legal(self, rows: Rows) -> Rows:
        """The legal rows (n, d) near these."""
        return self.domain.repair(rows, rows)

    def style(self, rng: np.random.Generator) -> Rows:
        """One client's style: how its rows differ from everybody's, and how that drifts (2, ...)."""
        if self._shape is None:
            width = self.x.shape[1]
            spreads = np.array([[STYLE_SPREAD], [DRIFT_SPREAD]])
            return np.asarray(spreads * rng.standard_normal((2, width)))
        turn, shift, scale = STYLE_CHANGE
        fixed = np.array([turn, shift, shift, scale]) * rng.standard_normal(4)
        noise, contrast = rng.uniform(0.01, 0.05), rng.uniform(0.8, 1.0)
        drift = np.array([DRIFT_DEGREES * rng.standard_normal(), 0.0, 0.0, 0.0, 0.0, 0.0])
        return np.array([[*fixed, noise, contrast], drift])

    def fresh(self, which: NDArray[np.intp], style: Rows, rng: np.random.Generator) -> Rows:
        """Rows (n, d) made of the rows `which`, in the order in which one client sends them over its week."""
        when = np.linspace(-1.0, 1.0, len(which))[:, None] if len(which) > 1 else np.zeros((len(which), 1))
        styles = style[0] + when * style[1]
        if self._near is None:
            assert self._shape is not None
            return _pictures(self.x[which], styles, self._shape, rng)
        other = self.x[self._near[which, rng.integers(self._near.shape[1], size=len(which))]]
        taken = rng.random(other.shape) < TAKEN
        for group in self.domain.groups:
            taken[:, group] = taken[:, group[:1]]
        rows = np.where(taken, other, self.x[which])
        return self.legal(rows * np.exp(styles + OWN_SPREAD * rng.standard_normal(rows.shape)))

    def strangers(self, count: int, rng: np.random.Generator) -> tuple[Rows, NDArray[np.int32]]:
        """Rows (n, d) of clients who send a few each, and their true classes."""
        which = rng.integers(len(self.x), size=count)
        parts = [self.fresh(few, self.style(rng), rng) for few in np.array_split(which, max(1, count // 5))]
        return np.concatenate(parts), self.truth[which]

    def client(self, count: int, rng: np.random.Generator) -> Rows:
        """The rows of one ordinary client in a week, in order."""
        weights = rng.dirichlet(np.full(len(self.classes), MIX_CONCENTRATION)) + 1e-9
        waits = rng.exponential(size=len(self.x)) / weights[np.searchsorted(self.classes, self.truth)]
        order = np.argsort(waits)
        rows = self.fresh(order[np.arange(count) % len(order)], self.style(rng), rng)
        again = np.flatnonzero(rng.random(count) < COPIES + rng.uniform(0.0, RETRIES))
        for place in again[again > 0]:
            rows[place] = rows[max(0, place - rng.integers(1, REACH + 1))]
        return rows


def _neighbours(x: Rows, truth: NDArray[np.int32]) -> NDArray[np.intp]:
    """(n, k) nearest rows of the same class, in standard deviations."""
    spread = x.std(axis=0)
    scaled = x / np.where(spread > 0, spread, 1.0)
    found = np.empty((len(x), NEIGHBOURS), dtype=np.intp)
    for label in np.unique(truth):
        mine = np.flatnonzero(truth == label)
        squares = np.square(scaled[mine]).sum(axis=1)
        apart = squares[:, None] + squares - 2 * scaled[mine] @ scaled[mine].T
        found[mine] = mine[np.argsort(apart, axis=1)[:, 1 + np.arange(NEIGHBOURS) % max(1, len(mine) - 1)]]
    return found


def _pictures(pictures: Rows, styles: Rows, shape: tuple[int, ...], rng: np.random.Generator) -> Rows:
    """Pictures (n, h * w) turned, shifted and scaled, bilinear, outside is 0; with contrast and noise."""
    high, wide = shape
    n = len(pictures)
    turn, shift, scale = ROW_CHANGE
    turned = np.radians(styles[:, 0] + turn * rng.standard_normal(n))
    shifts = (styles[:, 1:3] + shift * rng.standard_normal((n, 2))) * np.array([high, wide])
    scaled = np.exp(styles[:, 3] + scale * rng.standard_normal(n))
    down, right = np.divmod(np.arange(high * wide), wide)
    y, x = down - (high - 1) / 2, right - (wide - 1) / 2
    cosine, sine = (np.cos(turned) / scaled)[:, None], (np.sin(turned) / scaled)[:, None]
    from_y = np.clip(cosine * y - sine * x + (high - 1) / 2 - shifts[:, :1] + 1, 0, high + 0.999)
    from_x = np.clip(sine * y + cosine * x + (wide - 1) / 2 - shifts[:, 1:] + 1, 0, wide + 0.999)
    framed = np.pad(pictures.reshape(n, high, wide), ((0, 0), (1, 1), (1, 1))).reshape(n, -1)
    top, left = from_y.astype(np.int64), from_x.astype(np.int64)
    part_y, part_x, at = from_y - top, from_x - left, top * (wide + 2) + left
    rows = np.zeros_like(pictures)
    for step, weight in (
        (0, (1 - part_y) * (1 - part_x)),
        (1, (1 - part_y) * part_x),
        (wide + 2, part_y * (1 - part_x)),
        (wide + 3, part_y * part_x),
    ):
        rows += weight * np.take_along_axis(framed, at + step, 1)
    rows = rows * styles[:, 5:6] + styles[:, 4:5] * rng.standard_normal(rows.shape)
    return np.clip(rows, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Counter:
    """What a client of a special kind has: the model's answers, a typical row, and rows of its own."""

    site: repeaters.Site
    supply: Supply

    def some(self, count: int, rng: np.random.Generator) -> Rows:
        """Ordinary rows of one client."""
        return self.supply.client(count, rng)


Special = Callable[[Counter, np.random.Generator], Rows]


def _of_one_row(kind: repeaters.Kind) -> Special:
    def made(counter: Counter, rng: np.random.Generator) -> Rows:
        return kind(counter.site, counter.some(1, rng)[0], rng)

    return made


def walk_at_the_boundary(counter: Counter, rng: np.random.Generator) -> Rows:
    """Begins where two answers meet, and walks at random in all features, in steps of random length."""
    start, predict = counter.some(1, rng)[0], counter.site.predict
    label = counter.site.label(start)
    others = counter.some(60, rng)
    others = others[predict(others).argmax(axis=1) != label]
    if len(others):
        low, high = start, others[0]
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if counter.site.label(middle) == label else (low, middle)
        start = high
    steps = rng.standard_normal((SPECIAL_ROWS, start.size)) * rng.standard_normal((SPECIAL_ROWS, 1))
    spread = counter.supply.x.std(axis=0)
    return np.clip(start + 0.1 * spread * np.cumsum(steps, axis=0), 0.0, 1.0)


def ab_twins(counter: Counter, rng: np.random.Generator) -> Rows:
    """Every row twice, the second with another value in two features: what an A/B test changes."""
    rows = counter.some(SPECIAL_ROWS // 2, rng)
    twins = rows.copy()
    columns = rng.choice(rows.shape[1], 2, replace=False)
    twins[:, columns] = counter.some(1, rng)[0][columns]
    return np.stack([rows, twins], axis=1).reshape(-1, rows.shape[1])


def retry(counter: Counter, rng: np.random.Generator) -> Rows:
    """Half of the requests are sent again, some of them often."""
    rows = counter.some(SPECIAL_ROWS, rng)
    return np.repeat(rows, rng.geometric(0.5, len(rows)), axis=0)[:SPECIAL_ROWS]


def recourse_by_halving(counter: Counter, rng: np.random.Generator) -> Rows:
    """Looks for recourse row by row: halves the way to a row with another answer, eight times, in all features."""
    own, rows = counter.some(SPECIAL_ROWS, rng), []
    labels = counter.site.predict(own).argmax(axis=1)
    for start, label in zip(own, labels, strict=True):
        others = own[labels != label]
        if len(others) == 0:
            return own
        low, high = start, others[np.square(others - start).sum(axis=1).argmin()]
        rows += [low, high]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rows.append(middle)
            low, high = (middle, high) if counter.site.label(middle) == label else (low, middle)
        if len(rows) >= SPECIAL_ROWS:
            break
    return np.array(rows[:SPECIAL_ROWS])


def poller(counter: Counter, rng: np.random.Generator) -> Rows:
    """Asks for the same few objects again and again; their counters change a little between."""
    objects = counter.some(3, rng)
    rows = objects[np.arange(SPECIAL_ROWS) % 3]
    return _recounted(rows, rng)


def _recounted(rows: Rows, rng: np.random.Generator) -> Rows:
    """Rows about one thing, whose counters have changed a little since."""
    columns = rng.choice(rows.shape[1], min(OBJECT_FEATURES, rows.shape[1]), replace=False)
    rows = rows.copy()
    rows[:, columns] *= np.exp(OBJECT_SPREAD * rng.standard_normal((len(rows), len(columns))))
    return np.clip(rows, 0.0, 1.0)


def _legally(special: Special) -> Special:
    def made(counter: Counter, rng: np.random.Generator) -> Rows:
        return counter.supply.legal(special(counter, rng))

    return made


_KINDS: dict[str, Special] = {
    "sensor": _of_one_row(repeaters.sensor),
    "walk at the boundary": walk_at_the_boundary,
    "sweep": _of_one_row(repeaters.sweep),
    "recourse": _of_one_row(repeaters.recourse),
    "benign optimiser": _of_one_row(repeaters.benign_optimiser),
    "SHAP explainer": _of_one_row(repeaters.shap_explainer),
    "A/B twins": ab_twins,
    "retry": retry,
    "poller": poller,
    "what-if": _of_one_row(repeaters.what_if),
    "LIME explainer": _of_one_row(repeaters.noisy_copies),
    "path explainer": _of_one_row(repeaters.path_explainer),
    "recourse by halving": recourse_by_halving,
}
#: Kinds of clients that legitimately send near-identical rows.
KINDS: dict[str, Special] = {name: _legally(special) for name, special in _KINDS.items()}

#: Kinds that no history holds: they search the boundary as an attacker does, and a site has them approved as repeaters.
NEVER_KNOWN = ("recourse by halving",)


def known_kinds(half: int) -> tuple[str, ...]:
    """Kinds that one of a seed's two histories holds: every other one, the rest in the other; never `NEVER_KNOWN`."""
    return tuple(kind for kind in tuple(KINDS)[half % 2 :: 2] if kind not in NEVER_KNOWN)


@dataclass(frozen=True, slots=True)
class Week:
    """Some clients' rows.

    Attributes
    ----------
    rows : float64 (n, d)
    clients : int64 (n,)
        Place among the week's clients.
    kinds : tuple of str
        Kind of each client; "" for ordinary ones.
    """

    rows: Rows
    clients: NDArray[np.int64]
    kinds: tuple[str, ...]


def week(counter: Counter, clients: int, specials: int, kinds: tuple[str, ...], rng: np.random.Generator) -> Week:
    """One week of so many clients, the last `specials` of them of the special kinds in turn; rows mix at random.

    Without kinds there must be no such clients.
    """
    counts = np.exp(EVENTS_SPREAD * rng.standard_normal(clients - specials)) * MEDIAN_EVENTS
    parts = [counter.supply.client(count, rng) for count in np.clip(counts, 3, MOST_EVENTS).astype(int)]
    first = int(rng.integers(len(kinds))) if kinds else 0
    own = [kinds[(first + number) % len(kinds)] for number in range(specials)]
    parts += [KINDS[kind](counter, rng) for kind in own]
    order = turns([len(part) for part in parts], rng)
    sender = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    rows = np.concatenate(parts)[order]
    _in_common(rows, sender, clients - specials, counter.supply, rng)
    return Week(rows, sender, ("",) * (clients - specials) + tuple(own))


def _in_common(rows: Rows, sender: NDArray[np.int64], ordinary: int, supply: Supply, rng: np.random.Generator) -> None:
    """Put what accounts have in common in place of some rows (n, d) of the first `ordinary` clients, mailings first."""
    width = rows.shape[1]
    for _ in range(MAILINGS):
        template, _ = supply.strangers(1, rng)
        columns = rng.choice(width, min(MAIL_FEATURES, width), replace=False)
        start = rng.uniform(0.0, 1.0 - MAILED) * len(rows)
        during = np.flatnonzero(sender < ordinary)
        during = during[(during >= start) & (during < start + MAILED * len(rows))]
        reached = rng.permutation(ordinary)[: round(REACHED * ordinary)]
        asked, first = np.unique(sender[during], return_index=True)
        places = during[first[np.isin(asked, reached)]]
        rows[places] = template
        rows[places[:, None], columns] += MAIL_SPREAD * rng.standard_normal((len(places), len(columns)))
        rows[places] = supply.legal(rows[places])
    objects, _ = supply.strangers(OBJECTS, rng)
    asking = np.flatnonzero((sender < ordinary) & (rng.random(len(rows)) < ASKED))
    which = rng.integers(OBJECTS, size=len(asking))
    for number, one in enumerate(objects):
        places = asking[which == number]
        rows[places] = supply.legal(_recounted(np.repeat(one[None], len(places), axis=0), rng))


def turns(lengths: list[int], rng: np.random.Generator) -> NDArray[np.intp]:
    """An order in which sequences that stand one after the other mix at random, each keeping its own."""
    return np.argsort(np.concatenate([np.sort(rng.random(length)) for length in lengths]), kind="stable")
