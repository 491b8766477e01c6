"""Messages in Redis, as JSON. docs/schemas/ holds their JSON Schemas, generated from these types."""

from __future__ import annotations

from typing import Literal

import msgspec

LevelName = Literal["ticket", "page"]
State = Literal["new", "in_progress", "suppressed", "resolved"]
Verdict = Literal["true", "false", "benign"]
"""Of a resolved incident: a real attack, a false alarm, or real but harmless (a test, a known client)."""
Severity = Literal["low", "medium", "high", "critical"]
"""From the evidence and how many clients it is about. Pages are high or critical, tickets low or medium."""


class ReasonMessage(msgspec.Struct, frozen=True):
    """Why one detector speaks."""

    detector: str
    p: float
    text: str
    extrapolated: bool = False


NoticeAction = Literal["trigger", "acknowledge", "resolve"]
NoticeReason = Literal[
    "opened", "raised", "reopened", "joined", "repeat", "refresh", "acknowledged", "resolved", "test"
]
"""Why a notice is sent. `joined`: another incident of the group; `refresh`: keeps it alive at the destination."""


class NoticeIncident(msgspec.Struct, frozen=True):
    """One incident of a notice."""

    id: str
    title: str
    level: LevelName
    severity: Severity
    state: State
    url: str = ""


class SignalMessage(msgspec.Struct, frozen=True):
    """One rule crossed its threshold at one row of the event topic. The id is the same after any replay."""

    id: str
    model: str
    topic: str
    partition: int
    offset: int
    row: int
    time: int
    """Broker time of the row, microseconds since the epoch."""
    at: int
    """When the worker recorded it, microseconds since the epoch (for latency only)."""
    rule: str
    level: LevelName
    technique: str
    entity: Literal["client", "cluster", "population"]
    entity_id: str
    statistic: float
    threshold: float
    reasons: list[ReasonMessage]
    members: list[tuple[int, int]]
    """(offset, row) in the same partition, oldest first, bounded."""
    clients: list[str]
    """The member's client hashes (16 hex digits), without repetition."""
    input: list[float]
    nearest: list[float]
    label: int
    nearest_label: int
    measures: dict[str, float]
    bundle: str
    pilot: bool = False
    stale: bool = False
    """The calibration was marked as stale; said in an incident's evidence, by the correlator."""
    repeater: bool = False
    """It would have paged, were its client not approved as a repeater."""
    version: int = 1


#: What becomes of a row that is handed to the escalation tier: fields of `ModelKeys.inquiry_totals`.
INQUIRY_OUTCOMES = ("answered", "failed", "dropped", "passed_over")
#: The field beside them that counts rows which the model was asked about.
QUESTIONS = "questions"


def row_of(signal: str) -> str:
    """``TOPIC/PARTITION/OFFSET/ROW`` of a signal's id, which ends with the rule."""
    return "/".join(signal.split("/")[:4])


class InquiryAnswer(msgspec.Struct, frozen=True):
    """What one inquiry of the escalation tier says of one row."""

    inquiry: str
    score: float
    p: float
    """Conformal: the share of benign rows that score at least as much, at least 1 / (rows + 1)."""
    rows: int
    """Benign rows that it is compared with."""
    questions: int
    """Rows that the watched model was asked about for it."""


class InquiryMessage(msgspec.Struct, frozen=True):
    """What the watched model says when it is asked again about the row of a signal; evidence, never a decision."""

    signal: str
    """Id of the first signal at the row; others at the row share the answers, see `row_of`."""
    at: int
    """When it was asked, microseconds since the epoch."""
    bundle: str
    """Digest of the bundle whose inquiries asked."""
    answers: list[InquiryAnswer]
    version: int = 1


class Change(msgspec.Struct, frozen=True):
    """One entry of an incident's history."""

    at: int
    by: str
    what: str


