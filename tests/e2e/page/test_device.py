"""Letting a machine in by its code: who asks is seen first, and nothing happens by a link alone."""

from playwright.sync_api import Page, expect

from cloudagent_protocol.device import DeviceState, KnownHost
from cloudagent_protocol.resources import HostState
from e2e.page.conftest import NARROW, WIDE, Visitor
from e2e.page.scripted_backend import LINK_KEY, PASSWORD, ScriptedBackend

CODE = "WDJB-MJHT"


def look(page: Page, backend: ScriptedBackend, typed: str = "wdjb mjht") -> None:
    page.goto(f"{backend.url}/device")
    page.get_by_label("The code on the machine's screen").fill(typed)
    page.get_by_role("button", name="Look who asks").click()


def test_a_typed_code_shows_who_asks_from_where_and_approves_under_a_name(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.ask_in()
    page = visitor.window()
    look(page, backend)
    who = page.get_by_role("form", name="Who asks")
    for told in ("mbp-ana.local", "macOS, daemon 0.3.0", "203.0.113.9", "s ago", CODE):
        expect(who).to_contain_text(told)
    expect(who).to_contain_text("the same address as yours")
    expect(page.get_by_role("note")).to_contain_text("A code that somebody sent")
    page.get_by_label("What do you call it?").fill("Ana's laptop")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", name="Ana's laptop is let in")).to_be_visible()
    assert backend.asking[CODE].state is DeviceState.APPROVED
    assert backend.asking[CODE].name == "Ana's laptop"

    expect(page.get_by_text("Waiting for Ana's laptop to fetch its key")).to_be_visible()
    host = backend.add_host("Ana's laptop", HostState.OFFLINE)
    expect(page.get_by_text("Ana's laptop has its key")).to_be_visible()
    backend.put_host(host.model_copy(update={"state": HostState.ONLINE}))
    expect(page.get_by_text("Ana's laptop is connected.")).to_be_visible()
    expect(page.get_by_role("link", name="Add an agent on Ana's laptop")).to_be_visible()


def test_a_link_fills_the_code_in_and_asks_for_a_look_at_the_screen(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.ask_in(your_address="198.51.100.7")
    page = visitor.window()
    page.goto(f"{backend.url}/device?code={CODE}")
    expect(page.get_by_label("The code on the machine's screen")).to_have_value(CODE)
    assert not [asked for asked in backend.asked if "device" in asked], "not by the link alone"
    page.get_by_role("button", name="Look who asks").click()
    expect(page.get_by_text("another address than yours (198.51.100.7)")).to_be_visible()
    approve = page.get_by_role("button", name="Approve")
    expect(approve).to_be_disabled()
    page.get_by_role("checkbox", name=f"{CODE} is on the screen in front of me").check()
    expect(approve).to_be_enabled()
    assert page.url == f"{backend.url}/device", "a reload does not ask again"
    approve.click()
    expect(page.get_by_role("heading", name="mbp-ana is let in")).to_be_visible()


def test_what_is_denied_is_told_with_where_it_came_from(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.ask_in()
    page = visitor.window()
    look(page, backend)
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("heading", name="Denied")).to_be_visible()
    expect(page.get_by_text("it asked from 203.0.113.9")).to_be_visible()
    assert backend.asking[CODE].state is DeviceState.DENIED


def test_a_machine_that_was_known_says_that_its_old_key_ends(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    backend.ask_in(host=KnownHost(id=host.id, name="mbp"), name="mbp")
    page = visitor.window()
    look(page, backend)
    expect(page.get_by_text("will be that machine again")).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("mbp is connected.")).to_be_visible()


def test_a_wrong_code_and_one_that_is_over_let_nobody_in(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    page = visitor.window()
    look(page, backend)
    expect(page.get_by_role("alert")).to_contain_text("No machine waits with this code.")
    asking = backend.ask_in()
    backend.asking[CODE] = asking.model_copy(update={"expires_at": asking.requested_at})
    look(page, backend)
    expect(page.get_by_text("its time is over")).to_be_visible()
    expect(page.get_by_role("button", name="Approve")).to_be_disabled()


def test_what_cannot_be_a_code_is_not_sent(visitor: Visitor, backend: ScriptedBackend) -> None:
    page = visitor.window()
    look(page, backend, "aeio-uaei")
    expect(page.get_by_label("The code on the machine's screen")).to_have_value("AEIO-UAEI")
    assert not [asked for asked in backend.asked if "device" in asked]


def test_who_is_not_signed_in_signs_in_and_is_where_they_wanted_to_be(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.ask_in()
    page = visitor.window(signed_in=False)
    page.goto(f"{backend.url}/device?code={CODE}")
    page.get_by_label("Email").fill(backend.user.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_label("The code on the machine's screen")).to_have_value(CODE)


def test_the_buttons_are_in_view_at_once(visitor: Visitor, backend: ScriptedBackend) -> None:
    for size in (WIDE, NARROW):
        backend.ask_in()
        page = visitor.window(size)
        look(page, backend)
        expect(page.get_by_role("form", name="Who asks")).to_be_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth") == size[0]
        if size == WIDE:
            expect(page.get_by_role("button", name="Approve")).to_be_in_viewport(ratio=1)


def test_connecting_begins_with_a_code(visitor: Visitor, backend: ScriptedBackend) -> None:
    page = visitor.window(signed_in=False)
    page.goto(f"{backend.url}/hosts/new?k={LINK_KEY}")
    expect(page.get_by_role("group", name="the log-in command")).to_have_text(
        f"uvx cloudagent-daemon login --server {backend.url}"
    )
    page.get_by_role("link", name="Enter the code").click()
    expect(page.get_by_label("The code on the machine's screen")).to_be_focused()
