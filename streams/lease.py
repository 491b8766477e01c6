"""Redis leases: one active process per role and model, with a fencing token that every write of the holder checks."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError

from streams.store.keys import ModelKeys

Role = Literal["correlator", "prober", "trainer", "notifier"]

#: A standby takes over at most so long after the holder fell silent.
LEASE_SECONDS = 10.0
#: Renewals per time to live; one or two may fail before the lease is lost.
RENEWALS_PER_LEASE = 4

SCRIPT = Path(__file__).with_name("lease.lua").read_text(encoding="utf-8")


def process_name() -> str:
    """A name of this process that people can read and no other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


class Lease:
    """The lease of one role for one model.

    The token of `acquire` grows with every new holder. A write script of the holder passes it and compares it with
    the counter `ModelKeys.fence(role)`: equal means that nobody has taken over since. So a process that was stopped
    and wakes can do no harm, whatever it believes.

    Parameters
    ----------
    redis : redis.Redis
    keys : ModelKeys
    role : {"correlator", "prober", "trainer", "notifier"}
    holder : str, optional
        Name shown to people; default: host, process id and a random part.
    seconds : float
        Time to live without renewal.
    """

    def __init__(
        self, redis: Redis, keys: ModelKeys, role: Role, *, holder: str | None = None, seconds: float = LEASE_SECONDS
    ) -> None:
        self.role = role
        self.holder = holder or process_name()
        self.seconds = seconds
        self._keys = [keys.lease(role), keys.fence(role)]
        self._script = redis.register_script(SCRIPT)
        self._token: int | None = None

    @property
    def token(self) -> int | None:
        """The fencing token, or None while the lease is not ours."""
        return self._token

    @property
    def renew_every(self) -> float:
        """Seconds between two renewals."""
        return self.seconds / RENEWALS_PER_LEASE

    def acquire(self) -> bool:
        """Take the lease if nobody holds it; True when it is ours."""
        if self._token is None:
            self._token = self._call("acquire") or None
        return self._token is not None

    def renew(self) -> bool:
        """Prolong the lease; False when another holder has taken over."""
        if self._token is not None and not self._call("renew"):
            self._token = None
        return self._token is not None

    def drop(self) -> None:
        """Forget the token without asking Redis; `acquire` gets it back if the lease is still ours."""
        self._token = None

    def release(self) -> None:
        """Give the lease back, so that a standby need not wait for its end."""
        if self._token is not None:
            self._call("release")
            self._token = None

    @contextmanager
    def kept(self) -> Iterator[threading.Event]:
        """Renew in a thread while the block runs; the event is set when the lease is lost.

        For holders that are busy for longer than the time to live. Redis being away is not the loss of the lease: the
        thread goes on trying, and the fencing token decides. The lease is released at the end.
        """
        lost, done = threading.Event(), threading.Event()

        def keep() -> None:
            while not done.wait(self.renew_every):
                try:
                    if not self.renew():
                        lost.set()
                        return
                except RedisError:
                    continue

        thread = threading.Thread(target=keep, name=f"lease-{self.role}", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join(self.seconds)
            try:
                self.release()
            except RedisError:
                self._token = None

    def _call(self, operation: str) -> int:
        arguments: list[str | int] = [operation, self.holder, self._token or 0, round(self.seconds * 1000)]
        return int(self._script(keys=self._keys, args=arguments))
