"""The intent test: is a cluster of near-identical queries an attack, or a client that repeats itself?

Sensors, retries and people who try what-if values send near-duplicates too. What they don't do is let the model's
answers guide them in many features: move towards its boundary, walk along it, bisect it, divide the way between
two answers again and again, go on from the better answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.contract import Batch, Reference
from detectors.kernels import margins
from detectors.kernels.feedback import answered_margins, touched_features, two_valued_share
from detectors.kernels.lines import even_steps, halvings
from detectors.kernels.rows import steady_log
from detectors.queries.feedback import feedback
from detectors.schema import FeatureSchema
from detectors.surrogate import BLOCK_ROWS, Surrogate
from detectors.view import BatchView, ReferenceFrame

#: Fewest members on which intent is judged.
LEAST_SIZE = 16
#: Members touch more features than this, or the cluster stays a ticket; and one that stays this near to its base is
#: narrow: of so few features at a time, following and bisection mean nothing.
NARROW_FEATURES = 6
#: Quantile, over members, of the number of features that differ from the base.
GATE_QUANTILE = 0.9
#: Share of members that differ in more than `NARROW_FEATURES` where a cluster is wide.
WIDE_SHARE = 0.3
#: Where this share of the features that vary has two values only, the cluster is a design of subsets, as an explainer
#: makes it, and how near its members lie to the boundary, and to each other, says nothing of its purpose.
DESIGN_SHARE = 0.9
#: A narrow cluster counts for nothing before its middle has moved for good in so many features: a person who tries
#: values out comes back to where he began.
LEAST_MOVED = 3
#: Feedback is measured by the class of most of the first third of the members that are judged, and of so many at least:
#: who crosses the boundary and goes on still leaves the class that he began with.
FIRST_MEMBERS = 8
#: A feature differs when it does by more than this many standard deviations.
LEAST_CHANGE_SD = 1e-5
#: A link is far when ln(distance / distance to the 5th nearest reference row) exceeds this.
FAR_LOG_RATIO = -1.5
#: Far and wide links are cut where they are at most this share of all links: they join several narrow bases.
CUT_SHARE = 0.12
#: Sign-flipped copies of the displacements. They are most of the cost of a judgement, so the others are measured only
#: where the cluster is judged and the first copies leave the score within this factor of what it needs, on either side.
COPIES, FIRST_COPIES, CLEAR = 127, 31, 2.0
#: For that purpose parts that don't count count from so much nearer to their conditions on.
NEARLY = 4.0
#: Following counts when at most this share of the copies lies nearer to the boundary.
FOLLOWING_P = 0.035
#: Quantile of the reference's |margin| below which nearer to the boundary tells nothing.
FLOOR_QUANTILE = 0.05
#: Rows with scores teach the surrogate better than so many times more rows with labels alone.
LEAST_SCORED_SHARE = 0.2
#: Progress counts when the members have lost at least this share of that margin against their copies: a sensor's noise
#: points somewhere by chance, and always to the same place, but not far.
PROGRESS_FLOOR_SHARE = 0.5
#: A cluster is judged again and again as it grows; beyond this size every doubling asks for so much more.
PATIENCE_SIZE, PATIENCE_STEP = 1024, 0.25
#: One part alone pages at this value. Three halvings are of two lines or more.
PROGRESS_SCALE, FOLLOWING_SCALE, BISECTION_SCALE, HALVINGS_SCALE, GUIDED_SCALE = 3.4, 1.7, 2.5, 3.0, 3.0
#: The same of a narrow cluster, where progress is seldom large by chance; and of a design of subsets, where all is.
NARROW_PROGRESS_SCALE, DESIGN_PROGRESS_SCALE, DESIGN_GUIDED_SCALE = 2.8, 4.5, 3.5
#: Bisection counts for nothing where this share of the members, or more, lie on so many lines or more that all go ways
#: of their own: once from each of its rows is how a client searches the boundary who looks for recourse.
APART_SHARE, LINES_APART = 0.5, 2
#: No part counts more: a benign client that is odd in one of them alone must not ask more than this of attackers.
MOST_OF_A_PART = 2.0
#: Clearer than this is not told apart.
MOST_CLEAR = 1e6
#: Added to distances before a logarithm, in standard deviations.
DISTANCE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class IntentVerdict:
    """Whether the cluster pages, and the parts of the decision.

    Attributes
    ----------
    page : bool
    measures : dict of str to float
        ``size``: members so far. ``touched``: features in which two members or more differ from the cluster's median.
        ``gate``: features in which nine of ten members stay within, from the base of their part of the cluster.
        ``wide_share``: share of members that differ from it in more than `NARROW_FEATURES`. ``moved``: features in
        which the medians of the first and of the last third differ. ``design``: share of the features that vary which
        have two values only. ``lines_apart``: lines on which the boundary was searched, where each goes a way of its
        own and most members lie on them, else 0. ``cut_links``: links that were cut. ``progress``: z of the margin
        lost against sign-flipped copies; ``lost_margin``: that margin in nats, counted from `PROGRESS_FLOOR_SHARE` of
        the floor on. ``following``: log ratio, 0 where it doesn't count; ``following_p``: its rank. ``bisection``: log
        ratio. ``halvings``: members that divide the way between two answers (`lines.halvings`). ``by_scores`` and
        ``by_answers``: z of `feedback`. ``score``: the sum of squares of what counts (`Shape`); it pages from
        ``needed`` on, 1 up to `PATIENCE_SIZE` members. ``copies``: how many were measured. ``page``: 0 or 1.
    """

    page: bool
    measures: dict[str, float]

    @property
    def shape(self) -> Shape:
        """How the members that were judged spread."""
        return shape_of(self.measures)

    @property
    def ratio(self) -> float:
        """The score over what is needed where the cluster pages, else 0; at most `MOST_CLEAR`: how clearly the test
        speaks."""
        return clearness(self.measures)


def clearness(measures: Mapping[str, float]) -> float:
    """`IntentVerdict.ratio` from the verdict's measures, which signals carry; 0 where there are none."""
    return min(MOST_CLEAR, measures["score"] / measures["needed"]) if measures.get("page") else 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How a cluster spreads: what counts, and how soon.

    Attributes
    ----------
    touched, moved, lines_apart : int
    gate, wide_share, cut_links, design : float
        As `IntentVerdict` explains them.
    """

    touched: int
    moved: int
    gate: float
    wide_share: float
    cut_links: float
    design: float
    lines_apart: int = 0

    @property
    def judged(self) -> bool:
        """Whether it touches more features than a client that tries values out."""
        return self.touched > NARROW_FEATURES

    @property
    def narrow(self) -> bool:
        """Whether the members stay near to their base: following and bisection then mean nothing."""
        return self.gate <= NARROW_FEATURES or self.wide_share < WIDE_SHARE

    def scales(self) -> dict[str, float]:
        """Part of the decision -> value at which it pages alone; parts that don't count are missing."""
        if self.narrow and self.moved < LEAST_MOVED:
            return {}
        if self.design >= DESIGN_SHARE:
            return {"progress": DESIGN_PROGRESS_SCALE, "by_scores": DESIGN_GUIDED_SCALE}
        if self.narrow:
            return {
                "progress": NARROW_PROGRESS_SCALE,
                "halvings": HALVINGS_SCALE,
                "by_scores": GUIDED_SCALE,
            }
        counted = {
            "progress": PROGRESS_SCALE,
            "following": -FOLLOWING_SCALE,
            "bisection": -BISECTION_SCALE,
            "halvings": HALVINGS_SCALE,
            "by_scores": GUIDED_SCALE,
            "by_answers": GUIDED_SCALE,
        }
        if self.lines_apart >= LINES_APART:
            del counted["bisection"]
        return counted

    def parts(self, said: Mapping[str, float]) -> dict[str, float]:
        """What each part that counts brings to the score; `said` holds the measures by name."""
        return {
            name: min(MOST_OF_A_PART, max(0.0, said.get(name, 0.0) / scale) ** 2)
            for name, scale in self.scales().items()
        }

    def brought(self, said: Mapping[str, float]) -> dict[str, float]:
        """`parts` of a verdict's measures: without progress where its score says that it was not counted."""
        found = self.parts(said)
        if said.get("score", math.inf) - self.score({**said, "progress": 0.0}) <= 1e-9:
            found.pop("progress", None)
        return found

    def score(self, said: Mapping[str, float]) -> float:
        """The sum of squares of what counts, each over its scale; of both kinds of feedback the larger."""
        parts = self.parts(said)
        guided = max(parts.pop("by_scores", 0.0), parts.pop("by_answers", 0.0))
        return sum(parts.values()) + guided


