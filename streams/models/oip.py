"""A model behind the Open Inference Protocol, version 2, over HTTP (KServe, Triton, MLServer, our demo)."""

from __future__ import annotations

import http.client
import io
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.errors import ConfigError, EndpointError, EndpointFault

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: How long one answer may take.
TIMEOUT_SECONDS = 10.0
#: Bytes of an error's body that the message shows.
SHOWN_BYTES = 200
#: Larger answers are refused unread.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

#: What servers write for numbers that JSON has not.
NOT_JSON = re.compile(rb"[,\[:]\s*-?(NaN|Infinity)")

RequestId = Callable[[NDArray[np.float64]], str]
"""From the rows of a request to its id."""


class Tensor(msgspec.Struct):
    """One tensor of a request or an answer."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Answer(msgspec.Struct):
    """What is read of an answer; unknown fields are passed over."""

    outputs: list[Tensor]


class Metadata(msgspec.Struct):
    """What is read of a model's metadata."""

    versions: list[str] = []


class _Timed(io.RawIOBase):
    """Reads of a socket until a deadline (`time.monotonic`), however many there are: a peer may send byte by byte."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Connection:
    """A kept-alive connection; each answer, from its first byte to its last, has a deadline."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._deadline = 0.0
        connection.response_class = self._answer  # type: ignore[assignment]

    def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> http.client.HTTPResponse:
        """The answer, its head read. TimeoutError, also of reads of its body, once the deadline is over."""
        self._deadline = deadline
        self._connection.timeout = _left(deadline)
        if self._connection.sock is not None:
            self._connection.sock.settimeout(self._connection.timeout)
        self._connection.request(method, path, body=body or None, headers=dict(headers))
        return self._connection.getresponse()

    def close(self) -> None:
        self._connection.close()

    def _answer(self, sock: socket.socket, *args: Any, **more: Any) -> http.client.HTTPResponse:
        answer = http.client.HTTPResponse(sock, *args, **more)
        answer.fp = io.BufferedReader(_Timed(answer.fp.detach(), sock, self._deadline))
        return answer


