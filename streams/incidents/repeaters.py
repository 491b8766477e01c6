"""Repeaters: clients whose near-duplicates open tickets and do not page, on the word of two people, until an end.

Whoever proposes one cannot approve it. An approval changes only what becomes of a page: the rest of the client's
evidence, its ticket, and what workers remember of it stay as they are.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
from redis import Redis

from streams.errors import ConfigError, Conflict
from streams.incidents.people import person, same_person
from streams.store.keys import ModelKeys
from streams.store.messages import IncidentChange, Repeater

log = logging.getLogger("vedette.incidents")

#: Proposals and approvals of one model that are kept at once: each worker reads them every second.
REPEATERS_KEPT = 200
#: Longest approval: who repeats himself for longer belongs in the calibration.
LONGEST_MICROSECONDS = 90 * 24 * 3600 * 1_000_000
#: Ended ones are forgotten after so long; the log keeps who did what.
ENDED_MICROSECONDS = 7 * 24 * 3600 * 1_000_000
#: Longest reason and comment.
REASON_LENGTH = 500

Standing = Literal["proposed", "approved", "ended"]
CLIENT = re.compile(r"[0-9a-f]{16}")
_SCRIPT = Path(__file__).with_name("replace.lua").read_text(encoding="utf-8")
_ANONYMOUS = "0" * 16


def standing(repeater: Repeater, now: int) -> Standing:
    """Whether it is proposed, approved and in force, or over."""
    if now >= repeater.ends:
        return "ended"
    return "approved" if repeater.approved_by else "proposed"


def decoded(bodies: Iterable[bytes | str]) -> list[Repeater]:
    """Repeaters as Redis holds them, oldest proposal first; what another version wrote is left out."""
    found = []
    for body in bodies:
        try:
            found.append(msgspec.json.decode(body, type=Repeater))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("a repeater cannot be read and is passed over: %s", error)
    return sorted(found, key=lambda one: (one.proposed, one.client))


class Repeaters:
    """The repeaters of one model.

    Parameters
    ----------
    redis : redis.Redis
        A client that returns bytes.
    keys : ModelKeys
    """

    def __init__(self, redis: Redis, keys: ModelKeys) -> None:
        self._redis = redis
        self._keys = keys
        self._replace = redis.register_script(_SCRIPT)

    def all(self) -> tuple[Repeater, ...]:
        """Proposed, approved, and those that ended within a week; oldest proposal first."""
        return tuple(decoded(self._redis.hvals(self._keys.repeaters)))

    def propose(self, client: str, by: str, ends: int, reason: str, *, now: int | None = None) -> Repeater:
        """Propose that the client's near-duplicates do not page up to `ends`, microseconds since the epoch.

        It changes nothing until somebody else approves it.

        Raises
        ------
        ConfigError
            When it makes no sense: no client's hash, no reason, no end ahead, longer than 90 days.
        Conflict
            When the client is proposed or approved already.
        """
        by, at, reason = person(by), _now(now), reason.strip()[:REASON_LENGTH]
        if not CLIENT.fullmatch(client) or client == _ANONYMOUS:
            raise ConfigError(f"{client[:32]!r} is no client's hash: 16 hex digits, as incidents show them")
        if not reason:
            raise ConfigError("say why the client repeats itself; whoever approves it must know")
        if ends <= at:
            raise ConfigError("an approval must end later than now")
        if ends - at > LONGEST_MICROSECONDS:
            raise ConfigError("an approval lasts at most 90 days; calibrate on the client's traffic instead")
        kept = [one for one in self.all() if one.ends > at and one.client != client]
        if len(kept) >= REPEATERS_KEPT:
            raise ConfigError(f"there are {len(kept)} repeaters already; revoke some, or calibrate on their traffic")

        def alter(old: Repeater | None) -> Repeater:
            if old is not None and old.ends > at:
                how = f"approved by {old.approved_by}" if old.approved_by else f"proposed by {old.proposed_by}"
                raise Conflict(f"client {client} is already {how} until {_utc(old.ends)} UTC; revoke that first")
            return Repeater(client, self._keys.model, reason, by, at, ends)

        return self._change(client, alter, "repeater-proposed", by, lambda one: f"until {_utc(ends)} UTC: {reason}", at)

    def approve(self, client: str, by: str, *, now: int | None = None) -> Repeater:
        """Approve what somebody else has proposed; from now on it holds. Nothing happens to what `by` has approved.

        Raises
        ------
        ConfigError
            When nobody has proposed the client, or the proposal has ended.
        Conflict
            When `by` has proposed it, or somebody else has approved it.
        """
        by, at = person(by), _now(now)

        def alter(old: Repeater | None) -> Repeater:
            if old is None or old.ends <= at:
                raise ConfigError(f"client {client[:32]} is not proposed as a repeater, or the proposal has ended")
            if old.approved_by:
                if same_person(old.approved_by, by):
                    return old
                raise Conflict(f"client {client} is already approved by {old.approved_by}")
            if same_person(old.proposed_by, by):
                raise Conflict(f"{old.proposed_by} has proposed client {client}; somebody else must approve it")
            return msgspec.structs.replace(old, approved_by=by, approved=at)

        def said(one: Repeater) -> str:
            return f"until {_utc(one.ends)} UTC, as {one.proposed_by} proposed: {one.reason}"

        return self._change(client, alter, "repeater-approved", by, said, at)

    def revoke(self, client: str, by: str, comment: str = "", *, now: int | None = None) -> Repeater:
        """End an approval, or refuse a proposal, now; nothing happens to what has ended.

        Raises
        ------
        ConfigError
            When the client is neither.
        """
        by, at, comment = person(by), _now(now), comment.strip()[:REASON_LENGTH]

        def alter(old: Repeater | None) -> Repeater:
            if old is None:
                raise ConfigError(f"client {client[:32]} is neither proposed nor approved; it may have ended long ago")
            if old.ends <= at:
                return old
            return msgspec.structs.replace(old, ends=at, revoked_by=by, revoked=at, comment=comment)

        def said(one: Repeater) -> str:
            what = "approval ended" if one.approved_by else "proposal refused"
            return f"{what}: {comment}" if comment else what

        return self._change(client, alter, "repeater-revoked", by, said, at)

    def forget_ended(self, now: int) -> None:
        """Forget those that ended more than a week ago."""
        old = [one.client for one in self.all() if one.ends + ENDED_MICROSECONDS < now]
        if old:
            self._redis.hdel(self._keys.repeaters, *old)

    def _change(
        self,
        client: str,
        alter: Callable[[Repeater | None], Repeater],
        change: Literal["repeater-proposed", "repeater-approved", "repeater-revoked"],
        by: str,
        said: Callable[[Repeater], str],
        at: int,
    ) -> Repeater:
        stored = self._redis.hget(self._keys.repeaters, client)
        old = None if stored is None else msgspec.json.decode(stored, type=Repeater)
        new = alter(old)
        if new == old:
            return new
        what = f"repeater {client} {change.partition('-')[2]}, {said(new)}"
        entry = IncidentChange(
            id=client, incident="", model=self._keys.model, change=change, by=by, what=what,
            level="ticket", state="suppressed", at=at,
        )  # fmt: skip
        keys = [self._keys.repeaters, self._keys.log]
        arguments = [client, stored or b"", msgspec.json.encode(new), msgspec.json.encode(entry)]
        if not self._replace(keys=keys, args=arguments):
            raise Conflict(f"somebody else has just changed repeater {client}; look again")
        return new


def _utc(microseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(microseconds / 1e6))


def _now(now: int | None) -> int:
    return time.time_ns() // 1000 if now is None else now
