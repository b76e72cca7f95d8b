"""Signing in and out, the first steps, and the keyboard."""

import re

from playwright.sync_api import expect

from cloudagent_protocol.resources import HostState, Runtime
from e2e.page.conftest import NARROW, Visitor
from e2e.page.scripted_backend import LINK_KEY, MACHINE_KEY, PASSWORD, SETUP_KEY, ScriptedBackend


def test_a_one_time_link_signs_in_and_leaves_the_address(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.add_agent("shop", backend.add_host("mbp"))
    page = visitor.window(signed_in=False)
    page.goto(f"{backend.url}/a/shop?k={LINK_KEY}")
    expect(page.get_by_role("heading", name="shop", exact=True)).to_be_visible()
    assert page.url == f"{backend.url}/a/shop"
    assert page.evaluate("() => Object.values(localStorage).join()") == ""


def test_a_used_link_says_so_and_a_password_works(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    page = visitor.window(signed_in=False)
    page.goto(f"{backend.url}/?k=used")
    expect(page.get_by_role("alert")).to_contain_text("Start cloudagent up again, or sign in.")
    expect(page.get_by_role("alert").locator("code")).to_have_text("cloudagent up")
    page.get_by_label("Email").fill(backend.user.email)
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This does not open anything.")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_first_person_sets_the_server_up(visitor: Visitor, backend: ScriptedBackend) -> None:
    page = visitor.window(signed_in=False)
    page.goto(f"{backend.url}/setup?k={SETUP_KEY}")
    page.get_by_label("Email").fill("first@example.com")
    page.get_by_label("Password").fill("a few words in a row")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="Connect a machine")).to_be_visible()
    assert page.url == f"{backend.url}/"


