"""Whose near-duplicates a page of the index of all accounts rests on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from detectors.contract import ANONYMOUS, Level, Signal
from detectors.policy import Policy
from detectors.signals import Teller

CLIENT = 7
#: Ticket thresholds of evidence A, B and the index.
THRESHOLDS = np.array([10.0, 10.0, 20.0, 5.0])


def told(
    policy: Policy, index_evidence: float, clear: float = np.inf, *, index: bool = True, level: Level = Level.PAGE
) -> Signal:
    """The signal of one row of a client whose own evidence is beyond every paging threshold."""
    rows = np.zeros(1, dtype=[("client", "<u8"), ("offset", "<i8"), ("row", "<i4")])
    rows["client"] = CLIENT
    trace = {
        name: np.array([value])
        for name, value in (
            ("evidence_a", 90.0), ("evidence_b", 0.0), ("p_a", 0.01), ("p_b", 1.0), ("near", 0.01),
            ("opposite", np.inf), ("index_evidence", index_evidence), ("index_shared", index_evidence),
            ("index_p", 0.01), ("index_near", 0.01),
        )
    }  # fmt: skip
    batch = SimpleNamespace(inputs=np.zeros((1, 2)), labels=np.zeros(1, dtype=np.int32))
    frame = SimpleNamespace(inputs=np.zeros((1, 2)), labels=np.zeros(1, dtype=np.int32))
    ensemble: Any = SimpleNamespace(
        tables=SimpleNamespace(thresholds=THRESHOLDS),
        policy=policy,
        single=SimpleNamespace(detectors=(), frame=frame),
    )
    scored: Any = SimpleNamespace(
        columns=SimpleNamespace(rows=rows),
        pvalues=np.empty((1, 0)),
        view=SimpleNamespace(nearest_own=np.zeros(1, dtype=np.int64), batch=batch),
    )
    memory: Any = SimpleNamespace(pool=None)
    return Teller(ensemble, scored, trace, memory)._cluster(0, -1, index, level, None, clear)  # type: ignore[arg-type]  # columns by name


@pytest.mark.parametrize(
    ("policy", "index_evidence", "clear", "rests_on"),
    [
        (Policy("at-once"), 90.0, np.inf, CLIENT),  # the index has no paging threshold of its own
        (Policy("at-once", 1.0, True, 2.0), 30.0, np.inf, CLIENT),  # and here has not reached it
        (Policy("at-once", 1.0, True, 2.0), 41.0, np.inf, ANONYMOUS),
        (Policy("intent", 1.0, True), 21.0, 1.0, ANONYMOUS),
        (Policy("intent", 1.0, True, index_score=3.0), 90.0, 2.9, ANONYMOUS),  # the intent test speaks of all members
        (Policy("intent", 1.0, True, index_score=3.0), 21.0, 3.0, ANONYMOUS),
        (Policy("intent"), 90.0, 9.0, ANONYMOUS),
    ],
)
def test_a_page_of_the_index_rests_on_the_rows_client_unless_it_stands_alone(
    policy: Policy, index_evidence: float, clear: float, rests_on: int
) -> None:
    signal = told(policy, index_evidence, clear)
    assert signal.rule.startswith("index-")
    assert signal.rests_on == rests_on


def test_tickets_and_a_clients_own_clusters_rest_on_nobody_else() -> None:
    assert told(Policy("at-once"), 90.0, level=Level.TICKET).rests_on == ANONYMOUS
    own = told(Policy("at-once"), 0.0, index=False)
    assert (own.rule, own.rests_on) == ("query-cluster", ANONYMOUS)
