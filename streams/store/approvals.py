"""Approvals of repeaters as workers read them: who pages as a ticket only, from when, and until when.

A function of what Redis holds and of broker time alone: which rows an approval is about does not depend on the clock.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec

from detectors.contract import ANONYMOUS, Level, Signal
from detectors.signals import OWN_SHARE
from streams.store.messages import Repeater

log = logging.getLogger("vedette.store")

#: Rules whose page rests on near-duplicates of one client, and of many accounts.
OWN_RULES, SHARED_RULES = ("query-cluster", "query-intent"), ("index-cluster", "index-intent")


@dataclass(frozen=True, slots=True)
class Approvals:
    """Approved repeaters of one model.

    Attributes
    ----------
    spans : mapping of int to (int, int)
        Client hash -> broker times, microseconds, from which and up to which the approval holds.
    """

    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def decoded(cls, stored: Mapping[bytes, bytes]) -> Self:
        """From the hash as Redis holds it; what another version wrote is passed over, so its client pages."""
        spans = {}
        for name, body in stored.items():
            try:
                one = msgspec.json.decode(body, type=Repeater)
                client = int(one.client, 16)
            except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
                log.warning("repeater %r cannot be read and is passed over: %s", name[:32], error)
                continue
            if one.approved_by:
                spans[client] = (one.approved, one.ends)
        return cls(spans)

    def hold(self, client: int, at: int) -> bool:
        """Whether the client is an approved repeater at that broker time."""
        since, until = self.spans.get(client, (0, 0))
        return client != ANONYMOUS and since <= at < until

    def excuse(self, signal: Signal, at: int) -> bool:
        """Whether a page becomes a ticket: its evidence is near-duplicates of approved repeaters, all but a quarter.

        A cluster of many accounts is excused where approved ones sent three of four of its members, or where it pages
        only because of one approved client's own near-duplicates.
        """
        if not self.spans or signal.level != Level.PAGE:
            return False
        if signal.rule in OWN_RULES:
            return self.hold(int(signal.entity_id, 16), at)
        if signal.rule in SHARED_RULES:
            if signal.rests_on != ANONYMOUS and self.hold(signal.rests_on, at):
                return True
            approved = [self.hold(client, at) for client in signal.member_clients.tolist()]
            return bool(approved) and sum(approved) >= OWN_SHARE * len(approved)
        return False


#: Nobody is approved.
NOBODY = Approvals()
