"""What to do about an incident: the texts of the settings, by technique; else Vedette's own, by entity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from streams.config import IncidentSettings
from streams.incidents.titles import ADVICE


@dataclass(frozen=True, slots=True)
class Runbook:
    """Texts by pattern of technique; of several that fit the longest pattern counts."""

    texts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: IncidentSettings) -> Runbook:
        """From the settings."""
        return cls(settings.runbook)

    def own(self, technique: str) -> str:
        """The text of the settings; empty where none fits."""
        fitting = [pattern for pattern in self.texts if fnmatchcase(technique, pattern)]
        return self.texts[max(fitting, key=lambda pattern: (len(pattern), pattern))] if fitting else ""

    def text(self, technique: str, entity: str) -> str:
        """What to do next."""
        return self.own(technique) or ADVICE.get(entity, "")
