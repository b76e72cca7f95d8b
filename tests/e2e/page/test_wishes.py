"""The next message's model and permissions are chosen beside the composer, and told of afterwards."""

from playwright.sync_api import expect

from cloudagent_protocol.resources import Runtime
from e2e.page.conftest import NARROW, Visitor
from e2e.page.scripted_backend import ScriptedBackend
from e2e.page.test_accessibility import check


def test_a_message_gets_what_was_chosen_for_its_conversation_and_says_so(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    claude = Runtime(name="claude_code", version="2.1.197", models=["opus", "haiku"])
    agent = backend.add_agent("shop", backend.add_host("mbp", runtimes=[claude]), model="opus")
    other = backend.add_conversation(agent, title="Before")
    backend.say(other, "hello", ago=60)
    conversation = backend.add_conversation(agent)
    backend.say(conversation, "as ever")
    page = visitor.window(NARROW)
    page.goto(f"{backend.url}/a/shop/c/{conversation.id}")
    box = page.get_by_role("textbox", name="Message shop")
    wishes = page.get_by_role("group", name="For the next message")
    model = wishes.get_by_role("combobox", name="Model for the next message")
    allowed = wishes.get_by_role("combobox", name="Permissions for the next message")
    own = page.locator(".message.own")
    expect(wishes).to_contain_text("opus")
    expect(wishes.get_by_role("button")).to_have_count(0)
    expect(model.locator("option")).to_have_text(["The agent's own: opus", "haiku", "Another…"])
    expect(allowed.locator("option")).to_have_count(2)

    # As with the keys alone: on from where one writes, and through the lists.
    box.press("Tab")
    model.press("ArrowDown")
    model.press("Tab")
    allowed.press("p")
    expect(model).to_have_value("haiku")
    expect(allowed).to_have_value("plan")
    assert check(page, "wishes") == []
    page.reload()
    expect(wishes).to_contain_text("haiku")
    box.fill("think first")
    box.press("Enter")
    expect(own.last).to_contain_text("haiku, plan only · stored")
    message = backend.message_in(conversation)
    assert (message.model, message.permission_mode) == ("haiku", "plan")
    work = backend.work(message)
    expect(
        page.get_by_text("Asked for haiku, plan only · ran with claude-opus-4-8")
    ).to_be_visible()
    work.finish()

    model.select_option(label="Another…")
    name = page.get_by_role("textbox", name="Name of the model")
    expect(name).to_be_focused()
    name.fill("two words")
    name.press("Enter")
    expect(name).to_be_visible()
    name.fill("sonnet-9")
    name.press("Enter")
    expect(model).to_have_value("sonnet-9")
    page.goto(f"{backend.url}/a/shop/c/{other.id}")
    expect(page.get_by_text("hello")).to_be_visible()
    expect(model).to_have_value("")
    page.go_back()
    expect(model).to_have_value("sonnet-9")
    wishes.get_by_role("button", name="Back to the agent's own").click()
    expect(model).to_have_value("")
    box.fill("as ever again")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(own.last).to_contain_text("as ever again")
    expect(page.locator(".pending")).to_have_count(0)
    message = backend.message_in(conversation)
    assert (message.model, message.permission_mode) == (None, None)
    assert page.evaluate("() => document.documentElement.scrollWidth") == NARROW[0]