class Incident(msgspec.Struct, frozen=True):
    """One attack on one model by one entity."""

    id: str
    model: str
    technique: str
    entity: Literal["client", "cluster", "population", "monitoring"]
    entity_id: str
    title: str
    level: LevelName
    state: State
    first_seen: int
    last_seen: int
    """Broker time, microseconds."""
    opened_at: int
    """When the correlator opened it, microseconds."""
    signals: int
    rules: dict[str, int]
    clients: list[str]
    partitions: list[int]
    max_ratio: float
    """Largest statistic / threshold seen."""
    assignee: str | None = None
    history: list[Change] = []
    atlas_version: str = "5.6.0"
    bundle: str = ""
    version: int = 1
    queries: int = 0
    """Size of the largest cluster of queries that a signal spoke of."""
    pilot: bool = False
    """Some signal would have paged, had Vedette not run in pilot."""
    resolved_at: int | None = None
    """When it was last resolved, microseconds; None while it is open."""
    verdict: Verdict | None = None
    """What the responder who resolved it said; None also where it was resolved without one: quiet, or merged."""
    severity: Severity = "low"
    silence: str = ""
    """Id of the silence that suppresses it; empty for none."""
    merged_into: str = ""
    """Id of the campaign's incident that took it in; empty for none."""
    repeater: bool = False
    """Some signal would have paged, were its client not approved as a repeater."""
    verdict_by: str = ""
    """Who gave the verdict."""
    verdict_approved_by: str = ""
    """Who else vouches for a false alarm, so that it counts in the calibration; empty: nobody."""
    stale: bool = False
    """Some signal came while the calibration was marked as stale: p-values and thresholds may say too much."""


class IncidentChange(msgspec.Struct, frozen=True):
    """Entry of the `incident-log` stream: every change of every incident."""

    id: str
    """Unique: incident id and change number."""
    incident: str
    model: str
    change: Literal[
        "opened",
        "raised",
        "signal",
        "acknowledged",
        "assigned",
        "noted",
        "silenced",
        "unsilenced",
        "merged",
        "resolved",
        "reopened",
        "verdict-approved",
        "silence-made",
        "silence-ended",
        "repeater-proposed",
        "repeater-approved",
        "repeater-revoked",
    ]
    """Those of silences and repeaters: `incident` is empty, and `id` is the silence's or the client's."""
    by: str
    """`vedette`, `prober`, or who acted."""
    what: str
    level: LevelName
    state: State
    at: int
    """Broker time of the signal, or the clock of who acted; microseconds."""
    signal: str | None = None
    """Id of the signal that made the change."""
    version: int = 1


class Alert(msgspec.Struct, frozen=True):
    """Entry of the public `alerts` stream."""

    id: str
    """Unique: incident id and change number."""
    incident: str
    model: str
    change: Literal["opened", "raised", "updated", "acknowledged", "resolved", "reopened", "trimmed-from"]
    level: LevelName
    state: State
    technique: str
    entity: str
    entity_id: str
    title: str
    first_seen: int
    last_seen: int
    at: int
    version: int = 1
    severity: Severity = "low"
    by: str = ""
    """`vedette`, `prober`, or who acted."""
    what: str = ""
    """The change in words, as the incident's history has it."""
    signal: str = ""
    """Id of the signal that made the change; empty where none did."""
    stale: bool = False
    """The incident's evidence came while the calibration was marked as stale."""


class Matcher(msgspec.Struct, frozen=True):
    """Which incidents a silence is about: all that fit every pattern given. Empty: anything."""

    technique: str = ""
    """ATLAS id, with ``*`` and ``?``."""
    entity: Literal["", "client", "cluster", "population", "monitoring"] = ""
    level: Literal["", "ticket", "page"] = ""
    rule: str = ""
    """With ``*`` and ``?``; must fit every rule that spoke."""
    client: str = ""
    """Client hash, with ``*`` and ``?``; must fit every client of the incident."""


class Silence(msgspec.Struct, frozen=True):
    """A silence or a maintenance window of one model."""

    id: str
    model: str
    matcher: Matcher
    starts: int
    ends: int
    """Microseconds since the epoch; it holds from `starts` up to, not including, `ends`."""
    by: str
    comment: str
    created: int
    kind: Literal["silence", "maintenance"] = "silence"
    version: int = 1


