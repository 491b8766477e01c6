"""Sends a request and tells what came of it, within a time limit, whatever the other side does."""

from __future__ import annotations

import ssl
from typing import Protocol

import aiohttp

from streams.config import DestinationSettings
from streams.errors import ConfigError
from streams.notify.contract import Answer, Call

#: Bytes of an answer that are read.
READ_BYTES = 4096
USER_AGENT = "Vedette"


class Transport(Protocol):
    """Sends requests."""

    async def send(self, call: Call) -> Answer:
        """What came back. Never raises for what a destination does."""


class HttpTransport:
    """HTTP with a limit on the whole exchange. Redirects are not followed: they would carry the secret elsewhere."""

    def __init__(self, settings: DestinationSettings) -> None:
        self._proxy = settings.proxy
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_seconds)
        self._tls: ssl.SSLContext | bool = True
        if settings.ca_file is not None:
            try:
                self._tls = ssl.create_default_context(cafile=settings.ca_file)
            except OSError:
                where = f"notify.destinations.{settings.name}.ca_file"
                raise ConfigError(f"{where}: cannot read certificates from {settings.ca_file}") from None
        self._session: aiohttp.ClientSession | None = None

    async def send(self, call: Call) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers={"User-Agent": USER_AGENT})
        try:
            async with self._session.request(
                call.method,
                call.url,
                data=call.body,
                headers=dict(call.headers),
                allow_redirects=False,
                proxy=self._proxy,
                ssl=self._tls,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                try:
                    body = await response.content.read(READ_BYTES)
                except (TimeoutError, aiohttp.ClientError, OSError):
                    body = b""  # the status was told, and that counts: sending it again would tell people twice
                return Answer(response.status, headers, body.decode("utf-8", errors="replace"))
        except TimeoutError:
            return Answer(0, {}, f"no answer within {self._timeout.total:g} s")
        except aiohttp.ClientConnectorCertificateError:
            return Answer(0, {}, "its certificate is not trusted")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The text of these errors may hold the URL, and the URL may be a secret.
            return Answer(0, {}, f"cannot be reached ({type(error).__name__})")

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
