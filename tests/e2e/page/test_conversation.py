"""A conversation in the browser: what streams, what fails, what is sent while the network is away."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.resources import Conversation, DeliveryState, HostState, RungName
from e2e.page.conftest import NARROW, WIDE, Visitor
from e2e.page.scripted_backend import ScriptedBackend

WORDS = [f"word{n:03} 🙂 " for n in range(120)]


def a_conversation(backend: ScriptedBackend, text: str = "Please look.") -> Conversation:
    agent = backend.add_agent("shop", backend.add_host("mbp"))
    conversation = backend.add_conversation(agent)
    backend.say(conversation, text)
    return conversation


def log(page: Page) -> Locator:
    return page.get_by_role("log")


def scroll_top(page: Page) -> float:
    return log(page).evaluate("log => log.scrollTop")


def test_a_streamed_answer_arrives_whole_across_cuts_and_a_reload(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    conversation = a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    work = backend.work(backend.message_in(conversation))
    for n, word in enumerate(WORDS):
        work.write(word)
        if n in {20, 50}:
            expect(log(page)).to_contain_text(f"word{n:03}")
            backend.cut()
        if n == 80:
            page.reload()
    expect(log(page)).to_contain_text("word119")
    shown = re.findall(r"word\d{3}", log(page).inner_text())
    assert shown == [word.split()[0] for word in WORDS]

    text = work.end_block()
    work.reply(text, auto=True)
    work.finish(Outcome.AUTO_PUBLISHED)
    expect(page.get_by_text("Worked for")).to_be_visible()
    expect(page.get_by_text("on mbp · claude started · replied")).to_be_visible()
    assert re.findall(r"word\d{3}", log(page).inner_text()) == shown


def test_a_line_that_is_silent_is_opened_again(visitor: Visitor, backend: ScriptedBackend) -> None:
    conversation = a_conversation(backend)
    page = visitor.window(signed_in=False)
    page.clock.install()
    page.goto(f"{backend.url}/a/shop?k=one-time-key")
    expect(page.get_by_text("Please look.", exact=True)).to_be_visible()
    backend.stall()
    work = backend.work(backend.message_in(conversation))
    work.write("said while the line was dead")
    page.clock.fast_forward(25_000)
    assert log(page).get_by_text("said while the line was dead").count() == 0
    page.clock.fast_forward(2_000)
    page.clock.run_for(2_000)
    expect(log(page)).to_contain_text("said while the line was dead")


def test_what_is_no_longer_kept_is_fetched_anew(visitor: Visitor, backend: ScriptedBackend) -> None:
    conversation = a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("Please look.", exact=True)).to_be_visible()
    backend.down = True
    backend.cut()
    expect(page.get_by_text("Reconnecting")).to_be_visible()
    work = backend.work(backend.message_in(conversation))
    work.reply("An answer that the log has forgotten.")
    work.finish()
    backend.log.trimmed = backend.log.cursor
    backend.down = False
    expect(page.get_by_text("An answer that the log has forgotten.")).to_be_visible()
    expect(page.get_by_text("on mbp · claude started · replied")).to_be_visible()


def test_reading_above_is_not_disturbed_by_what_is_written_below(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    conversation = a_conversation(backend, "line\n" * 80)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    work = backend.work(backend.message_in(conversation))
    work.write("The beginning.\n\n")
    expect(page.get_by_text("The beginning.")).to_be_in_viewport()

    log(page).evaluate("log => { log.scrollTop = 300; }")
    expect(page.get_by_role("button", name="latest")).to_be_visible()
    for n in range(40):
        work.write(f"Paragraph {n}.\n\n")
    pill = page.get_by_role("button", name="new", exact=True)
    expect(pill).to_be_visible()
    expect(page.get_by_text("Paragraph 39.")).to_be_attached()
    assert scroll_top(page) == 300

    pill.click()
    expect(page.get_by_text("Paragraph 39.")).to_be_in_viewport()
    work.write("Followed again.")
    expect(page.get_by_text("Followed again.")).to_be_in_viewport()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_stop_is_in_view_while_an_agent_works(
    visitor: Visitor, backend: ScriptedBackend, size: tuple[int, int]
) -> None:
    conversation = a_conversation(backend, "long\n" * 100)
    page = visitor.window(size)
    page.goto(f"{backend.url}/a/shop")
    work = backend.work(backend.message_in(conversation))
    work.write("text\n\n" * 100)
    stop = page.get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_in_viewport(ratio=1)
    log(page).evaluate("log => { log.scrollTop = 0; }")
    expect(stop).to_be_in_viewport(ratio=1)
    box = stop.bounding_box()
    assert box is not None
    assert box["height"] >= 44

    with page.expect_request(f"**/v1/runs/{work.run.id}/interrupt"):
        stop.click()
    expect(page.get_by_text("Stopping…")).to_be_visible()
    # It does not heed that.
    now = page.get_by_role("button", name="Stop now")
    with page.expect_request(f"**/v1/runs/{work.run.id}/interrupt") as asked:
        now.click()
    assert asked.value.post_data_json == {"now": True}
    expect(now).to_be_focused()
    work.finish(Outcome.CANCELLED, Reason.INTERRUPTED)
    expect(now).to_be_hidden()
    expect(page.get_by_text("Stopped after")).to_be_visible()


def test_escape_stops(visitor: Visitor, backend: ScriptedBackend) -> None:
    conversation = a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    work = backend.work(backend.message_in(conversation))
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    with page.expect_request(f"**/v1/runs/{work.run.id}/interrupt"):
        page.keyboard.press("Escape")
    expect(page.get_by_text("Stopping…")).to_be_visible()


def test_a_failure_says_why_with_the_programs_last_words(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    conversation = a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    work = backend.work(backend.message_in(conversation))
    work.finish(
        Outcome.FAILED,
        Reason.AUTHENTICATION,
        "Sign in on mbp: run claude there.",
        "\x1b[31mError: 401 invalid x-api-key\x1b[0m",
        exit_code=1,
    )
    for _ in ("as it happens", "after a reload"):
        card = page.locator(".failed-run")
        expect(card).to_contain_text("Not signed in to its model")
        expect(card).to_contain_text("Sign in on mbp: run claude there.")
        expect(card).to_contain_text("Error: 401 invalid x-api-key")
        expect(card).to_contain_text("exit 1")
        assert "\x1b" not in card.inner_text()
        expect(page.get_by_text("failed: not signed in to its model")).to_be_visible()
        page.reload()


def test_a_tool_is_a_card_that_opens(visitor: Visitor, backend: ScriptedBackend) -> None:
    conversation = a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    work = backend.work(backend.message_in(conversation))
    call = work.call("Bash", {"command": "pytest -q"})
    card = page.get_by_role("button", name=re.compile(r"Bash\s*pytest -q"))
    expect(card).to_have_attribute("aria-expanded", "false")
    work.result(call, "3 passed")
    card.click()
    expect(page.get_by_role("group", name="Output")).to_have_text("3 passed")


def test_a_machine_that_is_away_is_named_and_its_message_can_be_taken_back(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    agent = backend.add_agent("docs", backend.add_host("nas", HostState.OFFLINE))
    backend.say(backend.add_conversation(agent), "When you are back.")
    page = visitor.window()
    page.goto(f"{backend.url}/a/docs")
    expect(
        page.get_by_text(re.compile("nas is offline since .*, will be delivered"))
    ).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("stopped", exact=False).first).to_be_visible()


def test_a_ladder_opens_into_its_rungs(visitor: Visitor, backend: ScriptedBackend) -> None:
    conversation = a_conversation(backend)
    message = backend.message_in(conversation)
    backend.climb(message, RungName.SENT, RungName.RECEIVED, state=DeliveryState.RECEIVED)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    page.get_by_role("button", name="on mbp · waiting for its turn").click()
    rungs = page.get_by_role("list", name="Where this message has been")
    expect(rungs.get_by_role("listitem")).to_have_count(3)
    expect(rungs).to_contain_text("sent to mbp")
    expect(rungs).to_contain_text("safe on the machine · mbp")


def test_what_is_written_without_a_network_is_kept_and_goes_out_once(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    conversation = a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("Please look.", exact=True)).to_be_visible()
    backend.down = True
    backend.cut()
    expect(page.get_by_text("Reconnecting")).to_be_visible()
    page.get_by_role("textbox", name="Message shop").fill("written in a tunnel")
    page.keyboard.press("Enter")
    expect(page.get_by_text("no connection · kept here")).to_be_visible()
    backend.down = False
    expect(page.get_by_text("stored · queued").nth(1)).to_be_visible()
    assert page.get_by_text("written in a tunnel").count() == 1
    stored = [m for m in backend.messages.values() if m.text == "written in a tunnel"]
    assert [m.conversation_id for m in stored] == [conversation.id]


def test_an_answer_that_is_lost_on_the_way_does_not_double_the_message(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    backend.lose_answers = 1
    page.get_by_role("textbox", name="Message shop").fill("only once")
    page.keyboard.press("Enter")
    expect(page.get_by_text("only once")).to_be_visible()
    expect(page.locator(".pending")).to_have_count(0)
    page.wait_for_function("() => !Object.keys(localStorage).some(k => k.includes('.out.'))")
    assert [m.text for m in backend.messages.values()].count("only once") == 1
    expect(page.locator(".typed", has_text="only once")).to_have_count(1)


def test_what_could_not_be_sent_survives_a_reload(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("Please look.", exact=True)).to_be_visible()
    page.route("**/v1/conversations/*/messages", lambda route: route.abort())
    page.get_by_role("textbox", name="Message shop").fill("for later")
    page.keyboard.press("Enter")
    expect(page.get_by_text("no connection · kept here")).to_be_visible()
    page.unroute_all()
    page.reload()
    expect(page.get_by_text("stored · queued").nth(1)).to_be_visible()
    assert [m.text for m in backend.messages.values()].count("for later") == 1


def test_a_refusal_is_shown_at_the_message_with_the_way_out(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    page.get_by_role("textbox", name="Message shop").fill("refuse me")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("mbp has 100,000 messages waiting. Start its daemon.")
    alert.get_by_role("button", name="Discard").click()
    expect(alert).to_be_hidden()


def test_a_draft_survives_a_reload(visitor: Visitor, backend: ScriptedBackend) -> None:
    a_conversation(backend)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    box = page.get_by_role("textbox", name="Message shop")
    box.fill("half a thou")
    page.reload()
    expect(box).to_have_value("half a thou")


def test_the_first_message_makes_a_conversation(visitor: Visitor, backend: ScriptedBackend) -> None:
    backend.add_agent("shop", backend.add_host("mbp"))
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_role("heading", name="Say something to shop")).to_be_visible()
    page.get_by_role("textbox", name="Message shop").fill("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_text("stored · queued")).to_be_visible()
    assert len(backend.conversations) == 1


def test_earlier_messages_are_fetched_when_asked_for(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    agent = backend.add_agent("shop", backend.add_host("mbp"))
    conversation = backend.add_conversation(agent)
    for n in range(70):
        backend.say(conversation, f"message number {n}.", ago=1000 - n)
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("message number 69.")).to_be_in_viewport()
    assert page.get_by_text("message number 19.").count() == 0
    page.get_by_role("button", name="Show earlier messages").click()
    expect(page.get_by_text("message number 0.", exact=True)).to_be_attached()
    assert page.locator(".typed").count() == 70


def test_a_link_to_a_message_opens_there(visitor: Visitor, backend: ScriptedBackend) -> None:
    agent = backend.add_agent("shop", backend.add_host("mbp"))
    first = backend.add_conversation(agent)
    wanted = backend.say(first, "the one that is meant", ago=500)
    for n in range(30):
        backend.say(first, f"later {n}", ago=400 - n)
    backend.say(backend.add_conversation(agent), "another conversation")
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop/m/{wanted.id}")
    expect(page.get_by_text("the one that is meant", exact=True)).to_be_in_viewport()
    expect(page).to_have_title("shop · cloudagent")
