"""Any HTTP endpoint: the notice itself as JSON (docs/schemas/notice.json), signed with HMAC-SHA256.

``Vedette-Signature: t=SECONDS,v1=HEX`` holds the HMAC of ``SECONDS.BODY`` under the secret. A secret file with
two lines signs with both, so that a secret can be changed without a gap; a receiver accepts any ``v1`` that fits.
"""

from __future__ import annotations

import hashlib
import hmac
import re

import msgspec

from streams.config import DestinationSettings
from streams.errors import ConfigError
from streams.notify.contract import Answer, Call, Outcome, judge
from streams.notify.secret import Address
from streams.store.messages import Notice

SIGNATURE = "Vedette-Signature"
#: Fewest characters of a signing secret.
SECRET_LENGTH = 16
#: A receiver takes signatures whose time is so near to its own clock.
TOLERANCE_SECONDS = 300

_HEADER = re.compile(r"t=(\d{1,12})((?:,v1=[0-9a-f]{64})+)")


class Webhook:
    """Posts the notice. With ``chat = true`` tickets go there too."""

    refresh_seconds = 0.0

    def __init__(self, settings: DestinationSettings) -> None:
        self.calls_people = not settings.chat
        self._name = settings.name
        self._address = Address(settings)

    def call(self, notice: Notice, now: int) -> Call | None:
        body = msgspec.json.encode(notice)
        secrets = self._address.secret().split()
        if min(map(len, secrets)) < SECRET_LENGTH:
            raise ConfigError(
                f"notify.destinations.{self._name}.secret_file: a secret has at least {SECRET_LENGTH} characters"
            )
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": notice.id,
            SIGNATURE: signature(body, secrets, now // 1_000_000),
        }
        return Call(self._address.url(), body, headers)

    def judge(self, answer: Answer, now: int) -> Outcome:
        return judge(answer, now)


def signature(body: bytes, secrets: list[str], seconds: int) -> str:
    """The header's value."""
    return f"t={seconds}" + "".join(f",v1={_mark(body, secret, seconds)}" for secret in secrets)


def verify(body: bytes, header: str, secret: str, now: float, tolerance: float = TOLERANCE_SECONDS) -> bool:
    """Whether a request came from who holds the secret, and not long ago; for receivers.

    Parameters
    ----------
    body : bytes
        As it came, before anything reads it.
    header : str
        Value of ``Vedette-Signature``.
    now : float
        Seconds since the epoch.
    """
    found = _HEADER.fullmatch(header.strip())
    if found is None or abs(now - int(found.group(1))) > tolerance:
        return False
    wanted = _mark(body, secret, int(found.group(1)))
    return any(hmac.compare_digest(given, wanted) for given in re.findall(r"v1=([0-9a-f]{64})", found.group(2)))


def _mark(body: bytes, secret: str, seconds: int) -> str:
    return hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
