from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams import config
from streams.config import Settings
from streams.errors import ConfigError

MODEL = {"name": "digits", "topic": "events", "bundle": "digits.vedette"}


def settings(**more: Any) -> Settings:
    return config.parse({"models": [MODEL], **more}, "vedette.toml")


def test_one_model_is_enough() -> None:
    found = settings()
    assert found.model(None).name == "digits"
    assert found.model("digits").format == "auto"
    assert found.kafka.bootstrap == "127.0.0.1:9092"
    assert found.week_seconds == 7 * 24 * 3600


@pytest.mark.parametrize(
    ("data", "path", "allowed"),
    [
        ({}, "", "required field `models`"),
        ({"models": []}, "models", "length >= 1"),
        ({"models": [{"name": "digits", "topic": "t"}]}, "models[0]", "required field `bundle`"),
        ({"models": [{**MODEL, "name": "Digits"}]}, "models[0].name", "^[a-z0-9][a-z0-9._-]{0,62}$"),
        ({"models": [{**MODEL, "name": "a" * 64}]}, "models[0].name", "{0,62}"),
        ({"models": [{**MODEL, "format": "avro"}]}, "models[0].format", "Invalid enum value 'avro'"),
        ({"models": [{**MODEL, "client": "cookie"}]}, "models[0].client", "key|(header|field|parameter):"),
        ({"models": [{**MODEL, "client": "header:"}]}, "models[0].client", "key|(header|field|parameter):"),
        ({"models": [{**MODEL, "colour": "red"}]}, "models[0]", "unknown field `colour`"),
        ({"models": [MODEL], "kafka": {"boot": "x"}}, "kafka", "unknown field `boot`"),
        ({"models": [MODEL], "kafka": {"security_protocol": "TLS"}}, "kafka.security_protocol", "'TLS'"),
        ({"models": [MODEL], "kafka": {"sasl_mechanism": "GSSAPI"}}, "kafka.sasl_mechanism", "'GSSAPI'"),
        ({"models": [MODEL], "redis": {"url": 6379}}, "redis.url", "Expected `str`, got `int`"),
        ({"models": [MODEL], "worker": {"max_batch_rows": 0}}, "worker.max_batch_rows", ">= 1"),
        ({"models": [MODEL], "worker": {"max_batch_rows": 1.5}}, "worker.max_batch_rows", "Expected `int`"),
        ({"models": [MODEL], "worker": {"web_port": 65536}}, "worker.web_port", "<= 65535"),
        ({"models": [MODEL], "worker": {"snapshot_seconds": 0}}, "worker.snapshot_seconds", "> 0"),
        ({"models": [MODEL], "probes": {"min_recall": 1.1}}, "probes.min_recall", "<= 1"),
        ({"models": [MODEL], "probes": {"eps": "small"}}, "probes.eps", "Expected `float`, got `str`"),
        ({"models": [MODEL], "console": {"port": -1}}, "console.port", ">= 0"),
        ({"models": [MODEL], "week_seconds": -5}, "week_seconds", "> 0"),
        ({"models": [MODEL], "alarms": {}}, "", "unknown field `alarms`"),
        ({"models": MODEL}, "models", "Expected `array`, got `object`"),
    ],
)
def test_wrong_keys_and_values_are_refused_with_path_and_what_is_allowed(
    data: dict[str, Any], path: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse(data, "vedette.toml")
    text = str(refused.value)
    assert text.startswith(f"vedette.toml: {path}: " if path else "vedette.toml: ")
    assert allowed in text
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "choices"),
    [
        ({"models": [{**MODEL, "format": "avro"}]}, ["auto", "native", "oip", "compact"]),
        (
            {"models": [MODEL], "kafka": {"security_protocol": "TLS"}},
            ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        ),
        ({"models": [MODEL], "kafka": {"sasl_mechanism": "X"}}, ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
    ],
)
def test_a_wrong_choice_is_answered_with_all_choices(data: dict[str, Any], choices: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse(data, "vedette.toml")
    for choice in choices:
        assert f"'{choice}'" in str(refused.value)


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ({"models": [MODEL], "kafka": {"boot": "x"}}, ["bootstrap", "group", "ssl_cafile"]),
        ({"models": [{**MODEL, "colour": "red"}]}, ["name", "topic", "bundle", "client"]),
        ({"models": [MODEL], "alarms": {}}, ["models", "kafka", "redis", "worker"]),
    ],
)
def test_an_unknown_key_is_answered_with_all_keys(data: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse(data, "vedette.toml")
    for key in keys:
        assert key in str(refused.value).partition("allowed")[2]


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'digits' is declared twice"):
        config.parse({"models": [MODEL, MODEL]}, "vedette.toml")


def test_a_model_must_be_named_where_there_are_several() -> None:
    found = config.parse({"models": [MODEL, {**MODEL, "name": "fraud"}]}, "vedette.toml")
    with pytest.raises(ConfigError, match="name one of: digits, fraud"):
        found.model(None)
    with pytest.raises(ConfigError, match="no model 'spam' is declared; declared: digits, fraud"):
        found.model("spam")
    assert found.model("fraud").name == "fraud"


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        settings().kafka.bootstrap = "elsewhere:9092"  # type: ignore[misc]  # that it fails is what is tested


def test_file_is_read_and_variables_override_it(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text(
        '[[models]]\nname = "digits"\ntopic = "events"\nbundle = "b"\n[kafka]\nbootstrap = "a:1"\ngroup = "g"\n'
    )
    environ = {
        "VEDETTE_KAFKA__BOOTSTRAP": "b:2",
        "VEDETTE_WORKER__WEB_PORT": "9100",
        "VEDETTE_PROBES__EPS": "0.25",
        "VEDETTE_CLIENT_KEY": "00" * 16,
        "VEDETTE_UNRELATED": "ignored: it names no section",
        "PATH": "/bin",
    }
    found = config.load(path, environ)
    assert (found.kafka.bootstrap, found.kafka.group) == ("b:2", "g")
    assert (found.worker.web_port, found.probes.eps) == (9100, 0.25)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("VEDETTE_KAFKAS__BOOTSTRAP", "x", "VEDETTE_KAFKA__..."),
        ("VEDETTE_KAFKA__BOOT", "x", "kafka: Object contains unknown field `boot`"),
        ("VEDETTE_WORKER__MAX_BATCH_ROWS", "many", "worker.max_batch_rows: Expected `int`, got `str`"),
        ("VEDETTE_WORKER__MAX_BATCH_ROWS", "-1", "worker.max_batch_rows"),
    ],
)
def test_wrong_variables_are_refused(tmp_path: Path, variable: str, value: str, told: str) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[[models]]\nname = "digits"\ntopic = "events"\nbundle = "b"\n')
    with pytest.raises(ConfigError, match=re.escape(told)):
        config.load(path, {variable: value})


