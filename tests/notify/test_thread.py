from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.notify import thread as threads
from streams.notify.thread import QUEUE_MOST, Rhythm, Thread
from streams.store.messages import Notice
from tests.notify.conftest import HOUR, SECOND, START, alert

A, B, C = "a" * 16, "b" * 16, "c" * 16


def begun(**changes: Any) -> Thread:
    return Thread("vedette/digits/all", {"model": "digits"}, Rhythm(**changes))


def told(thread: Thread, entry: threads.Entry) -> Notice:
    return threads.notice(thread, entry, "https://vedette.example", {}, "look")


def sent(thread: Thread, now: int) -> tuple[Thread, list[str]]:
    """Deliver everything that is due."""
    actions = []
    while (entry := threads.head(thread, 0, now)) is not None:
        actions.append(f"{entry.action} {entry.reason}")
        thread = threads.delivered(thread, entry, now)
    return thread, actions


def test_what_waits_is_brought_up_to_date_and_the_end_follows() -> None:
    thread = begun()
    for number, change in enumerate(("opened", "updated", "raised", "acknowledged", "resolved"), 1):
        thread = threads.planned(thread, alert(A, number, change), START + number)
    assert [entry.action for entry in thread.queue] == ["trigger", "acknowledge", "resolve"]
    assert thread.queue[0].reason == "opened"
    assert thread.queue[0].alert.change == "raised"
    thread, actions = sent(thread, START + HOUR)
    assert actions == ["trigger opened", "acknowledge acknowledged", "resolve resolved"]
    assert thread.over


def test_a_notice_says_that_the_calibration_is_stale() -> None:
    said = []
    for stale in (False, True):
        thread = threads.planned(begun(), msgspec.structs.replace(alert(A), what="opened as page", stale=stale), START)
        said.append(told(thread, thread.queue[0]).what)
    assert said == ["opened as page", "opened as page (calibration stale)"]


def test_resolution_goes_only_where_a_trigger_was() -> None:
    assert threads.planned(begun(), alert(A, 2, "resolved"), START).over
    thread = threads.planned(begun(), alert(A), START)
    thread = threads.planned(thread, alert(A, 2, "resolved"), START)
    assert threads.dropped(thread, thread.queue[0]).over, "a destination that refused the trigger hears of no end"


def test_first_notice_of_a_group_waits_for_company_but_not_for_its_end() -> None:
    thread = threads.planned(begun(wait=30 * SECOND), alert(A), START)
    assert threads.head(thread, 0, START + 29 * SECOND) is None
    thread = threads.planned(thread, alert(B), START + 10 * SECOND)
    entry = threads.head(thread, 0, START + 30 * SECOND)
    assert entry is not None
    notice = told(thread, entry)
    assert (notice.count, [one.id for one in notice.incidents]) == (2, [B, A])
    assert notice.title.startswith("2 incidents, the newest: ")
    alone = threads.planned(begun(wait=30 * SECOND), alert(A), START)
    alone = threads.planned(alone, alert(A, 2, "resolved"), START + SECOND)
    assert sent(alone, START + SECOND)[1] == ["trigger opened", "resolve resolved"]


def test_more_of_a_group_is_told_after_its_interval_and_its_end_when_all_have_ended() -> None:
    thread, _ = sent(threads.planned(begun(interval=300 * SECOND), alert(A), START), START)
    thread = threads.planned(thread, alert(B), START + SECOND)
    thread = threads.planned(thread, alert(C), START + 2 * SECOND)
    assert sent(thread, START + 299 * SECOND)[1] == []
    thread, actions = sent(thread, START + 300 * SECOND)
    assert actions == ["trigger joined"]
    for place, name in enumerate((A, B, C)):
        assert sent(thread, START + 301 * SECOND)[1] == []
        thread = threads.planned(thread, alert(name, 2 + place, "resolved"), START + 301 * SECOND)
    assert sent(thread, START + 301 * SECOND)[1] == ["resolve resolved"]


