"""Workers whose scripts lack one of the three things that make effects exactly-once."""

from __future__ import annotations

import asyncio

from streams.store.partition import PartitionStore, Plan, Scripts

_MOVED = """if stored[1] ~= ARGV[1] then
  return {'moved', stored[1] or '', stored[2]}
end
"""
_FENCED = """if stored[2] ~= ARGV[3] then
  return {'fenced', stored[1] or '', stored[2] or ''}
end
"""
#: Seconds that a slow worker waits before it records, so that snapshots are taken beyond the watermark.
_SLOW_SECONDS = 0.3
_BEYOND = "if w == '' or offset > tonumber(w) then"
_USABLE = "if manifest and tonumber(offset) <= tonumber(w) then"


def scripts_without(what: str) -> Scripts:
    """The worker's scripts without ``compare-and-set``, without ``epoch``, or without ``s<=w``.

    ``slow`` takes nothing away; see `slow_down`.
    """
    real = Scripts()
    if what == "slow":
        return real
    if what == "compare-and-set":
        return Scripts(record=_without(real.record, _MOVED, ""))
    if what == "epoch":
        return Scripts(record=_without(real.record, _FENCED, ""))
    if what == "s<=w":
        return Scripts(
            claim=_without(real.claim, _USABLE, "if manifest then"),
            publish=_without(real.publish, _BEYOND, "if w == '' then"),
        )
    raise ValueError(f"no mutant {what!r}")


def slow_down() -> None:
    """Let this process' batches wait before they are recorded, while everything else goes on."""
    record = PartitionStore.record

    async def late(store: PartitionStore, plan: Plan, epoch: int) -> None:
        await asyncio.sleep(_SLOW_SECONDS)
        await record(store, plan, epoch)

    PartitionStore.record = late  # type: ignore[method-assign]  # a fault, in a process of its own


def _without(script: str, part: str, instead: str) -> str:
    if script.count(part) != 1:
        raise AssertionError(f"the script no longer holds {part!r}; mend the mutant")
    return script.replace(part, instead)