def shape_of(said: Mapping[str, float]) -> Shape:
    """The shape from a verdict's measures, which signals carry."""
    return Shape(
        touched=int(said["touched"]),
        moved=int(said["moved"]),
        gate=said["gate"],
        wide_share=said["wide_share"],
        cut_links=said["cut_links"],
        design=said["design"],
        lines_apart=int(said.get("lines_apart", 0.0)),
    )


@dataclass(frozen=True, slots=True)
class IntentTest:
    """Progress, following, bisection, halvings and feedback of a cluster of queries.

    Blind to: attackers who touch at most `NARROW_FEATURES` features, or change so few at a time and always come back
    (they stay tickets), and so to models with few inputs; clusters of fewer than `LEAST_SIZE` members.

    References
    ----------
    Vedette's own method. What it looks for is what published attacks do: binary search and steps along the boundary,
    Chen, Jordan & Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE S&P 2020, algorithms 1
    and 2; gradients from scores of noisy copies, Ilyas, Engstrom, Athalye & Lin, "Black-box Adversarial Attacks with
    Limited Queries and Information", ICML 2018; steps that are kept or dropped, Guo, Gardner, You, Wilson & Weinberger,
    "Simple Black-box Adversarial Attacks", ICML 2019.

    Attributes
    ----------
    surrogate : Surrogate
    frame : ReferenceFrame
    low, high : float64 (d,)
        Range of every feature: as the schema states it, else as the reference shows it.
    stated : bool (2, d)
        Which ends of the range the schema states.
    floor : float
        `FLOOR_QUANTILE` of the reference's |margin|.
    """

    surrogate: Surrogate
    frame: ReferenceFrame
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    stated: NDArray[np.bool_]
    floor: float

    @classmethod
    def fit(
        cls,
        reference: Reference,
        schema: FeatureSchema,
        frame: ReferenceFrame,
        rng: np.random.Generator,
        answers: Batch | None = None,
    ) -> Self:
        """Fit the surrogate, and learn ranges and usual margins from the reference.

        `answers` are benign events for the surrogate to learn from too: the more answers it has seen, and above all the
        more scores, the sooner progress shows.
        """
        surrogate = Surrogate.fit(reference if answers is None else _joined(reference, answers), schema, frame, rng)
        lows, highs = schema.lows(), schema.highs()
        stated = np.stack([np.isfinite(lows), np.isfinite(highs)])
        usual = np.abs(surrogate.margins(reference.inputs, reference.labels))
        return cls(
            surrogate=surrogate,
            frame=frame,
            low=np.where(stated[0], lows, reference.inputs.min(axis=0)),
            high=np.where(stated[1], highs, reference.inputs.max(axis=0)),
            stated=stated,
            floor=max(float(np.quantile(usual, FLOOR_QUANTILE)), DISTANCE_FLOOR),
        )

    def judge(
        self,
        rows: NDArray[np.float64],
        labels: NDArray[np.int32],
        size: int,
        origin: NDArray[np.float64],
        seed: int,
        answers: NDArray[np.float64] | None = None,
    ) -> IntentVerdict:
        """Judge a cluster, and of a narrow one those members that stand out of it, if there are enough.

        An attacker may hide his queries among decoys that change a feature or two; the clearer verdict counts. Members
        that only go on in even steps, as of a sweep or a path between two rows, follow no answer and are left out.

        Parameters
        ----------
        rows : float64 (m, d)
            The cluster's last members (at most 128), oldest first, in the units of the schema.
        labels : int32 (m,)
            The watched model's predicted class of each.
        size : int
            Members so far, m or more.
        origin : float64 (d,)
            Mean of the first four members.
        seed : int
            Of the random signs; the verdict is a function of the arguments.
        answers : float64 (m, 2) or None
            The watched model's score of each member's predicted class, and its largest other one. Where one is missing
            (None, NaN) the surrogate's margins stand for all.
        """
        rows, labels = np.ascontiguousarray(rows), np.ascontiguousarray(labels, dtype=np.int32)
        even = np.empty(len(rows), dtype=np.bool_)
        if even_steps(rows, self.frame.scale, even):
            even[0] = False  # of nothing at all there is no verdict
            rows, labels, answers = rows[~even], labels[~even], None if answers is None else answers[~even]
        whole, wide = self._judged(rows, labels, size, origin, seed, answers)
        if not LEAST_SIZE <= np.count_nonzero(wide) < len(rows):
            return whole
        given = None if answers is None else answers[wide]
        part, _ = self._judged(rows[wide], labels[wide], size, origin, seed, given)
        return part if part.ratio > whole.ratio else whole

    def _judged(
        self,
        rows: NDArray[np.float64],
        labels: NDArray[np.int32],
        size: int,
        origin: NDArray[np.float64],
        seed: int,
        answers: NDArray[np.float64] | None,
    ) -> tuple[IntentVerdict, NDArray[np.bool_]]:
        """The verdict on these members; and if the cluster is narrow, those that stand out of it."""
        batch = _batch(rows, labels)
        view = BatchView(self.frame, batch)
        parent, squared = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        products = view.standardised @ view.standardised.T
        opposite = margins.link(products, view.norms, labels, parent, squared)
        distance = np.sqrt(squared)
        shape, wide = self._shape(rows, parent, distance, view.own_distance)
        bisection = 0.0
        if len(rows) > 1 and math.isfinite(opposite):
            typical = float(np.median(distance[1:]))
            bisection = steady_log((math.sqrt(opposite) + DISTANCE_FLOOR) / (typical + DISTANCE_FLOOR))
        begun = int(np.bincount(labels[: max(FIRST_MEMBERS, len(labels) // 3)]).argmax())
        halved, apart, members = halvings(
            products, view.norms, labels, rows, self.frame.scale, LEAST_CHANGE_SD, NARROW_FEATURES
        )
        if halved == 0 and members >= APART_SHARE * len(rows):
            shape = replace(shape, lines_apart=int(apart))
        by_scores, by_answers = feedback(
            products, parent, squared, self._margins(rows, labels, begun, answers), labels == begun
        )
        movement = _Movement(self, rows, int(np.bincount(labels).argmax()), origin, seed)
        doublings = max(0, (size // PATIENCE_SIZE).bit_length() - 1)
        needed = 1.0 + PATIENCE_STEP * doublings
        judged = min(size, len(rows)) >= LEAST_SIZE and shape.judged

        def weigh(nearly: float = 1.0) -> tuple[float, float, float, float, float]:
            progress, lost, following, following_p = movement.measures(FOLLOWING_P * nearly)
            counted = progress if lost * nearly >= PROGRESS_FLOOR_SHARE * self.floor else 0.0
            score = shape.score(
                {
                    "progress": counted,
                    "following": following,
                    "bisection": bisection,
                    "halvings": float(halved),
                    "by_scores": by_scores,
                    "by_answers": by_answers,
                }
            )
            return progress, lost, following, following_p, score

        movement.measure(FIRST_COPIES)
        if judged and weigh()[-1] < CLEAR * needed and weigh(NEARLY)[-1] * CLEAR > needed:
            movement.measure(COPIES)
        progress, lost, following, following_p, score = weigh()
        page = judged and score >= needed
        verdict = IntentVerdict(
            page=page,
            measures={
                "size": float(size),
                "touched": float(shape.touched),
                "moved": float(shape.moved),
                "gate": shape.gate,
                "wide_share": shape.wide_share,
                "cut_links": shape.cut_links,
                "design": shape.design,
                "lines_apart": float(shape.lines_apart),
                "progress": progress,
                "lost_margin": lost,
                "following": following,
                "following_p": following_p,
                "bisection": bisection,
                "halvings": float(halved),
                "by_scores": by_scores,
                "by_answers": by_answers,
                "score": score,
                "needed": needed,
                "copies": float(movement.measured),
                "page": float(page),
            },
        )
        return verdict, wide & shape.narrow

    def _margins(
        self,
        rows: NDArray[np.float64],
        labels: NDArray[np.int32],
        begun: int,
        answers: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Margin of one class of each member, by the model's own scores where all have some."""
        if answers is not None:
            own, rival = np.ascontiguousarray(answers[:, 0]), np.ascontiguousarray(answers[:, 1])
            found = np.empty(len(rows))
            if answered_margins(own, rival, labels, begun, found):
                return found
        return self.surrogate.margins(rows, np.full(len(rows), begun, dtype=np.int32))

    def _shape(
        self,
        rows: NDArray[np.float64],
        parent: NDArray[np.int64],
        distance: NDArray[np.float64],
        density: NDArray[np.float64],
    ) -> tuple[Shape, NDArray[np.bool_]]:
        """How the members spread, and which of them lie far from the base of their part."""
        scale = self.frame.scale
        changed = np.empty(len(rows), dtype=np.int64)
        margins.changed_features(rows, rows, parent, scale, LEAST_CHANGE_SD, changed)
        ratio = (distance + DISTANCE_FLOOR) / (density + DISTANCE_FLOOR)
        away = np.array([steady_log(value) > FAR_LOG_RATIO for value in ratio])
        far = (parent >= 0) & (changed > NARROW_FEATURES) & away
        if far.sum() > CUT_SHARE * (len(rows) - 1):
            far[:] = False
        part = np.empty(len(rows), dtype=np.int64)
        parts = margins.components(parent, far, part)
        bases = np.stack([np.median(rows[part == p], axis=0) for p in range(parts)])
        margins.changed_features(rows, bases, part, scale, LEAST_CHANGE_SD, changed)
        ranked = np.sort(changed)
        gate = float(ranked[min(len(ranked) - 1, math.ceil(GATE_QUANTILE * len(ranked)) - 1)])
        middle = bases[0] if parts == 1 else np.median(rows, axis=0)
        third = max(1, len(rows) // 3)
        way = np.abs(np.median(rows[:third], axis=0) - np.median(rows[-third:], axis=0))
        shape = Shape(
            touched=int(touched_features(rows, middle, scale, LEAST_CHANGE_SD)),
            moved=int((way > LEAST_CHANGE_SD * scale).sum()),
            gate=gate,
            wide_share=float((changed > NARROW_FEATURES).mean()),
            cut_links=float(far.sum()),
            design=float(two_valued_share(rows, scale, LEAST_CHANGE_SD)),
        )
        return shape, changed > NARROW_FEATURES

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything fitted; names start with ``surrogate.`` or ``frame.`` where they belong to these."""
        frame = self.frame.arrays()
        del frame["inputs"]  # only shown to people, who read the ensemble's own
        return {
            **{f"surrogate.{name}": array for name, array in self.surrogate.arrays().items()},
            **{f"frame.{name}": array for name, array in frame.items()},
            "low": self.low,
            "high": self.high,
            "stated": self.stated,
            "floor": np.array([self.floor]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], schema: FeatureSchema) -> Self:
        """The inverse of `arrays`."""
        frame = {name.removeprefix("frame."): arrays[name] for name in arrays if name.startswith("frame.")}
        frame["inputs"] = frame["centres"] * frame["scale"] + frame["mean"]
        surrogate = {name.removeprefix("surrogate."): arrays[name] for name in arrays if name.startswith("surrogate.")}
        return cls(
            surrogate=Surrogate.restore(surrogate),
            frame=ReferenceFrame.restore(frame, len(schema.classes)),
            low=np.array(arrays["low"], dtype=np.float64),
            high=np.array(arrays["high"], dtype=np.float64),
            stated=np.array(arrays["stated"], dtype=np.bool_),
            floor=float(arrays["floor"][0]),
        )

    def warm_up(self) -> None:
        """Compile every kernel that `judge` uses."""
        margins.warm_up()
        rows = self.frame.mean + np.zeros((2, self.frame.width))
        self.judge(rows, np.zeros(2, dtype=np.int32), 2, rows[0], 0)


class _Movement:
    """Where the later half of a cluster went, against copies that went as far in random directions."""

    def __init__(
        self, test: IntentTest, rows: NDArray[np.float64], modal: int, origin: NDArray[np.float64], seed: int
    ) -> None:
        self._test, self._modal = test, modal
        self._later = later = np.ascontiguousarray(rows[len(rows) // 2 :])
        self._low = np.where(test.stated[0], test.low, np.minimum(test.low, later.min(axis=0)))
        self._high = np.where(test.stated[1], test.high, np.maximum(test.high, later.max(axis=0)))
        self._origin, self._seed = (
            np.ascontiguousarray(origin, dtype=np.float64),
            np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF),
        )
        own = test.surrogate.margins(later, np.full(len(later), modal, dtype=np.int32))
        mine = np.empty((2, 1))
        margins.copy_means(own, len(later), mine[0], mine[1])
        self._mine, self._near = float(mine[0, 0]), float(mine[1, 0])
        self._drift, self._nearness = np.empty(COPIES), np.empty(COPIES)
        self.measured = 0

    def measure(self, copies: int) -> None:
        """Measure the margins of further copies, until there are so many."""
        test, m = self._test, len(self._later)
        at_once = max(1, BLOCK_ROWS // m)
        standard, out = np.empty((at_once * m, self._later.shape[1])), np.empty(at_once * m)
        labels = np.full(at_once * m, self._modal, dtype=np.int32)
        while self.measured < copies:
            first, count = self.measured, min(at_once, copies - self.measured)
            block, found = standard[: count * m], out[: count * m]
            margins.flipped_rows(
                self._later,
                self._origin,
                self._low,
                self._high,
                self._seed,
                first,
                test.frame.mean,
                test.frame.scale,
                test.surrogate.grid,
                block,
            )
            test.surrogate.standard_margins(block, labels[: count * m], found)
            margins.copy_means(found, m, self._drift[first : first + count], self._nearness[first : first + count])
            self.measured += count

    def measures(self, following_p: float) -> tuple[float, float, float, float]:
        """Progress, the margin lost against the copies, following where its rank is so small, and its rank."""
        count = self.measured
        drift, nearness = self._drift[:count], self._nearness[:count]
        centre = math.fsum(drift) / count
        spread = math.sqrt(math.fsum((drift - centre) ** 2) / (count - 1))
        progress = (centre - self._mine) / spread if spread > 0.0 else 0.0
        rank_p = (1.0 + float((nearness <= self._near).sum())) / (count + 1.0)
        following = 0.0
        if rank_p <= following_p:
            usual = float(np.median(nearness))
            following = min(0.0, steady_log(max(self._near, self._test.floor) / max(usual, self._test.floor)))
        return progress, centre - self._mine, following, rank_p


def _joined(reference: Reference, answers: Batch) -> Reference:
    """Both; where one side lacks scores, the side that has them alone, if it is not much smaller."""
    scored: NDArray[np.bool_] = np.zeros(len(answers), dtype=np.bool_)
    if answers.outputs is not None:
        scored = np.asarray(np.isfinite(answers.outputs).all(axis=1))
    if reference.outputs is None and np.count_nonzero(scored) < LEAST_SCORED_SHARE * (len(reference) + len(answers)):
        return Reference(
            np.concatenate([reference.inputs, answers.inputs]), np.concatenate([reference.labels, answers.labels])
        )
    more = answers.take(scored)
    if reference.outputs is None:
        return Reference(more.inputs, more.labels, more.outputs)
    if more.outputs is None:
        return reference
    return Reference(
        np.concatenate([reference.inputs, more.inputs]),
        np.concatenate([reference.labels, more.labels]),
        np.concatenate([reference.outputs, more.outputs]),
    )


def _batch(rows: NDArray[np.float64], labels: NDArray[np.int32]) -> Batch:
    nothing = np.zeros(len(rows), dtype=np.int64)
    return Batch(
        inputs=rows,
        labels=labels,
        clients=nothing.astype(np.uint64),
        times=nothing,
        offsets=nothing,
        rows=nothing.astype(np.int32),
    )
