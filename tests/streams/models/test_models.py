"""Clients of the watched model, against real servers on loopback."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streams.errors import ConfigError, EndpointError
from streams.models import oip
from streams.models.contract import Model
from streams.models.function import FunctionModel
from streams.models.oip import OIPModel

Reply = Callable[[bytes, Any], tuple[int, bytes]]


@contextmanager
def endpoint(reply: Reply, *, close_after: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers with `reply(body, headers)`; notes (path, headers, body, peer) of every request."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers, json.loads(body), self.client_address))
            status, content = reply(body, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(content)
            if close_after and len(seen) % close_after == 0:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tensor(name: str, datatype: str, values: NDArray[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist(), **more}


def echo(body: bytes, _: Any) -> tuple[int, bytes]:
    """Scores: each row's first two values. A label output stands before them, as some servers send it."""
    asked = json.loads(body)["inputs"][0]
    rows = np.reshape(asked["data"], asked["shape"])
    outputs = [tensor("predict", "INT64", rows[:, :1].argmax(1)), tensor("predict_proba", "FP64", rows[:, :2])]
    return 200, json.dumps({"model_name": "m", "outputs": outputs}).encode()


ROWS = np.random.default_rng(0).normal(size=(5, 4))


def answer(*outputs: dict[str, Any]) -> Reply:
    return lambda *_: (200, json.dumps({"outputs": outputs}).encode())


SCORES = tensor("p", "FP32", ROWS)


def test_rows_and_scores_travel_exactly() -> None:
    with endpoint(echo) as (url, seen):
        model = OIPModel(url, "m")
        assert isinstance(model, Model)
        found = model.predict(ROWS)
        model.close()
    assert found.dtype == np.float64
    assert np.array_equal(found, ROWS[:, :2])
    path, _, body, _ = seen[0]
    assert path == "/v2/models/m/infer"
    assert np.array_equal(np.reshape(body["inputs"][0]["data"], body["inputs"][0]["shape"]), ROWS)
    assert "id" not in body


def test_client_and_request_id_are_sent() -> None:
    with endpoint(echo) as (url, seen):
        model = OIPModel(
            url + "/base/",
            "name with/slash",
            client_id="c1",
            client_header="X-Who",
            request_id=lambda rows: f"id-{len(rows)}-{rows[0, 0]:.3f}",
        )
        model.predict(ROWS)
        model.close()
    path, headers, body, _ = seen[0]
    assert path == "/base/v2/models/name%20with%2Fslash/infer"
    assert headers["X-Who"] == "c1"
    assert body["id"] == f"id-5-{ROWS[0, 0]:.3f}"


def test_one_connection_serves_many_calls_of_a_thread() -> None:
    with endpoint(echo) as (url, seen):
        model = OIPModel(url, "m")
        for _ in range(5):
            model.predict(ROWS)
        thread = threading.Thread(target=lambda: (model.predict(ROWS), model.close()))
        thread.start()
        thread.join()
        model.close()
    peers = [peer for *_, peer in seen]
    assert len(set(peers[:5])) == 1
    assert peers[5] not in peers[:5]


def test_a_kept_connection_that_the_server_closed_is_opened_again() -> None:
    with endpoint(echo, close_after=2) as (url, seen):
        model = OIPModel(url, "m")
        for _ in range(6):
            assert len(model.predict(ROWS)) == 5
        model.close()
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (lambda *_: (503, b'{"error": "overloaded"}'), "status 503.*overloaded"),
        (lambda *_: (200, b"<html>"), "Open Inference Protocol"),
        (lambda *_: (200, b'{"outputs": []}'), "outputs: none"),
        (answer(tensor("y", "INT64", np.arange(5))), r"y INT64 \[5\]"),
        (answer(tensor("p", "FP32", ROWS[:2])), "for 5 rows"),
        (answer(SCORES | {"data": [1]}), "does not hold"),
        (answer(SCORES | {"data": ["x"] * 20}), "does not hold"),
        (answer(tensor("p", "FP64", ROWS[:, :1])), r"\(5, 1\) scores"),
    ],
)
def test_what_is_no_scores_is_one_clear_error(reply: Reply, says: str) -> None:
    with endpoint(reply) as (url, _):
        model = OIPModel(url, "m")
        with pytest.raises(EndpointError, match=says) as caught:
            model.predict(ROWS)
        model.close()
    assert url in str(caught.value)


