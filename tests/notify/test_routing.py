from __future__ import annotations

from typing import Any

import pytest

from streams.config import DestinationSettings, NotifySettings, RouteSettings
from streams.errors import ConfigError
from streams.notify.routing import Routing
from tests.notify.conftest import alert, notify, to


def destination(name: str, kind: str, **changes: Any) -> DestinationSettings:
    return DestinationSettings(name=name, kind=kind, url="http://127.0.0.1:1", **changes)


PAGER, CHAT = destination("oncall", "pagerduty"), destination("chat", "slack")


def places(routes: list[RouteSettings], **changes: Any) -> dict[str, str]:
    routing = Routing.of(notify([PAGER, CHAT], [*routes, to("oncall", "chat", models=("nobody",))]))
    return {name: thread.key for name, thread in routing.places(alert("1" * 16, **changes)).items()}


@pytest.mark.parametrize(
    ("route", "fits"),
    [
        (to("oncall"), True),
        (to("oncall", severities=("critical",)), False),
        (to("oncall", severities=("high", "critical")), True),
        (to("oncall", models=("dig*",)), True),
        (to("oncall", models=("loans", "dig?ts")), True),
        (to("oncall", models=("loans",)), False),
        (to("oncall", techniques=("AML.T0043.*",)), True),
        (to("oncall", techniques=("AML.T0024*",)), False),
        (to("chat", levels=("ticket",)), False),
    ],
)
def test_routes_fit_by_severity_model_technique_and_level(route: RouteSettings, fits: bool) -> None:
    assert bool(places([route])) is fits


def test_every_route_that_fits_applies_and_the_first_one_of_a_destination_counts() -> None:
    assert places([to("oncall"), to("chat", group_by=("technique",)), to("chat", group_by=("incident",))]) == {
        "oncall": f"vedette/digits/{'1' * 16}",
        "chat": "vedette/digits/all,technique=AML.T0043.001",
    }


def test_group_keys_tell_groups_apart_and_are_bounded() -> None:
    by_model = places([to("chat", group_by=("model",))])["chat"]
    by_entity = places([to("chat", group_by=("technique", "entity"))])["chat"]
    long = places([to("chat", group_by=("technique",))], technique="T" * 500)["chat"]
    assert by_model == "vedette/digits/all"
    assert by_entity == "vedette/digits/all,entity=client,technique=AML.T0043.001"
    assert len(long) < 100
    assert long != places([to("chat", group_by=("technique",))], technique="U" * 500)["chat"]


def test_a_ticket_never_pages() -> None:
    assert places([to("oncall"), to("chat", levels=("page", "ticket"))], level="ticket", severity="low") == {
        "chat": f"vedette/digits/{'1' * 16}"
    }
    lenient = Routing.of(notify([PAGER], [to("oncall")]))
    forced = Routing(lenient.notifiers, (to("oncall", levels=("ticket", "page")),))
    assert forced.places(alert(level="ticket")) == {}, "whatever the settings say"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (notify([PAGER], [to("oncall", levels=("ticket",))]), r"notify\.routes\[0\]\.levels: a ticket never pages"),
        (
            notify([CHAT, PAGER], [to("chat"), to("oncal")]),
            r"notify\.routes\[1\]\.destinations: no destination 'oncal'",
        ),
        (notify([CHAT, PAGER], [to("chat")]), r"notify\.routes: no route leads to 'oncall'"),
        (notify([CHAT, CHAT], [to("chat")]), r"the name 'chat' is declared twice"),
        (notify([destination("x", "pager")], [to("x")]), r"notify\.destinations\.x\.kind: no such kind 'pager'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_path(settings: NotifySettings, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Routing.of(settings)


def test_tickets_may_go_to_what_calls_nobody() -> None:
    quiet = [destination("hook", "webhook", chat=True), destination("am", "alertmanager", chat=True), CHAT]
    Routing.of(notify(quiet, [to("hook", "am", "chat", levels=("ticket", "page"))]))