class OIPModel:
    """Asks a model by ``POST {url}/v2/models/{model_name}/infer``, one request a call, over a kept-alive connection.

    Every thread gets a connection of its own. A kept connection that the server has closed meanwhile is opened again
    once; nothing else is repeated.

    Parameters
    ----------
    url : str
        Base URL, ``http://HOST:PORT`` or ``https://...``, with the path before ``/v2`` if there is one.
    model_name : str
    client_id : str, optional
        Identity that is sent in `client_header`.
    request_id : callable, optional
        From the rows of a request (n, d) to the request's ``id``.
    input_name : str
        Name of the input tensor; it is sent as FP64.
    timeout_seconds : float
        For one whole answer, from the connection to the last byte.

    Raises
    ------
    ConfigError
        When the URL is not one, or names a user.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        *,
        client_id: str | None = None,
        client_header: str = "X-Client-Id",
        request_id: RequestId | None = None,
        input_name: str = "input",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError(f"{url!r} is no URL of a model; it reads http://HOST:PORT")
        if "@" in parts.netloc:
            raise ConfigError(
                f"the URL of the model at {parts.hostname} holds a user name or password, which are not sent; "
                "it reads http://HOST:PORT"
            )
        self.url = f"{url.rstrip('/')}/v2/models/{quote(model_name, safe='')}/infer"
        self._open = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, port
        self._path = urlsplit(self.url).path
        self._headers = {"Content-Type": "application/json"}
        if client_id is not None:
            self._headers[client_header] = client_id
        self._request_id = request_id
        self._input_name = input_name
        self._timeout = timeout_seconds
        self._local = threading.local()
        self._answers = msgspec.json.Decoder(Answer)

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores float64 (n, k) of rows (n, d).

        Raises
        ------
        EndpointError
        """
        rows = np.ascontiguousarray(inputs, dtype=np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"rows have the shape (n, d) with n > 0, not {rows.shape}")
        tensor = Tensor(self._input_name, list(rows.shape), "FP64", rows.ravel().tolist())
        request: dict[str, Any] = {"inputs": [tensor]}
        if self._request_id is not None:
            request["id"] = self._request_id(rows)
        status, body = self.post(msgspec.json.encode(request))
        if status != 200:
            said = shown(body[:SHOWN_BYTES].decode(errors="replace"))
            fault: EndpointFault = "refused" if 400 <= status < 500 else "crash"
            raise EndpointError(f"{self.url} answered with status {status}: {said or 'nothing'}", fault)
        return scores(body, len(rows), self.url, self._answers)

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request as it is, well-formed or not.

        Raises
        ------
        EndpointError
            It did not answer at all.
        """
        return self._call("POST", self._path, body, self._headers)

    def version(self) -> str:
        """The newest version that the model's metadata name; empty where they name none.

        Raises
        ------
        EndpointError
        """
        status, body = self._call("GET", self._path.removesuffix("/infer"), b"", {})
        if status != 200:
            return ""
        try:
            versions = msgspec.json.decode(body, type=Metadata).versions
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EndpointError(f"{self.url}: its metadata cannot be read: {error}") from None
        return versions[-1] if versions else ""

    def close(self) -> None:
        """Close the calling thread's connection; the next call opens another."""
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        deadline = time.monotonic() + self._timeout
        try:
            kept = getattr(self._local, "connection", None)
            if kept is not None:
                try:
                    return self._ask(kept, method, path, body, headers, deadline)
                except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                    self.close()
            connection = _Connection(self._open(self._host, self._port))
            self._local.connection = connection
            return self._ask(connection, method, path, body, headers, deadline)
        except TimeoutError:
            self.close()
            raise EndpointError(f"{self.url} did not answer within {self._timeout:g} s", "timeout") from None
        except (OSError, http.client.HTTPException, socket.gaierror) as error:
            self.close()
            raise EndpointError(f"{self.url} cannot be asked: {error or type(error).__name__}", "crash") from None

    def _ask(
        self,
        connection: _Connection,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        deadline: float,
    ) -> tuple[int, bytes]:
        answer = connection.ask(method, path, body, headers, deadline)
        content = answer.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            self.close()  # its rest would stand before the next answer
            raise EndpointError(f"{self.url} answered with more than {MAX_ANSWER_BYTES:,} bytes")
        return answer.status, content


def shown(text: str) -> str:
    """What an endpoint said, on one line: whatever is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())


def _left(deadline: float) -> float:
    """Seconds until a deadline; TimeoutError once it is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def scores(
    body: bytes, rows: int, where: str, decoder: msgspec.json.Decoder[Answer] | None = None
) -> NDArray[np.float64]:
    """Scores float64 (rows, k) from the JSON of an answer: the output of floating-point type that has two dimensions.

    Servers that answer with labels and probabilities send several outputs; labels are never scores.

    Raises
    ------
    EndpointError
        Names `where` and what is wrong.
    """
    try:
        answer = (decoder or msgspec.json.Decoder(Answer)).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fault: EndpointFault = "not-finite" if NOT_JSON.search(body) else "unusable"
        raise EndpointError(f"{where} did not answer by the Open Inference Protocol: {error}", fault) from None
    found = [one for one in answer.outputs if one.datatype in ("FP64", "FP32", "FP16", "BF16") and len(one.shape) == 2]
    if not found:
        outputs = ", ".join(f"{one.name} {one.datatype} {one.shape}" for one in answer.outputs[:5]) or "none"
        outputs = shown(outputs[:SHOWN_BYTES])
        raise EndpointError(f"{where} answered without scores of shape ({rows}, k); its outputs: {outputs}")
    try:
        values = np.asarray(found[0].data, dtype=np.float64).reshape(found[0].shape)
    except (ValueError, TypeError):
        raise EndpointError(
            f"{where}: output {shown(found[0].name[:SHOWN_BYTES])} does not hold {found[0].shape} numbers"
        ) from None
    if len(values) != rows or values.shape[1] < 2:
        raise EndpointError(f"{where} answered with {values.shape} scores for {rows} rows")
    if not np.isfinite(values).all():
        raise EndpointError(f"{where} answered with scores that are not finite", "not-finite")
    return values
