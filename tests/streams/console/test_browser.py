"""The console in Debian's Chromium: live without reload, five clicks to the end, nothing hostile runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from streams.console.tokens import make as make_token
from streams.incidents.service import IncidentService
from streams.store.messages import ReasonMessage
from tests.streams.console.conftest import visiting

pytestmark = pytest.mark.browser

Fixture = Any
Open = Callable[..., Page]
ACCESSIBILITY = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Open a page in a context of its own; anything that the browser complains of fails the test."""
    with visiting(browser) as (open_page, complaints):
        yield open_page
    assert complaints == []


def script_has_run(page: Page) -> None:
    """Wait until the page's script listens: what is typed or reloaded before is as without it."""
    expect(page.locator("#pulse")).to_have_class("pulse live")


def test_incident_appears_and_changes_without_reload(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    scene.worker()
    scene.traffic()
    page = visit(serve().url)
    expect(page.locator("#pulse")).to_have_class("pulse live")
    expect(page.locator("#incidents")).to_contain_text("Nothing has crossed a threshold")
    page.evaluate("window.notReloaded = true")
    name = scene.attack(page=False)
    row = page.locator(f"tr[data-key='{name}']")
    expect(row).to_contain_text("Possible query-based evasion")
    expect(page).to_have_title("digits · Vedette")
    scene.signal(rule="query-intent", level="page")
    scene.correlate()
    expect(row.locator(".badge.page")).to_have_text("page")
    expect(page).to_have_title("(1) digits · Vedette")
    expect(page.locator("#open_pages")).to_have_text("1")
    expect(page.locator("#incidents tr")).to_have_count(1)
    scene.probe()
    expect(page.locator("#probes")).to_contain_text("transfer pgd")
    IncidentService(redis, "digits").resolve(name, "ada", "false")
    expect(row).to_contain_text("resolved")
    expect(page).to_have_title("digits · Vedette")
    assert page.evaluate("window.notReloaded")


def test_words_without_an_end_fit_a_phone(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    scene.worker()
    name = scene.attack()
    desk = IncidentService(redis, "digits")
    desk.assign(name, "W" * 80, "M" * 80)
    desk.note(name, "W" * 80, "https://gateway.example/" + "x" * 470)
    page = visit(f"{serve().url}/incidents/{name}", viewport={"width": 360, "height": 740})
    expect(page.locator(".history")).to_contain_text("gateway.example")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_focus_survives_updates_of_the_list(scene: Fixture, serve: Fixture, visit: Open) -> None:
    scene.worker()
    first = scene.attack("11aa000000000001", page=False)
    page = visit(serve().url)
    expect(page.locator("#pulse")).to_have_class("pulse live")
    page.locator(f"tr[data-key='{first}'] a").focus()
    second = scene.attack("22aa000000000001")
    expect(page.locator(f"tr[data-key='{second}']")).to_be_visible()
    assert page.evaluate("document.activeElement.getAttribute('href')") == f"/incidents/{first}?model=digits"
    scene.signal("11aa000000000001")
    scene.correlate()
    expect(page.locator(f"tr[data-key='{first}'] td[data-name=signals]")).to_have_text("6")
    assert page.evaluate("document.activeElement.getAttribute('href')") == f"/incidents/{first}?model=digits"


def test_from_page_to_resolution_in_less_than_five_clicks(
    scene: Fixture, serve: Fixture, visit: Open, redis: Redis
) -> None:
    scene.worker()
    name = scene.attack()
    page = visit(serve().url)
    page.locator(f"tr[data-key='{name}'] a").click()  # 1
    expect(page.locator("h2", has_text="What made it a page")).to_be_visible()
    assert page.locator("img.pixels").first.evaluate("picture => picture.naturalWidth") == 8
    expect(page.locator("#queries svg.plane circle.kind-0").first).to_be_visible()
    page.locator("#by").fill("ada")
    page.locator("#acknowledge").click()  # 2
    expect(page.locator(".head")).to_contain_text("ada has it")
    page.locator("#resolve-true").click()  # 3
    expect(page.locator(".head")).to_contain_text("resolved: real attack")
    closed = IncidentService(redis, "digits").show(name).incident
    assert (closed.state, closed.verdict, closed.assignee) == ("resolved", "true", "ada")


def test_queries_that_do_not_come_are_said_to(scene: Fixture, serve: Fixture, browser: Browser) -> None:
    name = scene.attack()
    served = serve()
    with visiting(browser) as (open_page, complaints):
        page = open_page(served.url)
        page.route("**/queries?*", lambda route: route.fulfill(status=503, body="busy"))
        page.goto(f"{served.url}/incidents/{name}?model=digits")
        body = page.locator("#queries-body")
        expect(body).to_have_text("Read them from Kafka: they did not come; follow the link to try again")
        assert body.get_attribute("aria-busy") is None
        page.unroute("**/queries?*")
        body.locator("a").click()
        expect(page.locator("svg.plane circle").first).to_be_visible()
    assert complaints
    assert all("503" in one for one in complaints), complaints


def test_reloading_after_a_form_sends_it_no_second_time(scene: Fixture, serve: Fixture, visit: Open) -> None:
    name = scene.attack()
    served = serve()
    page = visit(f"{served.url}/incidents?state=all")
    page.locator("#by").fill("ada")
    page.locator(f"tr[data-key='{name}'] input[type=checkbox]").check()
    page.locator("#apply").click()
    expect(page.locator(".notice")).to_contain_text("1 incident: acknowledged")
    expect(page).to_have_url(f"{served.url}/incidents?model=digits&state=all")
    page.reload()
    expect(page.locator("#incidents")).to_contain_text("Query-based evasion")
    expect(page.locator(".notice")).to_have_count(0)


def test_note_assign_and_silence_from_the_page(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    name = scene.attack()
    desk = IncidentService(redis, "digits")
    served = serve()
    page = visit(f"{served.url}/incidents/{name}")
    page.locator("#by").fill("ada")
    page.locator("#note").fill("asked the <b>tenant</b>")
    page.locator("#add-note").click()
    expect(page.locator(".history")).to_contain_text("note: asked the <b>tenant</b>")
    page.get_by_text("Assign or silence").click()
    page.locator("#comment").fill("a load test")
    page.locator("#silence").click()
    (silence,) = desk.silences()
    assert (silence.matcher.client, silence.by, silence.comment) == ("3fa1b2c4d5e6f708", "ada", "a load test")
    scene.tend()
    page.goto(f"{served.url}/incidents/{name}")
    expect(page.locator(".head")).to_contain_text(f"Kept quiet by silence {silence.id}")
    page.locator(".head .notice a").click()
    expect(page.locator("tbody tr").first).to_contain_text("a load test")
    expect(page.locator("td[data-name=holds]")).to_have_text("1")
    page.get_by_role("button", name="End now").click()
    expect(page.locator("tbody tr").first).to_contain_text("ended")
    scene.tend()
    page.goto(f"{served.url}/incidents/{name}")
    expect(page.locator(".badge.state")).to_have_text("new")
    page.get_by_text("Assign or silence").click()
    page.locator("#to").fill("bob")
    page.locator("#assign").click()
    expect(page.locator(".head")).to_contain_text("bob has it")


def test_enter_in_the_name_field_never_resolves(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    name = scene.attack()
    desk = IncidentService(redis, "digits")
    page = visit(f"{serve().url}/incidents/{name}")
    page.locator("#by").fill("ada")
    page.locator("#by").press("Enter")
    expect(page.locator(".head")).to_contain_text("ada has it")
    page.locator("#by").press("Enter")
    page.reload()
    assert desk.show(name).incident.state == "in_progress"


def test_open_incident_page_follows_its_incident(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    name = scene.attack(page=False)
    page = visit(f"{serve().url}/incidents/{name}")
    expect(page.locator("#pulse")).to_have_class("pulse live")
    page.evaluate("window.notReloaded = true")
    page.locator("#note").fill("half a sentence")
    scene.signal(rule="query-intent", level="page")
    scene.correlate()
    expect(page.locator(".head .badge.page")).to_be_visible()
    expect(page.locator("h2", has_text="What made it a page")).to_be_visible()
    expect(page.locator("[data-live=signals] tbody tr")).to_have_count(6)
    expect(page.locator("#note")).to_have_value("half a sentence")
    IncidentService(redis, "digits").acknowledge(name, "bob")
    expect(page.locator("#changed")).to_be_visible()  # the form would lose what is being written
    expect(page.locator(".head")).to_contain_text("bob has it")
    assert page.evaluate("window.notReloaded")
    page.locator("#changed a").click()
    expect(page.locator("#acknowledge")).to_have_count(0)


def test_list_is_live_and_keeps_what_was_chosen(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    scene.worker()
    first = scene.attack("11aa000000000001", page=False)
    page = visit(serve().url + "/incidents?model=digits")
    expect(page.locator("#pulse")).to_have_class("pulse live")
    expect(page.locator("#apply")).to_be_disabled()
    box = page.locator(f"tr[data-key='{first}'] input")
    box.check()
    expect(page.locator("#chosen")).to_have_text("1 chosen")
    second = scene.attack("22aa000000000001")
    expect(page.locator(f"tr[data-key='{second}']")).to_be_visible()
    expect(page.locator("#count")).to_have_text("2 incidents")
    scene.signal("11aa000000000001")
    scene.correlate()
    expect(page.locator(f"tr[data-key='{first}'] td[data-name=signals]")).to_have_text("6")
    expect(box).to_be_checked()
    page.locator("#by").fill("ada")
    page.locator("#apply").click()
    expect(page.locator(".notice.good")).to_have_text("1 incident: acknowledged.")
    desk = IncidentService(redis, "digits")
    assert desk.show(first).incident.assignee == "ada"
    assert desk.show(second).incident.state == "new"


def test_list_by_keyboard_alone(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    names = [scene.attack(f"{place}{place}aa000000000001") for place in range(3)][::-1]
    page = visit(serve().url + "/incidents")
    expect(page.locator("#incidents tr")).to_have_count(3)
    for key in ("j", "j", "k", "j", "x"):
        page.keyboard.press(key)
    expect(page.locator(f"tr[data-key='{names[1]}'] input")).to_be_checked()
    page.keyboard.press("a")  # no name yet: the field takes the focus
    page.keyboard.type("ada")
    page.locator("body").click(position={"x": 5, "y": 300})
    page.keyboard.press("a")
    expect(page.locator(".notice.good")).to_be_visible()
    assert IncidentService(redis, "digits").show(names[1]).incident.assignee == "ada"
    page.wait_for_load_state()  # keys are heard from when the new page's script has run
    page.keyboard.press("/")
    page.keyboard.type("1111")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("0 incidents")
    page.goto(page.url.replace("1111", "11aa"))
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator(".head")).to_contain_text("ada has it")
    expect(page.locator("#pulse")).to_have_class("pulse live")  # the script is there
    page.keyboard.press("u")
    expect(page.locator("#incidents tr")).to_have_count(3)


def test_nothing_hostile_runs(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    scene.worker(HOSTILE, bundle=HOSTILE)
    served = serve()
    page = visit(served.url)
    scene.probe(HOSTILE, threat=HOSTILE)
    scene.signal(
        rule=HOSTILE,
        technique=HOSTILE,
        entity_id=HOSTILE,
        clients=[HOSTILE],
        reasons=[ReasonMessage(detector=HOSTILE, p=0.1, text=HOSTILE)],
        measures={HOSTILE: 1.0},
        bundle=HOSTILE,
    )
    (name,) = scene.correlate()
    IncidentService(redis, "digits").acknowledge(name, HOSTILE[:80])
    expect(page.locator(f"tr[data-key='{name}']")).to_contain_text("<img src=x onerror=")
    expect(page.locator("#probes")).to_contain_text("<img src=x onerror=")
    page.goto(f"{served.url}/incidents/{name}")
    expect(page.locator(".reasons")).to_contain_text(HOSTILE)
    assert "run" not in page.title().split(" · ")[-1]
    assert page.locator("img[src=x]").count() == 0


def test_lost_connection_is_told_and_mended(
    scene: Fixture, serve: Fixture, browser: Browser, wait_until: Callable[..., Any]
) -> None:
    scene.worker()
    served = serve()
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    expect(page.locator("#pulse")).to_have_class("pulse live")
    context.set_offline(True)
    for broadcast in served.console.broadcasts.values():
        served.loop.call_soon_threadsafe(lambda each=broadcast: [viewer.give(None) for viewer in each._viewers])
    expect(page.locator("#pulse")).to_have_class("pulse lost", timeout=10_000)
    context.set_offline(False)
    expect(page.locator("#pulse")).to_have_class("pulse live", timeout=20_000)
    context.close()


def test_times_are_local_and_say_utc_too(scene: Fixture, serve: Fixture, visit: Open) -> None:
    scene.worker()
    name = scene.attack()
    page = visit(serve().url)
    when = page.locator(f"tr[data-key='{name}'] time")
    expect(when).to_have_text(re.compile(r"^\d\d:\d\d:\d\d \(\d+ s ago\)$|^\d\d:\d\d:\d\d \(\d+ min ago\)$"))
    assert re.search(r"UTC\)$", when.get_attribute("title") or "")


def test_login_with_the_token(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    page = visit(serve(token="a token of more than sixteen characters").url)
    assert page.evaluate(ACCESSIBILITY) == []
    page.locator("#token").fill("a token of more than sixteen characters")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#incidents")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#token")).to_be_visible()


def test_note_outlives_the_end_of_a_login(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    name = scene.attack()
    token = "a token of more than sixteen characters"
    served = serve(token=token)
    page = visit(f"{served.url}/incidents/{name}?model=digits")

    def log_in() -> None:
        page.locator("#token").fill(token)
        page.get_by_role("button", name="Log in").click()
        script_has_run(page)

    log_in()
    # What stands in the history already, and as many characters as browsers let pass: each line's end is one of them.
    text = "opened as ticket\n" + "\n".join(["x" * 20] * 22) + "\nend "
    page.locator("#by").fill("ada")
    page.locator("#note").fill(text)
    page.context.clear_cookies()  # the login ends
    page.locator("#add-note").click()
    log_in()
    expect(page.locator("#note")).to_have_value(text)
    page.reload()
    script_has_run(page)
    expect(page.locator("#note")).to_have_value(text)
    page.locator("#by").fill("ada")
    page.locator("#add-note").click()
    expect(page.locator(".history")).to_contain_text("note: opened as ticket")
    expect(page).to_have_url(f"{served.url}/incidents/{name}?model=digits")
    page.reload()
    script_has_run(page)
    expect(page.locator("#note")).to_have_value("")
    page.locator("#note").fill("for nobody else")
    page.context.clear_cookies()
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    log_in()
    expect(page.locator("#incidents")).to_be_visible()
    changes = [change.what for change in IncidentService(redis, "digits").show(name).incident.history]
    assert changes.count(f"note: {text.strip()}") == 1


def test_note_is_shown_to_nobody_else(
    scene: Fixture, serve: Fixture, visit: Open, redis: Redis, tmp_path: Path
) -> None:
    name = scene.attack()
    file = tmp_path / "tokens"
    tokens = {who: make_token(file, who, "responder") for who in ("ada", "bob")}
    page = visit(f"{serve(tokens=file).url}/incidents/{name}?model=digits")

    def log_in(who: str) -> None:
        page.locator("#token").fill(tokens[who])
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#by")).to_have_value(who)
        script_has_run(page)

    log_in("ada")
    page.locator("#note").fill("mine")
    page.context.clear_cookies()
    page.reload()
    log_in("bob")
    expect(page.locator("#note")).to_have_value("")
    page.context.clear_cookies()
    page.reload()
    log_in("ada")
    expect(page.locator("#note")).to_have_value("mine")


def test_page_follows_its_incident_and_keeps_what_is_written(
    scene: Fixture, serve: Fixture, visit: Open, redis: Redis
) -> None:
    name = scene.attack()
    page = visit(f"{serve().url}/incidents/{name}")
    script_has_run(page)
    desk = IncidentService(redis, "digits")
    page.locator("#note").fill("asked the tenant")
    page.locator("h1").click()  # it has the focus no more
    desk.acknowledge(name, "bob")
    expect(page.locator("#acknowledge")).to_have_count(0)
    expect(page.locator("#note")).to_have_value("asked the tenant")
    page.evaluate("document.getElementById('note').dataset.same = 'yes'")
    desk.note(name, "bob", "it is known")
    expect(page.locator(".history")).to_contain_text("it is known")
    assert page.locator("#note").get_attribute("data-same") == "yes", "the form stays where the state does"


def test_script_works_where_the_browser_keeps_nothing(scene: Fixture, serve: Fixture, visit: Open) -> None:
    name = scene.attack()
    page = visit(serve().url)
    page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    page.goto(page.url.split("?")[0] + f"incidents/{name}")
    expect(page.locator("#queries svg.plane circle").first).to_be_visible()


def test_check_of_accessibility_finds_faults(scene: Fixture, serve: Fixture, visit: Open, redis: Redis) -> None:
    page = visit(serve().url)
    page.evaluate(
        """() => {
          const pale = document.createElement("p");
          pale.textContent = "hardly to be read";
          pale.style.color = "#ccc";
          const field = document.createElement("input");
          const picture = document.createElement("img");
          picture.src = "/static/vedette.svg";
          const heading = document.createElement("h4");
          heading.textContent = "too deep";
          document.querySelector("main").append(pale, field, picture, heading);
        }"""
    )
    found = page.evaluate(ACCESSIBILITY)
    starts = [sentence.split(":")[0].split(" 1.")[0] for sentence in found]
    assert starts == ["has no name", "has no text", "heading skips a level", "contrast"]
