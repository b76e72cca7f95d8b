"""What a person asks of a machine at its card: look again, restart; and what it says of its agents."""

from datetime import UTC, datetime, timedelta

from playwright.sync_api import expect

from cloudagent_protocol.resources import Hold, HostState
from e2e.page.conftest import NARROW, Visitor
from e2e.page.scripted_backend import ScriptedBackend


def test_a_machine_looks_again_restarts_after_a_question_and_says_that_it_is_away(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    page = visitor.window()
    page.goto(f"{backend.url}/hosts")
    card = page.get_by_role("region", name="mbp")
    card.get_by_role("button", name="Look again").click()
    expect(card.get_by_role("status")).to_have_text("Found Claude Code 2.1.197, Codex 0.61.0.")
    expect(card.get_by_text("Codex 0.61.0", exact=True)).to_be_visible()

    card.get_by_role("button", name="Restart…").click()
    page.get_by_role("button", name="Not now").click()
    assert backend.ordered == [("rescan", "mbp")]
    card.get_by_role("button", name="Restart…").click()
    dialog = page.get_by_role("dialog", name="Restart the daemon on mbp?")
    expect(dialog).to_contain_text("resumed by itself after the restart")
    dialog.get_by_role("button", name="Restart").click()
    expect(card.get_by_role("status")).to_contain_text("mbp restarts as soon as")
    expect(card.get_by_text("shutting down")).to_be_visible()
    assert backend.ordered[1:] == [("restart", "mbp")]

    backend.put_host(host.model_copy(update={"state": HostState.OFFLINE}))
    card.get_by_role("button", name="Look again").click()
    expect(card.get_by_role("alert")).to_contain_text(
        "mbp is offline, so its daemon cannot be asked."
    )
    expect(card.get_by_role("alert")).to_contain_text("cloudagent-daemon start")
    expect(card.get_by_text("Looking for")).to_have_count(0)


def test_a_phone_shows_whole_why_an_agent_does_not_begin_and_until_when(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("build-server-02")
    agent = backend.add_agent("shop", host)
    until = datetime.now(UTC) + timedelta(hours=30)
    limit = Hold(reason="rate_limit", detail="Refused.", agent_id=agent.id, until=until)
    backend.put_host(host.model_copy(update={"holds": [limit]}))
    page = visitor.window(NARROW)
    page.goto(f"{backend.url}/a/shop")
    said = page.locator(".title-text p")
    expect(said).to_contain_text("build-server-02: rate limit, resumes ")
    assert said.evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight")
    assert page.evaluate("() => document.documentElement.scrollWidth") == NARROW[0]
