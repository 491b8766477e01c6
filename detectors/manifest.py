"""What a bundle says of itself, read without anything that scoring needs: processes that only look cost no more."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.calibration.report import FitReport
from detectors.errors import BundleError

#: Version of the file's layout.
BUNDLE_VERSION = 1
#: The entry that says what the others are.
MANIFEST = "manifest.json"
#: What a damaged or hostile archive makes its reader raise; zipfile answers NotImplementedError to an unknown way of
#: compression, RuntimeError to encryption.
BROKEN = (
    zipfile.BadZipFile,
    KeyError,
    ValueError,
    EOFError,
    OSError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
)
#: Larger files, manifests and arrays are refused unread.
MAX_BYTES, MAX_MANIFEST_BYTES, MAX_ARRAYS = 4 * 1024**3, 16 * 1024**2, 10_000

#: Characters of a name or a version.
MAX_TEXT = 200


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The entry `MANIFEST` of a bundle.

    Raises
    ------
    BundleError
        When there is no bundle at the path, or a damaged one, or one of another version.
    """
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise BundleError(f"bundle {path} is larger than {MAX_BYTES} bytes; no fit makes such a file")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ARRAYS or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise BundleError(f"bundle {path} unpacks to more than a bundle can hold; it is none of ours")
            if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"bundle {path}: its manifest is larger than {MAX_MANIFEST_BYTES} bytes")
            manifest = json.loads(archive.read(MANIFEST))
    except FileNotFoundError:
        raise BundleError(f"no bundle at {path}; make one with `vedette fit`") from None
    except BROKEN as wrong:
        if isinstance(wrong, OSError) and wrong.strerror:
            raise BundleError(f"bundle {path} cannot be read: {wrong.strerror}") from None
        told = f"{path} is no bundle, or a damaged one: {sentence(wrong)}"
        raise BundleError(f"{told}; fit it anew or copy it again") from None
    if not isinstance(manifest, dict):
        raise BundleError(f"bundle {path}: its manifest is no object")
    version = manifest.get("bundle_version")
    if version != BUNDLE_VERSION:
        remedy = other_release(version, BUNDLE_VERSION)
        raise BundleError(f"bundle {path} has version {version!r}; this release reads {BUNDLE_VERSION}; {remedy}")
    for name, kind in (("digest", str), ("settings", dict), ("arrays", dict)):
        if not isinstance(manifest.get(name), kind):
            raise BundleError(f"bundle {path}: its manifest lacks {name!r}")
    return manifest


@dataclass(frozen=True, slots=True)
class Origin:
    """What made a bundle; no part of what it decides, nor of its digest.

    Attributes
    ----------
    model, model_version : str
        The watched model, as it was named at the fit; empty where it was not.
    packages : mapping of str to str
        Versions of the distributions that fitted it, by name.
    providers : mapping of str to str
        Distribution of each detector that an entry point added, by the detector's name.
    """

    model: str = ""
    model_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    providers: Mapping[str, str] = field(default_factory=dict)

    def named(self) -> str:
        """The model and its version in words; empty where neither is known."""
        version = f"version {self.model_version}" if self.model_version else ""
        return ", ".join(part for part in (self.model, version) if part)

    def made_by(self) -> str:
        """The packages and their versions in words; empty where they are not known."""
        ours_first = sorted(self.packages.items(), key=lambda package: (package[0] != "vedette", package))
        return ", ".join(f"{name} {version}" for name, version in ours_first)


def read_origin(path: str | Path) -> Origin:
    """What made a bundle; of one that doesn't say it, what it says. `BundleError` as in `read_manifest`."""
    return origin_of(read_manifest(path), path)


def origin_of(manifest: Mapping[str, Any], path: str | Path) -> Origin:
    """`read_origin` of a manifest that was read from the path."""
    model = _texts(manifest, "model", path)
    return Origin(
        model=model.get("name", ""),
        model_version=model.get("version", ""),
        packages=_texts(manifest, "versions", path),
        providers=_texts(manifest, "providers", path),
    )


def named(text: str) -> bool:
    """Whether a manifest may hold it as a name or a version."""
    return text.isprintable() and len(text) <= MAX_TEXT


def _texts(manifest: Mapping[str, Any], name: str, path: str | Path) -> dict[str, str]:
    found = manifest.get(name, {})
    if not isinstance(found, dict) or not all(
        isinstance(text, str) and named(text) for pair in found.items() for text in pair
    ):
        raise BundleError(f"bundle {path}: its manifest's {name!r} is no object of short texts")
    return found


def read_report(path: str | Path) -> FitReport:
    """The report of the fit that made a bundle; `BundleError` as in `read_manifest`."""
    manifest = read_manifest(path)
    try:
        return FitReport.from_dict(manifest["report"])
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise BundleError(f"bundle {path}: its report is malformed: {wrong}") from None


def other_release(version: object, read: int) -> str:
    """What to do about a bundle of a version that is not the one which is read."""
    newer = isinstance(version, int) and version > read
    return "a newer one made it: upgrade Vedette here, or fit it anew" if newer else "fit it anew"


def sentence(wrong: Exception) -> str:
    """What an exception of the archive's reader says."""
    said = str(wrong)
    if said[:1] in ("'", '"') and said[:1] == said[-1:]:  # a missing key
        said = said[1:-1]
    return said or type(wrong).__name__
