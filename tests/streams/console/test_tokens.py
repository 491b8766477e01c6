"""Named tokens with roles: viewers read, responders change, and who was removed is out at once."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from argon2.exceptions import VerificationError

from streams.cli import invoke
from streams.config import ConsoleSettings
from streams.console import tokens
from streams.console.access import read_token, read_tokens
from streams.console.tokens import Holder, Tokens
from streams.errors import ConfigError

Fixture = Any


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
    assert found is not None
    return found.group(1)


def log_in(served: Fixture, token: str) -> requests.Session:
    session = requests.Session()
    answer = session.post(served.url + "/login", data={"token": token}, timeout=30, allow_redirects=False)
    assert answer.status_code == 303
    return session


def test_a_token_stands_only_as_an_argon2_hash_for_the_owner_alone(file: Path) -> None:
    made = tokens.make(file, "ada", "responder")
    text = file.read_text()
    assert text.startswith("ada responder $argon2id$")
    assert made not in text
    assert made.split("_", 2)[2] not in text
    assert file.stat().st_mode & 0o077 == 0
    known = Tokens(file)
    assert known.holder(made) == Holder("ada", "responder")
    for wrong in (made + "x", made[:-1], made.replace("ada", "bob"), made.split("_", 2)[2], "", "\u00e9" * 40):
        assert known.holder(wrong) is None


def test_a_new_token_of_a_name_takes_the_place_of_the_old_one(file: Path) -> None:
    other, first = tokens.make(file, "bob", "viewer"), tokens.make(file, "ada", "viewer")
    known = Tokens(file)
    assert known.holder(first) == Holder("ada", "viewer")
    second = tokens.make(file, "ada", "responder")
    assert known.holder(first) is None
    assert known.holder(second) == Holder("ada", "responder")
    assert known.holder(other) == Holder("bob", "viewer")
    tokens.remove(file, "ada")
    assert known.holder(second) is None
    with pytest.raises(ConfigError, match="no token of 'ada'"):
        tokens.remove(file, "ada")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ada responder", "line 1: must be NAME ROLE HASH"),
        ("# a comment\n\nada root $argon2id$x", "line 3: .*viewer, responder"),
        ("Ada viewer $argon2id$x", "line 1: a name matches"),
        ("ada viewer $2b$12$abc", "line 1: must be"),
        ("ada viewer $argon2id$x\nada viewer $argon2id$y", "line 2: the name 'ada' stands there twice"),
    ],
)
def test_a_file_that_is_none_stops_the_start_with_its_line(file: Path, text: str, what: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=what):
        read_tokens(ConsoleSettings(tokens_file=str(file)))


def test_damaged_later_lets_nobody_in(file: Path) -> None:
    made = tokens.make(file, "ada", "viewer")
    known = Tokens(file)
    assert known.holder(made) is not None
    file.write_text("damaged\n")
    os.utime(file, ns=(1, 1))
    assert known.holder(made) is None


def test_beyond_loopback_named_tokens_suffice(file: Path) -> None:
    tokens.make(file, "ada", "viewer")
    assert read_token(ConsoleSettings(host="0.0.0.0", tokens_file=str(file))) is None


def test_viewers_read_and_responders_change(scene: Fixture, serve: Fixture, file: Path) -> None:
    name = scene.attack()
    viewer, responder = tokens.make(file, "vic", "viewer"), tokens.make(file, "rita", "responder")
    served = serve(tokens=file)
    assert served.get(f"/api/v1/incidents/{name}").status_code == 401
    for token in (viewer, responder):
        assert served.get(f"/api/v1/incidents/{name}", headers=bearer(token)).status_code == 200
        assert served.get("/metrics", headers=bearer(token)).status_code == 200
    body = {"by": "vic"}
    for path in (f"/api/v1/incidents/{name}/acknowledge", "/api/v1/silences"):
        given = {**body, **({"ends": 2**52} if "silences" in path else {})}
        refused = served.post(path, json=given, headers=bearer(viewer))
        assert (refused.status_code, refused.headers["Content-Type"]) == (403, "application/problem+json")
        assert "A viewer reads" in refused.json()["detail"]
    session = log_in(served, viewer)
    page = session.get(f"{served.url}/incidents/{name}", timeout=30).text
    assert '<fieldset class="bare" disabled>' in page
    form = {"csrf": csrf(page), "by": "vic"}
    for path in (f"/incidents/{name}/acknowledge", f"/incidents/{name}/silence", "/silences"):
        assert session.post(served.url + path, data=form, timeout=30).status_code == 403
    chosen = {**form, "incident": name, "action": "acknowledge"}
    bulk = session.post(served.url + "/incidents/bulk", data=chosen, timeout=30)
    assert bulk.status_code == 403
    assert served.get(f"/api/v1/incidents/{name}", headers=bearer(viewer)).json()["incident"]["state"] == "new"
    session.post(served.url + "/logout", data=form, timeout=30)
    assert session.get(served.url + "/", timeout=30, allow_redirects=False).status_code == 303

    working = log_in(served, responder)
    page = working.get(f"{served.url}/incidents/{name}", timeout=30).text
    assert 'name="by" value="rita"' in page, "a named token knows its holder's name"
    done = working.post(
        f"{served.url}/incidents/{name}/acknowledge", data={"csrf": csrf(page), "by": "rita"}, timeout=10
    )
    assert "rita has it" in done.text
    made = served.post(f"/api/v1/incidents/{name}/note", json={"by": "rita", "text": "x"}, headers=bearer(responder))
    assert made.status_code == 200


def test_a_cookie_cannot_be_raised_to_another_role(scene: Fixture, serve: Fixture, file: Path) -> None:
    made = tokens.make(file, "vic", "viewer")
    served = serve(tokens=file)
    session = log_in(served, made)
    cookie = session.cookies["vedette_session"]
    assert ".vic.viewer." in cookie
    forged = cookie.replace(".viewer.", ".responder.")
    answer = requests.get(served.url + "/", cookies={"vedette_session": forged}, timeout=30, allow_redirects=False)
    assert answer.status_code == 303


def test_who_is_removed_is_out_at_once(scene: Fixture, serve: Fixture, file: Path) -> None:
    scene.worker()
    made, kept = tokens.make(file, "vic", "viewer"), tokens.make(file, "rita", "responder")
    served = serve(tokens=file)
    session = log_in(served, made)
    assert session.get(served.url + "/", timeout=30, allow_redirects=False).status_code == 200
    tokens.remove(file, "vic")
    assert session.get(served.url + "/", timeout=30, allow_redirects=False).status_code == 303
    assert served.get("/api/v1/overview", headers=bearer(made)).status_code == 401
    assert served.get("/api/v1/overview", headers=bearer(kept)).status_code == 200


def test_open_stream_ends_with_the_token(scene: Fixture, serve: Fixture, file: Path) -> None:
    scene.worker()
    made = tokens.make(file, "vic", "viewer")
    served = serve(tokens=file)
    session = log_in(served, made)
    with session.get(served.url + "/events", stream=True, timeout=30) as stream:
        lines = stream.iter_lines()
        while next(lines) != b"event: overview":
            continue
        tokens.remove(file, "vic")
        assert sum(line == b"event: overview" for line in lines) <= 1  # it ends; else the read would time out


def test_wrong_named_tokens_are_limited_too(serve: Fixture, file: Path, redis: Fixture) -> None:
    made = tokens.make(file, "vic", "viewer")
    served = serve(tokens=file)
    answers = [served.get("/metrics", headers=bearer(f"{made}{number}")).status_code for number in range(10)]
    assert answers == [401] * 9 + [429]
    refused = served.get("/metrics", headers=bearer(made))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    assert served.post("/login", data={"token": made}).status_code == 429


def test_wrong_tokens_of_others_shut_out_nobody_who_was_known(serve: Fixture, file: Path, redis: Fixture) -> None:
    made = tokens.make(file, "vic", "viewer")
    served = serve(tokens=file)
    assert served.get("/metrics", headers=bearer(made)).status_code == 200
    for number in range(10):
        served.get("/metrics", headers=bearer(f"wrong {number}"))
    assert served.get("/metrics", headers=bearer("wrong again")).status_code == 429
    assert served.get("/metrics", headers=bearer(made)).status_code == 200
    log_in(served, made)


def test_a_token_that_could_not_be_checked_is_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokens.make(file, "ada", "viewer")
    known = Tokens(file)

    def out_of_memory(*_: Any) -> bool:
        raise VerificationError("Memory allocation error")

    with monkeypatch.context() as broken:
        broken.setattr(tokens.PasswordHasher, "verify", out_of_memory)
        assert known.holder(made) is None
    assert known.holder(made) == Holder("ada", "viewer")


def test_nobody_waits_while_a_token_is_hashed(
    serve: Fixture, file: Path, redis: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tokens.make(file, "vic", "viewer")
    served = serve(tokens=file)
    began, answered = threading.Event(), threading.Event()
    fits = Tokens._fits

    def slowly(self: Tokens, line: Any, token: str) -> bool:
        began.set()
        return answered.wait(20.0) and fits(self, line, token)

    monkeypatch.setattr(Tokens, "_fits", slowly)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.get, "/metrics", headers=bearer(made))
        assert began.wait(10.0)
        assert served.get("/login").status_code == 200
        answered.set()
        assert waiting.result().status_code == 200


def test_wrong_tokens_at_the_same_time_are_hashed_no_oftener(
    serve: Fixture, file: Path, redis: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tokens.make(file, "vic", "viewer")
    served = serve(tokens=file)
    hashed: list[str] = []
    fits = Tokens._fits
    monkeypatch.setattr(Tokens, "_fits", lambda self, line, token: hashed.append(token) or fits(self, line, token))
    with ThreadPoolExecutor(30) as pool:
        wrong = [f"{made}{number}" for number in range(30)]
        answers = list(pool.map(lambda token: served.get("/metrics", headers=bearer(token)).status_code, wrong))
    assert sorted(set(answers)) == [401, 429]
    assert len(hashed) == len(set(hashed)) == 10, "each one once, and ten of them"


def test_probes_start_under_the_name_of_the_token(scene: Fixture, serve: Fixture, file: Path) -> None:
    scene.worker()
    made = tokens.make(file, "rita", "responder")
    served = serve(tokens=file)
    session = log_in(served, made)
    form = {"csrf": csrf(session.get(served.url + "/probes", timeout=30).text), "by": "ada", "attack": "transfer_pgd"}
    answer = session.post(served.url + "/probes", data=form, timeout=30, allow_redirects=False)
    assert answer.status_code == 303, answer.text
    (asked,) = session.get(served.url + "/api/v1/probes", timeout=30).json()["requests"]
    assert asked["by"] == "rita"


def test_command_makes_and_removes_tokens(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(["token", "ada", "--role", "responder", "--file", str(file)]) == 0
    printed = capsys.readouterr()
    assert Tokens(file).holder(printed.out.strip()) == Holder("ada", "responder")
    assert "ada is a responder" in printed.err
    assert invoke(["token", "Ada!", "--file", str(file)]) == 2
    assert invoke(["token", "ada", "--remove", "--file", str(file)]) == 0
    assert invoke(["token", "ada", "--file", str(tmp_path / "no" / "where")]) == 2
    settings = tmp_path / "vedette.toml"
    settings.write_text('[[models]]\nname = "digits"\ntopic = "t"\nbundle = "b"\n')
    monkeypatch.setenv("VEDETTE_CONFIG", str(settings))
    assert invoke(["token", "ada"]) == 2
    assert "console.tokens_file: not set" in capsys.readouterr().err
