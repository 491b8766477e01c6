"""The watched model as a service: Open Inference Protocol over HTTP, every request and answer logged to Kafka.

This is somebody's production system, not a part of Vedette. It knows nothing of it: it answers, and its logger writes
what was asked and what was answered into one record, keyed by the client that a header names.

    python -m streams.demo.server --model FILE --name NAME --port PORT --kafka HOST:PORT --topic TOPIC
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from asyncio import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web
from aiokafka import AIOKafkaProducer
from threadpoolctl import threadpool_limits

from streams.demo.digits import CLASSES, SIDE
from streams.demo.model import Perceptron

log = logging.getLogger("demo.server")

#: Header that names the client.
CLIENT_HEADER = "X-Client-Id"
VERSION = "1"
#: Largest request.
MAX_BYTES = 1024 * 1024
#: How long the logger may gather records before it sends them.
LINGER_MILLISECONDS = 5
#: How long the end waits for requests under way.
SHUTDOWN_SECONDS = 2.0


class Tensor(msgspec.Struct):
    """An input tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Request(msgspec.Struct):
    """What is read of a request."""

    inputs: list[Tensor]
    id: str | None = None


class Service:
    """Answers requests and logs them.

    Parameters
    ----------
    model : Perceptron
    name : str
        The model's name in URLs and answers.
    producer : AIOKafkaProducer
    topic : str
    """

    def __init__(self, model: Perceptron, name: str, producer: AIOKafkaProducer, topic: str) -> None:
        self._model = model
        self._name = name
        self._producer = producer
        self._topic = topic
        self._requests = msgspec.json.Decoder(Request)
        self._encode = msgspec.json.Encoder().encode
        self._counter = 0
        self.failed = 0
        """Records that the broker did not take."""

    def routes(self) -> list[web.RouteDef]:
        """The protocol's paths."""
        base = f"/v2/models/{self._name}"
        return [
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._live),
            web.get(f"{base}/ready", self._live),
            web.get(base, self._metadata),
            web.post(f"{base}/infer", self._infer),
        ]

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True, "ready": True})

    async def _metadata(self, _: web.Request) -> web.Response:
        described = {
            "name": self._name,
            "versions": [VERSION],
            "platform": "numpy",
            "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, SIDE * SIDE]}],
            "outputs": [{"name": "probabilities", "datatype": "FP64", "shape": [-1, CLASSES]}],
        }
        return web.json_response(described)

    async def _infer(self, request: web.Request) -> web.Response:
        if "Inference-Header-Content-Length" in request.headers:
            return _refuse(415, "this server does not take the binary extension")
        body = await request.read()
        try:
            asked = self._requests.decode(body)
            rows = _rows(asked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as wrong:
            return _refuse(400, str(wrong))
        scores = self._model.predict(rows)
        self._counter += 1
        answer = self._encode(
            {
                "model_name": self._name,
                "model_version": VERSION,
                "id": asked.id if asked.id is not None else f"r-{self._counter}",
                "outputs": [
                    {
                        "name": "probabilities",
                        "datatype": "FP64",
                        "shape": list(scores.shape),
                        "data": scores.ravel().tolist(),
                    }
                ],
            }
        )
        client = request.headers.get(CLIENT_HEADER)
        record = b'{"request":' + body + b',"response":' + answer + b"}"
        sent = await self._producer.send(self._topic, record, key=client.encode() if client else None)
        sent.add_done_callback(self._delivered)
        return web.Response(body=answer, content_type="application/json")

    def _delivered(self, sent: Future[Any]) -> None:
        if not sent.cancelled() and sent.exception() is not None:
            self.failed += 1
            log.error("a record was not taken by the broker: %s", sent.exception())


def _rows(asked: Request) -> np.ndarray[Any, np.dtype[np.float64]]:
    if len(asked.inputs) != 1:
        raise ValueError("the model has one input")
    tensor = asked.inputs[0]
    if len(tensor.shape) != 2 or tensor.shape[1] != SIDE * SIDE or tensor.shape[0] < 1:
        raise ValueError(f"the input has the shape [n, {SIDE * SIDE}], not {tensor.shape}")
    try:
        rows = np.asarray(tensor.data, dtype=np.float64).reshape(tensor.shape)
    except (ValueError, TypeError):
        raise ValueError(f"data does not hold {tensor.shape} numbers") from None
    if not np.isfinite(rows).all():
        raise ValueError("data holds values that are not finite")
    return rows


def _refuse(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


async def serve(model: Path, name: str, port: int, kafka: str, topic: str) -> int:
    """Serve until SIGTERM or SIGINT, then send what is still to be logged.

    Returns
    -------
    int
        1 when a record was lost, else 0.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka, enable_idempotence=True, linger_ms=LINGER_MILLISECONDS, client_id=f"{name}-logger"
    )
    await producer.start()
    service = Service(Perceptron.load(model), name, producer, topic)
    app = web.Application(client_max_size=MAX_BYTES)
    app.add_routes(service.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        log.info("serving %s on port %d", name, port)
        await stop.wait()
    finally:
        with suppress(asyncio.CancelledError):
            await runner.cleanup()
        await producer.stop()
    return int(service.failed > 0)


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="streams.demo.server")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True)
    told = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    with threadpool_limits(1):
        return asyncio.run(serve(told.model, told.name, told.port, told.kafka, told.topic))


if __name__ == "__main__":
    sys.exit(main())
