"""The escalation tier beside the correlator, on a real Redis and a real endpoint: nothing waits for it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal as signals
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from redis import Redis

from detectors import bundle
from detectors.contract import Reference
from detectors.ensemble import fit
from detectors.schema import FeatureSchema
from streams.config import EscalationSettings, parse
from streams.doctor import installation
from streams.errors import ConfigError
from streams.incidents.correlator import Correlator
from streams.incidents.escalation import MOST_ROWS, MOST_TICKETS, Inquirer, inquirer
from streams.incidents.service import IncidentService
from streams.incidents.terminal import _page
from streams.lease import Lease
from streams.models import named
from streams.models.contract import Model
from streams.store.keys import ModelKeys
from streams.store.messages import InquiryMessage, SignalMessage, row_of
from tests.streams.models.test_models import endpoint, tensor

pytestmark = pytest.mark.usefixtures("hasty")

SignalFactory = Callable[..., SignalMessage]
Send = Callable[[SignalMessage], None]
WaitUntil = Callable[..., Any]
Rows = NDArray[np.float64]

KEYS = ModelKeys("digits")
WIDTH, CLASSES = 9, 3
WEIGHTS = np.random.default_rng(1).normal(size=(WIDTH, CLASSES))


class Softmax:
    def predict(self, inputs: Rows) -> Rows:
        powers = np.exp(np.tanh(3 * inputs) @ WEIGHTS)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


MODEL: Model = Softmax()


def reply(body: bytes, _: Any) -> tuple[int, bytes]:
    asked = json.loads(body)["inputs"][0]
    rows = np.reshape(asked["data"], asked["shape"])
    return 200, json.dumps({"outputs": [tensor("p", "FP64", MODEL.predict(rows))]}).encode()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of bundles: with inquiries, with those of another seed, without."""
    folder = tmp_path_factory.mktemp("bundles")
    rows = np.random.default_rng(2).uniform(0, 1, (500, WIDTH))
    reference = Reference(rows, MODEL.predict(rows).argmax(axis=1).astype(np.int32))
    paths = {}
    for name, seed, wanted in (
        ("asking", 0, ("feature_squeezing", "noise_stability")),
        ("other", 1, ("feature_squeezing",)),
        ("plain", 0, ()),
    ):
        made = fit(
            reference,
            FeatureSchema.image((3, 3), [str(label) for label in range(CLASSES)]),
            None,
            budget=0,
            clients_per_week=None,
            week_us=1,
            partitions=1,
            rng=np.random.default_rng(seed),
            detectors=("trust_ratio",),
            inquiries=wanted,
            ask=MODEL.predict,
        )
        paths[name] = str(folder / f"{name}.vedette")
        bundle.save(paths[name], *made)
    return paths


@pytest.fixture
def raised(make_signal: SignalFactory) -> SignalFactory:
    """A signal at a row of this model, another one by its offset."""

    def made(offset: int, **changes: Any) -> SignalMessage:
        row = np.random.default_rng(100 + offset).uniform(0, 1, WIDTH)
        label = int(MODEL.predict(row[None]).argmax())
        return make_signal(offset, input=row.tolist(), label=label, **changes)

    return made


def asking(redis: Redis, path: str, model: Model = MODEL, **settings: Any) -> Inquirer:
    wanted = EscalationSettings(model="here", **{"questions_per_second": 1e9, **settings})
    return Inquirer(redis, KEYS, path, lambda: model, wanted, clock=lambda: 7)


