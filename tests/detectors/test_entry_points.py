"""A detector that another distribution adds, as docs/detection.md shows it: fitted, saved, loaded, and missed."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors import bundle, registry
from detectors.contract import Batch, Detector, Reference
from detectors.ensemble import fit
from detectors.errors import BundleError, DetectorError, MissingDetector
from detectors.manifest import read_origin
from detectors.schema import FeatureSchema
from detectors.view import BatchView, ReferenceFrame

pytestmark = pytest.mark.usefixtures("hasty")

DOCS = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
SCHEMA = FeatureSchema.image((1, 3), ["no", "yes"], 0, 100)
NAME = "acme_cents"


def block(language: str) -> str:
    found = re.search(rf"### A detector of your own.*?```{language}\n(.*?)```", DOCS, re.DOTALL)
    assert found is not None
    return found[1]


def install(site: Path, source: str, points: dict[str, str], version: str) -> None:
    """What an installer leaves: the package, and a folder of metadata."""
    (site / "acme").mkdir()
    (site / "acme" / "__init__.py").touch()
    (site / "acme" / "cents.py").write_text(source)
    about = site / f"acme_detectors-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-detectors\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(
        "[vedette.detectors]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path."""
    place = tmp_path / "site"
    place.mkdir()
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(place))
        yield place
    forget()


@pytest.fixture
def installed(site: Path) -> Path:
    project = tomllib.loads(block("toml"))["project"]
    assert project["name"] == "acme-detectors"
    install(site, block("python"), project["entry-points"][registry.GROUP], project["version"])
    return site


def rows_of(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    return np.round(rng.uniform(10, 50, (n, 3)) + 30 * labels[:, None], 2), labels


def batch_of(inputs: NDArray[np.float64], labels: NDArray[np.int32]) -> Batch:
    wide = np.arange(len(inputs), dtype=np.int64)
    return Batch(inputs, labels, (wide + 1).astype(np.uint64), wide, wide, np.zeros(len(inputs), dtype=np.int32))


def fitted(detectors: tuple[str, ...] = ("trust_ratio", NAME)) -> Any:
    return fit(
        Reference(*rows_of(600, 1)),
        SCHEMA,
        None,
        budget=1,
        clients_per_week=None,
        week_us=10**9,
        partitions=1,
        rng=np.random.default_rng(0),
        detectors=detectors,
    )


def test_detector_of_the_docs_keeps_the_contract(installed: Path) -> None:
    assert NAME in registry.names()
    reference, (inputs, labels) = Reference(*rows_of(600, 1)), rows_of(40, 2)
    inputs[5] += 0.004
    inputs[6] = 1e300
    frame = ReferenceFrame.fit(reference, 2, np.random.default_rng(0))
    detector: Any = registry.made(NAME).fit(reference, SCHEMA, np.random.default_rng(0))  # type: ignore[union-attr]
    assert isinstance(detector, Detector)
    view = BatchView(frame, batch_of(inputs, labels))
    scores = detector.score(view)
    assert scores.dtype == np.float64
    assert scores[5] == 3
    assert not np.delete(scores, 5).any()
    assert "3 amounts" in detector.explain(view, 5)
    assert type(detector).restore(detector.arrays(), SCHEMA).score(view).tobytes() == scores.tobytes()


def test_bundle_with_it_is_saved_and_loaded_to_the_bit(installed: Path, tmp_path: Path) -> None:
    ensemble, report = fitted()
    bundle.save(tmp_path / "site.vedette", ensemble, report)
    loaded = bundle.load(tmp_path / "site.vedette")
    assert loaded.detectors == ("trust_ratio", NAME)
    inputs, labels = rows_of(50, 3)
    inputs[::5] += 0.0049
    batch = batch_of(inputs, labels)
    mine, theirs = (one.score(batch, one.new_state(100, 100)) for one in (ensemble, loaded))
    assert mine.scores.tobytes() == theirs.scores.tobytes()
    assert mine.fused.tobytes() == theirs.fused.tobytes()
    assert (mine.scores[::5, 1] == 3).all()
    made = read_origin(tmp_path / "site.vedette")
    assert made.providers == {NAME: "acme-detectors"}
    assert made.packages["acme-detectors"] == "1.2"
    assert bundle.changed_packages(loaded, made) == []


def test_bundle_is_refused_in_a_sentence_where_it_is_not_installed(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.vedette"
    bundle.save(path, *fitted())
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(installed)])
    forget()
    assert NAME not in registry.names()
    with pytest.raises(MissingDetector, match=r"no detector is called 'acme_cents'; there are .*constraints"):
        registry.kind(NAME)
    with pytest.raises(BundleError) as refused:
        bundle.load(path)
    assert str(refused.value) == (
        f"bundle {path} uses the detector 'acme_cents', which is not installed here; install acme-detectors 1.2 beside "
        "Vedette, as at the fit, or fit without it"
    )


def test_another_version_of_its_package_is_told(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "site.vedette"
    ensemble, report = fitted()
    bundle.save(path, ensemble, report)
    (installed / "acme_detectors-1.2.dist-info").rename(installed / "acme_detectors-1.3.dist-info")
    about = installed / "acme_detectors-1.3.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("1.2", "1.3"))
    importlib.invalidate_caches()
    assert bundle.changed_packages(bundle.load(path), read_origin(path)) == [
        "it was made with acme-detectors 1.2, here is 1.3"
    ]


@pytest.mark.parametrize(
    ("source", "value", "told"),
    [
        ("import nothing_of_that_name", "acme.cents:Cents", "cannot be imported: ModuleNotFoundError"),
        ("raise RuntimeError('boom')", "acme.cents:Cents", "cannot be imported: RuntimeError: boom"),
        ("", "acme.cents:Cents", "cannot be imported: AttributeError"),
        ("class Cents: name = 'acme_cents'", "acme.cents:Cents", "lacks fit, explain, arrays, restore, score"),
        (block("python").replace('"acme_cents"', '"cents"'), "acme.cents:Cents", "calls itself 'cents'"),
    ],
)
def test_what_is_no_detector_is_told(site: Path, source: str, value: str, told: str) -> None:
    install(site, source, {NAME: value}, "1.0")
    with pytest.raises(DetectorError, match=told) as refused:
        registry.kind(NAME)
    assert "acme-detectors" in str(refused.value)


def test_names_of_vedettes_own_cannot_be_taken(site: Path) -> None:
    install(site, "raise RuntimeError", {"constraints": "acme.cents:Cents", "pyod.KDE": "acme.cents:Cents"}, "1.0")
    assert registry.kind("constraints").__module__ == "detectors.inputs.constraints"
    assert registry.provider("constraints") is None
    assert registry.kind("pyod.KDE").name == "pyod.KDE"
