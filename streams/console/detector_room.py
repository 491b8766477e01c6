"""Detectors: whether p-values of real traffic are still what calibration promised, and what the bundle in force is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from detectors.calibration.examination import FUSED
from detectors.errors import DetectorError
from detectors.manifest import read_origin, read_report
from streams.console import plots
from streams.console.data import Watch, text
from streams.console.front import Front
from streams.probes.outcome import wilson
from streams.store.keys import PartitionKeys
from streams.worker.tally import BUCKETS, BUCKETS_A_DECADE

log = logging.getLogger("vedette.console")

#: Decades of p at which the table looks.
DECADES = (1, 2, 3)
#: A share beyond this multiple of what calibration promises is called out, when its whole interval is beyond it.
FAR = 1.5
#: Rows expected below the smallest p that is still judged.
LEAST_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class Level:
    """How many rows have a p-value of at most `p`."""

    p: float
    share: float
    low: float
    high: float
    expected: float
    """Rows that uniform p-values would have there."""

    @property
    def ratio(self) -> float:
        """Share over what uniform p-values would have."""
        return self.share / self.p

    @property
    def verdict(self) -> str:
        """``few``, ``usual``, ``many``, or empty where too few rows are expected."""
        if self.expected < LEAST_EXPECTED:
            return ""
        if self.low > FAR * self.p:
            return "many"
        return "few" if self.high < self.p / FAR else "usual"


@dataclass(frozen=True, slots=True)
class DetectorLook:
    """One detector over all rows since recording began."""

    name: str
    rows: int
    survival: NDArray[np.float64]
    """(BUCKETS,) share of rows with p at most 10 ** (-b / 8)."""
    levels: list[Level]

    @property
    def verdict(self) -> str:
        """The worst of its levels."""
        verdicts = [level.verdict for level in self.levels]
        return next((word for word in ("many", "few", "usual") if word in verdicts), "")


class DetectorRoom:
    """Route of the page."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.get("/detectors", self.page)]

    async def page(self, request: web.Request) -> web.Response:
        """P-values against uniform, and the bundle."""
        watch = self.front.watch(request)
        look = await watch.look()
        found = await self._look(watch)
        report, written = await asyncio.to_thread(_report, look.bundle)
        return self.front.page(
            request,
            "detectors.html",
            model=watch.model,
            look=look,
            detectors=[(each, plots.survival(each.survival, each.rows)) for each in found],
            bundle=look.bundle,
            digests=sorted({worker.bundle for worker in look.workers}),
            report=report,
            written=written,
        )

    async def _look(self, watch: Watch) -> list[DetectorLook]:
        pipe = self.front.redis.pipeline(transaction=False)
        for partition in await watch.partitions():
            pipe.hgetall(PartitionKeys(watch.model.topic, partition).histograms)
        stored: list[Mapping[bytes, bytes]] = await pipe.execute()
        return [look_at(name, counts) for name, counts in merged(stored).items() if counts.sum()]


def merged(parts: Iterable[Mapping[bytes, bytes]]) -> dict[str, NDArray[np.int64]]:
    """Histograms of all partitions added up, the fused one last; what has another size is another version's."""
    found: dict[str, NDArray[np.int64]] = {}
    for part in parts:
        for name, packed in part.items():
            if len(packed) == 4 * BUCKETS:
                counts = np.frombuffer(packed, dtype="<u4").astype(np.int64)
                found[text(name)] = found.get(text(name), np.zeros(BUCKETS, dtype=np.int64)) + counts
    return dict(sorted(found.items(), key=lambda item: (item[0] == FUSED, item[0])))


def look_at(name: str, counts: NDArray[np.int64]) -> DetectorLook:
    """Judge one histogram.

    Parameters
    ----------
    counts : int64 (BUCKETS,)
        Bucket b holds p-values with floor(8 * -log10 p) = b.
    """
    rows = int(counts.sum())
    at_most = counts[::-1].cumsum()[::-1]
    levels = []
    for decade in DECADES:
        below = int(at_most[BUCKETS_A_DECADE * decade])
        p = 10.0**-decade
        levels.append(Level(p, below / rows, *wilson(below, rows), rows * p))
    return DetectorLook(name, rows, at_most / rows, levels)


def _report(path: str) -> tuple[list[str], int | None]:
    """What the fit of a bundle said, a sentence each, and when its file was written (microseconds)."""
    try:
        written = Path(path).stat().st_mtime
        made = read_origin(path)
        told = [f"Fitted for {made.named()}."] * bool(made.named()) + [f"Made by {made.made_by()}."] * bool(
            made.made_by()
        )
        return [*read_report(path).sentences(), *told], int(datetime.fromtimestamp(written, UTC).timestamp() * 1e6)
    except (DetectorError, OSError) as error:
        log.warning("bundle %s: %s", path, error)
        return [], None
