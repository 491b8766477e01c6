"""Slack, and what takes Slack's messages: an incoming webhook with ``text`` and ``blocks``."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.config import DestinationSettings
from streams.notify.contract import Answer, Call, Outcome, judge, shortened
from streams.notify.secret import Address
from streams.store.messages import Notice

#: Longest header, section, context and label of a button that Slack takes.
HEADER_LENGTH, SECTION_LENGTH, CONTEXT_LENGTH, BUTTON_LENGTH = 150, 3000, 2000, 75
MARKS = {
    "critical": ":rotating_light:",
    "high": ":red_circle:",
    "medium": ":large_orange_circle:",
    "low": ":information_source:",
}
SHOWN_INCIDENTS = 10


class Slack:
    """One message a notice; nobody is called, so tickets may go there. The webhook's URL is the secret (`url_file`)."""

    calls_people = False
    refresh_seconds = 0.0

    def __init__(self, settings: DestinationSettings) -> None:
        self._address = Address(settings)

    def call(self, notice: Notice, now: int) -> Call | None:
        heading = _heading(notice)
        lines = [f"*{escaped(notice.title)}*"]
        if notice.count > 1:
            lines += [f"• {escaped(one.title)}" for one in notice.incidents[:SHOWN_INCIDENTS]]
        if notice.action == "trigger":
            lines.append(escaped(notice.advice))
        elif notice.what:
            lines.append(escaped(notice.what))
        technique = f"{notice.technique} {notice.technique_name}".strip()
        context = f"{technique} · severity {notice.severity} · {notice.id}".lstrip(" ·")
        blocks: list[dict[str, Any]] = [
            {"type": "header", "text": _plain(heading, HEADER_LENGTH)},
            {"type": "section", "text": {"type": "mrkdwn", "text": shortened("\n".join(lines), SECTION_LENGTH)}},
            {"type": "context", "elements": [_plain(context, CONTEXT_LENGTH)]},
        ]
        if notice.url:
            button = {"type": "button", "text": _plain("Evidence", BUTTON_LENGTH), "url": notice.url}
            blocks.append({"type": "actions", "elements": [button]})
        text = shortened(escaped(f"{heading}: {notice.title}"), SECTION_LENGTH)
        body = msgspec.json.encode({"text": text, "blocks": blocks})
        return Call(self._address.url(), body, {"Content-Type": "application/json"})

    def judge(self, answer: Answer, now: int) -> Outcome:
        return judge(answer, now)


def escaped(text: str) -> str:
    """Text that names nobody and links nowhere: Slack's three control characters, escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str, most: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": shortened(text, most), "emoji": True}


def _heading(notice: Notice) -> str:
    kind = "Page" if notice.level == "page" else "Ticket"
    if notice.action == "resolve":
        return f":white_check_mark: Resolved · {notice.model}"
    if notice.action == "acknowledge":
        return f":eyes: {notice.by} has it · {notice.model}"
    again = {"repeat": ", nobody has it yet", "reopened": ", again", "raised": ", was a ticket", "test": ", a test"}
    return f"{MARKS[notice.severity]} {kind}{again.get(notice.reason, '')} · {notice.model}"
