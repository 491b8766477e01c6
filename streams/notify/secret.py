"""Secrets and secret addresses of destinations, from files. They are read whenever used, so they can be changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from streams.config import DestinationSettings
from streams.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Address:
    """Where a destination is, and what it wants to see. Its text never shows a secret."""

    settings: DestinationSettings = field(repr=False)
    default_url: str = ""

    def url(self) -> str:
        """The URL, without a slash at its end.

        Raises
        ------
        ConfigError
            When there is none, or it is no ``http://`` or ``https://`` URL. The message doesn't show it: it may be
            the secret.
        """
        one = self.settings
        where = f"notify.destinations.{one.name}"
        if one.url is not None and one.url_file is not None:
            raise ConfigError(f"{where}: give url or url_file, not both")
        given = self._read("url_file") if one.url_file is not None else one.url or self.default_url
        if not given:
            raise ConfigError(f"{where}: a {one.kind} destination needs url or url_file")
        try:
            parts = urlsplit(given)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not False
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"{where}: its URL must begin with http:// or https:// and name a host")
        return given.rstrip("/")

    def secret(self) -> str:
        """The secret.

        Raises
        ------
        ConfigError
            When no file is named, or it cannot be read, or is empty.
        """
        if self.settings.secret_file is None:
            raise ConfigError(
                f"notify.destinations.{self.settings.name}: a {self.settings.kind} destination needs secret_file"
            )
        return self._read("secret_file")

    def optional_secret(self) -> str:
        """The secret; empty where no file is named."""
        return "" if self.settings.secret_file is None else self._read("secret_file")

    def _read(self, which: str) -> str:
        where = f"notify.destinations.{self.settings.name}.{which}"
        path = str(getattr(self.settings, which))
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{where}: cannot read {path}") from None
        if not text:
            raise ConfigError(f"{where}: {path} is empty")
        return text
