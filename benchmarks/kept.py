"""Parts of a long benchmark, stored as they are measured; what is there isn't measured again, and code isn't mixed."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from detectors.kernels import source_digest


class Kept(msgspec.Struct, frozen=True):
    """What is stored: with which settings it was measured, and the digest of the code that did, "" where it kept none.

    A kind of it names the type of its settings.
    """

    settings: msgspec.Struct
    sources: str = ""


P = TypeVar("P", bound=Kept)


@functools.cache
def deciding_sources(benchmark_modules: tuple[str, ...]) -> str:
    """16 hex digits over the code that decides what is measured: `detectors`, `attacks` and these of `benchmarks`."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.blake2b(source_digest(root).encode(), digest_size=8)
    own = [root / "benchmarks" / f"{name}.py" for name in benchmark_modules]
    for source in [*sorted((root / "attacks").rglob("*.py")), *own]:
        content = source.read_bytes()
        digest.update(f"{source.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a benchmark that keeps parts."""
    parser.add_argument("--keep", type=Path, help="store what is done here, and take up what is there")
    parser.add_argument(
        "--accept-older",
        action="store_true",
        help="take up parts that other code measured; the table then says so",
    )


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Options read; ends with a message where they contradict each other."""
    options = parser.parse_args()
    if options.accept_older and options.keep is None:
        parser.error("--accept-older says what to do with parts that --keep finds: give --keep too")
    return options


class Parts:
    """The stored parts of one task.

    Parameters
    ----------
    folder : Path or None
        Where they lie; None stores nothing.
    sources : str
        Digest of the code that decides.
    accept_older : bool
        Whether parts that other code measured are taken up.

    Attributes
    ----------
    older : list of str
        Names of those taken up that other code measured.
    """

    def __init__(self, folder: Path | None, sources: str, accept_older: bool = False) -> None:
        self.older: list[str] = []
        self._folder, self._sources, self._accept_older = folder, sources, accept_older

    def part(self, name: str, kind: type[P], settings: msgspec.Struct, measured: Callable[[], P]) -> P:
        """One part, stored or measured now.

        Raises
        ------
        SystemExit
            Where what is stored can't be taken up; it stays as it is.
        """
        if self._folder is None:
            return measured()
        path = self._folder / f"{name}.json"
        if path.exists():
            return self._stored(path, kind, settings)
        found = msgspec.structs.replace(measured(), sources=self._sources)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.{os.getpid()}")
        whole.write_bytes(msgspec.json.encode(found))
        if path.exists():  # another run was first
            whole.unlink()
            return self._stored(path, kind, settings)
        whole.replace(path)
        return found

    def _stored(self, path: Path, kind: type[P], settings: msgspec.Struct) -> P:
        """A stored part of the same settings and code."""
        why, more = "", ""
        try:
            found = msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.DecodeError as error:
            why = f"is no part that can be read ({error})"
        else:
            if found.settings != settings:
                why = "was measured with other settings"
            elif found.sources == self._sources:
                return found
            elif self._accept_older:
                self.older.append(path.stem)
                return found
            else:
                why, more = "was measured by other code", ", or take it up all the same with --accept-older"
        raise SystemExit(f"{path} {why}: give --keep another directory or remove the file{more}")