class Repeater(msgspec.Struct, frozen=True):
    """A client of one model who repeats himself for good reasons: proposed by one person, approved by another.

    From the approval up to the end his near-duplicate queries open tickets and do not page.
    """

    client: str
    """The client's hash, 16 hex digits."""
    model: str
    reason: str
    proposed_by: str
    proposed: int
    """Microseconds since the epoch, as all times here."""
    ends: int
    """It holds up to, not including, this broker time; earlier where it was revoked."""
    approved_by: str = ""
    """Empty: nobody has approved it yet, and it changes nothing."""
    approved: int = 0
    revoked_by: str = ""
    revoked: int = 0
    comment: str = ""
    """Of who revoked it."""
    version: int = 1


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What a notifier tells a destination; the body of the generic webhook."""

    id: str
    """Of this delivery: the same at every attempt, another one for a repeat."""
    key: str
    """What the destination deduplicates by: the same from the trigger to the resolution."""
    action: NoticeAction
    reason: NoticeReason
    model: str
    level: LevelName
    severity: Severity
    technique: str
    """MITRE ATLAS id of the newest incident."""
    technique_name: str
    atlas_version: str
    entity: str
    title: str
    """One line, in plain words."""
    advice: str
    """What to do next."""
    by: str
    """Who acted, where a person did; else `vedette` or `prober`."""
    what: str
    """The change in words."""
    count: int
    """Incidents that this is about; for a resolution those that were told of last."""
    incidents: tuple[NoticeIncident, ...]
    """The newest of them, bounded."""
    group: dict[str, str]
    """What all its incidents have in common, and always will: model, and technique and entity where grouped so."""
    first_seen: int
    last_seen: int
    """Broker time, microseconds."""
    at: int
    """When the change happened, microseconds."""
    url: str = ""
    """Page of the incident, or of the list of incidents; empty where the console's address is not set."""
    version: int = 1


class ProbeVerdict(msgspec.Struct, frozen=True):
    """What a worker says of one probe record."""

    probe: str
    status: Literal["scored", "expired", "replayed"]
    partition: int
    offset: int
    rows: int
    time: int
    at: int
    issued: int
    level: int
    """Highest `Level` that the probe client's overlay reached at this record (0 silent, 1 ticket, 2 page)."""
    ratio: float
    """Largest statistic over its threshold after this record; a cluster's is that of its ticket."""
    pvalues: dict[str, float]
    """Smallest p-value of each detector in this record."""
    fused: float
    version: int = 1


ProbeKind = Literal["burst", "campaign", "extraction", "fuzz", "control"]
"""Crafted rows at once; a query attack; queries that copy the model; malformed requests; benign rows."""


class Answers(msgspec.Struct, frozen=True):
    """How the watched model's endpoint bore the questions of one or more probes."""

    calls: int = 0
    refused: int = 0
    """Answered with a status from 400 to 499."""
    crashes: int = 0
    """Answered with a status from 500 on, or not to the end of the connection."""
    timeouts: int = 0
    not_finite: int = 0
    """Answered with scores that are not finite."""
    unusable: int = 0
    """Answered otherwise than with scores of the rows that were asked about."""
    wrong: int = 0
    """Malformed requests that were answered with scores, or sound ones that were refused."""
    times: dict[int, int] = {}
    """Histogram of the times of calls: bucket b holds 10^(b/20) to 10^((b+1)/20) microseconds."""


class DetectorRecall(msgspec.Struct, frozen=True):
    """Probes that one detector alone sees: on more of their records than chance explains it gives p <= .01."""

    units: int
    detected: int
    low: float
    high: float
    """Wilson interval, 95 %."""


class ProbeRequest(msgspec.Struct, frozen=True):
    """Probes that somebody wants now."""

    id: str
    model: str
    attack: str
    by: str
    at: int
    """Microseconds since the epoch."""
    threat: str = ""
    """Name of a threat model; empty: the attack's own."""
    kind: Literal["", "burst", "campaign", "extraction", "fuzz", "control"] = ""
    """Empty: as the attack goes."""
    count: int = 1
    """Probes that are still to be started."""
    version: int = 1


class ProbePlan(msgspec.Struct, frozen=True):
    """A probe under way: what was sent, and until when its verdicts are waited for."""

    campaign: str
    attack: str
    kind: ProbeKind
    threat: str
    """Name of the threat model."""
    client: str
    sent: int
    """Records sent."""
    inputs: int
    """Rows sent."""
    issued: int
    deadline: int
    version: int = 1
    complete: bool = False
    """Everything that was to be sent has been sent."""
    since: dict[str, str] = {}
    """Partition -> id of the last entry of its `probes` stream before the start; a standby reads on from there."""
    fooled: int | None = None
    """Crafted rows that the model answered otherwise than the rows they were made from; None where not asked."""
    fooled_rows: str = ""
    """Which ones: a bit a row, most significant first, as hex."""
    schedule: str = ""
    """Name of the schedule, empty on demand."""
    request: str = ""
    """Id of the request that it answers."""
    number: int = 0
    """Counts the probes of one attack, threat model and model version; equal numbers start from equal rows and seed."""
    seed: str = ""
    """Of every random choice, 16 hex digits."""
    model_version: str = ""
    """Of the watched model; empty where it tells none, or changed meanwhile."""
    answers: Answers = Answers()
    agreement: float | None = None
    """Share of benign rows on which an extracted copy answers as the model does."""


