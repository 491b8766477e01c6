"""Events of the walk, made into signals that a person can understand."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.contract import ANONYMOUS, Level, Reason, Signal, Technique
from detectors.policy import Policy
from detectors.queries import walk as walking
from detectors.queries.intent import IntentTest, IntentVerdict
from detectors.queries.memory import MEMBERS, Memory
from detectors.queries.walk import Tables
from detectors.single import Scored, Single

#: Detectors are named among a signal's reasons when their p-value is at most this.
REASON_P = 0.05
#: Most detectors of single inputs among a signal's reasons.
MAX_REASONS = 3
#: A cluster of the index is the row's client's own where that client sent this share of its members.
OWN_SHARE = 0.75
#: Coordinates of a cluster's first member become the seed of its intent test: offset times this (2**64 over the golden
#: ratio) plus row, in 64 bits.
SEED_FACTOR, SEED_MASK = 0x9E3779B97F4A7C15, 0xFFFF_FFFF_FFFF_FFFF


class Fitted(Protocol):
    """What telling needs of the ensemble."""

    @property
    def single(self) -> Single: ...
    @property
    def tables(self) -> Tables: ...
    @property
    def intent(self) -> IntentTest: ...
    @property
    def policy(self) -> Policy: ...


class Teller:
    """Turns events of the walk over one batch into signals."""

    def __init__(self, ensemble: Fitted, scored: Scored, trace: NDArray[Any], memory: Memory) -> None:
        self.ensemble, self.scored, self.trace, self.memory = ensemble, scored, trace, memory

    def tell(self, row: int, kind: int, place: int, owner: int) -> Signal | None:
        """The signal of one event; None where there is nothing new to say."""
        if kind == walking.SEQUENCE_CROSSED:
            return self._sequence(row)
        if kind == walking.ODD_ROW:
            return self._odd(row)
        index = kind in (walking.INDEX_TICKET, walking.INDEX_CHECK)
        if place >= 0 and self.memory.pool.heads["owner"][place] != owner:
            place = -1  # the same row's other event has taken the place
        if place >= 0 and kind in (walking.CLUSTER_CHECK, walking.INDEX_CHECK):
            return self._checked(row, place, index)
        return self._crossed(row, place, index)

    def _crossed(self, row: int, place: int, index: bool) -> Signal | None:
        """A cluster has crossed its ticket threshold: a ticket, or a page where nothing else is asked for."""
        if index and place >= 0 and own_cluster(self._senders(place), self._client(row)):
            return None  # the client's own history tells of it
        pages = self.ensemble.policy.mode == "at-once" and self._loud_enough(row, index, math.inf)
        if place >= 0:
            head = self.memory.pool.heads[place]
            if head["paged"]:
                return None
            head["told"], head["paged"] = head["size"], pages
        return self._cluster(row, place, index, Level.PAGE if pages else Level.TICKET, None, math.inf)

    def _checked(self, row: int, place: int, index: bool) -> Signal | None:
        """A cluster has reached a size at which intent is judged."""
        head, mode = self.memory.pool.heads[place], self.ensemble.policy.mode
        size, told, paged = int(head["size"]), int(head["told"]), bool(head["paged"])
        statistic, threshold, _ = self._evidence(row, index)
        ticketed = statistic > threshold
        if (mode != "intent" and not ticketed) or (index and self._examined_elsewhere(row, place)):
            head["check"] = next_check(size)
            return None
        verdict = judge(self.ensemble.intent, self.memory, place)
        several = index and not own_cluster(self._senders(place), self._client(row))
        ticketed = ticketed and (several or not index)
        clear = {"at-once": math.inf, "intent": self._clear(verdict, several), "tickets": 0.0}[mode]
        loud = self._loud_enough(row, index, clear)
        pages = loud and not paged
        head["check"] = 2 * size if (paged or pages) and not index else next_check(size)
        if not pages and (size < 2 * told or not (ticketed or (paged and loud))):
            return None
        head["told"], head["paged"] = size, paged or pages
        # What a client's cluster paged for goes on; rows of many accounts are each another client's.
        level = Level.PAGE if loud or (paged and not index) else Level.TICKET
        return self._cluster(row, place, index, level, verdict, clear)

    def _loud_enough(self, row: int, index: bool, clear: float) -> bool:
        """Whether the row's cluster pages.

        `clear` is how clearly the intent test speaks; infinite where it isn't asked. A page of the index counts among
        those of client-weeks, as the client's at whose row it is made, unless the index may page by itself.
        """
        if index and self._index_alone(row, clear):
            return True
        if self.ensemble.policy.mode == "intent":
            known = not index or self._client(row) != ANONYMOUS
            return known and clear >= self.ensemble.policy.page_score
        statistic, threshold, _ = self._evidence(row, index=False)
        return statistic > threshold and clear > 0.0

    def _examined_elsewhere(self, row: int, place: int) -> bool:
        """Whether a cluster of the index is one of the row's client, whose own history examines it."""
        statistic, threshold, _ = self._evidence(row, index=False)
        return statistic > threshold and own_cluster(self._senders(place), self._client(row))

    def _senders(self, place: int) -> NDArray[np.uint64]:
        pool = self.memory.pool
        return np.asarray(pool.members["client"][place, member_order(int(pool.heads["size"][place]))])

    def _clear(self, verdict: IntentVerdict, several: bool) -> float:
        """How clearly the intent test speaks of a cluster, of several accounts or not."""
        return verdict.ratio / self.ensemble.policy.shared_score if several else verdict.ratio

    def _client(self, row: int) -> int:
        return int(self.scored.columns.rows[row]["client"])

    def _asked(self, verdict: IntentVerdict, row: int, index: bool, shared: bool) -> float:
        """The score from which the cluster pages; infinite where none is enough."""
        policy = self.ensemble.policy
        scores = [policy.page_score] if not index or self._client(row) != ANONYMOUS else []
        scores += [policy.index_score] if index and policy.index_pages else []
        return verdict.measures["needed"] * min(scores, default=math.inf) * (policy.shared_score if shared else 1.0)

    def _index_alone(self, row: int, clear: float) -> bool:
        """Whether a cluster of the index is beyond a paging threshold of its own, as partition-weeks set it."""
        policy = self.ensemble.policy
        if policy.mode == "intent":
            return policy.index_pages and clear >= policy.index_score
        statistic, threshold, _ = self._evidence(row, index=True)
        return policy.index_pages and statistic > threshold * policy.index_factor

    def _evidence(self, row: int, index: bool) -> tuple[float, float, float]:
        """The larger statistic of a row's cluster, its ticket threshold, and the p-value of the row in it."""
        trace, thresholds = self.trace, self.ensemble.tables.thresholds
        if index:
            return float(trace["index_shared"][row]), float(thresholds[2]), float(trace["index_p"][row])
        a, b = float(trace["evidence_a"][row]), float(trace["evidence_b"][row])
        if a * float(thresholds[1]) >= b * float(thresholds[0]):
            return a, float(thresholds[0]), float(trace["p_a"][row])
        return b, float(thresholds[1]), float(trace["p_b"][row])

    def _cluster(
        self, row: int, place: int, index: bool, level: Level, verdict: IntentVerdict | None, clear: float
    ) -> Signal:
        columns, pool, policy = self.scored.columns, self.memory.pool, self.ensemble.policy
        statistic, threshold, pvalue = self._evidence(row, index)
        if place >= 0:
            head, order = pool.heads[place], member_order(int(pool.heads[place]["size"]))
            kept = pool.members[place][order]
            members = np.column_stack([kept["offset"], kept["row"].astype(np.int64)])
            clients = kept["client"].copy()
            first = (int(head["offset"]), int(head["row"]))
        else:
            members, clients = self._own_place(row)
            clients = np.zeros_like(clients) if index else clients  # who the others are isn't known
            first = (int(columns.rows[row]["offset"]), int(columns.rows[row]["row"]))
        reasons = [self._index_reason(row, clients) if index else self._history_reason(row, pvalue)]
        if verdict is not None:
            reasons.append(_intent_reason(verdict))
        by_intent = level == Level.PAGE and policy.mode == "intent"
        if level == Level.PAGE and index:
            if by_intent:
                statistic, threshold = float(self.trace["index_evidence"][row]), walking.INDEX_EXAMINED
            else:
                threshold *= policy.index_factor
        leans = index and level == Level.PAGE and not by_intent and not self._index_alone(row, clear)
        shared = index and (place < 0 or not own_cluster(clients, self._client(row)))
        if not shared:
            own = clients == np.uint64(self._client(row))
            members, clients = members[own], clients[own]
        kind = "index" if shared else "query"
        return self._signal(
            row,
            rule=f"{kind}-intent" if by_intent else f"{kind}-cluster",
            level=level,
            technique=Technique.CRAFT_BLACK_BOX,
            entity="cluster" if shared else "client",
            entity_id=f"{first[0]}-{first[1]}" if shared else client_name(self._client(row)),
            statistic=statistic,
            threshold=threshold,
            members=members,
            member_clients=clients,
            reasons=(*reasons, *self._detector_reasons(row)),
            measures={} if verdict is None else {**verdict.measures, "asked": self._asked(verdict, row, index, shared)},
            rests_on=self._client(row) if leans and shared else ANONYMOUS,
            of_index=index,
        )

    def _sequence(self, row: int) -> Signal:
        """The client's single inputs, taken together, are odder than any benign client's."""
        columns = self.scored.columns
        members, clients = self._own_place(row)
        reason = self._fused_reason(
            row, "one input after another of this client looks crafted; their evidence has added up"
        )
        return self._signal(
            row,
            rule="input-sequence",
            level=Level.TICKET if self.ensemble.policy.mode == "tickets" else Level.PAGE,
            technique=Technique.CRAFT,
            entity="client",
            entity_id=client_name(int(columns.rows[row]["client"])),
            statistic=float(self.trace["sequence"][row]),
            threshold=float(self.ensemble.tables.thresholds[3]),
            members=members,
            member_clients=clients,
            reasons=(reason, *self._detector_reasons(row)),
            measures={},
        )

    def _odd(self, row: int) -> Signal:
        """One input by itself is odder than any of most benign client-weeks; it never pages."""
        members, clients = self._own_place(row)
        client = self._client(row)
        known = client != ANONYMOUS
        reason = self._fused_reason(
            row, "this input by itself is odder than any that most benign clients send in a week"
        )
        return self._signal(
            row,
            rule="input-row",
            level=Level.TICKET,
            technique=Technique.CRAFT,
            entity="client" if known else "cluster",
            entity_id=client_name(client) if known else f"{members[0, 0]}-{members[0, 1]}",
            statistic=float(self.scored.sums[row]),
            threshold=float(self.ensemble.tables.thresholds[4]),
            members=members,
            member_clients=clients,
            reasons=(reason, *self._detector_reasons(row)),
            measures={},
        )

    def _fused_reason(self, row: int, text: str) -> Reason:
        sums, fused = float(self.scored.sums[row]), float(self.scored.fused[row])
        further = self.ensemble.single.fusion.tail.pvalue(sums)
        extrapolated = further is not None and further < fused
        return Reason("fused", further if extrapolated and further is not None else fused, text, extrapolated)

    def _own_place(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        own = self.scored.columns.rows[row]
        return np.array([[own["offset"], own["row"]]], dtype=np.int64), np.array([own["client"]], dtype=np.uint64)

    def _history_reason(self, row: int, pvalue: float) -> Reason:
        near, opposite = math.sqrt(self.trace["near"][row]), float(self.trace["opposite"][row])
        text = f"an earlier query of this client lies at {near:.2g} of the distance that is usual between such inputs"
        if self.trace["p_b"][row] < self.trace["p_a"][row] and math.isfinite(opposite):
            text += f", and one with another answer at {math.sqrt(opposite):.2g} of it"
        return Reason("client_history", pvalue, text)

    def _index_reason(self, row: int, clients: NDArray[np.uint64]) -> Reason:
        accounts = len(np.unique(clients))
        near = math.sqrt(self.trace["index_near"][row])
        text = f"a query of the last ones of all accounts lies at {near:.2g} of the distance that is usual between them"
        if accounts > 1:
            text += f"; {accounts} accounts share this cluster of queries"
        return Reason("shared_index", float(self.trace["index_p"][row]), text)

    def _detector_reasons(self, row: int) -> tuple[Reason, ...]:
        """The detectors of single inputs to which this row looks oddest."""
        pvalues = self.scored.pvalues[row]
        order = np.argsort(pvalues, kind="stable")[:MAX_REASONS]
        detectors = self.ensemble.single.detectors
        return tuple(
            Reason(detectors[at].name, float(pvalues[at]), detectors[at].explain(self.scored.view, row))
            for at in order
            if pvalues[at] <= REASON_P
        )

    def _signal(self, row: int, **said: Any) -> Signal:
        view, frame = self.scored.view, self.ensemble.single.frame
        nearest = int(view.nearest_own[row])
        if nearest < 0:
            nearest = int(np.square(frame.standardised - view.standardised[row]).sum(axis=1).argmin())
        return Signal(
            row=row,
            input=view.batch.inputs[row].copy(),
            nearest=frame.inputs[nearest].copy(),
            label=int(view.batch.labels[row]),
            nearest_label=int(frame.labels[nearest]),
            **said,
        )


def client_name(client: int) -> str:
    """16 hex digits of a client's hash."""
    return f"{client:016x}"


def own_cluster(senders: NDArray[np.uint64], client: int) -> bool:
    """Whether a cluster of the index, of which these (m,) sent the members, is that client's own."""
    return client != ANONYMOUS and float(np.mean(senders == np.uint64(client))) >= OWN_SHARE


def next_check(size: int) -> int:
    """The next size at which intent is judged: 16, 24, 32, 48, 64, 96, ... ."""
    power = 1 << (size.bit_length() - 1)
    return power + power // 2 if size < power + power // 2 else 2 * power


def member_order(size: int) -> NDArray[np.intp]:
    """Places in a ring of `MEMBERS` of the last members, oldest first."""
    return np.arange(max(0, size - MEMBERS), size) % MEMBERS


def judge(intent: IntentTest, memory: Memory, place: int) -> IntentVerdict:
    """Judge the cluster at a place of the pool; random signs follow from the coordinates of its first member."""
    pool = memory.pool
    head = pool.heads[place]
    order = member_order(int(head["size"]))
    seed = (int(head["offset"]) * SEED_FACTOR + int(head["row"])) & SEED_MASK
    rows, members = pool.rows[place][order], pool.members[place][order]
    answers = np.column_stack([members["own"], members["rival"]])
    return intent.judge(rows, members["label"], int(head["size"]), pool.origin[place].copy(), seed, answers)


#: Parts of the intent test in words.
_WHAT_ATTACKERS_DO = {
    "progress": "move towards the model's boundary (progress {:.1f} sd)",
    "following": "walk along the boundary",
    "bisection": "close in on it from both sides",
    "halvings": "search straight lines between two answers for the boundary",
    "by_scores": "go on from those that the model was less sure of",
    "by_answers": "go on where its answer changed",
}


def _intent_reason(verdict: IntentVerdict) -> Reason:
    measures = verdict.measures
    size, gate = int(measures["size"]), int(measures["gate"])
    text = f"{size} near-identical queries change up to {gate} features at once"
    if verdict.page:
        parts = verdict.shape.brought(measures)
        text += " and " + _WHAT_ATTACKERS_DO[max(parts, key=lambda name: parts[name])].format(measures["progress"])
    else:
        text += "; nothing shows yet that they seek the model's boundary"
    return Reason("intent", float(measures["following_p"]), text)