def test_what_nobody_has_is_repeated_and_what_somebody_has_is_not() -> None:
    thread, _ = sent(threads.planned(begun(repeat=HOUR), alert(A), START), START)
    assert threads.due(thread, 0) == START + HOUR
    first = threads.head(thread, 0, START + HOUR)
    assert first is not None
    assert (first.reason, told(thread, first).id) == ("repeat", "vedette/digits/all#2")
    thread = threads.delivered(thread, first, START + HOUR)
    assert threads.due(thread, 0) == START + 2 * HOUR
    thread, actions = sent(threads.planned(thread, alert(A, 2, "acknowledged"), START + HOUR), START + HOUR)
    assert actions == ["acknowledge acknowledged"]
    assert threads.due(thread, 0) is None
    assert threads.due(thread, 60 * SECOND) == START + HOUR + 60 * SECOND, "a destination that forgets is reminded"


def test_acknowledgement_of_a_group_is_told_when_all_are_taken() -> None:
    thread = threads.planned(threads.planned(begun(), alert(A), START), alert(B), START)
    thread, _ = sent(thread, START + HOUR)
    thread = threads.planned(thread, alert(A, 2, "acknowledged"), START + HOUR)
    assert not thread.queue
    thread = threads.planned(thread, alert(B, 2, "acknowledged"), START + HOUR)
    assert [entry.action for entry in thread.queue] == ["acknowledge"]


def test_raised_page_is_told_at_once_whatever_the_interval() -> None:
    thread, _ = sent(threads.planned(begun(), alert(A, level="ticket", severity="low"), START), START)
    thread = threads.planned(thread, alert(A, 2, "raised"), START + SECOND)
    entry = threads.head(thread, 0, START + SECOND)
    assert entry is not None
    assert (entry.reason, told(thread, entry).level) == ("raised", "page")


def test_what_is_on_its_way_is_not_lost_when_it_is_brought_up_to_date() -> None:
    thread = threads.planned(begun(), alert(A), START)
    under_way = thread.queue[0]
    thread = threads.planned(thread, alert(A, 2, "raised"), START)
    thread = threads.delivered(thread, under_way, START)
    assert [entry.alert.change for entry in thread.queue] == ["raised"]


changes = st.lists(
    st.tuples(
        st.sampled_from((A, B, C)),
        st.sampled_from(("opened", "raised", "updated", "acknowledged", "resolved", "reopened")),
    ),
    max_size=40,
)
outcomes = st.lists(st.sampled_from(("delivered", "failed", "refused", "later")), max_size=60)


@settings(max_examples=200, deadline=None)
@given(changes, outcomes, st.integers(0, 3))
def test_whatever_happens_order_and_ends_are_kept(steps: list[tuple[str, str]], results: list[str], pace: int) -> None:
    """Triggers and ends alternate, numbers grow, the queue is bounded, and no end is without a trigger."""
    thread, now, delivered = begun(repeat=0), START, []
    pending = iter(results)
    for number, (name, change) in enumerate(steps, 1):
        now += SECOND
        thread = threads.planned(thread, alert(name, number, change), now)
        assert len(thread.queue) <= QUEUE_MOST + 1
        for _ in range(pace):
            entry = threads.head(thread, 0, now + HOUR)
            outcome = next(pending, "delivered")
            if entry is None or outcome == "later":
                continue
            if outcome == "delivered":
                thread = threads.delivered(thread, entry, now)
                delivered.append(entry)
            elif outcome == "failed":
                thread = threads.failed(thread, now, SECOND)
            else:
                thread = threads.dropped(thread, entry)
        thread = msgspec.json.decode(msgspec.json.encode(thread), type=Thread)  # as Redis would have it
        if thread.over:
            thread = threads.begun(begun(repeat=0), now)
    for name in list(thread.members):
        thread = threads.planned(thread, alert(name, 99, "resolved"), now)
    while (entry := threads.head(thread, 0, now + HOUR)) is not None:
        thread = threads.delivered(thread, entry, now)
        delivered.append(entry)
    numbers = [entry.seq for entry in delivered]
    assert numbers == sorted(set(numbers))
    opened = False
    for entry in delivered:
        assert opened or entry.action == "trigger", "an end or an acknowledgement of what was never told"
        opened = entry.action != "resolve"
    assert thread.over
    assert not opened
