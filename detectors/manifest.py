"""What a bundle says of itself, read without anything that scoring needs: processes that only look cost no more."""

from __future__ import annotations

import json
import zipfile
import zlib
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
    NotImplementedError,
    RuntimeError,
    zlib.error,
)
#: Larger files, manifests and arrays are refused unread.
MAX_BYTES, MAX_MANIFEST_BYTES, MAX_ARRAYS = 4 * 1024**3, 16 * 1024**2, 10_000


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
        raise BundleError(f"{path} is no bundle, or a damaged one: {sentence(wrong)}") from None
    if not isinstance(manifest, dict):
        raise BundleError(f"bundle {path}: its manifest is no object")
    version = manifest.get("bundle_version")
    if version != BUNDLE_VERSION:
        raise BundleError(f"bundle {path} has version {version!r}; this release reads {BUNDLE_VERSION}; fit it anew")
    for name, kind in (("digest", str), ("settings", dict), ("arrays", dict)):
        if not isinstance(manifest.get(name), kind):
            raise BundleError(f"bundle {path}: its manifest lacks {name!r}")
    return manifest


def read_report(path: str | Path) -> FitReport:
    """The report of the fit that made a bundle; `BundleError` as in `read_manifest`."""
    manifest = read_manifest(path)
    try:
        return FitReport.from_dict(manifest["report"])
    except (KeyError, TypeError) as wrong:
        raise BundleError(f"bundle {path}: its report is malformed: {wrong}") from None


def sentence(wrong: Exception) -> str:
    """What an exception of the archive's reader says."""
    return str(wrong).strip("'\"") or type(wrong).__name__
