"""Who may see the console and change things: tokens with roles, signed sessions, CSRF marks, a limit on wrong tokens.

Nothing is stored: a session is a cookie that only a holder of the secret can make, and a CSRF mark is bound to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from streams.config import ConsoleSettings
from streams.console.tokens import Holder, Tokens
from streams.errors import ConfigError

SESSION_COOKIE = "vedette_session"
#: A session ends so long after log-in; about one shift.
SESSION_SECONDS = 12 * 3600
#: Fewest characters of a token: beyond guessing even without the limit below.
TOKEN_LENGTH = 16
#: Wrong tokens from one address, and from everywhere, per minute before log-in is refused.
WRONG_PER_ADDRESS, WRONG_PER_MINUTE = 10, 100
MINUTE_SECONDS = 60.0

_SESSION = re.compile(r"(\d{1,12})\.([a-z0-9-]{0,32})\.(viewer|responder)\.[A-Za-z0-9_-]{22}")
#: Who comes in with the one token of `console.token_file`, or over loopback without any.
ANYBODY = Holder("", "responder")


@dataclass(frozen=True, slots=True)
class Session:
    """A visitor."""

    name: str
    fresh: bool
    """It was made for this answer, so that the cookie must be set."""


class Access:
    """Rules of access for one console.

    Parameters
    ----------
    token : str or None
        The one token of responders. With None, and without `tokens`, everybody who reaches the socket may come in, so
        it must be a loopback socket and be asked for by a loopback name (else any web page could reach it through a
        name that resolves to loopback).
    tokens : Tokens, optional
        Named tokens with roles.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, token: str | None, tokens: Tokens | None = None, clock: Callable[[], float] = time.time) -> None:
        self.guarded = token is not None or tokens is not None
        """Whether somebody must show a token."""
        self._token = token
        self._tokens = tokens
        self._clock = clock
        root = token.encode() if token is not None else b"" if tokens is not None else secrets.token_bytes(32)
        self._root = b"vedette console\0" + root
        self._wrong: list[tuple[float, str]] = []
        self._turn = asyncio.Lock()

    def admits_host(self, request: web.Request) -> bool:
        """Whether the request asks for us by a name under which we may answer."""
        if self.guarded:
            return True
        host = request.headers.get("Host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
        return is_loopback(name)

    def known(self, request: web.Request) -> bool:
        """Whether the visitor has shown a token, now or when the session began."""
        return self.holder(request) is not None

    def holder(self, request: web.Request) -> Holder | None:
        """Who the visitor is; None for somebody who has not shown a token."""
        if not self.guarded:
            return ANYBODY
        return self.bearer(request) or self._holder_of(self._valid_session(request))

    def may_change(self, request: web.Request) -> bool:
        """Whether the visitor's role is one that changes things."""
        found = self.holder(request)
        return found is not None and found.role == "responder"

    def bearer(self, request: web.Request) -> Holder | None:
        """Whose token the request itself carries; no browser adds that by itself, so it needs no CSRF mark."""
        given = _given(request)
        if not self.guarded or not given:
            return None
        if self.must_wait(request):
            # Wrong tokens of others, perhaps behind the same proxy, do not shut out who was known before.
            return self.remembered(given)
        return self.check(request, given)

    async def prepare(self, request: web.Request, given: str | None = None) -> None:
        """Hash the token that is given, else the request's own, in a thread: then nobody waits while it is checked.

        One after the other, and nothing is awaited between the end of this and a check: so every wrong one counts
        before the next is looked at.
        """
        given = _given(request) if given is None else given
        if self._tokens is None or not given or self._tokens.weighed(given):
            return
        async with self._turn:
            if not self.must_wait(request):
                await asyncio.to_thread(self._tokens.holder, given)

    def remembered(self, given: str) -> Holder | None:
        """Whose named token it is, where it came in before."""
        return self._tokens.remembered(given) if self._tokens is not None else None

    def refuses_now(self, request: web.Request) -> bool:
        """Whether a request carries a token that is not looked at, because too many wrong ones came."""
        return "Authorization" in request.headers and self.must_wait(request)

    def check(self, request: web.Request, given: str) -> Holder | None:
        """Whose token it is; an attempt with a wrong one is remembered."""
        if self._token is not None and _same(given, self._token):
            return ANYBODY
        found = self._tokens.holder(given) if self._tokens is not None else None
        if found is None:
            self._wrong.append((self._clock(), _address(request)))
        return found

    def must_wait(self, request: web.Request) -> bool:
        """Whether too many wrong tokens came within the last minute."""
        since = self._clock() - MINUTE_SECONDS
        self._wrong = [(at, address) for at, address in self._wrong if at > since][-WRONG_PER_MINUTE:]
        ours = sum(address == _address(request) for _, address in self._wrong)
        return ours >= WRONG_PER_ADDRESS or len(self._wrong) >= WRONG_PER_MINUTE

    def session(self, request: web.Request) -> Session:
        """The visitor's session, or a new one."""
        found = self._valid_session(request)
        return Session(found, fresh=False) if found else self.new_session()

    def new_session(self, holder: Holder = ANYBODY) -> Session:
        """A session that begins now."""
        name = f"{int(self._clock())}.{holder.name}.{holder.role}.{secrets.token_urlsafe(16)}"
        return Session(name, fresh=True)

    def csrf(self, session: Session) -> str:
        """The mark that every form of the session carries."""
        return self._sign("csrf", session.name)

    def allows_change(self, request: web.Request, given: str) -> bool:
        """Whether a request that changes something comes from a page of ours, or carries a token itself."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        if self.bearer(request) is not None:
            return True
        name = self._valid_session(request)
        return name is not None and _same(given, self._sign("csrf", name))

    def allows_program_change(self, request: web.Request) -> bool:
        """Whether a JSON request may change something: no other page's form can send one without asking first."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        if not self.guarded or self.bearer(request) is not None:
            return True
        name = self._valid_session(request)
        return name is not None and _same(request.headers.get("X-CSRF-Token", ""), self._sign("csrf", name))

    def remember(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Give the visitor the session's cookie.

        Lax, not strict: a link in a page or a chat must find the session; what changes something needs the mark.
        """
        value = f"{session.name}.{self._sign('session', session.name)}"
        response.set_cookie(SESSION_COOKIE, value, httponly=True, samesite="Lax", secure=request.secure)

    def forget(self, response: web.StreamResponse) -> None:
        """Take the session's cookie back."""
        response.del_cookie(SESSION_COOKIE, httponly=True, samesite="Lax")

    def _valid_session(self, request: web.Request) -> str | None:
        name, _, mark = request.cookies.get(SESSION_COOKIE, "").rpartition(".")
        found = _SESSION.fullmatch(name)
        if found is None or not _same(mark, self._sign("session", name)):
            return None
        age = self._clock() - int(found.group(1))
        return name if -MINUTE_SECONDS <= age <= SESSION_SECONDS else None

    @staticmethod
    def _holder_of(session: str | None) -> Holder | None:
        found = _SESSION.fullmatch(session or "")
        return (
            None if found is None else Holder(found.group(2), "viewer" if found.group(3) == "viewer" else "responder")
        )

    def _sign(self, purpose: str, text: str) -> str:
        seal = self._tokens.seal if self._tokens is not None else b""
        secret = hashlib.sha256(self._root + seal).digest()
        return hmac.new(secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def read_token(settings: ConsoleSettings) -> str | None:
    """The token from the settings.

    Raises
    ------
    ConfigError
        When the file cannot be read, or its token is short, or when the console should listen beyond loopback
        without a token.
    """
    path = settings.token_file
    if path is None:
        if settings.tokens_file is None and not is_loopback(settings.host):
            raise ConfigError(
                f"console.host: {settings.host} is not loopback; set console.token_file or console.tokens_file first, "
                "so that nobody reads evidence unasked"
            )
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"console.token_file: cannot read {path}") from None
    if len(token) < TOKEN_LENGTH:
        raise ConfigError(f"console.token_file: {path} must hold at least {TOKEN_LENGTH} characters")
    return token


def read_tokens(settings: ConsoleSettings) -> Tokens | None:
    """Named tokens from the settings; None where no file is named.

    Raises
    ------
    ConfigError
    """
    return None if settings.tokens_file is None else Tokens(Path(settings.tokens_file))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, whoever resolves it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _given(request: web.Request) -> str:
    """The token that the request itself carries, or nothing."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _address(request: web.Request) -> str:
    return request.remote or ""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())
