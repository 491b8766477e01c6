from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streams import config
from streams.cli import vedette

HOME = Path(__file__).resolve().parents[2]
COMPOSE = HOME / "docker-compose.yml"
PROCESSES = ("ingest", "worker", "correlator", "notifier", "prober", "console")


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """The file as Compose understands it."""
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("docker-compose is not installed")
    yaml = pytest.importorskip("yaml")
    done = subprocess.run([command, "config"], cwd=HOME, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_compose_accepts_the_file() -> None:
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("docker-compose is not installed")
    done = subprocess.run([command, "config", "-q"], cwd=HOME, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_process_runs_as_a_command_without_rights_and_is_restarted(composed: dict[str, Any]) -> None:
    services = composed["services"]
    assert set(services) == {"kafka", "redis", "topics", *PROCESSES}
    for name in PROCESSES:
        service = services[name]
        assert service["command"] == [name]
        assert name in vedette.commands
        assert service["restart"] == "unless-stopped"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["user"].split(":")[0] != "0"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["depends_on"]["topics"]["condition"] == "service_completed_successfully"
        assert (
            service["depends_on"]["kafka"]["condition"]
            == service["depends_on"]["redis"]["condition"]
            == "service_healthy"
        )
    assert services["topics"]["restart"] == "no"
    assert services["ingest"]["profiles"] == ["ingest"]
    assert services["topics"]["command"][0] in vedette.commands


def test_servers_are_pinned_durable_and_checked(composed: dict[str, Any]) -> None:
    kafka, redis = composed["services"]["kafka"], composed["services"]["redis"]
    assert re.fullmatch(r"apache/kafka:\d+\.\d+\.\d+", kafka["image"])
    assert kafka["environment"]["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert kafka["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    for server in (kafka, redis):
        assert server["healthcheck"]["test"][0] == "CMD"
        assert server["restart"] == "unless-stopped"
        assert server["volumes"], "its data outlives the container"


def test_broker_is_the_version_that_tests_run(composed: dict[str, Any]) -> None:
    pins = (HOME / "streams" / "kafka_jars.json").read_text(encoding="utf-8")
    version = composed["services"]["kafka"]["image"].partition(":")[2]
    assert f"org.apache.kafka:kafka_2.13:{version}" in pins


def test_nothing_but_loopback_is_published(composed: dict[str, Any]) -> None:
    published = [port for service in composed["services"].values() for port in service.get("ports", ())]
    assert published
    for port in published:
        assert str(port).startswith("127.0.0.1:")


def test_sample_settings_are_valid_and_fit_the_file(composed: dict[str, Any]) -> None:
    settings = config.load(HOME / "deploy" / "vedette.toml", {})
    assert settings.kafka.bootstrap in composed["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    secrets = {f"/run/secrets/{name}" for name in composed["secrets"]}
    named = {settings.secrets.client_key_file, settings.secrets.probe_key_file, settings.console.token_file}
    assert named == secrets
    assert settings.models[0].bundle.startswith("/var/lib/vedette/")
    for name in PROCESSES:
        mounts = {volume.split(":")[1] for volume in composed["services"][name]["volumes"]}
        assert {"/etc/vedette/vedette.toml", "/var/lib/vedette", "/var/cache/vedette"} <= mounts
    assert f":{settings.worker.web_port}/health" in composed["services"]["worker"]["healthcheck"]["test"][-1]
    assert f":{settings.console.port}/health" in composed["services"]["console"]["healthcheck"]["test"][-1]


def test_secrets_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    shutil.copytree(HOME / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("*.key", "*.token"))
    made = tmp_path / "deploy" / "secrets"
    run = [str(tmp_path / "deploy" / "make-secrets.sh")]
    subprocess.run(run, check=True, capture_output=True, timeout=30)
    first = {path.name: path.read_text() for path in made.iterdir() if path.suffix in (".key", ".token")}
    assert set(first) == {"client.key", "probe.key", "console.token"}
    for name in first:
        assert (made / name).stat().st_mode & 0o077 == 0
    subprocess.run(run, check=True, capture_output=True, timeout=30)
    assert {name: (made / name).read_text() for name in first} == first
    data = {
        "models": [{"name": "m", "topic": "t", "bundle": "b"}],
        "secrets": {"client_key_file": str(made / "client.key"), "probe_key_file": str(made / "probe.key")},
    }
    settings = config.parse(data, "test")
    assert len(config.secret(settings, "client", {})) == 16
    assert len(config.secret(settings, "probe", {})) == 32


def test_secrets_and_bundles_are_never_committed() -> None:
    for folder in ("secrets", "bundles"):
        assert (HOME / "deploy" / folder / ".gitignore").read_text() == "*\n!.gitignore\n"


def test_image_takes_every_package_and_runs_as_nobody_special() -> None:
    text = (HOME / "Dockerfile").read_text()
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"COPY {package} {package}" in text
        assert f"!{package}" in (HOME / ".dockerignore").read_text().splitlines()
    assert "-c constraints.txt" in text
    assert re.search(r"^FROM python:3\.11-slim", text, re.MULTILINE)
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    assert os.access(HOME / "deploy" / "make-secrets.sh", os.X_OK)
