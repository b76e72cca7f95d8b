"""What waits on the server can be changed; what was sent cannot, and says so."""

from playwright.sync_api import expect

from cloudagent_protocol.resources import DeliveryState, HostState, RungName
from e2e.page.conftest import NARROW, Visitor
from e2e.page.scripted_backend import ScriptedBackend


def test_what_waits_is_edited_moved_and_taken_back(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    agent = backend.add_agent("shop", backend.add_host("nas", HostState.OFFLINE))
    conversation = backend.add_conversation(agent)
    for text in ("one", "two", "three"):
        backend.say(conversation, text)
    page = visitor.window(NARROW)
    texts = page.locator(".own .typed")
    expect(texts).to_have_text(["one", "two", "three"])
    own = page.locator(".message.own")
    expect(own.first.get_by_role("button", name="Move up")).to_have_count(0)

    own.last.get_by_role("button", name="Move up").click()
    expect(texts).to_have_text(["one", "three", "two"])
    own.last.get_by_role("button", name="Edit").click()
    box = page.get_by_role("textbox", name="Change the message")
    expect(box).to_be_focused()
    box.fill("two and a half")
    page.keyboard.press("Enter")
    expect(texts).to_have_text(["one", "three", "two and a half"])
    own.first.get_by_role("button", name="Edit").click()
    box.fill("never mind")
    page.keyboard.press("Escape")
    own.first.get_by_role("button", name="Cancel").click()
    expect(own.filter(has_text="one").get_by_text("stopped")).to_be_visible()
    page.reload()
    expect(texts).to_have_text(["one", "three", "two and a half"])
    assert page.evaluate("() => document.documentElement.scrollWidth") == NARROW[0]


def test_a_machine_that_takes_a_message_while_it_is_edited_wins_and_nothing_typed_is_lost(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("nas", HostState.OFFLINE)
    conversation = backend.add_conversation(backend.add_agent("shop", host))
    message = backend.say(conversation, "as it was")
    page = visitor.window()
    page.get_by_role("button", name="Edit").click()
    box = page.get_by_role("textbox", name="Change the message")
    box.fill("better words")
    up = (RungName.SENT, RungName.RECEIVED, RungName.STARTED)
    backend.climb(message, *up, state=DeliveryState.RUNNING)
    expect(page.get_by_text("on nas · claude started")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("has been sent to its machine, as it was")
    expect(box).to_have_value("better words")
    page.get_by_role("button", name="Close").click()
    expect(page.locator(".own .typed")).to_have_text("as it was")
    expect(page.get_by_role("button", name="Edit")).to_have_count(0)


def test_where_nothing_can_be_put_into_a_turn_ctrl_enter_stops_what_runs_and_goes_first(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    agent = backend.add_agent("shop", backend.add_host("mbp"), driver="acp")
    backend.work(backend.say(backend.add_conversation(agent), "a long task"))
    page = visitor.window()
    expect(page.get_by_text("stops what runs and goes first")).to_be_visible()
    box = page.get_by_role("textbox", name="Message shop")
    box.fill("after it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop it and send")).to_have_count(0)
    box.fill("this first")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".own .typed").last).to_have_text("this first")
    expect(page.locator(".pending")).to_have_count(0)
    assert backend.modes == [None, "interrupt"]

    # What the machine has and has not begun is taken back, to be written anew.
    waiting = next(one for one in backend.messages.values() if one.text == "after it")
    backend.climb(waiting, RungName.SENT, RungName.RECEIVED, state=DeliveryState.RECEIVED)
    own = page.locator(".message.own").filter(has_text="after it")
    expect(own.get_by_text("waiting for its turn")).to_be_visible()
    box.fill("begun already")
    own.get_by_role("button", name="Edit").click()
    expect(box).to_have_value("begun already\n\nafter it")
    expect(box).to_be_focused()
    expect(own.get_by_text("stopped")).to_be_visible()
    expect(own.get_by_role("button", name="Edit")).to_have_count(0)


def test_what_is_told_in_the_middle_of_a_turn_is_shown_where_it_was_taken_up(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    conversation = backend.add_conversation(backend.add_agent("shop", backend.add_host("mbp")))
    work = backend.work(backend.say(conversation, "a long task"))
    page = visitor.window(NARROW)
    page.get_by_role("textbox", name="Message shop").fill("only the tests")
    page.get_by_role("button", name="Tell it now").click()
    expect(page.locator(".own .typed").last).to_have_text("only the tests")
    expect(page.locator(".pending")).to_have_count(0)
    assert backend.modes == ["steer"]
    taken = backend.message_in(conversation)
    where = {"delivery_id": taken.deliveries[0].id, "message_id": taken.id}
    work.event({"type": "steered", **where})
    expect(page.get_by_text("Took up “only the tests”")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == NARROW[0]
