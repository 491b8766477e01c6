"""A fitted ensemble as one file: arrays and JSON, nothing that could run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration.report import FitReport
from detectors.errors import BundleError, DetectorError
from detectors.manifest import BROKEN, BUNDLE_VERSION, MANIFEST, read_manifest, sentence
from detectors.responses.escalation import Escalation
from detectors.schema import FeatureSchema
from detectors.scorer import INQUIRIES, Ensemble, escalation_of


def save(path: str | Path, ensemble: Ensemble, report: FitReport) -> None:
    """Write a bundle; it appears under its name whole or not at all.

    Parameters
    ----------
    path : str or Path
    ensemble : Ensemble
    report : FitReport
        What the fit found; `read_report` gives it back.
    """
    arrays = ensemble.arrays()
    packed = {name: _pack(array) for name, array in arrays.items()}
    manifest = {
        "bundle_version": BUNDLE_VERSION,
        "digest": ensemble.digest,
        "schema_digest": ensemble.schema.digest(),
        "settings": ensemble.settings(),
        "report": report.to_dict(),
        "versions": {"numpy": np.__version__},
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
        When the file is missing, damaged, of another version, or for another schema.
    """
    manifest, arrays = _read(path)
    try:
        ensemble = Ensemble.restore(arrays, manifest["settings"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, DetectorError) as wrong:
        raise BundleError(f"bundle {path}: its content does not fit together: {wrong}; fit it anew") from None
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
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, DetectorError) as wrong:
        raise BundleError(f"bundle {path}: its inquiries do not fit together: {wrong}; fit it anew") from None
    return found, manifest["digest"]


def checksum(data: bytes) -> str:
    """32 hex digits over the bytes of one array's file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _pack(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """A fixed time stamp, so that equal ensembles make equal files."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _read(path: str | Path, prefix: str = "") -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    manifest = read_manifest(path)
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