def test_an_endpoint_that_is_away_or_silent_is_one_clear_error() -> None:
    with pytest.raises(EndpointError, match=r"cannot be asked.*refused"):
        OIPModel("http://127.0.0.1:9", "m").predict(ROWS)
    release = threading.Event()

    def late(body: bytes, headers: Any) -> tuple[int, bytes]:
        release.wait(5)
        return echo(body, headers)

    with endpoint(late) as (url, _):
        model = OIPModel(url, "m", timeout_seconds=0.2)
        with pytest.raises(EndpointError, match=r"within 0\.2 s"):
            model.predict(ROWS)
        release.set()
        assert len(model.predict(ROWS)) == 5
        model.close()


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x", "http://", "http://h:port", "http://h:99999"])
def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="no URL of a model"):
        OIPModel(url, "m")


def test_a_url_with_a_password_is_refused_and_the_password_not_shown() -> None:
    with pytest.raises(ConfigError, match="holds a user name or password") as refused:
        OIPModel("http://me:sesame@127.0.0.1:8080", "m")
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"])
def test_an_answer_that_trickles_is_given_up_after_its_time(head: bytes) -> None:
    done = threading.Event()

    def trickle(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            peer.sendall(head)
            while not done.wait(0.02):
                peer.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        try:
            model = OIPModel(f"http://127.0.0.1:{listener.getsockname()[1]}", "m", timeout_seconds=0.3)
            with pytest.raises(EndpointError, match=r"did not answer within 0\.3 s") as late:
                model.predict(np.zeros((1, 2)))
        finally:
            done.set()
            thread.join(20)
    assert late.value.fault == "timeout"


def test_after_an_answer_that_is_too_large_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip, "MAX_ANSWER_BYTES", 1000)
    large = [b" " * 100_000]

    def reply(body: bytes, headers: Any) -> tuple[int, bytes]:
        return (200, large.pop()) if large else echo(body, headers)

    with endpoint(reply) as (url, _):
        model = OIPModel(url, "m")
        with pytest.raises(EndpointError, match="more than 1,000 bytes"):
            model.predict(np.zeros((1, 2)))
        assert model.predict(np.array([[0.25, 0.75]])).tolist() == [[0.25, 0.75]]
        model.close()


def test_what_an_endpoint_says_of_an_error_stays_on_one_line() -> None:
    with endpoint(lambda *_: (500, b"no\nWARNING all is well\x1b[2J")) as (url, _):
        model = OIPModel(url, "m")
        with pytest.raises(EndpointError, match="500: no") as failed:
            model.predict(np.zeros((1, 2)))
        model.close()
    assert str(failed.value).isprintable()


def test_rows_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        OIPModel("http://127.0.0.1:9", "m").predict(ROWS[0])


def test_a_function_is_a_model() -> None:
    model = FunctionModel("numpy:atleast_2d")
    assert isinstance(model, Model)
    assert np.array_equal(model.predict(ROWS), ROWS)


@pytest.mark.parametrize("name", ["", "numpy", "numpy:", ":x", "no.such.module:f", "numpy:no_such", "numpy:pi"])
def test_a_wrong_function_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError):
        FunctionModel(name)


def test_a_function_that_fails_is_one_clear_error() -> None:
    with pytest.raises(EndpointError, match=r"numpy:linalg\.cholesky failed: LinAlgError"):
        FunctionModel("numpy:linalg.cholesky").predict(ROWS)
    with pytest.raises(EndpointError, match="numpy:ravel returned"):
        FunctionModel("numpy:ravel").predict(ROWS)
