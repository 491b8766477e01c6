"""One small world and one fitted ensemble for all tests of the ensemble."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from detectors.kernels import limit_blas_threads
from tests.conftest import in_haste

limit_blas_threads()


def _load(name: str) -> ModuleType:
    """A module beside this one, under a name that no other test package has."""
    full = f"vedette_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def small_world() -> Any:
    """The module `world`."""
    return _load("world")


@pytest.fixture(scope="session")
def fitted(small_world: Any) -> Any:
    """(ensemble, report) for a site with one sensor; budget 1, 100 clients a week."""
    from detectors.ensemble import fit

    home = small_world.world()
    traffic = small_world.benign(home, np.random.default_rng(5), clients=120, weeks=10, a_week=40)
    with in_haste():
        return fit(
            home.reference,
            small_world.SCHEMA,
            traffic,
            budget=1,
            clients_per_week=100,
            week_us=small_world.WEEK_US,
            partitions=2,
            rng=np.random.default_rng(1),
        )


@pytest.fixture(scope="session")
def ensemble(fitted: Any) -> Any:
    """The ensemble of `fitted`."""
    return fitted[0]


@pytest.fixture(scope="session")
def home(small_world: Any) -> Any:
    """`world.world`: the site that `fitted` is for."""
    return small_world.world()


@pytest.fixture(scope="session")
def sent(small_world: Any) -> Any:
    """`world.sent`."""
    return small_world.sent
