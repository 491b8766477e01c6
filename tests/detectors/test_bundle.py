"""Bundles: equal to the bit after a file, and hostile files are answered with a sentence."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors import bundle, registry
from detectors.calibration.report import FitReport
from detectors.contract import Reference
from detectors.errors import BundleError
from detectors.manifest import MANIFEST, Origin, read_origin, read_report
from detectors.schema import FeatureSchema
from detectors.scorer import CONTENT_VERSION, Ensemble

Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def stored(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "site.vedette"
    bundle.save(path, *fitted)
    return path


def entries(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Entries) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def with_manifest(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = entries(path)
    manifest = json.loads(content[MANIFEST])
    change(manifest)
    content[MANIFEST] = json.dumps(manifest).encode()
    return write(target, content)


def repacked(path: Path, target: Path, name: str, array: Any) -> Path:
    """An array exchanged, with a checksum that fits."""
    content = entries(path)
    buffer = io.BytesIO()
    np.save(buffer, array)
    content[f"{name}.npy"] = buffer.getvalue()
    manifest = json.loads(content[MANIFEST])
    manifest["arrays"][name] = bundle.checksum(content[f"{name}.npy"])
    content[MANIFEST] = json.dumps(manifest).encode()
    return write(target, content)


def test_loaded_ensemble_decides_the_same_bits(ensemble: Ensemble, stored: Path, small_world: Any) -> None:
    loaded = bundle.load(stored, small_world.SCHEMA)
    assert loaded.digest == ensemble.digest
    assert loaded.settings() == ensemble.settings()
    mine, theirs = ensemble.arrays(), loaded.arrays()
    assert {n: (a.dtype, a.tobytes()) for n, a in mine.items()} == {
        n: (a.dtype, a.tobytes()) for n, a in theirs.items()
    }
    home = small_world.world()
    traffic = small_world.benign(home, np.random.default_rng(3), clients=10, weeks=1)
    first, second = ensemble.new_state(20, 50), loaded.new_state(20, 50)
    one, other = ensemble.score(traffic, first), loaded.score(traffic, second)
    assert one.fused.tobytes() == other.fused.tobytes()
    assert one.statistics.tobytes() == other.statistics.tobytes()
    assert first.digest() == second.digest()


def test_a_report_is_read_without_what_scoring_needs(stored: Path) -> None:
    heavy = ("numba", "sklearn", "pyod", "scipy")
    code = (
        "import sys; from detectors.manifest import read_report; read_report(sys.argv[1]); "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(stored)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_report_survives(fitted: Any, stored: Path) -> None:
    report = read_report(stored)
    assert isinstance(report, FitReport)
    assert report == fitted[1]


def test_equal_ensembles_make_equal_files(fitted: Any, stored: Path, tmp_path: Path) -> None:
    bundle.save(tmp_path / "again", *fitted)
    assert (tmp_path / "again").read_bytes() == stored.read_bytes()


def test_manifest_names_what_made_the_bundle(stored: Path, fitted: Any) -> None:
    manifest = json.loads(entries(stored)[MANIFEST])
    report = manifest["report"]
    assert manifest["settings"]["detectors"] == list(fitted[0].detectors)
    assert manifest["schema_digest"] == fitted[0].schema.digest()
    assert report["budget"] == 1
    assert report["client_weeks"] > 300
    assert len(report["data_digest"]) == 32
    assert report["rows"]["thresholds"] > 10_000


def test_origin_survives_and_is_no_part_of_the_digest(fitted: Any, tmp_path: Path) -> None:
    ensemble, report = fitted
    made = bundle.origin(ensemble, "fraud", "7")
    bundle.save(tmp_path / "named", ensemble, report, made)
    assert read_origin(tmp_path / "named") == made
    assert bundle.load(tmp_path / "named").digest == ensemble.digest
    assert made.named() == "fraud, version 7"
    assert dict(made.packages) == {name: version(name) for name in ("vedette", "numpy", "scikit-learn", "pyod")}
    assert made.made_by().startswith(f"vedette {version('vedette')}, numpy {np.__version__}, pyod ")
    assert made.providers == {}


def test_bundle_of_before_that_names_no_model_is_read(ensemble: Ensemble, stored: Path, tmp_path: Path) -> None:
    def older(manifest: dict[str, Any]) -> None:
        del manifest["model"], manifest["providers"]
        manifest["versions"] = {"numpy": "1.26.4"}

    path = with_manifest(stored, tmp_path / "older", older)
    assert bundle.load(path).digest == ensemble.digest
    assert read_origin(path) == Origin(packages={"numpy": "1.26.4"})
    assert read_origin(path).named() == ""
    path = with_manifest(path, tmp_path / "oldest", lambda manifest: manifest.pop("versions"))
    assert bundle.load(path).digest == ensemble.digest
    assert read_origin(path) == Origin()


@pytest.mark.parametrize("name", ["model", "versions", "providers"])
@pytest.mark.parametrize("value", [None, [], "x", {"name": 7}, {"name": "\x1b[2J"}, {"\n": "x"}, {"name": "x" * 201}])
def test_malformed_origin_is_a_sentence(stored: Path, tmp_path: Path, name: str, value: Any) -> None:
    path = with_manifest(stored, tmp_path / "odd", lambda manifest: manifest.update({name: value}))
    with pytest.raises(BundleError, match=f"its manifest's '{name}' is no object of short texts"):
        bundle.load(path)


def test_refusal_names_the_packages_that_changed_since_the_fit(stored: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["versions"].update(pyod="1.0.9", vedette="0.0.9")
        manifest["settings"]["version"] = 1

    path = with_manifest(stored, tmp_path / "old", change)
    told = r"content version 1.*it was made with pyod 1\.0\.9, here is .*; it was made with vedette 0\.0\.9, here is"
    with pytest.raises(BundleError, match=told):
        bundle.load(path)


def test_pyod_of_another_version_matters_where_it_runs_uncompiled(ensemble: Ensemble) -> None:
    made = Origin(packages={"pyod": "1.0.9", "numpy": "1.0"})
    assert bundle.changed_packages(ensemble, made) == [], "compiled detectors score without it"
    frame = ensemble.single.frame
    kde: Any = registry.made("pyod.KDE")
    kde.fit(Reference(frame.inputs[:60], frame.labels[:60]), ensemble.schema, np.random.default_rng(0))
    with_kde = replace(ensemble, single=replace(ensemble.single, detectors=(kde, *ensemble.single.detectors[1:])))
    assert bundle.changed_packages(with_kde, made) == [f"it was made with pyod 1.0.9, here is {version('pyod')}"]


def test_digest_tells_contents_apart(ensemble: Ensemble) -> None:
    thresholds = ensemble.tables.thresholds.copy()
    thresholds[3] = np.nextafter(thresholds[3], np.inf)
    other = ensemble.with_policy(thresholds, ensemble.policy)
    assert other.digest != ensemble.digest
    assert ensemble.with_policy(ensemble.tables.thresholds, ensemble.policy).digest == ensemble.digest
    assert (
        ensemble.with_policy(ensemble.tables.thresholds, replace(ensemble.policy, mode="tickets")).digest
        != other.digest
    )


def test_failed_save_leaves_the_old_file(fitted: Any, stored: Path, tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "site"
    target.write_bytes(stored.read_bytes())

    def broken(array: Any) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(bundle, "_pack", broken)
    with pytest.raises(OSError, match="disk full"):
        bundle.save(target, *fitted)
    assert target.read_bytes() == stored.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


# --- hostile files ----------------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere; make one with `vedette fit`"):
        bundle.load(tmp_path / "nowhere")


def test_directory_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        bundle.load(tmp_path)


def test_noise_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(seed * 50))
        with pytest.raises(BundleError, match="is no bundle, or a damaged one"):
            bundle.load(path)


def test_every_truncation_is_noticed(stored: Path, tmp_path: Path) -> None:
    whole, path = stored.read_bytes(), tmp_path / "cut"
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            bundle.load(path)


def test_flipped_bytes_never_pass(stored: Path, tmp_path: Path, ensemble: Ensemble) -> None:
    whole, path, rng = stored.read_bytes(), tmp_path / "flipped", np.random.default_rng(0)
    noticed = 0
    for _ in range(60):
        spoiled = bytearray(whole)
        at = int(rng.integers(len(whole)))
        spoiled[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        try:
            loaded = bundle.load(path)
        except BundleError:
            noticed += 1
        else:
            assert loaded.digest == ensemble.digest  # a byte that nobody reads: a date, an attribute
    assert noticed > 50


def test_altered_array_is_named(stored: Path, tmp_path: Path) -> None:
    content = entries(stored)
    data = bytearray(content["walk.thresholds.npy"])
    data[-1] ^= 1
    content["walk.thresholds.npy"] = bytes(data)
    with pytest.raises(BundleError, match=r"damaged: array walk\.thresholds does not have its checksum"):
        bundle.load(write(tmp_path / "altered", content))


def test_altered_array_with_its_checksum_fails_the_digest(stored: Path, tmp_path: Path, ensemble: Ensemble) -> None:
    path = repacked(stored, tmp_path / "altered", "walk.thresholds", ensemble.tables.thresholds * 2)
    with pytest.raises(BundleError, match="not what its digest says"):
        bundle.load(path)


def test_missing_array_is_named(stored: Path, tmp_path: Path) -> None:
    content = entries(stored)
    del content["walk.near_l2.npy"]
    with pytest.raises(BundleError, match=r"damaged.*walk\.near_l2"):
        bundle.load(write(tmp_path / "short", content))


def test_other_version_is_named(stored: Path, tmp_path: Path) -> None:
    path = with_manifest(stored, tmp_path / "new", lambda manifest: manifest.update(bundle_version=99))
    with pytest.raises(BundleError, match="has version 99; this release reads 1; a newer one made it: upgrade Vedette"):
        bundle.load(path)
    path = with_manifest(stored, tmp_path / "old", lambda manifest: manifest.update(bundle_version=0))
    with pytest.raises(BundleError, match="has version 0; this release reads 1; fit it anew"):
        bundle.load(path)


@pytest.mark.parametrize("load", [bundle.load, bundle.load_escalation])
def test_other_version_of_the_content_is_named(stored: Path, tmp_path: Path, load: Callable[[Path], object]) -> None:
    for by, says in ((1, r"; a newer one made it: upgrade Vedette here, or fit it anew"), (-1, "; fit it anew")):
        version = CONTENT_VERSION + by
        path = with_manifest(stored, tmp_path / "b", lambda manifest, v=version: manifest["settings"].update(version=v))
        with pytest.raises(BundleError, match=f"has content version {version}; this release reads .*{says}$"):
            load(path)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["settings", "arrays", "digest"])
@pytest.mark.parametrize("value", [None, 7, "x", [], {}])
def test_malformed_manifest_is_a_sentence(stored: Path, tmp_path: Path, name: str, value: Any) -> None:
    path = with_manifest(stored, tmp_path / "odd", lambda manifest: manifest.update({name: value}))
    with pytest.raises(BundleError):
        bundle.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(detectors=["nought"]),
        lambda s: s.update(detectors=[["x"]]),
        lambda s: s.update(version=1),
        lambda s: s.update(policy={"mode": "at-once", "more": 1}),
        lambda s: s.update(policy=None),
        lambda s: s["policy"].update(mode="loud"),
        lambda s: s["policy"].update(page_score=0.1),
        lambda s: s["policy"].update(page_score=float("nan")),
        lambda s: s.update(index_rows=0),
        lambda s: s.update(schema={"features": []}),
        lambda s: s.update(index_rows="many"),
        lambda s: s.update(index_rows=None),
        lambda s: s.update(index_rows=float("inf")),
        lambda s: s.pop("schema"),
        lambda s: s["schema"]["features"].pop(),
        lambda s: s["schema"]["classes"].pop(),
    ],
)
def test_malformed_settings_are_a_sentence(
    stored: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = with_manifest(stored, tmp_path / "odd", lambda manifest: change(manifest["settings"]))
    with pytest.raises(BundleError):
        bundle.load(path)


@pytest.mark.parametrize("value", [None, 7, "x", [], {"mode": []}])
def test_malformed_report_is_a_sentence(stored: Path, tmp_path: Path, value: Any) -> None:
    path = with_manifest(stored, tmp_path / "odd", lambda manifest: manifest.update(report=value))
    with pytest.raises(BundleError, match="its report is malformed"):
        read_report(path)


@pytest.mark.parametrize("length", [10**15, 10**23])
def test_array_that_claims_to_be_endless_is_a_sentence(stored: Path, tmp_path: Path, length: int) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({length},), }}".encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    content = {**entries(stored), "walk.thresholds.npy": data}
    manifest = json.loads(content[MANIFEST])
    manifest["arrays"]["walk.thresholds"] = bundle.checksum(data)
    content[MANIFEST] = json.dumps(manifest).encode()
    with pytest.raises(BundleError, match="damaged"):
        bundle.load(write(tmp_path / "endless", content))


def test_manifest_of_endless_nesting_is_a_sentence(stored: Path, tmp_path: Path) -> None:
    content = {**entries(stored), MANIFEST: b"[" * 100_000}
    with pytest.raises(BundleError, match="is no bundle, or a damaged one"):
        bundle.load(write(tmp_path / "deep", content))


class Explosive:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_nothing_is_ever_unpickled(stored: Path, tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    held = np.array([Explosive(trace)], dtype=object)
    path = repacked(stored, tmp_path / "pickled", "walk.thresholds", held)
    with pytest.raises(BundleError, match="damaged"):
        bundle.load(path)
    content = entries(stored)
    content["walk.thresholds.npy"] = pickle.dumps(Explosive(trace))
    manifest = json.loads(content[MANIFEST])
    manifest["arrays"]["walk.thresholds"] = bundle.checksum(content["walk.thresholds.npy"])
    content[MANIFEST] = json.dumps(manifest).encode()
    with pytest.raises(BundleError, match="damaged"):
        bundle.load(write(tmp_path / "raw", content))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("walk.thresholds", np.zeros(3)),
        ("walk.near_l2", np.zeros((4, 7))),
        ("walk.near_l2", np.zeros(7)),
        ("walk.combined", np.zeros(0)),
        ("walk.gain_a", np.zeros(2)),
        ("walk.evalue", np.zeros(1)),
        ("walk.near_l0", np.full((5, 65), np.nan)),
        ("single.edges", np.zeros((2, 2))),
        ("single.frame.labels", np.array([5, 3, 1], dtype=np.int32)),
        ("single.frame.mean", np.zeros(3)),
        ("single.scores.values", np.zeros((2, 9))),
        ("single.scores.centres", np.zeros((1, 5))),
        ("single.fusion.weights", np.zeros(2)),
        ("single.coder.projection", np.zeros((64, 5))),
        ("single.coder.keys", np.zeros(3, dtype=np.uint64)),
        ("single.detector.isolation_forest.features", np.full((2, 3), 60_000, dtype=np.uint16)),
        ("single.detector.pca_residual.means", np.zeros((1, 1))),
    ],
)
def test_arrays_that_would_lead_kernels_astray_are_refused(
    stored: Path, tmp_path: Path, ensemble: Ensemble, name: str, array: Any
) -> None:
    """Digest and checksums fit: somebody made this bundle on purpose."""
    path = repacked(stored, tmp_path / "astray", name, array)
    arrays = {**ensemble.arrays(), name: array}
    from detectors.scorer import content_digest

    digest = content_digest(arrays, ensemble.settings())
    forged = with_manifest(path, tmp_path / "forged", lambda manifest: manifest.update(digest=digest))
    with pytest.raises(BundleError, match="does not fit together"):
        bundle.load(forged)


def test_other_schema_is_refused(stored: Path) -> None:
    other = FeatureSchema.image((4, 4), ["a", "b"])
    with pytest.raises(BundleError, match=r"another schema \(64 features, 10 classes; wanted 16 and 2\)"):
        bundle.load(stored, other)
