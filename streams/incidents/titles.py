"""Incident titles in plain words."""

from __future__ import annotations

from streams.store.messages import Incident, SignalMessage

#: MITRE ATLAS technique -> what it is called in a title.
TECHNIQUES = {
    "AML.T0015": "Evasion",
    "AML.T0024.002": "Model extraction",
    "AML.T0043": "Adversarial inputs",
    "AML.T0043.000": "White-box adversarial inputs",
    "AML.T0043.001": "Query-based evasion",
    "AML.T0043.002": "Transferred adversarial inputs",
    "AML.T0043.003": "Manually modified inputs",
    "AML.T0046": "Flood of signals",
}

#: Entity of an incident -> what to do next.
ADVICE = {
    "client": "Look at the client's recent traffic and its purpose; acknowledge, then limit or question the client if "
    "it is no known test.",
    "cluster": "Nobody is named for sure: a cluster can span accounts, and an attacker can copy a victim's queries to "
    "frame him. Examine each account, block none on this evidence alone.",
    "population": "Too many openings at once. Work on the single incidents first, pages before tickets; the flood may "
    "hide one of them.",
    "monitoring": "Check prober, worker and the model's endpoint (`vedette doctor`): until it is resolved, silence "
    "proves nothing.",
}

#: Clients that an incident names at most.
CLIENTS_KEPT = 256
#: Hex digits of a client's hash that a title shows.
SHOWN_DIGITS = 4


def queries_of(signal: SignalMessage) -> int:
    """How many queries the signal speaks of."""
    return max(int(signal.measures.get("size", 0)), len(signal.members), 1)


def client_name(client: str) -> str:
    """A client's hash, shortened for people."""
    return f"{client[:SHOWN_DIGITS]}…"


def title(incident: Incident) -> str:
    """What happens, by whom, and how we know, in one line.

    A function of the incident's merged fields alone, so that it doesn't depend on the order of partitions.
    """
    what = TECHNIQUES.get(incident.technique, incident.technique)
    if incident.entity == "population":
        return f"{what}: {incident.signals:,} signals from {_many(len(incident.clients))}"
    if incident.level == "ticket":
        what = f"Possible {what[0].lower()}{what[1:]}"
    who = f"by client {client_name(incident.entity_id)}"
    if incident.entity == "cluster":
        alone = set(incident.rules) == {"input-row"}  # only rows without a client are told of so
        who = "by an anonymous sender" if alone else f"spread over {group_name(len(incident.clients))}"
    line = f"{what} {who}: {_finding(incident)}"
    if incident.level == "ticket" and incident.pilot:
        return f"{line} (pilot: would have paged)"
    return f"{line} (approved repeater)" if incident.level == "ticket" and incident.repeater else line


def _finding(incident: Incident) -> str:
    rules = incident.rules
    if any(rule.endswith("-intent") for rule in rules):
        return f"{incident.queries:,} near-identical queries seeking a decision boundary"
    if any(rule.endswith("-cluster") for rule in rules):
        return f"{incident.queries:,} near-identical queries"
    if "input-sequence" in rules:
        return "a run of inputs unlike benign traffic"
    if "input-row" in rules:
        return "an input odder than those of benign clients"
    return f"{incident.signals:,} signals ({', '.join(sorted(rules))})"


def group_name(clients: int) -> str:
    """Who is in a cluster. One of a single account is that client's, so where one is known, others are anonymous."""
    if clients > 1:
        return _many(clients)
    return "anonymous senders and 1 account" if clients else "anonymous senders"


def _many(clients: int) -> str:
    if clients >= CLIENTS_KEPT:
        return f"{CLIENTS_KEPT} or more accounts"
    return f"{clients} account{'' if clients == 1 else 's'}"
