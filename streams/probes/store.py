"""The prober's keys in Redis: plans under way, the log of outcomes, summaries, and the workers' verdicts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis import Redis

from streams.errors import Conflict, Fenced
from streams.store.keys import ModelKeys, PartitionKeys
from streams.store.messages import ProbeOutcome, ProbePlan, ProbeRequest, ProbeSummary, ProbeVerdict

log = logging.getLogger("vedette.prober")

#: Outcomes kept in the log.
LOG_LENGTH = 5_000
#: Verdicts of one partition that one read takes.
READ_VERDICTS = 1_000
#: Requests that may wait at once.
MOST_REQUESTS = 100
#: Id before the first entry of a stream.
START = "0-0"

SCRIPT = Path(__file__).with_name("write.lua").read_text(encoding="utf-8")


class ProbeStore:
    """What the prober of one model reads and writes.

    Parameters
    ----------
    redis : redis.Redis
        Returns bytes; its socket time limit is above the block time of `verdicts`.
    model, topic : str
    """

    def __init__(self, redis: Redis, model: str, topic: str) -> None:
        self.redis = redis
        self.keys = ModelKeys(model)
        self.topic = topic
        self._write = redis.register_script(SCRIPT)

    def put_plan(self, plan: ProbePlan, token: int | None, answers: ProbeRequest | None = None) -> bool:
        """Store or replace the plan of one campaign; False when the request that it answers is gone.

        Parameters
        ----------
        answers : ProbeRequest, optional
            The request that the probe is started for; it is counted down in the same step, and removed at the last one.

        Raises
        ------
        Fenced
            Another prober has taken over.
        """
        request, left = "", b""
        if answers is not None:
            request = answers.id
            if answers.count > 1:
                left = msgspec.json.encode(msgspec.structs.replace(answers, count=answers.count - 1))
        return self._call(token, "plan", plan.campaign, msgspec.json.encode(plan), request, left) == 1

    def finish(
        self,
        outcome: ProbeOutcome,
        summaries: Sequence[ProbeSummary],
        token: int | None,
        breakdown: Sequence[ProbeSummary] = (),
    ) -> bool:
        """Replace a plan by its outcome and set the summaries, all or nothing; False when it was finished before.

        Parameters
        ----------
        summaries : sequence of ProbeSummary
            By attack.
        breakdown : sequence of ProbeSummary
            By attack, threat model and model version: the whole of it.

        Raises
        ------
        Fenced
            Another prober has taken over.
        """
        pairs: list[bytes | str] = []
        for summary in summaries:
            pairs += [summary.attack, msgspec.json.encode(summary)]
        for part in breakdown:
            pairs += ["|".join((part.attack, part.threat, part.model_version)), msgspec.json.encode(part)]
        done = self._call(
            token, "finish", outcome.campaign, msgspec.json.encode(outcome), LOG_LENGTH, len(summaries), *pairs
        )
        return done == 1

    def ask(self, request: ProbeRequest) -> None:
        """Leave a request for the active prober.

        Raises
        ------
        Conflict
            Too many wait already.
        """
        if int(self.redis.hlen(self.keys.probe_requests)) >= MOST_REQUESTS:
            raise Conflict(f"{MOST_REQUESTS} requests for probes wait already; is `vedette prober` running?")
        self.redis.hset(self.keys.probe_requests, request.id, msgspec.json.encode(request).decode())

    def requests(self) -> list[ProbeRequest]:
        """Requests that wait, oldest first; what cannot be read is removed."""
        stored: Any = self.redis.hgetall(self.keys.probe_requests)
        found = []
        for name, text in stored.items():
            try:
                found.append(msgspec.json.decode(text, type=ProbeRequest))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("request %s cannot be read and is removed: %s", name, error)
                self.redis.hdel(self.keys.probe_requests, name)
        return sorted(found, key=lambda request: (request.at, request.id))

    def breakdown(self) -> list[ProbeSummary]:
        """Summaries by attack, threat model and model version."""
        stored: Any = self.redis.hvals(self.keys.probe_breakdown)
        found = [msgspec.json.decode(text, type=ProbeSummary) for text in stored]
        return sorted(found, key=lambda part: (part.kind, part.attack, part.threat, part.model_version))

    def plans(self) -> list[ProbePlan]:
        """Probes under way, oldest first."""
        stored: Mapping[Any, Any] = self.redis.hgetall(self.keys.probe_plans)
        plans = [msgspec.json.decode(plan, type=ProbePlan) for plan in stored.values()]
        return sorted(plans, key=lambda plan: (plan.issued, plan.campaign))

    def outcomes(self) -> list[ProbeOutcome]:
        """The log, oldest first."""
        entries: Any = self.redis.xrevrange(self.keys.probe_log, count=LOG_LENGTH)
        return [msgspec.json.decode(fields[b"m"], type=ProbeOutcome) for _, fields in reversed(entries)]

    def tails(self, partitions: Iterable[int]) -> dict[int, str]:
        """Id of the newest verdict of each partition."""
        wanted = list(partitions)
        pipe = self.redis.pipeline(transaction=False)
        for partition in wanted:
            pipe.xrevrange(PartitionKeys(self.topic, partition).probes, count=1)
        answers: list[Any] = pipe.execute()
        return {
            partition: entries[0][0].decode() if entries else START
            for partition, entries in zip(wanted, answers, strict=True)
        }

    def verdicts(self, positions: dict[int, str], block_milliseconds: int) -> list[ProbeVerdict]:
        """Verdicts after `positions`, which move on; waits for so long when there are none."""
        if not positions:
            return []
        streams: dict[Any, Any] = {PartitionKeys(self.topic, p).probes: after for p, after in positions.items()}
        names = {PartitionKeys(self.topic, p).probes.encode(): p for p in positions}
        answer: Any = self.redis.xread(streams, count=READ_VERDICTS, block=block_milliseconds)
        found = []
        for name, entries in dict(answer).items():
            for entry, fields in entries:
                try:
                    found.append(msgspec.json.decode(fields.get(b"m", b""), type=ProbeVerdict))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    log.error("verdict %s of %s cannot be read and is passed over: %s", entry, name, error)
            positions[names[name]] = entries[-1][0].decode()
        return found

    def _call(self, token: int | None, *arguments: Any) -> int:
        keys = [
            self.keys.fence("prober"),
            self.keys.probe_plans,
            self.keys.probe_log,
            self.keys.probe_results,
            self.keys.probe_breakdown,
            self.keys.probe_requests,
        ]
        done = int(self._write(keys=keys, args=["" if token is None else token, *arguments]))
        if done < 0:
            raise Fenced(f"another prober holds the lease of model {self.keys.model!r}")
        return done
