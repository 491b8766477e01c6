"""The demo's own model, and its server on a real broker."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams import children, embedded
from streams.demo import digits
from streams.demo.model import Perceptron, train

SEED = 20


@pytest.fixture(scope="session")
def pools() -> digits.Pools:
    return digits.split(SEED)


@pytest.fixture(scope="session")
def perceptron(pools: digits.Pools) -> Perceptron:
    return train(pools.model, np.random.default_rng(SEED))


@dataclass
class Served:
    url: str
    name: str
    topic: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def served(
    perceptron: Perceptron,
    kafka: str,
    topic: Callable[..., str],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> Iterator[Served]:
    name, events = "digits", topic(2)
    (port,) = embedded.free_ports(1)
    perceptron.save(tmp_path / "model.npz")
    command = [sys.executable, "-m", "streams.demo.server", "--model", str(tmp_path / "model.npz"), "--name", name]
    command += ["--port", str(port), "--kafka", kafka, "--topic", events]
    process = children.spawn(command, tmp_path / "server.log")
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, children.tail(tmp_path / "server.log")
        try:
            with urllib.request.urlopen(f"{url}/v2/models/{name}/ready", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_until(answers, 30, "the demo's server")
        yield Served(url, name, events, process)
    finally:
        children.stop([process])
