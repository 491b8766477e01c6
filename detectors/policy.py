"""What becomes of a statistic that crosses its threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["tickets", "at-once", "intent"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of a statistic that crosses its ticket threshold.

    Attributes
    ----------
    mode : {"tickets", "at-once", "intent"}
        ``tickets``: nothing pages. ``at-once``: crossing pages. ``intent``: a cluster opens a ticket, and pages when
        the intent test speaks too; the sequential test pages by itself.
    page_factor : float
        Ticket thresholds of clusters times this are their paging thresholds.
    index_pages : bool
        Whether the index may page at all, and `index_factor` as above.
    """

    mode: Mode = "tickets"
    page_factor: float = 1.0
    index_pages: bool = False
    index_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(get_args(Mode))}")
        if not (self.page_factor >= 1.0 and self.index_factor >= 1.0):
            raise ValueError(f"paging factors {self.page_factor} and {self.index_factor} must be 1 or more")
