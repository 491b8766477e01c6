"""PagerDuty Events API v2: ``POST /v2/enqueue``."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.config import DestinationSettings
from streams.notify.alertmanager import rfc3339
from streams.notify.contract import Answer, Call, Outcome, judge, shortened
from streams.notify.secret import Address
from streams.store.messages import Notice

URL = "https://events.pagerduty.com/v2/enqueue"
SEVERITIES = {"critical": "critical", "high": "error", "medium": "warning", "low": "info"}
#: Longest summary and deduplication key that the API takes.
SUMMARY_LENGTH, KEY_LENGTH = 1024, 255


class PagerDuty:
    """Triggers, acknowledges and resolves an alert under the notice's key. The secret is the integration's key."""

    calls_people = True
    refresh_seconds = 0.0

    def __init__(self, settings: DestinationSettings) -> None:
        self._address = Address(settings, URL)

    def call(self, notice: Notice, now: int) -> Call | None:
        event: dict[str, Any] = {
            "routing_key": self._address.secret(),
            "event_action": notice.action,
            "dedup_key": notice.key[:KEY_LENGTH],
        }
        if notice.action == "trigger":
            event["client"] = "Vedette"
            event["payload"] = {
                "summary": shortened(notice.title, SUMMARY_LENGTH),
                "source": notice.model,
                "severity": SEVERITIES[notice.severity],
                "timestamp": rfc3339(notice.at),
                "component": notice.model,
                "group": notice.technique or "vedette",
                "class": notice.technique_name or "incident",
                "custom_details": {
                    "change": notice.what,
                    "level": notice.level,
                    "incidents": [f"{one.id}: {one.title}" for one in notice.incidents],
                    "count": notice.count,
                    "first_seen": rfc3339(notice.first_seen),
                    "last_seen": rfc3339(notice.last_seen),
                    "what_to_do": notice.advice,
                    "atlas_version": notice.atlas_version,
                    "notice": notice.id,
                },
            }
            if notice.url:
                event["client_url"] = notice.url
                event["links"] = [{"href": notice.url, "text": "Evidence in Vedette"}]
        return Call(self._address.url(), msgspec.json.encode(event), {"Content-Type": "application/json"})

    def judge(self, answer: Answer, now: int) -> Outcome:
        return judge(answer, now)
