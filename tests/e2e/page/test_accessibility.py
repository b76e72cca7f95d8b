"""axe-core finds nothing in any view, at both sizes, light and dark."""

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cloudagent_protocol.device import KnownHost
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.resources import DeliveryState, Hold, HostState, RungName
from e2e.page.conftest import NARROW, SOURCES, WIDE, Visitor
from e2e.page.scripted_backend import ScriptedBackend

REPLY = """## What I found

`total()` adds the **tax twice**, see [the docs](https://example.com).

1. first
2. second

> a quote

```python
print("a line that is long enough to be scrolled on a narrow screen, which needs the keyboard")
```

| a | b |
|---|--:|
| 1 | 2 |
"""


def check(page: Page, view: str) -> list[str]:
    page.evaluate(Path(SOURCES, "node_modules", "axe-core", "axe.min.js").read_text("utf-8"))
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{view}: {violation['id']} {node['html'][:160]} {node['failureSummary'][:300]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def furnish(backend: ScriptedBackend) -> None:
    mbp = backend.add_host("mbp")
    shop = backend.add_conversation(backend.add_agent("shop", mbp))
    work = backend.work(backend.say(shop, "Why is the total wrong?", ago=60), ago=50)
    work.result(work.call("Bash", {"command": "pytest -q"}), "1 failed", is_error=True)
    work.reply(REPLY)
    work.finish()
    api = backend.add_conversation(backend.add_agent("api", mbp), title="Dependencies")
    failing = backend.work(backend.say(api, "Bump them."))
    failing.finish(Outcome.FAILED, Reason.CRASHED, "It ended with 1.", "Traceback: boom", 1)
    docs = backend.add_conversation(
        backend.add_agent("docs", backend.add_host("nas", HostState.OFFLINE))
    )
    backend.say(docs, "Write a page.")
    lost = backend.say(api, "Bump them once more.")
    rungs = (RungName.SENT, RungName.RECEIVED, RungName.DEAD)
    backend.climb(lost, *rungs, state=DeliveryState.DEAD, outcome="dead", reason="crashed")
    agents = list(backend.agents.values())
    between = backend.add_exchange(agents[0], agents[1])
    first = backend.say(shop, "Agree on a name.", ago=90)
    backend.work(first, ago=80).finish(Outcome.SILENT)
    backend.pause(first, backend.tell_agent(between, first, "What about `basket`?"))
    holds = [
        Hold(reason="memory_low", detail="180 MB of memory left; 256 MB are kept free."),
        Hold(reason="crash_loop", detail="3 crashes in 2 min.", agent_id=agents[1].id),
    ]
    backend.put_host(mbp.model_copy(update={"holds": holds}))
    job = backend.add_host("ci-4f1c")
    backend.put_host(job.model_copy(update={"parent_id": mbp.id}))


def exchange(backend: ScriptedBackend) -> str:
    return next(one.id for one in backend.conversations.values() if one.kind == "agents")


#: Each width and each scheme once; `AXE=all` looks at the other two as well.
MORE = [(WIDE, True, "wide-dark"), (NARROW, False, "narrow-light")]
LOOKS = [
    *((WIDE, False, "wide-light"), (NARROW, True, "narrow-dark")),
    *(MORE if os.environ.get("AXE") == "all" else ()),
]


@pytest.mark.parametrize(("size", "dark"), [pytest.param(*look[:2], id=look[2]) for look in LOOKS])
def test_axe_finds_no_violation_in_any_view(
    visitor: Visitor, backend: ScriptedBackend, size: tuple[int, int], dark: bool
) -> None:
    found: list[str] = []
    page = visitor.window(size, dark=dark, signed_in=False)
    page.goto(backend.url)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    found += check(page, "sign in")
    page.goto(f"{backend.url}/setup?k=set-up-key")
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    found += check(page, "set up")
    page.goto(f"{backend.url}/?k=one-time-key")
    expect(page.get_by_role("link", name="Connect a machine")).to_be_visible()
    found += check(page, "welcome")

    furnish(backend)
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_role("heading", name="What I found")).to_be_visible()
    page.get_by_role("button", name="Worked for").last.click()
    page.get_by_role("button", name="Bash").click()
    page.locator(".ladder-words").last.click()
    found += check(page, "conversation")
    work = backend.work(backend.say(next(iter(backend.conversations.values())), "And now?"))
    work.call("Bash", {"command": "sleep 10"})
    work.write("I am **looking**")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    expect(page.locator(".pill")).to_be_visible()
    found += check(page, "working")

    for path, sign in (
        ("/a/api", "The program crashed"),
        (f"/a/api/c/{exchange(backend)}", "api: waits for your decision"),
        ("/a/docs", "will be delivered"),
        ("/a/shop/new", "Say something to shop"),
        ("/a/shop/settings", "Instructions"),
        ("/agents/new", "What does the thinking"),
        ("/hosts", "Runtimes"),
        ("/hosts/new", "Enter the code"),
        ("/device", "The code on the machine's screen"),
        ("/nothing", "There is nothing at this address."),
    ):
        page.goto(backend.url + path)
        expect(page.get_by_text(sign).first).to_be_visible()
        found += check(page, path)
    known = next(iter(backend.hosts.values()))
    backend.ask_in(host=KnownHost(id=known.id, name=known.name))
    page.goto(f"{backend.url}/device?code=WDJB-MJHT")
    page.get_by_role("button", name="Look who asks").click()
    expect(page.get_by_text("Did you start this yourself?")).to_be_visible()
    found += check(page, "who asks")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", name="mbp-ana is let in")).to_be_visible()
    found += check(page, "let in")
    backend.ask_in("BCDF-GHJK", your_address="198.51.100.7")
    page.goto(f"{backend.url}/device")
    page.get_by_label("The code").fill("bcdfghjk")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("heading", name="Denied")).to_be_visible()
    found += check(page, "denied")
    page.goto(f"{backend.url}/hosts/new")
    page.get_by_role("button", name="With a key").click()
    found += check(page, "with a key")
    page.get_by_label("What do you call it?").fill("lab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Waiting for lab")).to_be_visible()
    found += check(page, "pairing")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("dialog")).to_be_visible()
    found += check(page, "switcher")
    page.keyboard.press("Escape")
    page.goto(f"{backend.url}/a/docs")
    page.get_by_role("button", name="Edit").click()
    found += check(page, "editing")
    page.goto(f"{backend.url}/hosts")
    page.get_by_role("button", name="Remove…").first.click()
    found += check(page, "question")
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Restart…").first.click()
    found += check(page, "question of a restart")
    page.get_by_role("button", name="Not now").click()
    page.get_by_role("button", name="New key…").first.click()
    found += check(page, "question of a new key")
    page.get_by_role("button", name="Make a new key").click()
    expect(page.get_by_role("heading", name="The new key")).to_be_visible()
    found += check(page, "new key")
    if size == NARROW:
        page.goto(f"{backend.url}/a/shop")
        page.get_by_role("button", name="Show agents").click()
        page.wait_for_timeout(300)  # the list slides in; half-way its colours are mixed
        found += check(page, "agents")
    assert found == []
