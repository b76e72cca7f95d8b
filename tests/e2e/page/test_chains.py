"""Agents that message each other: what of it a person sees, and the word that it waits for."""

import re

from playwright.sync_api import expect

from cloudagent_protocol.resources import ChainState
from e2e.page.conftest import NARROW, Visitor
from e2e.page.scripted_backend import ScriptedBackend

WAIT = "Agents wait for your decision"


def test_a_paused_chain_asks_where_it_touches_and_takes_one_answer(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    shop, api = backend.add_agent("shop", host), backend.add_agent("api", host)
    backend.add_agent("docs", host)
    own = backend.add_conversation(shop)
    between = backend.add_exchange(shop, api)
    first = backend.say(own, "Agree with api on a name")
    asked = backend.tell_agent(between, first, "What about `basket`?")

    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    banner = page.get_by_role("region", name=WAIT)
    expect(page.get_by_role("textbox", name="Message shop")).to_be_visible()
    expect(banner).to_have_count(0)
    chain = backend.pause(first, asked)  # live, before our eyes
    expect(banner).to_contain_text("shop and api paused after 30 turns with each other")
    expect(banner).to_contain_text("1 message waits for your decision")
    rows = page.get_by_role("navigation", name="Agents").get_by_role("link")
    marked = rows.filter(has_text="waits for your decision")
    expect(marked).to_have_count(2)
    expect(marked.filter(has_text="docs")).to_have_count(0)

    page.get_by_role("link", name=re.compile("^With api")).click()
    expect(page.get_by_text("api: waits for your decision")).to_be_visible()
    expect(page.get_by_text("because of your message: “Agree with api on a name”")).to_be_visible()
    banner.get_by_role("link", name="“Agree with api on a name”").click()
    expect(page).to_have_url(f"{backend.url}/a/shop/m/{first.id}")

    page.reload()  # as it stands, not as it happened
    banner.get_by_role("button", name="Continue").click()
    expect(banner).to_have_count(0)
    expect(marked).to_have_count(0)
    assert backend.chains[chain.id].state is ChainState.ACTIVE

    # Somebody else was first, and this page has not heard of it.
    backend.put_chain(chain)
    backend.chains[chain.id] = chain.model_copy(update={"state": ChainState.STOPPED})
    banner.get_by_role("button", name="Stop them").click()
    expect(banner.get_by_role("alert")).to_contain_text("bo has answered already: stop.")


def test_an_answer_of_another_agent_stands_in_the_thread_of_who_asked(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    shop, api = backend.add_agent("shop", host), backend.add_agent("api", host)
    own = backend.add_conversation(shop)
    between = backend.add_exchange(shop, api)
    first = backend.say(own, "What does it return?", ago=60)
    asked = backend.tell_agent(between, first, "What do you return?")
    page = visitor.window(NARROW)
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("What does it return?")).to_be_visible()
    answered = backend.tell_agent(between, asked, "It returns 42.", place=own)
    work = backend.work(answered)
    work.reply("api says 42.", caused_by=answered.id, depth=3)
    work.finish()
    for _ in ("as it happens", "after a reload"):
        texts = page.locator(".message .markdown")
        expect(texts).to_have_text(["It returns 42.", "api says 42."])
        expect(page.get_by_text("because of what api said")).to_be_visible()
        page.reload()
    page.get_by_role("link", name="in their conversation").click()
    expect(page).to_have_url(f"{backend.url}/a/api/m/{answered.id}")
    expect(page.locator(".message .markdown")).to_have_text(
        ["What do you return?", "It returns 42."]
    )
    expect(page.get_by_text("What you write here goes to api.")).to_be_visible()


def test_a_machine_that_is_here_for_a_job_gets_no_agents_of_its_own(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    job = backend.add_host("ci-4f1c").model_copy(update={"parent_id": host.id})
    backend.put_host(job)
    page = visitor.window()
    page.goto(f"{backend.url}/hosts")
    card = page.get_by_role("region", name="ci-4f1c")
    expect(card).to_contain_text("Here for one job: it runs agents of mbp")
    expect(card.get_by_role("link", name="Add an agent")).to_have_count(0)
    expect(card.get_by_role("button", name="New key")).to_have_count(0)
    expect(page.get_by_role("region", name="mbp").get_by_role("link")).to_have_count(1)
    page.goto(f"{backend.url}/agents/new?host={job.id}")
    expect(page.get_by_label("Folder on mbp")).to_be_visible()
    expect(page.get_by_label("Machine").locator("option")).to_have_text(["mbp"])
