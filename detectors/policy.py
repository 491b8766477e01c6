"""What becomes of a statistic that crosses its threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["tickets", "at-once", "intent"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What pages.

    Attributes
    ----------
    mode : {"tickets", "at-once", "intent"}
        ``tickets``: nothing pages. ``at-once``: crossing pages. ``intent``: a cluster pages when the intent test, which
        is asked about clients' clusters with a ticket and those of the index from `walk.INDEX_EXAMINED` on, speaks
        clearly enough; the sequential test pages by itself.
    page_score : float
        What the intent test's score must be of what the test itself asks for (`IntentVerdict.ratio`), 1 or more.
    index_pages : bool
        Whether the index may page on a budget of its own: also by rows without a client.
    index_factor : float
        ``at-once``: the index's ticket threshold times this is its paging threshold.
    index_score : float
        ``intent``: `page_score` of a cluster of the index.
    shared_score : float
        So many times more clearly it must speak of a cluster of several accounts: what strangers have in common is
        judged again and again, and lies in no order that anybody chose.
    """

    mode: Mode = "tickets"
    page_score: float = 1.0
    index_pages: bool = False
    index_factor: float = 1.0
    index_score: float = 1.0
    shared_score: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(get_args(Mode))}")
        for name in ("page_score", "shared_score", "index_factor", "index_score"):
            if not getattr(self, name) >= 1.0:
                raise ValueError(f"{name} {getattr(self, name)} must be 1 or more")