def test_a_session_that_ends_leads_to_the_sign_in(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    page = visitor.window()
    expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    page.context.clear_cookies()
    backend.cut()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_from_nothing_to_the_first_conversation(visitor: Visitor, backend: ScriptedBackend) -> None:
    page = visitor.window()
    page.get_by_role("link", name="Connect a machine").click()
    page.get_by_role("button", name="With a key").click()
    page.get_by_label("What do you call it?").fill("mbp")
    page.get_by_role("button", name="Make a key").click()
    login = page.get_by_role("group", name="the log-in command")
    expect(login).to_have_text(
        f"uvx cloudagent-daemon login --server {backend.url} --api-key-file -"
    )
    expect(page.get_by_role("group", name="Machine key")).to_have_text(MACHINE_KEY)
    page.get_by_role("button", name="Copy: the machine key").click()
    assert page.evaluate("() => navigator.clipboard.readText()") == MACHINE_KEY
    page.get_by_role("button", name="Just try it").click()
    expect(page.get_by_role("group", name="the one-shot command")).to_have_text(
        f"uvx cloudagent-daemon start --server-url {backend.url} --api-key {MACHINE_KEY}"
    )
    expect(page.get_by_text("Waiting for mbp to connect")).to_be_visible()

    [host] = backend.hosts.values()
    found = [Runtime(name="builtin", version="0.3.0")]
    backend.put_host(host.model_copy(update={"state": HostState.ONLINE, "runtimes": found}))
    expect(page.get_by_text("mbp is connected.")).to_be_visible()
    page.get_by_role("link", name="Add an agent on mbp").click()
    expect(page.get_by_role("radio", name="Built-in agent")).to_be_checked()
    page.get_by_label("Name").fill("shop")
    page.get_by_label("Folder on mbp").fill("~/src/shop")
    page.get_by_role("button", name="Add the agent").click()
    expect(page.get_by_role("heading", name="Say something to shop")).to_be_visible()
    [agent] = backend.agents.values()
    assert (agent.driver, agent.cwd, agent.host_machine_id) == ("builtin", "~/src/shop", host.id)

    page.reload()
    assert MACHINE_KEY not in page.content()


def test_a_folder_that_is_no_path_is_refused_before_it_is_sent(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.add_host("mbp")
    page = visitor.window()
    page.goto(f"{backend.url}/agents/new")
    page.get_by_label("Name").fill("shop")
    folder = page.get_by_label("Folder on mbp")
    for wrong, right in (("src/shop", "~/src/shop"), ("C:shop", "/srv/shop")):
        folder.fill(right)
        assert folder.evaluate("field => field.validity.valid")
        folder.fill(wrong)
        assert folder.evaluate("field => field.validity.patternMismatch")
    page.get_by_role("button", name="Add the agent").click()
    expect(folder).to_be_focused()
    assert backend.agents == {}


def test_a_program_of_ones_own_is_given_by_its_command_and_may_be_silent_for_so_long(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.add_host("mbp")
    page = visitor.window()
    page.goto(f"{backend.url}/agents/new")
    page.get_by_label("Name").fill("shop")
    page.get_by_role("radio", name="Another program").check()
    command = page.get_by_label("Command", exact=True)
    add = page.get_by_role("button", name="Add the agent")
    add.click()
    expect(command).to_be_focused()
    command.fill('"/opt/my agent/run')
    add.click()
    assert "quote is not closed" in command.evaluate("field => field.validationMessage")
    assert backend.agents == {}
    command.fill('"/opt/my agent/run" acp')
    page.get_by_text("More").click()
    silence = page.get_by_label("Minutes of silence until it counts as hung")
    silence.fill("0.1")
    add.click()
    expect(silence).to_be_focused()
    silence.fill("2.5")
    add.click()
    expect(page.get_by_role("heading", name="Say something to shop")).to_be_visible()
    [agent] = backend.agents.values()
    assert agent.command == ["/opt/my agent/run", "acp"]
    assert (agent.driver, agent.hang_timeout_s) == ("acp", 150)

    page.goto(f"{backend.url}/a/shop/settings")
    expect(command).to_have_value("'/opt/my agent/run' acp")
    expect(silence).to_have_value("2.5")
    # A command belongs to its driver; the other one is looked for on the machine.
    page.get_by_role("radio", name="Codex").check()
    expect(command).to_have_value("")
    silence.fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Say something to shop")).to_be_visible()
    [agent] = backend.agents.values()
    assert (agent.driver, agent.command, agent.hang_timeout_s) == ("codex", None, None)


def test_a_machine_is_removed_only_after_a_question(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    page = visitor.window()
    page.goto(f"{backend.url}/hosts")
    page.get_by_role("button", name="Remove…").click()
    page.get_by_role("button", name="Keep it").click()
    assert host.id in backend.hosts
    page.get_by_role("button", name="Remove…").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_role("heading", name="No machine yet")).to_be_visible()
    assert backend.hosts == {}


def test_the_keyboard_alone_is_enough(visitor: Visitor, backend: ScriptedBackend) -> None:
    host = backend.add_host("mbp")
    for name in ("api", "docs", "shop"):
        conversation = backend.add_conversation(backend.add_agent(name, host))
        backend.say(conversation, f"first words to {name}")
    page = visitor.window()
    page.keyboard.press("Control+k")
    page.keyboard.type("do")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="docs", exact=True)).to_be_visible()
    expect(page.get_by_role("textbox", name="Message docs")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".typed").last).to_have_text("one\ntwo")

    page.keyboard.press("Control+k")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="shop", exact=True)).to_be_visible()
    page.keyboard.press("Control+k")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    # Every control is reached by Tab, and shows that it is.
    seen: set[str] = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "() => { const e = document.activeElement; return e === document.body ? '' :"
                " (getComputedStyle(e).outlineStyle === 'none' && !e.closest('.composer-box')"
                " ? 'no focus: ' : '') + (e.getAttribute('aria-label') || e.innerText); }"
            )
        )
    assert not [name for name in seen if name.startswith("no focus")]
    for name in (
        "Find an agent",
        "Add an agent",
        "Sign out",
        "Settings of shop",
        "New conversation",
    ):
        assert any(name in label for label in seen), name


def test_enter_that_ends_a_composition_does_not_send(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.add_agent("shop", backend.add_host("mbp"))
    page = visitor.window()
    box = page.get_by_role("textbox", name="Message shop")
    box.fill("にほん")
    box.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    expect(box).to_have_value("にほん")
    assert not [asked for asked in backend.asked if asked.startswith("POST /v1/conversations")]


def test_on_a_narrow_screen_the_agents_are_one_tap_away(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    host = backend.add_host("mbp")
    backend.add_agent("api", host)
    backend.add_agent("shop", host)
    page = visitor.window(NARROW)
    page.get_by_role("button", name="Show agents").click()
    page.get_by_role("link", name=re.compile("^shop")).click()
    expect(page.get_by_role("heading", name="shop", exact=True)).to_be_visible()
    expect(page.get_by_role("navigation", name="Agents")).to_be_hidden()
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width == NARROW[0]


def test_the_title_tells_of_news(visitor: Visitor, backend: ScriptedBackend) -> None:
    host = backend.add_host("mbp")
    shop = backend.add_conversation(backend.add_agent("shop", host))
    backend.add_agent("api", host)
    message = backend.say(shop, "hello")
    page = visitor.window()
    page.goto(f"{backend.url}/a/api")
    expect(page).to_have_title("api · cloudagent")
    work = backend.work(message)
    work.reply("hello to you")
    work.finish()
    expect(page).to_have_title("(1) api · cloudagent")
    page.get_by_role("link", name=re.compile("^shop")).click()
    expect(page).to_have_title("shop · cloudagent")
