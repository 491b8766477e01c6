"""`vedette console` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from streams.embedded import free_ports


@pytest.fixture
def settings_file(tmp_path: Path, redis_url: str) -> Callable[..., Path]:
    def write(console: str = "") -> Path:
        path = tmp_path / "vedette.toml"
        path.write_text(
            f'[redis]\nurl = "{redis_url}"\n[console]\n{console}\n'
            '[[models]]\nname = "digits"\ntopic = "events"\nbundle = "none"\n'
        )
        return path

    return write


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streams.cli", "--config", str(path), "console"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_serves_until_sigterm(settings_file: Callable[..., Path], wait_until: Callable[..., Any]) -> None:
    port = free_ports(1)[0]
    process = start(settings_file(f"port = {port}"))
    try:

        def answers() -> bool:
            try:
                return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        wait_until(answers, 60, "the console")
        with requests.get(f"http://127.0.0.1:{port}/events", stream=True, timeout=30) as stream:
            assert stream.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize(
    ("console", "sentence"),
    [
        ('host = "0.0.0.0"', "console.host: 0.0.0.0 is not loopback"),
        ('token_file = "/nowhere/token"', "console.token_file: cannot read /nowhere/token"),
        ("port = {taken}", "console.port: cannot listen on 127.0.0.1:"),
    ],
)
def test_wrong_settings_stop_the_start_with_a_sentence(
    settings_file: Callable[..., Path], redis_url: str, console: str, sentence: str
) -> None:
    taken = redis_url.rpartition(":")[2].partition("/")[0]
    process = start(settings_file(console.format(taken=taken)))
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 2
    assert sentence in said
