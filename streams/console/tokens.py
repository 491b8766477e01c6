"""Named tokens with roles, as argon2 hashes in a file: one line a token, ``NAME ROLE HASH``.

A viewer reads; a responder changes things too. `vedette token` makes and removes them. The file is read again whenever
it changes; then every session ends, so that a token which was removed is out at once.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

from streams.errors import ConfigError

log = logging.getLogger("vedette.console")

Role = Literal["viewer", "responder"]

#: Memory (KiB), passes and lanes of a hash: OWASP's least for argon2id. A token has 160 bits of its own.
MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
#: Bytes of a token's random part.
SECRET_BYTES = 20
#: Tokens whose hash was checked already are remembered, by their SHA-256: requests of programs need no new hash.
REMEMBERED = 1_000
PREFIX = "vdt"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_TOKEN = re.compile(rf"{PREFIX}_([a-z0-9][a-z0-9-]{{0,31}})_[A-Za-z0-9_-]{{16,64}}")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who a token belongs to."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class _Line:
    holder: Holder
    digest: str


class Tokens:
    """The tokens of one file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ConfigError
        When the file cannot be read or a line is not one. Later a file that cannot be read lets nobody in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hasher = PasswordHasher(PASSES, MEMORY_KIB, LANES)
        self._lock = threading.Lock()
        self._state: tuple[int, int] = (-1, -1)
        self._lines: dict[str, _Line] = {}
        self._checked: dict[bytes, Holder] = {}
        self._refused: set[bytes] = set()
        self._seal = b""
        self._lines, self._seal = read(path)
        self._state = _state(path)

    @property
    def seal(self) -> bytes:
        """Digest of the file: another one after every change."""
        self._refresh()
        return self._seal

    def holder(self, token: str) -> Holder | None:
        """Who may come in with a token; None for nobody. A token that is new costs a hash: some 20 ms."""
        holder, line, digest, state = self._claim(token)
        if line is None:
            return holder
        try:
            fits = self._fits(line, token)  # without the lock, for which requests of others would wait
        except Argon2Error as error:  # no memory for it, say: the next try is another one
            log.error("a token of %s could not be checked: %s", line.holder.name, error)
            return None
        with self._lock:
            if self._state == state:
                self._remember(digest, line.holder if fits else None)
        return line.holder if fits else None

    def weighed(self, token: str) -> bool:
        """Whether `holder` needs no hash to tell whose token it is."""
        return self._claim(token)[1] is None

    def remembered(self, token: str) -> Holder | None:
        """Who may come in with a token that has come in before; costs no hash to guess at. None for nobody."""
        return self._claim(token)[0]

    def _claim(self, token: str) -> tuple[Holder | None, _Line | None, bytes, tuple[int, int]]:
        """Who came in with a token before, the line to hash it for if that must be, its digest, the file's state."""
        self._refresh()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = _TOKEN.fullmatch(token)
        with self._lock:
            settled = found is None or digest in self._checked or digest in self._refused
            line = None if found is None or settled else self._lines.get(found.group(1))
            return self._checked.get(digest), line, digest, self._state

    def _remember(self, digest: bytes, holder: Holder | None) -> None:
        """Under the lock. Wrong tokens have a memory of their own, so that they push out none that is right."""
        for known in (self._checked, self._refused):
            if len(known) >= REMEMBERED:
                known.clear()
        if holder is None:
            self._refused.add(digest)
        else:
            self._checked[digest] = holder

    def _fits(self, line: _Line, token: str) -> bool:
        try:
            return self._hasher.verify(line.digest, token)
        except (VerifyMismatchError, InvalidHashError):
            return False

    def _refresh(self) -> None:
        state = _state(self.path)
        if state == self._state:
            return
        with self._lock:
            self._checked.clear()
            self._refused.clear()
            try:
                self._lines, self._seal = read(self.path)
            except ConfigError as error:
                log.error("nobody comes in until it is mended: %s", error)
                self._lines, self._seal = {}, secrets.token_bytes(32)
            self._state = state


def read(path: Path) -> tuple[dict[str, _Line], bytes]:
    """Lines of a file by name, and its digest.

    Raises
    ------
    ConfigError
        With the number of the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"console.tokens_file: cannot read {path}") from None
    found: dict[str, _Line] = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        where = f"console.tokens_file: {path}, line {number}"
        if len(parts) != 3 or not parts[2].startswith("$argon2id$"):
            raise ConfigError(f"{where}: must be NAME ROLE HASH, as `vedette token` writes it")
        name, role = parts[0], parts[1]
        if not _NAME.fullmatch(name) or role not in get_args(Role):
            raise ConfigError(f"{where}: a name matches {_NAME.pattern}, a role is one of {', '.join(get_args(Role))}")
        if name in found:
            raise ConfigError(f"{where}: the name {name!r} stands there twice")
        found[name] = _Line(Holder(name, cast("Role", role)), parts[2])
    return found, hashlib.sha256(text.encode()).digest()


def make(path: Path, name: str, role: Role) -> str:
    """Write a new token of a name into the file, in place of an older one; returns the token, which stands nowhere.

    Raises
    ------
    ConfigError
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a name matches {_NAME.pattern}, and {name!r} does not")
    token = f"{PREFIX}_{name}_{secrets.token_urlsafe(SECRET_BYTES)}"
    digest = PasswordHasher(PASSES, MEMORY_KIB, LANES).hash(token)
    _rewrite(path, name, f"{name} {role} {digest}")
    return token


def remove(path: Path, name: str) -> None:
    """Take a name's token out of the file.

    Raises
    ------
    ConfigError
        When it is not there.
    """
    if name not in read(path)[0]:
        raise ConfigError(f"console.tokens_file: {path} has no token of {name!r}")
    _rewrite(path, name, None)


def _rewrite(path: Path, name: str, line: str | None) -> None:
    """Replace or remove the line of a name; the file is readable for its owner alone, and whole at any moment."""
    if path.exists():
        read(path)
        kept = [one for one in path.read_text(encoding="utf-8").splitlines() if one.split()[:1] != [name]]
    else:
        kept = []
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch(mode=0o600)
        part.chmod(0o600)
        part.write_text("\n".join([*kept, *([line] if line else [])]) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"console.tokens_file: cannot write {path}: {error.strerror or error}") from None


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)
