"""Opsgenie Alert API v2: create, acknowledge and close an alert by its alias."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from streams.config import DestinationSettings
from streams.notify.contract import Answer, Call, Outcome, judge, shortened
from streams.notify.secret import Address
from streams.store.messages import Notice

URL = "https://api.opsgenie.com"
PRIORITIES = {"critical": "P1", "high": "P2", "medium": "P3", "low": "P5"}
MESSAGE_LENGTH, DESCRIPTION_LENGTH, ALIAS_LENGTH, NOTE_LENGTH, DETAIL_LENGTH = 130, 15_000, 512, 25_000, 1_000
NAME_LENGTH = 100


class Opsgenie:
    """Alerts under the notice's key as their alias. The secret is the API key of an integration."""

    calls_people = True
    refresh_seconds = 0.0

    def __init__(self, settings: DestinationSettings) -> None:
        self._address = Address(settings, URL)

    def call(self, notice: Notice, now: int) -> Call | None:
        headers = {"Content-Type": "application/json", "Authorization": f"GenieKey {self._address.secret()}"}
        base = f"{self._address.url()}/v2/alerts"
        alias = notice.key[:ALIAS_LENGTH]
        if notice.action == "trigger":
            return Call(base, msgspec.json.encode(_alert(notice, alias)), headers)
        body = {
            "user": shortened(notice.by or "vedette", NAME_LENGTH),
            "source": "Vedette",
            "note": shortened(notice.what, NOTE_LENGTH),
        }
        verb = "close" if notice.action == "resolve" else "acknowledge"
        url = f"{base}/{quote(alias, safe='')}/{verb}?identifierType=alias"
        return Call(url, msgspec.json.encode(body), headers)

    def judge(self, answer: Answer, now: int) -> Outcome:
        return judge(answer, now)


def _alert(notice: Notice, alias: str) -> dict[str, Any]:
    lines = [notice.what, "", notice.advice, "", *(f"{one.id}: {one.title}" for one in notice.incidents), notice.url]
    details = {
        "model": notice.model,
        "level": notice.level,
        "severity": notice.severity,
        "technique": f"{notice.technique} {notice.technique_name}".strip(),
        "incidents": str(notice.count),
        "notice": notice.id,
        "url": notice.url,
    }
    return {
        "message": shortened(notice.title, MESSAGE_LENGTH),
        "alias": alias,
        "description": shortened("\n".join(lines).strip(), DESCRIPTION_LENGTH),
        "priority": PRIORITIES[notice.severity],
        "source": "Vedette",
        "entity": notice.model,
        "tags": ["vedette", notice.level, notice.model],
        "details": {name: shortened(text, DETAIL_LENGTH) for name, text in details.items() if text},
    }
