"""`/metrics` and `/health` of a worker."""

from __future__ import annotations

import json
from typing import Any

import mode
from aiohttp import web

from streams.errors import ConfigError
from streams.worker.metrics import Metrics, render
from streams.worker.status import Status


class Web(mode.Service):
    """A small web server; port 0 takes a free one, which the status tells.

    Raises
    ------
    ConfigError
        On start, when it cannot listen there.
    """

    def __init__(self, host: str, port: int, model: str, metrics: Metrics, status: Status, **service: Any) -> None:
        super().__init__(**service)
        self._host, self._port, self._model = host, port, model
        self._metrics = metrics
        self._status = status
        self._runner: web.AppRunner | None = None

    async def on_start(self) -> None:
        """Listen."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._serve_metrics), web.get("/health", self._serve_health)])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            where = f"{self._host}:{self._port}"
            raise ConfigError(f"worker.web_port: cannot listen on {where}: {error.strerror or error}") from None
        port = self._runner.addresses[0][1]
        self._status.web = f"{self._host}:{port}"

    async def on_stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        text = render(self._model, self._metrics, self._status.standing())
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _serve_health(self, _: web.Request) -> web.Response:
        standing, stuck = self._status.standing(), self._status.stuck()
        holding = not (standing.redis_up and standing.broker_up)
        body = {
            "status": "stuck" if stuck else "holding" if holding else "ok",
            "redis": standing.redis_up,
            "broker": standing.broker_up,
            "stuck": stuck,
            "partitions": sorted(standing.watermarks),
            "lag": sum(standing.lag.values()),
        }
        return web.Response(text=json.dumps(body), status=503 if stuck else 200, content_type="application/json")
