"""A small table with a model that attacks can turn, as files and as a module of the working directory."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

#: The module that `--model little:...` names; `slow` takes its time, so that a test can stop it in the middle.
MODULE = """
import time
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from streams.hardening.preprocessing import Prepared

rng = np.random.default_rng(5)
inputs = rng.uniform(0, 1, (300, 6))
truth = (inputs[:, 0] + inputs[:, 1] > 1).astype(int)
model = LogisticRegression(C=100.0).fit(inputs, truth)
unfitted = LogisticRegression()
unprepared = Prepared(LogisticRegression(), np.zeros(6), np.ones(6))


def made():
    return model


def tree():
    return DecisionTreeClassifier(max_depth=4, random_state=0).fit(inputs, truth)


def scores(rows):
    return model.predict_proba(rows)


def slow(rows):
    time.sleep(0.01)
    return model.predict_proba(rows)


def constant(rows):
    return np.tile([0.6, 0.4], (len(rows), 1))


def broken(rows):
    raise RuntimeError("out of paper")


def unmade():
    raise RuntimeError("out of ink")
"""


@dataclass(frozen=True, slots=True)
class Little:
    """Where the files are, and what is in them."""

    folder: Path
    data: str
    inputs: NDArray[np.float64]
    truth: NDArray[np.int64]


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Little]:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VEDETTE_CONFIG", raising=False)
    (tmp_path / "little.py").write_text(MODULE)
    rng = np.random.default_rng(6)
    inputs = rng.uniform(0, 1, (160, 6))
    truth = (inputs[:, 0] + inputs[:, 1] > 1).astype(np.int64)
    with (tmp_path / "little.npz").open("wb") as out:
        np.savez(out, inputs=inputs, labels=truth)
    features = [{"name": f"f{i}", "low": 0.0, "high": 1.0} for i in range(6)]
    (tmp_path / "little.json").write_text(json.dumps({"features": features, "classes": ["no", "yes"]}))
    sys.modules.pop("little", None)
    yield Little(tmp_path, "little.npz", inputs, truth)
    sys.modules.pop("little", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@dataclass(slots=True)
class Endpoint:
    """A served model that answers by the Open Inference Protocol.

    `seen` holds (path, client, shape) of every request; after `lasts` of them the model is out of order.
    """

    url: str = ""
    seen: list[Any] = field(default_factory=list)
    lasts: int | None = None


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # head and body in one packet

        def do_POST(self) -> None:
            tensor = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
            served.seen.append((self.path, self.headers["X-Client-Id"], tensor["shape"]))
            rows = np.array(tensor["data"]).reshape(tensor["shape"])
            yes = 1 / (1 + np.exp(-20 * (rows[:, 0] + rows[:, 1] - 1)))
            values = np.column_stack([1 - yes, yes])
            output = {"name": "p", "datatype": "FP64", "shape": list(values.shape), "data": values.ravel().tolist()}
            working = served.lasts is None or len(served.seen) <= served.lasts
            body = json.dumps({"outputs": [output]} if working else {"error": "out of order"}).encode()
            self.send_response(200 if working else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
