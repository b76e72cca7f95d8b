"""What an agent asks: shown whole, answered with one tap, and in view wherever it is looked at."""

import pytest
from playwright.sync_api import Locator, Page, expect

from cloudagent_protocol.resources import ApprovalState
from e2e.page.conftest import NARROW, WIDE, Visitor
from e2e.page.scripted_backend import ScriptedBackend

RULE = "exactly the command `alembic upgrade head` in /src/api"
COMMAND = {"command": "alembic upgrade head \u202e--sql", "description": "Migrate"}


def in_view(page: Page, what: Locator) -> bool:
    box, size = what.bounding_box(), page.viewport_size
    assert box is not None
    assert size is not None
    fits = box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
    return fits and box["y"] >= 0 and box["y"] + box["height"] <= size["height"]


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_request_is_shown_whole_and_its_answers_are_in_view(
    visitor: Visitor, backend: ScriptedBackend, size: tuple[int, int]
) -> None:
    agent = backend.add_agent("api", backend.add_host("mbp"))
    conversation = backend.add_conversation(agent)
    for number in range(12):
        backend.say(conversation, f"message {number}", ago=100 - number)
    message = backend.say(conversation, "Bring the database up to date")
    page = visitor.window(size)
    page.goto(f"{backend.url}/a/api")
    card = page.get_by_role("region", name="api wants to use Bash")
    expect(page.get_by_text("Bring the database up to date")).to_be_visible()
    expect(card).to_have_count(0)
    files = {"/src/api/alembic": "9f86"}
    asked = backend.ask(
        message, tool="Bash", input=COMMAND, cwd="/src/api", rule=RULE, files=files, redacted=True
    )
    expect(card).to_contain_text("alembic upgrade head \\u{202e}--sql")
    expect(card).to_contain_text("with the file /src/api/alembic as it is now")
    expect(card).to_contain_text("Keys in it are shown as “…”.")
    expect(card).to_contain_text(f"allow {RULE}")
    for name in ("Allow once", "In this conversation", "Always", "Deny"):
        assert in_view(page, card.get_by_role("button", name=name)), name
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.get_by_role("link", name="1 request waits for you")).to_have_count(
        1 if size == NARROW else 0
    )

    card.get_by_role("button", name="Deny").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("not today")
    page.keyboard.press("Enter")
    expect(card).to_contain_text("ana denied it: not today · on its way to the machine")
    done = backend.approvals[asked.id]
    assert (done.decision, done.reason) == ("deny", "not today")
    backend.put_approval(done.model_copy(update={"state": ApprovalState.RESOLVED}))
    expect(card).to_have_count(0)


def test_what_waits_anywhere_is_in_one_list_and_the_first_answer_counts(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    first = backend.say(backend.add_conversation(backend.add_agent("api", host)), "go")
    second = backend.say(backend.add_conversation(backend.add_agent("docs", host)), "go")
    asked = backend.ask(first, tool="Bash", input={"command": "make"})
    backend.ask(second, question="Which port?", options=["8700", "8701"])
    page = visitor.window()
    page.goto(f"{backend.url}/a/api")
    page.get_by_role("link", name="Waiting for you 2").click()
    expect(page.get_by_role("region")).to_have_count(2)
    question = page.get_by_role("region", name="docs asks you")
    question.get_by_label("Your answer").fill("neither: 9000")
    question.get_by_role("button", name="Answer", exact=True).click()
    expect(question).to_contain_text("ana answered: neither: 9000 · on its way to the machine")
    assert [one.answer for one in backend.approvals.values()] == [None, "neither: 9000"]

    other = page.get_by_role("region", name="api wants to use Bash")
    expect(other.get_by_role("button", name="Always")).to_have_count(0)  # there is no rule
    # Somebody else was first, and this page has not heard of it.
    answer = {"state": ApprovalState.ANSWERED, "decided_by": "bo", "decision": "deny"}
    backend.approvals[asked.id] = asked.model_copy(update=answer)
    other.get_by_role("button", name="Allow once").click()
    expect(other).to_contain_text("bo denied it · on its way to the machine")
    page.reload()
    expect(other).to_contain_text("bo denied it")
    for one in list(backend.approvals.values()):
        backend.put_approval(one.model_copy(update={"state": ApprovalState.RESOLVED}))
    expect(page.get_by_text("Nothing waits for you.")).to_be_visible()
