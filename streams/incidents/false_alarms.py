"""Approved false alarms, as the calibration takes them in."""

from __future__ import annotations

from detectors.calibration.alarms import FalseAlarm
from detectors.scorer import Ensemble
from streams.incidents.service import IncidentService

#: Incidents that are looked at, newest first.
LOOKED_AT = 20_000


def approved(service: IncidentService, ensemble: Ensemble) -> tuple[list[FalseAlarm], int]:
    """Pages about one client that were resolved as false alarms on the word of two people, newest first.

    Only those that this very ensemble decided: statistics of another one are on other scales. The number is of those
    that others did.
    """
    found, others = [], 0
    for incident in service.list("resolved", "page", LOOKED_AT):
        vouched = incident.verdict == "false" and incident.verdict_approved_by
        if not vouched or incident.entity != "client":
            continue
        signals = [one for one in service.show(incident.id).evidence if one.bundle == ensemble.digest]
        own = [one for one in signals if one.entity_id == incident.entity_id]
        if own:
            found.append(
                FalseAlarm.of(
                    int(incident.entity_id, 16),
                    max(one.time for one in own),
                    [(one.rule, one.statistic, one.threshold, one.measures) for one in own],
                    ensemble.tables.thresholds[:2],
                )
            )
        else:
            others += 1
    return found, others