@contextmanager
def running(inquirer: Inquirer) -> Iterator[threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=inquirer.run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def correlated(redis: Redis, inquirer: Inquirer, *messages: SignalMessage) -> str:
    """Fold signals with a real correlator; returns the id of the incident."""
    lease = Lease(redis, KEYS, "correlator")
    assert lease.acquire()
    correlator = Correlator(redis, "digits", "events", lease, clock=lambda: 1, inquirer=inquirer)
    correlator.load()
    correlator.progress.setdefault(0, "")
    assert correlator.step(100) == len(messages)
    lease.release()
    return str(redis.zrevrange(KEYS.incidents, 0, 0)[0].decode())


def totals(redis: Redis, inquirer: Inquirer) -> dict[str, int]:
    inquirer.tell()
    return {name.decode(): int(count) for name, count in redis.hgetall(KEYS.inquiry_totals).items()}


def texts(*messages: SignalMessage) -> list[str]:
    return [msgspec.json.encode(message).decode() for message in messages]


def test_rows_that_raised_something_get_what_the_model_says_as_evidence(
    redis: Redis, raised: SignalFactory, send: Send, bundles: dict[str, str], wait_until: WaitUntil
) -> None:
    messages = [raised(1), raised(2, level="page")]
    for message in messages:
        send(message)
    with endpoint(reply) as (url, seen):
        asked = asking(redis, bundles["asking"], named.load(f"{url}/v2/models/digits", client="c"))
        with running(asked):
            name = correlated(redis, asked, *messages)
            wait_until(lambda: redis.hlen(KEYS.inquiries(name)) == 2, 60.0, "the answers")
    view = IncidentService(redis, "digits").show(name)
    tier, digest = bundle.load_escalation(bundles["asking"])
    assert tier is not None
    assert {said.signal for said in view.inquiries} == {message.id for message in messages}
    for said in view.inquiries:
        about = next(message for message in messages if message.id == said.signal)
        wanted = tier.judge(np.array([about.input]), np.array([about.label], dtype=np.int32), MODEL.predict)
        assert [one.inquiry for one in said.answers] == list(tier.names)
        for one, right in zip(said.answers, wanted, strict=True):
            assert one.score == pytest.approx(right.scores[0])
            assert one.p == pytest.approx(right.pvalues[0], abs=0.02)
            assert (one.rows, one.questions) == (right.rows[0], right.questions)
        assert (said.at, said.bundle) == (7, digest)
    assert sum(body["inputs"][0]["shape"][0] for _, _, body, _ in seen) == 2 * tier.questions
    assert 0 < redis.ttl(KEYS.inquiries(name)) <= 30 * 24 * 3600
    assert totals(redis, asked) == {"answered": 2, "questions": 2 * tier.questions}
    assert totals(redis, asked) == {"answered": 2, "questions": 2 * tier.questions}  # told once
    from rich.console import Console

    from streams.incidents.runbook import Runbook

    shown = Console(record=True, width=160)
    shown.print(_page(view, Runbook({})))
    assert "model asked again, feature_squeezing" in shown.export_text()


def test_an_endpoint_that_fails_disturbs_no_incident_and_is_told_once_in_a_while(
    redis: Redis,
    raised: SignalFactory,
    send: Send,
    bundles: dict[str, str],
    wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages = [raised(offset) for offset in range(1, 6)]
    for message in messages:
        send(message)
    away = named.load("http://127.0.0.1:9/v2/models/digits", client="c")
    asked = asking(redis, bundles["asking"], away)
    with caplog.at_level(logging.WARNING, "vedette.escalation"), running(asked):
        name = correlated(redis, asked, *messages)
        wait_until(lambda: totals(redis, asked).get("failed") == 5, 60.0, "five failures")
    assert len(IncidentService(redis, "digits").show(name).evidence) == 5
    assert IncidentService(redis, "digits").show(name).inquiries == []
    said = [record.getMessage() for record in caplog.records if record.name == "vedette.escalation"]
    assert len(said) == 1
    assert "1 rows could not be asked about" in said[0]
    assert "cannot be asked" in said[0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda rows: MODEL.predict(rows)[:, :2], "one probability of each of the 3 classes"),
        (lambda rows: np.full((len(rows), 3), np.nan), "NaN or infinity"),
        (lambda rows: np.full((len(rows), 3), 5.0), "no probabilities"),
        (lambda rows: 1 / 0, "ZeroDivisionError"),
        (lambda rows: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_a_model_that_answers_nonsense_counts_as_failed_and_the_next_row_is_taken(
    redis: Redis,
    raised: SignalFactory,
    bundles: dict[str, str],
    wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[Rows], Rows],
    says: str,
) -> None:
    class Spoilt:
        spoilt = True

        def predict(self, inputs: Rows) -> Rows:
            return answer(inputs) if self.spoilt else MODEL.predict(inputs)

    model = Spoilt()
    asked = asking(redis, bundles["other"], model)
    first, second, wide = texts(raised(1), raised(2), raised(3, nearest=[0.0]))
    with caplog.at_level(logging.WARNING, "vedette.escalation"), running(asked):
        asked.offer("i", first)
        wait_until(lambda: totals(redis, asked).get("failed") == 1, 60.0, "the failure")
        model.spoilt = False
        asked.offer("i", "no signal")
        asked.offer("i", json.dumps(json.loads(wide) | {"input": [1.0]}))
        asked.offer("i", second)
        wait_until(lambda: totals(redis, asked).get("answered") == 1, 60.0, "the next row")
    assert totals(redis, asked)["failed"] == 3
    assert says in caplog.text


def test_an_endpoint_that_is_silent_is_given_up_after_its_time(
    redis: Redis,
    raised: SignalFactory,
    bundles: dict[str, str],
    wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    def late(body: bytes, headers: Any) -> tuple[int, bytes]:
        release.wait(20)
        return reply(body, headers)

    with endpoint(late) as (url, _):
        silent = named.load(f"{url}/v2/models/digits", client="c", timeout_seconds=0.2)
        asked = asking(redis, bundles["other"], silent)
        with caplog.at_level(logging.WARNING, "vedette.escalation"), running(asked):
            asked.offer("i", texts(raised(1))[0])
            wait_until(lambda: totals(redis, asked).get("failed") == 1, 60.0, "the end of patience")
            release.set()
    assert "did not answer within 0.2 s" in caplog.text


def test_what_finds_no_room_is_dropped_and_counted(
    redis: Redis, raised: SignalFactory, bundles: dict[str, str]
) -> None:
    asked = asking(redis, bundles["other"], waiting_rows=2)
    for text in texts(*(raised(offset) for offset in range(5))):
        asked.offer("i", text)  # nobody takes them
    assert totals(redis, asked) == {"dropped": 3}


def test_counts_that_redis_did_not_take_are_kept(redis: Redis, raised: SignalFactory, bundles: dict[str, str]) -> None:
    asked = asking(redis, bundles["other"], waiting_rows=1)
    for text in texts(raised(1), raised(2)):
        asked.offer("i", text)
    redis.set(KEYS.inquiry_totals, "no hash")
    with pytest.raises(Exception, match="WRONGTYPE"):
        asked.tell()
    redis.delete(KEYS.inquiry_totals)
    assert totals(redis, asked) == {"dropped": 1}


def test_questions_keep_to_their_rate_and_a_stop_waits_for_none(
    redis: Redis, raised: SignalFactory, bundles: dict[str, str], wait_until: WaitUntil
) -> None:
    asked = asking(redis, bundles["other"], questions_per_second=1e-3)
    with running(asked) as stop:
        for text in texts(raised(1), raised(2)):
            asked.offer("i", text)
        wait_until(lambda: redis.hlen(KEYS.inquiries("i")) == 1, 60.0, "the first answer")
        stop.set()
    assert redis.hlen(KEYS.inquiries("i")) == 1
    assert totals(redis, asked)["answered"] == 1


def test_one_incident_is_asked_about_so_often_and_a_page_still_finds_room(
    redis: Redis, raised: SignalFactory, bundles: dict[str, str], wait_until: WaitUntil
) -> None:
    tickets = [raised(offset) for offset in range(MOST_TICKETS + 3)]
    pages = [raised(100 + offset, level="page") for offset in range(MOST_ROWS)]
    asked = asking(redis, bundles["other"])
    with running(asked):
        for text in texts(tickets[0], *tickets, *pages):  # the first one twice: it is asked about once
            asked.offer("i", text)
        over = 3 + MOST_TICKETS
        wait_until(lambda: totals(redis, asked).get("passed_over") == over, 60.0, "what is too much")
    assert redis.hlen(KEYS.inquiries("i")) == MOST_ROWS
    assert redis.hexists(KEYS.inquiries("i"), row_of(pages[0].id))
    assert not redis.hexists(KEYS.inquiries("i"), row_of(tickets[-1].id))
    assert totals(redis, asked)["answered"] == MOST_ROWS


def test_a_bundle_that_comes_into_force_is_asked_with(
    redis: Redis, raised: SignalFactory, bundles: dict[str, str], wait_until: WaitUntil
) -> None:
    asked = asking(redis, bundles["asking"])
    _, digest = bundle.load_escalation(bundles["other"])
    redis.hset(KEYS.bundle, "path", bundles["other"])
    with running(asked):
        asked.offer("i", texts(raised(1, bundle=digest))[0])
        wait_until(lambda: redis.hlen(KEYS.inquiries("i")) == 1, 60.0, "the answer")
        said = msgspec.json.decode(redis.hvals(KEYS.inquiries("i"))[0], type=InquiryMessage)
        assert said.bundle == digest
        assert [one.inquiry for one in said.answers] == ["feature_squeezing"]
        redis.hset(KEYS.bundle, "path", bundles["plain"])
        asked.offer("i", texts(raised(2, bundle="elsewhere"))[0])
        wait_until(lambda: totals(redis, asked).get("failed") == 1, 60.0, "a bundle without inquiries")


def test_inquiries_that_are_missing_at_the_start_are_read_once_they_are_there(
    redis: Redis,
    raised: SignalFactory,
    send: Send,
    bundles: dict[str, str],
    wait_until: WaitUntil,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "later.vedette"
    messages = [raised(1), raised(2)]
    for message in messages:
        send(message)
    asked = asking(redis, str(path))
    with caplog.at_level(logging.WARNING, "vedette.escalation"), running(asked):
        name = correlated(redis, asked, *messages)
        wait_until(lambda: totals(redis, asked).get("failed") == 2, 60.0, "rows without inquiries")
        shutil.copy(bundles["plain"], path)
        asked.offer(name, texts(raised(3))[0])
        wait_until(lambda: totals(redis, asked).get("failed") == 3, 60.0, "a bundle without inquiries")
        redis.hset(KEYS.bundle, "path", bundles["other"])
        asked.offer(name, texts(raised(4))[0])
        wait_until(lambda: totals(redis, asked).get("answered") == 1, 60.0, "the answer")
    assert len(IncidentService(redis, "digits").show(name).evidence) == 2
    assert "no bundle at" in caplog.text
    assert len(caplog.records) <= 3


def test_a_model_that_cannot_be_loaded_is_not_loaded_again_for_every_row(
    redis: Redis, raised: SignalFactory, bundles: dict[str, str], wait_until: WaitUntil
) -> None:
    tries = []

    def load() -> Model:
        tries.append(1)
        raise SystemExit(4)

    asked = Inquirer(redis, KEYS, bundles["other"], load, EscalationSettings(model="here"))
    with running(asked):
        for text in texts(raised(1), raised(2)):
            asked.offer("i", text)
        wait_until(lambda: totals(redis, asked).get("failed") == 2, 60.0, "two failures")
    assert len(tries) == 1


def test_a_row_that_set_off_two_rules_is_asked_about_once(
    redis: Redis, raised: SignalFactory, bundles: dict[str, str], wait_until: WaitUntil
) -> None:
    first = raised(1)
    second = raised(1, id=f"{row_of(first.id)}/another_rule", rule="another_rule")
    asked = asking(redis, bundles["other"])
    with running(asked):
        for text in texts(first, second, raised(2)):
            asked.offer("i", text)
        wait_until(lambda: totals(redis, asked).get("answered") == 2, 60.0, "two rows")
    assert row_of(first.id) == first.id.removesuffix(f"/{first.rule}")
    assert redis.hlen(KEYS.inquiries("i")) == 2


def settings_of(**model: Any) -> Any:
    declared = {"name": "digits", "topic": "events", "bundle": "none", **model}
    return parse({"models": [declared]}, "here.toml")


def test_settings_name_the_model_to_ask(redis: Redis, bundles: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VEDETTE_PROBE_KEY", raising=False)

    def made(**model: Any) -> Inquirer | None:
        settings = settings_of(bundle=bundles["asking"], **model)
        return inquirer(settings, settings.models[0], redis)

    assert made() is None
    with pytest.raises(ConfigError, match=r"escalation\.model: questions to an endpoint carry a mark.*probe_key_file"):
        made(endpoint="http://127.0.0.1:9", escalation={})
    assert made(escalation={"model": "scipy.special:softmax"}) is not None
    assert made(escalation={"model": "gone.onnx"}) is not None  # files and modules are loaded beside the correlator
    with pytest.raises(ConfigError, match=r"^models\.digits\.escalation\.model: 'softmax' is not understood"):
        made(escalation={"model": "softmax"})
    monkeypatch.setenv("VEDETTE_PROBE_KEY", "00" * 32)
    with pytest.raises(ConfigError, match=r"escalation\.model: .*names no model"):
        made(escalation={"model": "http://127.0.0.1:9"})
    assert made(endpoint="http://127.0.0.1:9/", escalation={}) is not None


def test_the_command_asks_the_endpoint_with_marks(
    redis: Redis,
    redis_url: str,
    raised: SignalFactory,
    send: Send,
    bundles: dict[str, str],
    wait_until: WaitUntil,
    tmp_path: Path,
) -> None:
    with endpoint(reply) as (url, seen):
        (tmp_path / "vedette.toml").write_text(
            f'[redis]\nurl = "{redis_url}"\n[[models]]\nname = "digits"\ntopic = "events"\n'
            f'bundle = "{bundles["asking"]}"\nendpoint = "{url}"\n[models.escalation]\nquestions_per_second = 1e6\n'
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "VEDETTE_PROBE_KEY": "00" * 32}
        command = [sys.executable, "-c", "from streams.cli import main; main()", "correlator"]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path)
        try:
            wait_until(lambda: redis.exists(KEYS.lease("correlator")), 120.0, "the correlator to be active")
            send(raised(1))
            name = wait_until(lambda: redis.zrange(KEYS.incidents, 0, 0), 60.0, "the incident")[0].decode()
            wait_until(lambda: redis.hlen(KEYS.inquiries(name)) == 1, 60.0, "the answer")
            process.send_signal(signals.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait(10)
    assert all(body["id"].startswith("vp1.") for _, _, body, _ in seen)
    assert {headers["X-Client-Id"] for _, headers, _, _ in seen} == {"vedette-escalation"}


def test_the_command_starts_and_ends_while_a_module_never_loads(
    redis: Redis, redis_url: str, raised: SignalFactory, send: Send, wait_until: WaitUntil, tmp_path: Path
) -> None:
    (tmp_path / "vedette.toml").write_text(
        f'[redis]\nurl = "{redis_url}"\n[[models]]\nname = "digits"\ntopic = "events"\n'
        'bundle = "gone.vedette"\n[models.escalation]\nmodel = "stuck:model"\n'
    )
    (tmp_path / "stuck.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "from streams.cli import main; main()", "correlator"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    try:
        wait_until(lambda: (tmp_path / "begun").exists(), 120.0, "the module to be stuck")
        send(raised(1))
        wait_until(lambda: redis.zcard(KEYS.incidents) == 1, 60.0, "the incident")
        process.send_signal(signals.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


def test_the_doctor_says_whether_the_model_can_be_asked(bundles: dict[str, str], tmp_path: Path) -> None:
    def told(path: str, environ: dict[str, str], in_force: str | None = None, **model: Any) -> list[Any]:
        settings = settings_of(bundle=path, **model)
        found = installation.escalation(settings, settings.models[0], environ, in_force)
        return [(finding.status, finding.exit_code, finding.text) for finding in found]

    key = {"VEDETTE_PROBE_KEY": "00" * 32}
    assert told(bundles["asking"], key) == []
    with endpoint(reply) as (url, _):
        served: dict[str, Any] = {"endpoint": url, "escalation": {}}
        ((status, _, text),) = told(bundles["asking"], key, **served)
        assert status == "ok"
        assert text == "feature_squeezing, noise_stability: 101 questions a row, answered"
        ((status, _, text),) = told(bundles["plain"], key, bundles["other"], **served)
        assert (status, text.partition(":")[0]) == ("ok", "feature_squeezing")
        for path, environ, code, says in (
            (bundles["asking"], {}, 2, "carry a mark of probes"),
            (bundles["plain"], key, 2, "has no inquiries"),
            (str(tmp_path / "gone"), key, 12, "no bundle at"),
        ):
            ((status, exit_code, text),) = told(path, environ, **served)
            assert (status, exit_code) == ("problem", code)
            assert says in text
    ((status, exit_code, text),) = told(bundles["asking"], key, **served)
    assert (status, exit_code) == ("warning", 0)
    assert "the model cannot be asked" in text
