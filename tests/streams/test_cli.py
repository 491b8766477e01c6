from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from redis import Redis

from streams import cli, embedded
from streams.cli import invoke, vedette
from streams.store.keys import ModelKeys

COMMANDS = [
    "audit",
    "calibrate",
    "console",
    "correlator",
    "demo",
    "doctor",
    "fit",
    "harden",
    "incidents",
    "ingest",
    "notifier",
    "probe",
    "prober",
    "redteam",
    "repeaters",
    "replay",
    "score",
    "token",
    "topics",
    "worker",
]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    def write(
        kafka: str = "127.0.0.1:1", redis: str = "redis://127.0.0.1:1/0", topic: str = "events", more: str = ""
    ) -> str:
        path = tmp_path / "vedette.toml"
        path.write_text(
            f'[kafka]\nbootstrap = "{kafka}"\n[redis]\nurl = "{redis}"\n'
            f'[[models]]\nname = "digits"\ntopic = "{topic}"\nbundle = "none.vedette"\n{more}'
        )
        return str(path)

    return write


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What standard error holds: one line, no traceback."""
    err = capsys.readouterr().err
    assert err.startswith("vedette: ")
    assert err.count("\n") == 1
    return err


def run(
    *arguments: str, environ: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streams.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(environ or {})}, cwd=cwd
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--help"]) == 0
    out = capsys.readouterr().out
    assert sorted(vedette.commands) == COMMANDS
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([name, "--help"]) == 0
    assert "Usage: vedette" in capsys.readouterr().out


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert invoke(["--version"]) == 0
    assert version("vedette") in capsys.readouterr().out


def test_help_costs_no_heavy_import() -> None:
    heavy = ("aiohttp", "aiokafka", "faust", "kafka", "numba", "pyarrow", "sklearn")
    code = (
        "import sys; from streams.cli import invoke; invoke(['--help']); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"


def test_missing_settings_file_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["--config", str(tmp_path / "none.toml"), "doctor"]) == 2
    assert "no settings file" in sentence(capsys)


def test_settings_file_may_be_named_by_a_variable(
    config: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEDETTE_CONFIG", config(more='colour = "red"\n'))
    assert invoke(["topics"]) == 2
    assert "models[0]: Object contains unknown field `colour`; allowed: name, topic" in sentence(capsys)


def test_unknown_model_and_unnamed_one_of_several(
    config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(more='[[models]]\nname = "fraud"\ntopic = "t"\nbundle = "b"\n')
    assert invoke(["--config", path, "audit"]) == 2
    assert "name one of: digits, fraud" in sentence(capsys)
    assert invoke(["--config", path, "--model", "spam", "audit"]) == 2
    assert "no model 'spam'" in sentence(capsys)


@pytest.mark.parametrize("command", ["repeaters", "incidents"])
def test_what_redis_refuses_is_one_sentence(
    command: str,
    config: Callable[..., str],
    redis: Redis,
    redis_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = ModelKeys("digits")
    for key in (keys.repeaters, keys.incidents, keys.open_incidents):
        redis.set(key, "x")
    assert invoke(["--config", config(redis=redis_url), command, "list"]) == 11
    assert "cannot be read: WRONGTYPE" in sentence(capsys)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["topics"], 10),
        (["audit"], 10),
        (["incidents", "list"], 11),
        (["correlator"], 11),
        (["score", "rows.csv"], 12),
    ],
)
def test_what_is_away_has_its_own_exit_code(
    arguments: list[str],
    code: int,
    config: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VEDETTE_CLIENT_KEY", "00" * 16)
    if arguments == ["audit"]:
        with embedded.redis() as server:
            assert invoke(["--config", config(redis=server.address), *arguments]) == code
    else:
        assert invoke(["--config", config(), *arguments]) == code
    sentence(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["audit", "--wait", "long"],
        ["topics", "--partitions", "0"],
        ["topics", "--replication", "8"],
        ["demo", "--seconds", "3"],
        ["fit"],
        ["score"],
    ],
)
def test_wrong_options_are_told_with_usage(
    arguments: list[str], config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["--config", config(), *arguments]) == 2
    assert "Usage: vedette" in capsys.readouterr().err


def test_topics_are_made_once(kafka: str, config: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    name = f"vedette-test-cli-{os.getpid()}"
    path = config(kafka=kafka, topic=name)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    try:
        assert invoke(["--config", path, "topics", "--partitions", "3"]) == 0
        assert capsys.readouterr().out == f"created {name}\ncreated {name}.dead\n"
        assert invoke(["--config", path, "topics", "--partitions", "5"]) == 0
        assert capsys.readouterr().out == ""
        described = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics([name, f"{name}.dead"])}
        assert described == {name: 3, f"{name}.dead": 1}
    finally:
        admin.delete_topics([name, f"{name}.dead"])
        admin.close()


def test_incidents_list_runs_as_a_process(config: Callable[..., str], redis_url: str, redis: Redis) -> None:
    done = run("--config", config(redis=redis_url), "incidents", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == []


def test_error_of_a_process_is_one_sentence(config: Callable[..., str]) -> None:
    done = run("--config", config(), "incidents", "list")
    assert done.returncode == 11
    assert done.stderr.startswith("vedette: Redis at redis://127.0.0.1:1/0 does not answer")
    assert "Traceback" not in done.stderr


def test_password_in_a_url_is_not_shown(config: Callable[..., str]) -> None:
    done = run("--config", config(redis="redis://user:s3cret@127.0.0.1:1/0"), "incidents", "list")
    assert done.returncode == 11
    assert "s3cret" not in done.stderr


def test_package_of_a_stranger_stops_every_command(tmp_path: Path, config: Callable[..., str]) -> None:
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "__init__.py").write_text("")
    done = run(
        "--config",
        config(),
        "incidents",
        "list",
        environ={"PYTHONPATH": str(tmp_path)},
        cwd=Path(cli.__file__).parent.parent,
    )
    # -m puts the working directory first; the console script does not, so the stranger is met through an own start.
    code = "import sys; from streams.cli import main; main(['incidents', 'list'])"
    home = str(Path(cli.__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), home]), "VEDETTE_CONFIG": config()}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "the package 'attacks' resolves to" in done.stderr
    assert "virtual environment of its own" in done.stderr


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_interruption_and_a_closed_pipe_have_the_shells_codes(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, config: Callable[..., str]
) -> None:
    def stop(*_: Any, **__: Any) -> int:
        raise raised

    monkeypatch.setattr("streams.topics.ensure", stop)
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115 - closed by the code under test
    assert invoke(["--config", config(), "topics"]) == code


def test_settings_are_read_once_and_only_when_needed(tmp_path: Path) -> None:
    session = cli.Session(str(tmp_path / "later.toml"), None)
    (tmp_path / "later.toml").write_text('[[models]]\nname = "digits"\ntopic = "t"\nbundle = "b"\n')
    first = session.settings
    (tmp_path / "later.toml").unlink()
    assert session.settings is first
    assert session.model_settings.name == "digits"
