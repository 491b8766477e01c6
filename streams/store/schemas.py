"""JSON Schemas of every message, for consumers: ``python -m streams.store.schemas`` writes docs/schemas/ anew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from streams.store import messages

#: Where the schemas stand.
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"
#: Messages that stand by themselves somewhere in Redis.
MESSAGES: tuple[type[msgspec.Struct], ...] = (
    messages.SignalMessage,
    messages.InquiryMessage,
    messages.Incident,
    messages.IncidentChange,
    messages.Alert,
    messages.Silence,
    messages.Repeater,
    messages.Notice,
    messages.ProbeVerdict,
    messages.ProbeRequest,
    messages.ProbePlan,
    messages.ProbeOutcome,
    messages.ProbeSummary,
    messages.WorkerStatus,
    messages.CalibrationStatus,
)
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def file_name(message: type[msgspec.Struct]) -> str:
    """``probe-verdict.json`` for `ProbeVerdict`."""
    words = re.findall(r"[A-Z][a-z]+", message.__name__.removesuffix("Message"))
    return "-".join(words).lower() + ".json"


def schema(message: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of one message."""
    return {"$schema": _DIALECT, "title": message.__name__, **msgspec.json.schema(message)}


def documents() -> dict[str, str]:
    """File name -> text of every schema."""
    return {file_name(message): json.dumps(schema(message), indent=2) + "\n" for message in MESSAGES}


def write(folder: Path = FOLDER) -> None:
    """Write every schema, and remove those of messages that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = documents()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    for stale in folder.glob("*.json"):
        if stale.name not in wanted:
            stale.unlink()


if __name__ == "__main__":
    write()
