"""From the bodies of a model's request and answer to one record that the worker reads (docs/formats.md). Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.ingest.cloudevents import Event, Unreadable

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
#: Rows nested deeper than so are refused.
DEEPEST = 16


def record(request: Event, response: Event) -> bytes:
    """The value of the record: an Open Inference Protocol pair, or a native event for V1 bodies.

    The answer's model name is left out: which service's events are taken has been decided.

    Raises
    ------
    Unreadable
    """
    asked, answered = _fields(request), _fields(response)
    if "instances" in asked:
        return _first_version(request.id, asked, answered)
    if "inputs" not in asked or "outputs" not in answered:
        raise Unreadable("neither instances and predictions (V1) nor inputs and outputs (V2)")
    kept = {name: asked[name] for name in ("id", "parameters", "inputs") if name in asked}
    if bytes(kept.get("id", b"null")) == b"null":
        kept["id"] = msgspec.Raw(msgspec.json.encode(request.id))
    return msgspec.json.encode({"request": kept, "response": {"outputs": answered["outputs"]}})


def client(path: str, request: Event) -> bytes | None:
    """The client's name, which stands where `ingest.client` says; None for an anonymous one."""
    kind, _, name = path.partition(":")
    found: Any
    if kind == "metadata":
        found = request.metadata(name)
    elif kind == "attribute":
        found = request.attributes.get(name.lower())
    else:
        try:
            parameters = msgspec.json.decode(_fields(request).get("parameters", b"{}"))
        except (msgspec.DecodeError, Unreadable):
            return None
        found = parameters.get(name) if isinstance(parameters, dict) else None
        found = str(found) if type(found) is int else found
    return found.encode() if isinstance(found, str) and found else None


def _fields(event: Event) -> dict[str, msgspec.Raw]:
    try:
        return _FIELDS.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise Unreadable(f"the model's {event.kind} is no JSON object: {wrong}") from None


def _first_version(identity: str, asked: dict[str, msgspec.Raw], answered: dict[str, msgspec.Raw]) -> bytes:
    if "predictions" not in answered:
        raise Unreadable("the answer to V1 instances has no predictions")
    instances, predictions = msgspec.json.decode(asked["instances"]), msgspec.json.decode(answered["predictions"])
    if not (isinstance(instances, list) and isinstance(predictions, list) and instances):
        raise Unreadable("V1 instances and predictions are lists, not empty")
    rows: list[list[Any]] = [_flat(row) for row in instances]
    said = "outputs" if all(isinstance(row, list) for row in predictions) else "label"
    answer = [_flat(row) for row in predictions] if said == "outputs" else predictions
    return msgspec.json.encode({"id": identity, "inputs": rows, said: answer})


def _flat(row: Any) -> list[Any]:
    """The numbers of one row, whatever its shape."""
    if not isinstance(row, list):
        raise Unreadable("a row of V1 instances or predictions is no list of numbers")
    for _ in range(DEEPEST):
        if not any(isinstance(part, list) for part in row):
            return row
        row = [number for part in row for number in (part if isinstance(part, list) else [part])]
    raise Unreadable(f"a row is nested more than {DEEPEST} deep")