def test_text_settings_take_numbers_and_words_from_variables_as_text(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[[models]]\nname = "digits"\ntopic = "events"\nbundle = "b"\n')
    found = config.load(path, {"VEDETTE_KAFKA__GROUP": "12", "VEDETTE_KAFKA__SASL_USERNAME": "true"})
    assert (found.kafka.group, found.kafka.sasl_username) == ("12", "true")


def test_whole_numbers_serve_where_seconds_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('week_seconds = 600\n[[models]]\nname = "digits"\ntopic = "events"\nbundle = "b"\n')
    found = config.load(path, {"VEDETTE_WORKER__SNAPSHOT_SECONDS": "5", "VEDETTE_PROBES__EPS": "1e-2"})
    assert (found.week_seconds, found.worker.snapshot_seconds, found.probes.eps) == (600.0, 5.0, 0.01)


def test_section_that_is_no_table_is_refused_with_a_variable_too(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('kafka = "a:1"\n[[models]]\nname = "digits"\ntopic = "events"\nbundle = "b"\n')
    with pytest.raises(ConfigError, match="kafka"):
        config.load(path, {"VEDETTE_KAFKA__GROUP": "g"})


@pytest.mark.parametrize("content", [b"models = [", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vedette.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))} is not valid TOML"):
        config.load(path, {})


def test_a_missing_or_unreadable_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config or VEDETTE_CONFIG"):
        config.load(None, {"VEDETTE_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path, {})


def test_secret_from_a_variable_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("ab" * 16 + "\n")
    found = settings(secrets={"client_key_file": str(path)})
    assert config.secret(found, "client", {}) == b"\xab" * 16
    assert config.secret(found, "client", {"VEDETTE_CLIENT_KEY": "cd" * 16}) == b"\xcd" * 16
    assert config.secret(found, "probe", {"VEDETTE_PROBE_KEY": "01" * 32}) == b"\x01" * 32


@pytest.mark.parametrize("text", ["", "xyz", "ab" * 15, "ab" * 17, "zz" * 16, "ab" * 15 + "é"])
def test_a_wrong_secret_is_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    found = settings(secrets={"client_key_file": str(path)})
    for environ in ({}, {"VEDETTE_CLIENT_KEY": text}):
        with pytest.raises(ConfigError) as refused:
            config.secret(found, "client", environ)
        assert not text or text not in str(refused.value)


def test_a_secret_that_is_set_nowhere_or_unreadable_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"secrets\.probe_key_file: not set; write 32 random bytes as hex"):
        config.secret(settings(), "probe", {})
    with pytest.raises(ConfigError, match=r"secrets\.client_key_file: cannot read"):
        config.secret(settings(secrets={"client_key_file": str(tmp_path / "none")}), "client", {})


def test_a_variable_with_one_underscore_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[[models]]\nname = "digits"\ntopic = "events"\nbundle = "b"\n')
    with pytest.raises(ConfigError, match="write VEDETTE_KAFKA__BOOTSTRAP"):
        config.load(path, {"VEDETTE_KAFKA_BOOTSTRAP": "a:1"})


def test_every_section_can_be_set_by_variables() -> None:
    sections = {field.name for field in msgspec.structs.fields(Settings) if issubclass_of_settings(field.type)}
    assert {name.lower() for name in config._SECTIONS} == sections


def issubclass_of_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, config._Settings)


@pytest.mark.parametrize(
    ("table", "path", "allowed"),
    [
        ({"norm": "l3"}, "threats.mine.norm", "'l0', 'l1', 'l2', 'linf'"),
        ({"epsilon": 0.1}, "threats.mine", "norm, eps, eps_quantile, scale"),
        ({"eps": 0}, "threats.mine.eps", "> 0"),
        ({"eps": 0.1, "eps_quantile": 0.2}, "threats.mine", "both given"),
        ({"norm": "l0", "eps": 1.5}, "threats.mine", "whole number of features"),
        ({"goal": -1}, "threats.mine", "name or number of a class"),
        ({"mutable": []}, "threats.mine.mutable", "length >= 1"),
    ],
)
def test_wrong_threat_models_are_refused_by_name(table: dict[str, Any], path: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(threats={"fine": {}, "mine": table})
    text = str(refused.value)
    assert text.startswith(f"vedette.toml: {path}: ")
    assert allowed in text


def test_a_threat_model_of_an_impossible_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"threats: the name 'My threat' does not match"):
        settings(threats={"My threat": {}})


def test_declared_threat_models_go_before_shipped_ones() -> None:
    found = settings(threats={"image-l2": {"norm": "l2", "eps": 0.5}})
    assert config.threat(found, "image-l2").eps == 0.5
    assert config.threat(None, "image-l2").eps is None
    assert config.threat(None, "image-l2").eps_quantile == 0.25
    with pytest.raises(ConfigError, match="no threat model 'nobody'; there are embedding-l2"):
        config.threat(found, "nobody")


def test_escalation_is_off_unless_its_table_is_there_and_then_names_a_model() -> None:
    declared = {"name": "m", "topic": "t", "bundle": "b"}
    assert config.parse({"models": [declared]}, "x").models[0].escalation is None
    there = config.parse({"models": [declared | {"endpoint": "http://h", "escalation": {}}]}, "x").models[0].escalation
    assert there is not None
    assert (there.model, there.timeout_seconds, there.questions_per_second, there.waiting_rows) == ("", 10, 200, 256)
    for table, says in (
        ({}, r"models\[m\]\.escalation: names no model to ask; set escalation\.model, or endpoint"),
        ({"modle": "a:b"}, r"models\[0\]\.escalation: .*unknown field `modle`; allowed: model, timeout_seconds"),
        ({"model": "a:b", "questions_per_second": 0.001}, r"models\[0\]\.escalation\.questions_per_second: .*>= 0\.01"),
        ({"model": "a:b", "waiting_rows": 0}, r"models\[0\]\.escalation\.waiting_rows: .*>= 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            config.parse({"models": [declared | {"escalation": table}]}, "x")
