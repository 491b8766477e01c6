"""A fitted ensemble as one file: arrays and JSON, nothing that could run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors import registry
from detectors.calibration.report import FitReport
from detectors.errors import BundleError, DetectorError, MissingDetector
from detectors.manifest import (
    BROKEN,
    BUNDLE_VERSION,
    MANIFEST,
    Origin,
    origin_of,
    other_release,
    read_manifest,
    sentence,
)
from detectors.responses.escalation import Escalation
from detectors.schema import FeatureSchema
from detectors.scorer import CONTENT_VERSION, INQUIRIES, Ensemble, escalation_of

#: What content that doesn't fit together raises.
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, DetectorError)
#: Distributions whose code fits.
PACKAGES = ("vedette", "numpy", "scikit-learn", "pyod")


def origin(ensemble: Ensemble, model: str = "", model_version: str = "") -> Origin:
    """What makes a bundle of the ensemble here and now.

    Parameters
    ----------
    ensemble : Ensemble
    model, model_version : str
        The watched model; empty where it is not known.
    """
    packages = {name: found for name in PACKAGES if (found := _installed(name)) is not None}
    providers = {}
    for detector in ensemble.detectors:
        provider = registry.provider(detector)
        if provider is not None:
            providers[detector] = provider[0]
            packages[provider[0]] = provider[1]
    return Origin(model, model_version, packages, providers)


def changed_packages(ensemble: Ensemble, made: Origin) -> list[str]:
    """Distributions that score for the ensemble and have another version here than at its fit, a few words each.

    Those whose code scores are the providers of detectors by entry point, and PyOD where it runs uncompiled: it is then
    fitted again when the bundle is read, which is refused only where scores come out otherwise.
    """
    scoring = dict.fromkeys(made.providers.values())
    if any(registry.runs_pyod(name) for name in ensemble.detectors):
        scoring["pyod"] = None
    return _changes(made, scoring)


def save(path: str | Path, ensemble: Ensemble, report: FitReport, made: Origin | None = None) -> None:
    """Write a bundle; it appears under its name whole or not at all.

    Parameters
    ----------
    path : str or Path
    ensemble : Ensemble
    report : FitReport
        What the fit found; `read_report` gives it back.
    made : Origin, optional
        What made it; default: what is installed here, of a model that is not named. `read_origin` gives it back.
    """
    arrays = ensemble.arrays()
    packed = {name: _pack(array) for name, array in arrays.items()}
    made = origin(ensemble) if made is None else made
    manifest = {
        "bundle_version": BUNDLE_VERSION,
        "digest": ensemble.digest,
        "schema_digest": ensemble.schema.digest(),
        "settings": ensemble.settings(),
        "report": report.to_dict(),
        "model": {"name": made.model, "version": made.model_version},
        "versions": dict(made.packages),
        "providers": dict(made.providers),
        "arrays": {name: checksum(data) for name, data in packed.items()},
    }
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1, sort_keys=True))
            for name, data in packed.items():
                archive.writestr(_entry(name + ".npy"), data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | Path, schema: FeatureSchema | None = None) -> Ensemble:
    """Read a bundle that `save` wrote; equal to the bit to what was saved. Nothing is ever unpickled.

    Parameters
    ----------
    path : str or Path
    schema : FeatureSchema, optional
        The schema that the bundle must be for.

    Raises
    ------
    BundleError
        When the file is missing, damaged, of another version, or for another schema, or when a detector of it is not
        installed here.
    """
    manifest, arrays = _read(path)
    made = origin_of(manifest, path)
    try:
        ensemble = Ensemble.restore(arrays, manifest["settings"])
    except MissingDetector as missing:
        raise BundleError(f"bundle {path} {_missing(missing.name, made)}") from None
    except MALFORMED as wrong:
        said = f"its content does not fit together: {wrong}{_others(made)}"
        raise BundleError(f"bundle {path}: {said}; fit it anew") from None
    if ensemble.digest != manifest["digest"]:
        raise BundleError(f"bundle {path}: its content is not what its digest says; fit it anew or copy it again")
    if schema is not None and schema.digest() != ensemble.schema.digest():
        raise BundleError(
            f"bundle {path} is for another schema ({ensemble.schema.width} features, "
            f"{len(ensemble.schema.classes)} classes; wanted {schema.width} and {len(schema.classes)}); fit another"
        )
    return ensemble


def load_escalation(path: str | Path) -> tuple[Escalation | None, str]:
    """The inquiries of a bundle, None where it has none, and the bundle's digest; no other array is read.

    Raises
    ------
    BundleError
        As `load`.
    """
    manifest, arrays = _read(path, INQUIRIES + ".")
    settings = manifest["settings"]
    try:
        found = escalation_of(arrays, settings, FeatureSchema.from_dict(settings["schema"]))
    except MALFORMED as wrong:
        raise BundleError(f"bundle {path}: its inquiries do not fit together: {wrong}; fit it anew") from None
    return found, manifest["digest"]


def checksum(data: bytes) -> str:
    """32 hex digits over the bytes of one array's file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _changes(made: Origin, names: Iterable[str]) -> list[str]:
    found = ((name, made.packages.get(name), _installed(name)) for name in names)
    return [
        f"it was made with {name} {then}, here is {now or 'none'}"
        for name, then, now in found
        if then is not None and then != now
    ]


def _others(made: Origin) -> str:
    """Packages that have another version here than at the fit, in brackets; empty where none has."""
    changes = _changes(made, made.packages)
    return f" ({'; '.join(changes)})" if changes else ""


def _missing(name: str, made: Origin) -> str:
    provider = made.providers.get(name)
    if provider is None:
        return f"uses the detector {name!r}, which is not installed here; install what provides it, or fit without it"
    which = f"{provider} {made.packages.get(provider, '')}".strip()
    return (
        f"uses the detector {name!r}, which is not installed here; install {which} beside Vedette, as at the fit, or "
        "fit without it"
    )


def _pack(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """A fixed time stamp, so that equal ensembles make equal files."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _read(path: str | Path, prefix: str = "") -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    manifest = read_manifest(path)
    written = manifest["settings"].get("version")
    if written != CONTENT_VERSION:
        remedy = other_release(written, CONTENT_VERSION)
        raise BundleError(
            f"bundle {path} has content version {written!r}; this release reads {CONTENT_VERSION}"
            f"{_others(origin_of(manifest, path))}; {remedy}"
        )
    names: Mapping[str, Any] = manifest["arrays"]
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, wanted in names.items():
                if not name.startswith(prefix):
                    continue
                data = archive.read(name + ".npy")
                if checksum(data) != wanted:
                    raise BundleError(f"bundle {path} is damaged: array {name} does not have its checksum")
                arrays[name] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except BROKEN as wrong:
        raise BundleError(f"bundle {path} is damaged: {sentence(wrong)}; fit it anew or copy it again") from None
    return manifest, arrays
