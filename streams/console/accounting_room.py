"""Accounting: where every row of every partition went, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from streams.audit import COUNTERS
from streams.console.data import Watch, text
from streams.console.front import Front
from streams.store.keys import PartitionKeys

#: What rows end as.
ENDS = ("scored", "probes", "probes_excluded", "invalid", "duplicates")


@dataclass(frozen=True, slots=True)
class Account:
    """One partition."""

    partition: int
    holder: str
    """Name of the living worker that holds it; empty for none."""
    watermark: int
    since: int
    epoch: int
    bundle: str
    totals: dict[str, int]

    @property
    def missing(self) -> int:
        """Rows that are counted and ended as nothing; negative where more ended than were counted."""
        return self.totals["rows"] - sum(self.totals[name] for name in ENDS)


class AccountingRoom:
    """Route of the page."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.get("/accounting", self.page)]

    async def page(self, request: web.Request) -> web.Response:
        """Where every row went."""
        watch = self.front.watch(request)
        look = await watch.look()
        accounts = await self.look(watch)
        sums = {name: sum(account.totals[name] for account in accounts) for name in COUNTERS}
        return self.front.page(
            request,
            "accounting.html",
            model=watch.model,
            look=look,
            accounts=accounts,
            sums=sums,
            ends=ENDS,
            missing=sum(abs(account.missing) for account in accounts),
        )

    async def look(self, watch: Watch) -> list[Account]:
        """Every partition, from one transaction."""
        holders = {
            partition: worker.worker for worker in (await watch.look()).workers for partition in worker.partitions
        }
        partitions = await watch.partitions()
        # One transaction a partition would do; the worker writes both hashes in one script.
        pipe = self.front.redis.pipeline(transaction=True)
        for partition in partitions:
            keys = PartitionKeys(watch.model.topic, partition)
            pipe.hmget(keys.watermark, "w", "since", "epoch", "bundle")
            pipe.hmget(keys.totals, list(COUNTERS))
        answers = await pipe.execute()
        accounts = []
        for place, partition in enumerate(partitions):
            (w, since, epoch, bundle), totals = answers[2 * place : 2 * place + 2]
            accounts.append(
                Account(
                    partition=partition,
                    holder=holders.get(partition, ""),
                    watermark=int(w or 0),
                    since=int(since or 0),
                    epoch=int(epoch or 0),
                    bundle=text(bundle or b""),
                    totals={name: int(value or 0) for name, value in zip(COUNTERS, totals, strict=True)},
                )
            )
        return accounts