class ProbeOutcome(msgspec.Struct, frozen=True):
    """A finished probe."""

    campaign: str
    attack: str
    kind: ProbeKind
    threat: str
    """Name of the threat model."""
    inputs: int
    arrived: int
    """Rows that came back with a verdict."""
    detected: bool
    ticketed: bool
    queries_to_ticket: int | None
    queries_to_page: int | None
    latency_ms: float | None
    """From the broker time of the completing row to its record in Redis."""
    finished: int
    version: int = 1
    abandoned: str = ""
    """Why the probe could not be sent in full; such an outcome counts in no recall. Empty: it was."""
    excluded: int = 0
    """Rows whose mark came back expired or replayed."""
    fooled: int | None = None
    """Crafted rows that changed the model's answer; None where not asked."""
    fooled_rows: str = ""
    """Which ones: a bit a row, most significant first, as hex."""
    schedule: str = ""
    request: str = ""
    number: int = 0
    seed: str = ""
    issued: int = 0
    model_version: str = ""
    answers: Answers = Answers()
    agreement: float | None = None
    records: int = 0
    """Records that were scored."""
    spoke: dict[str, int] = {}
    """Detector -> records to which it alone gave p <= .01, corrected for the number of their rows."""


class ProbeSummary(msgspec.Struct, frozen=True):
    """Recall of one attack over its finished probes."""

    attack: str
    kind: str
    threat: str
    n: int
    """Inputs for bursts, campaigns for query campaigns."""
    units: int
    """Independent units that the interval is over (bursts or campaigns)."""
    detected: int
    recall: float
    low: float
    high: float
    """Wilson interval, 95 %."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    updated: int
    version: int = 1
    queries_to_page_p50: float | None = None
    """Median over the detected units."""
    robust_accuracy: float | None = None
    """Share of crafted inputs that the model still answered like the row they were made from; None where not asked."""
    robust_low: float | None = None
    robust_high: float | None = None
    """Wilson interval, 95 %, over crafted inputs."""
    model_version: str = ""
    """Empty: all versions together."""
    answers: Answers = Answers()
    model_p50_ms: float | None = None
    model_p99_ms: float | None = None
    """Time of a call to the model's endpoint."""
    detectors: dict[str, DetectorRecall] = {}
    agreement: float | None = None
    """Median over extractions."""


class WorkerStatus(msgspec.Struct, frozen=True):
    """What a worker says of itself every second."""

    worker: str
    at: int
    partitions: list[int]
    lag: int
    rows: int
    """Rows recorded since the start."""
    rows_per_second: float
    batch_ms_p99: float
    rss_bytes: int
    oldest_verdict_age_ms: float
    bundle: str
    web: str
    """host:port of its /metrics and /health, empty if off."""
    version: int = 1


class CalibrationStatus(msgspec.Struct, frozen=True):
    """Whether the calibration of the bundle in force still describes the traffic."""

    bundle: str
    since: int
    """First whole hour that is watched, broker time, microseconds."""
    at: int
    """Broker time, microseconds, up to which it is known; whole hours."""
    risk: float
    """Chance that the mark is raised within a week although nothing has changed."""
    stale: bool = False
    """The mark; it stays until another bundle is in force, or until verdicts of the same week take a count back."""
    stale_at: int | None = None
    """Broker time, microseconds, at which it was raised."""
    reasons: dict[str, str] = {}
    """What spoke, in words: `martingale`, `tickets`, `pages`."""
    kind: Literal["", "drift", "attack", "unclear"] = ""
    """Who moved when the martingale spoke: many clients (`drift`) or few (`attack`); empty while it is silent."""
    breadth: float | None = None
    """Share of blocks of clients that carry the excess of the last hours: 1 all alike, about a third by chance."""
    hours: int = 0
    """Hours that are remembered."""
    log10_wealth: float = 0.0
    """Largest wealth of the exchangeability martingale in its week."""
    week_from: int = 0
    """Beginning of the week under way, microseconds."""
    ticketed: int = 0
    """Clients with a ticket or a page in the week under way, but for incidents resolved as real attacks."""
    ticket_limit: int | None = None
    """More of them raise the mark; None where the calibration cannot tell."""
    paged: int = 0
    page_limit: int | None = None
    version: int = 1
