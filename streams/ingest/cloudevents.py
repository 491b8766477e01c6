"""CloudEvents over HTTP, as the loggers of inference servers send them.

Follows the CloudEvents 1.0 binding for HTTP: binary, structured and batched content. Pure: no I/O, no clock.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Kind = Literal["request", "response"]

#: Types of events that are read: KServe's logger and Seldon's.
KINDS: dict[str, Kind] = {
    "org.kubeflow.serving.inference.request": "request",
    "org.kubeflow.serving.inference.response": "response",
    "io.seldon.serving.inference.request": "request",
    "io.seldon.serving.inference.response": "response",
}
#: How headers of binary content begin.
PREFIX = "ce-"
STRUCTURED, BATCHED = "application/cloudevents+json", "application/cloudevents-batch+json"
#: Longest id that is read.
LONGEST_ID = 256


class Unreadable(Exception):
    """A request that holds no event; its text says why."""


@dataclass(frozen=True, slots=True)
class Event:
    """Half of an inference.

    Attributes
    ----------
    kind : {"request", "response"} or None
        None: an event of another type.
    id : str
    attributes : mapping of str to str
        All attributes but the id, names in lower case.
    data : bytes
        The body of the model's request or answer.
    """

    kind: Kind | None
    id: str
    attributes: Mapping[str, str]
    data: bytes

    @property
    def service(self) -> str:
        """The inference service's name; empty where the event gives none."""
        return self.attributes.get("inferenceservicename", "")

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What request and response of one inference have in common."""
        component, endpoint = self.attributes.get("component", ""), self.attributes.get("endpoint", "")
        return self.attributes.get("namespace", ""), self.service, f"{component}/{endpoint}", self.id

    @property
    def size(self) -> int:
        """Bytes that holding it costs, about."""
        return len(self.data) + sum(len(name) + len(text) for name, text in self.attributes.items()) + 512

    def metadata(self, name: str) -> str | None:
        """A header of the model's request, which KServe's logger hands on in the attribute `metadata`."""
        try:
            found = msgspec.json.decode(self.attributes.get("metadata", "{}"))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        for key, value in found.items() if isinstance(found, dict) else ():
            if key.lower() == name.lower():
                first = value[0] if isinstance(value, list) and value else value
                return first if isinstance(first, str) else None
        return None


def read(headers: Mapping[str, str], body: bytes) -> list[Event]:
    """The events of one HTTP request.

    Parameters
    ----------
    headers : mapping
        Names in any case.

    Raises
    ------
    Unreadable
    """
    lower = {name.lower(): value for name, value in headers.items()}
    content = lower.get("content-type", "").partition(";")[0].strip().lower()
    if content == STRUCTURED:
        return [_structured(_json(body))]
    if content == BATCHED:
        found = _json(body)
        if not isinstance(found, list):
            raise Unreadable("a batch of events is a list")
        return [_structured(one) for one in found]
    attributes = {name.removeprefix(PREFIX): value for name, value in lower.items() if name.startswith(PREFIX)}
    return [_event(attributes, body)]


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise Unreadable(f"the body is not JSON: {wrong}") from None


def _structured(fields: Any) -> Event:
    if not isinstance(fields, dict):
        raise Unreadable("an event is a JSON object")
    attributes = {name.lower(): text for name, text in fields.items() if isinstance(text, str)}
    if "data_base64" in fields:
        try:
            data = base64.b64decode(attributes.pop("data_base64", ""), validate=True)
        except (binascii.Error, ValueError):
            raise Unreadable("data_base64 is no base64") from None
    else:
        inner = fields.get("data")
        data = attributes.pop("data", "").encode() if isinstance(inner, str) else msgspec.json.encode(inner)
    return _event(attributes, data)


def _event(attributes: dict[str, str], data: bytes) -> Event:
    identity, kind = attributes.pop("id", ""), attributes.get("type", "")
    if not identity or not kind:
        raise Unreadable("an event has an id and a type (headers ce-id and ce-type)")
    if len(identity) > LONGEST_ID:
        raise Unreadable(f"the event's id has {len(identity)} characters; at most {LONGEST_ID} are read")
    return Event(KINDS.get(kind), identity, attributes, data)
