"""Prometheus Alertmanager, API v2: ``POST /api/v2/alerts``.

Identity is the label set, so labels hold only what never changes while an incident is open; all else is annotations.
Alertmanager forgets an alert at its end, so what is open is sent again every minute with an end an hour away.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from streams.config import DestinationSettings
from streams.notify.contract import Answer, Call, Outcome, judge
from streams.notify.secret import Address
from streams.store.messages import LevelName, Notice

#: Between two posts of an open alert, and how long Alertmanager keeps one that is posted no more.
REFRESH_SECONDS, KEPT_SECONDS = 60.0, 3600


class Alertmanager:
    """Posts alerts; grouping, silences and receivers of Alertmanager's own come on top.

    The label ``severity`` is ``page`` or ``ticket``; Vedette's severity is an annotation. A secret is sent as a bearer
    token. With ``chat = true`` tickets are posted too: only for an Alertmanager whose routes call nobody for
    ``severity="ticket"``.
    """

    refresh_seconds = REFRESH_SECONDS

    def __init__(self, settings: DestinationSettings) -> None:
        self.calls_people = not settings.chat
        self._address = Address(settings)

    def call(self, notice: Notice, now: int) -> Call | None:
        if notice.action == "acknowledge":
            return None
        ended = notice.action == "resolve"
        alerts = [self._alert(notice, notice.level, now if ended else now + KEPT_SECONDS * 1_000_000)]
        if notice.level == "page" and not self.calls_people:
            alerts.append(self._alert(notice, "ticket", now))  # what it was before it was raised
        headers = {"Content-Type": "application/json"}
        token = self._address.optional_secret()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return Call(f"{self._address.url()}/api/v2/alerts", msgspec.json.encode(alerts), headers)

    def judge(self, answer: Answer, now: int) -> Outcome:
        return judge(answer, now)

    def _alert(self, notice: Notice, level: LevelName, ends: int) -> dict[str, Any]:
        labels = {**notice.group, "alertname": "VedetteIncident", "severity": level, "incident": notice.key}
        annotations = {
            "summary": notice.title,
            "description": notice.advice,
            "change": notice.what,
            "by": notice.by,
            "vedette_severity": notice.severity,
            "technique": f"{notice.technique} {notice.technique_name}".strip(),
            "atlas_version": notice.atlas_version,
            "incidents": str(notice.count),
            "notice": notice.id,
        }
        alert: dict[str, Any] = {
            "labels": labels,
            "annotations": {name: text for name, text in annotations.items() if text},
            "startsAt": rfc3339(min(notice.first_seen, ends)),
            "endsAt": rfc3339(ends),
        }
        if notice.url:
            alert["generatorURL"] = notice.url
        return alert


def rfc3339(microseconds: int) -> str:
    """A time in UTC, as Alertmanager wants it."""
    seconds, rest = divmod(max(microseconds, 0), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:06d}Z"
