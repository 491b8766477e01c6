"""Every Redis key that Vedette uses, in one place. docs/redis.md documents them for consumers.

Partition keys share the hash tag ``{topic:partition}``, model keys the hash tag ``{model}``, so that a script's keys
always lie in one cluster slot. Readers merge partitions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from streams.errors import ConfigError

#: Version of the key layout and of the messages in it; stands in the watermark hash and in every message.
LAYOUT_VERSION = 1

#: Rules of signals in the order of their numbers, which stand in entry ids and so may only be appended to.
RULES = ("input-sequence", "query-cluster", "query-intent", "index-cluster", "index-intent", "input-row")
#: Room for rules in the entry id of a row's signals.
RULE_ROOM = 16

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """Keys of one partition of the event topic."""

    topic: str
    partition: int

    @property
    def tag(self) -> str:
        """The common prefix, with its hash tag."""
        return f"vedette:{{{self.topic}:{self.partition}}}"

    @property
    def watermark(self) -> str:
        """Hash, the truth of progress.

        w (next offset to record), epoch (fencing token), since (offset at which recording began), bundle (digest of
        the bundle in force), bundle_from (offset from which it decides), topic_id, identity (offset:timestamp:crc32 of
        the last recorded record), time (of the partition there, microseconds), layout.
        """
        return f"{self.tag}:w"

    @property
    def totals(self) -> str:
        """Hash of counters since the beginning: records, rows, scored, probes, invalid, duplicates, ... ."""
        return f"{self.tag}:totals"

    def minute(self, minute: int) -> str:
        """Hash of counters of one minute of broker time (minutes since the epoch); has a TTL."""
        return f"{self.tag}:minute:{minute}"

    def hour(self, hour: int) -> str:
        """Hourly roll-up of the same counters; has a longer TTL."""
        return f"{self.tag}:hour:{hour}"

    @property
    def histograms(self) -> str:
        """Hash: detector -> packed little-endian uint32 histogram of -log10 p, mergeable by addition.

        64 buckets: bucket b holds p with floor(8 * -log10 p) = b, the last one everything smaller. Beside them
        ``hour:0`` to ``hour:23``, rows and oddness of blocks of clients (`store.hours`).
        """
        return f"{self.tag}:histograms"

    @property
    def signals(self) -> str:
        """Stream of signals, read by the correlator. Entry ids are those of `signal_entry`, the field is ``m``."""
        return f"{self.tag}:signals"

    @staticmethod
    def signal_entry(offset: int, row: int, rule: str) -> str:
        """Entry id of a signal: ``offset+1``-``row*16+rule``, so that ids grow with the log and are the same again.

        Raises
        ------
        ValueError
            When the rule has no number in `RULES`.
        """
        return f"{offset + 1}-{row * RULE_ROOM + RULES.index(rule)}"

    @property
    def probes(self) -> str:
        """Stream of probe verdicts for the prober, capped. Entry ids are ``offset+1``-``row``, the field is ``m``."""
        return f"{self.tag}:probes"

    @property
    def probe_uses(self) -> str:
        """Hash: probe id -> ``offset-row:expiry`` of its first use (microseconds of broker time), until it expires."""
        return f"{self.tag}:probe-uses"

    @property
    def snapshots(self) -> str:
        """Hash: manifests of the two published snapshots (``a``, ``b``), their offsets, and which one is ``newer``."""
        return f"{self.tag}:snapshots"

    def chunk(self, digest: str) -> str:
        """One content-addressed chunk of a snapshot; expires unless a published manifest names it."""
        return f"{self.tag}:chunk:{digest}"


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """Keys of one watched model."""

    model: str

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.model):
            raise ConfigError(f"model name {self.model!r} must match {MODEL_NAME.pattern}")

    @property
    def tag(self) -> str:
        """The common prefix, with its hash tag."""
        return f"vedette:{{{self.model}}}"

    @property
    def alerts(self) -> str:
        """Public stream for alert consumers: one entry per incident change that matters to them. The field is ``m``."""
        return f"{self.tag}:alerts"

    def dead_alerts(self, group: str) -> str:
        """Stream of alerts that one consumer group gave up. Fields: ``m``, ``entry``, ``reason``, ``deliveries``."""
        return f"{self.tag}:alerts-dead:{group}"

    @property
    def log(self) -> str:
        """Stream of every incident change, for the console and for audit. The field is ``m``."""
        return f"{self.tag}:incident-log"

    @property
    def incidents(self) -> str:
        """Sorted set: incident id by last-seen (seconds)."""
        return f"{self.tag}:incidents"

    @property
    def open_incidents(self) -> str:
        """Hash: grouping key (technique|entity) -> id of the open incident."""
        return f"{self.tag}:open-incidents"

    def incident(self, incident: str) -> str:
        """Hash: ``m`` (the incident as JSON), ``version``."""
        return f"{self.tag}:incident:{incident}"

    def evidence(self, incident: str) -> str:
        """List of evidence JSON of one incident, newest last, bounded; has a TTL."""
        return f"{self.tag}:evidence:{incident}"

    def inquiries(self, incident: str) -> str:
        """Hash: TOPIC/PARTITION/OFFSET/ROW -> InquiryMessage JSON of rows asked about again; bounded, has a TTL."""
        return f"{self.tag}:inquiries:{incident}"

    @property
    def inquiry_totals(self) -> str:
        """Hash: what became of rows handed to the escalation tier, and ``questions`` -> count."""
        return f"{self.tag}:inquiry-totals"

    @property
    def silences(self) -> str:
        """Hash: silence id -> Silence JSON; ended ones are kept for a week."""
        return f"{self.tag}:silences"

    @property
    def repeaters(self) -> str:
        """Hash: client -> Repeater JSON; workers look every second. Ended ones are kept for a week."""
        return f"{self.tag}:repeaters"

    @property
    def progress(self) -> str:
        """Hash: ``topic:partition`` -> id of the last signal that the correlator applied."""
        return f"{self.tag}:correlator-progress"

    @property
    def openings(self) -> str:
        """Hash: ``topic:partition`` -> ``minute:count`` of incidents opened in that minute of broker time."""
        return f"{self.tag}:correlator-openings"

    def recent(self, group: str) -> str:
        """String: id of the newest incident of a group, open or not; expires when it may no longer re-open."""
        return f"{self.tag}:recent:{group}"

    def alias(self, name: str) -> str:
        """String: grouping key that a cluster, or an account seen in one, belongs to; expires."""
        return f"{self.tag}:alias:{name}"

    @property
    def mode(self) -> str:
        """String: ``pilot`` or ``paging``."""
        return f"{self.tag}:mode"

    @property
    def bundle(self) -> str:
        """Hash: the bundle in force (path, digest, from)."""
        return f"{self.tag}:bundle"

    @property
    def calibration(self) -> str:
        """Hash: ``m`` (CalibrationStatus JSON), ``watch`` (state of the drift watch, MessagePack)."""
        return f"{self.tag}:calibration"

    def lease(self, role: str) -> str:
        """Hash: holder, token (fencing), of a role (correlator, prober, trainer, notifier); expires."""
        return f"{self.tag}:lease:{role}"

    def fence(self, role: str) -> str:
        """Counter that hands out the role's fencing tokens; never expires."""
        return f"{self.tag}:fence:{role}"

    def notices(self, destination: str) -> str:
        """Hash: deduplication key -> what one destination knows of it and is still to be told, JSON."""
        return f"{self.tag}:notices:{destination}"

    def notices_due(self, destination: str) -> str:
        """Sorted set: deduplication key by when something is to be sent (seconds)."""
        return f"{self.tag}:notices-due:{destination}"

    def notices_dead(self, destination: str) -> str:
        """Stream of notices that a destination refused, or that were given up. Fields: ``m``, ``reason``."""
        return f"{self.tag}:notices-dead:{destination}"

    @property
    def notice_places(self) -> str:
        """Hash: incident id -> JSON list of (destination, deduplication key) that know of it."""
        return f"{self.tag}:notice-places"

    @property
    def notice_health(self) -> str:
        """Hash: destination -> how it fares, JSON: until when it is left alone, and why."""
        return f"{self.tag}:notice-health"

    @property
    def notice_totals(self) -> str:
        """Hash: ``destination|outcome`` -> number of attempts that ended so."""
        return f"{self.tag}:notice-totals"

    @property
    def probe_results(self) -> str:
        """Hash: attack -> ProbeSummary JSON (recall with interval, latency)."""
        return f"{self.tag}:probe-results"

    @property
    def probe_breakdown(self) -> str:
        """Hash: ``attack|threat model|model version`` -> ProbeSummary JSON."""
        return f"{self.tag}:probe-breakdown"

    @property
    def probe_requests(self) -> str:
        """Hash: request id -> ProbeRequest JSON; gone once its last probe has been started."""
        return f"{self.tag}:probe-requests"

    @property
    def probe_log(self) -> str:
        """Stream of finished probes (ProbeOutcome)."""
        return f"{self.tag}:probe-log"

    @property
    def probe_plans(self) -> str:
        """Hash: campaign id -> ProbePlan JSON of probes under way; a standby prober takes over from it."""
        return f"{self.tag}:probe-plans"

    @property
    def workers(self) -> str:
        """Hash: worker id -> WorkerStatus JSON, refreshed; stale entries are dead workers."""
        return f"{self.tag}:workers"
