from __future__ import annotations

import json

import jsonschema
import msgspec

from streams.store import messages
from streams.store.messages import ProbeVerdict, SignalMessage
from streams.store.schemas import FOLDER, MESSAGES, documents, schema


def test_schemas_in_the_documentation_are_up_to_date() -> None:
    stored = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert stored == documents(), "run `python -m streams.store.schemas`"


def test_every_message_with_a_version_has_a_schema() -> None:
    versioned = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and "version" in kind.__struct_fields__
    }
    assert versioned == set(MESSAGES)


def test_messages_are_valid_under_their_schemas() -> None:
    verdict = ProbeVerdict("a-1", "scored", 0, 5, 1, 10, 11, 9, 2, 1.5, {"trust_ratio": 0.01}, 0.02)
    jsonschema.validate(json.loads(msgspec.json.encode(verdict)), schema(ProbeVerdict))
    for message in MESSAGES:
        jsonschema.Draft202012Validator.check_schema(schema(message))


def test_a_missing_field_is_invalid() -> None:
    validator = jsonschema.Draft202012Validator(schema(SignalMessage))
    assert not validator.is_valid({"id": "x"})
