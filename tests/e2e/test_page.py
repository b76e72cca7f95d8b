"""A person at the page, with everything behind it real: backend, daemon, and once the real `claude`."""

import os
import re
import shlex
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from e2e.forks import forked_run
from e2e.harness import (
    BIN,
    Backend,
    Process,
    checked,
    clean_environment,
    running_backend,
    running_daemon,
)
from e2e.page.conftest import ARGUMENTS, CHROMIUM, NARROW, WIDE, build_page
from e2e.real_cli import claude_environment
from fakes.model import StubModel

pytestmark = [pytest.mark.slow, pytest.mark.browser]
DEADLINE_MS = 20_000
FAKE_CLI = Path(__file__).parents[1] / "fakes" / "agent_cli.py"
ASKING_CLI = FAKE_CLI.with_name("acp_agent.py")
WORDS = [f"word{n:03}" for n in range(120)]


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    build_page()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Window:
    """A browser that the person has signed in with, and its pages, each in a context of its own."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._cookies: dict[str, Any] = {}

    @contextmanager
    def __call__(
        self, backend: Backend, path: str = "/", size: tuple[int, int] = WIDE
    ) -> Generator[Page]:
        """Opens the page; the first time of a person by the one-time link, as `up` does."""
        expect.set_options(timeout=DEADLINE_MS)
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            storage_state=self._cookies.get(backend.token),
        )
        context.set_default_timeout(DEADLINE_MS)
        trouble: list[str] = []
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        try:
            self._enter(context, page, backend, path)
            yield page
            assert trouble == []
            assert page.evaluate("() => document.documentElement.scrollWidth") == size[0]
        finally:
            context.close()

    def _enter(self, context: BrowserContext, page: Page, backend: Backend, path: str) -> None:
        if backend.token in self._cookies:
            page.goto(f"{backend.url}{path}")
            return
        page.goto(f"{backend.url}{path}?k={backend.link_key}")
        page.locator("nav.sidebar").wait_for(state="attached")
        assert page.url == f"{backend.url}{path}", "the key has left the address"
        self._cookies[backend.token] = context.storage_state()


@pytest.fixture(scope="module")
def window(browser: Browser) -> Window:
    return Window(browser)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def backend(home: Path) -> Generator[Backend]:
    """One for all tests; each has agents of its own, or a machine."""
    with running_backend(home / "server") as running:
        yield running


@pytest.fixture(scope="module")
def mbp(backend: Backend, home: Path) -> Generator[str]:
    """A machine whose daemon runs: its id."""
    host_id, key = backend.create_host("mbp")
    with running_daemon(home / "laptop", backend.url, key):
        yield host_id


def write(page: Page, text: str) -> None:
    page.get_by_role("textbox", name=re.compile("^Message ")).fill(text)
    page.keyboard.press("Enter")


def said(page: Page) -> Locator:
    """What the agent has written, as it is shown."""
    return page.locator(".message.from")


def words_in(page: Page) -> list[str]:
    return re.findall(r"word\d{3}", " ".join(said(page).all_inner_texts()))


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_an_answer_streams_through_a_reload_without_losing_or_doubling_a_character(
    backend: Backend, mbp: str, window: Window, size: tuple[int, int]
) -> None:
    agent = backend.create_agent(mbp, driver="scripted")
    with window(backend, f"/a/{agent}", size) as page:
        write(page, f"@@say {' '.join(WORDS)}\n@@stream 40 0.05")
        expect(page.get_by_text("on mbp · scripted agent started · answering")).to_be_visible()
        expect(said(page)).to_contain_text("word012")
        page.reload()
        expect(said(page)).to_contain_text("word040")
        seen = words_in(page)
        assert len(seen) < len(WORDS)  # still being written
        assert seen[:-1] == WORDS[: len(seen) - 1]
        expect(page.get_by_text("on mbp · scripted agent started · replied")).to_be_visible()
        expect(page.get_by_text("Worked for")).to_have_text(re.compile(r"^Worked for \d+ s · "))
        assert words_in(page) == WORDS

        page.get_by_role("button", name=re.compile("scripted agent started · replied")).click()
        rungs = page.get_by_role("list", name="Where this message has been")
        expect(rungs.get_by_role("listitem")).to_have_count(7)
        page.reload()
        expect(said(page).last).to_contain_text("word119")
        assert words_in(page) == WORDS


def test_stop_stops_and_the_next_message_is_answered(
    backend: Backend, mbp: str, window: Window
) -> None:
    agent = backend.create_agent(mbp, driver="scripted")
    with window(backend, f"/a/{agent}", NARROW) as page:
        write(page, "@@sleep 60")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_text("scripted agent started · stopped")).to_be_visible()
        expect(page.get_by_text("Stopped after")).to_be_visible()
        expect(page.get_by_role("textbox", name=re.compile("^Message "))).to_be_focused()
        write(page, "@@say still here")
        expect(said(page).last).to_contain_text("still here")


def test_a_failed_run_is_a_red_card_with_the_programs_last_words(
    backend: Backend, mbp: str, window: Window
) -> None:
    fake = [sys.executable, str(FAKE_CLI)]
    agent = backend.create_agent(mbp, driver="claude_code", command=fake)
    with window(backend, f"/a/{agent}") as page:
        write(page, "@@stderr cannot open display\n@@crash 3")
        card = page.locator(".failed-run")
        for _ in ("as it happens", "after a reload"):
            expect(card).to_contain_text("The program crashed")
            expect(card).to_contain_text("exit 3")
            expect(card).to_contain_text("cannot open display")
            expect(page.get_by_text("failed: the program crashed")).to_be_visible()
            page.reload()


def test_a_limit_and_a_budget_are_said_with_their_end_and_answered(
    backend: Backend, mbp: str, window: Window, home: Path
) -> None:
    fake: dict[str, Any] = {"driver": "claude_code", "command": [sys.executable, str(FAKE_CLI)]}
    # An account of its own: the limit is none of the others'.
    env = {"CLAUDE_CONFIG_DIR": str(home / "limits")}
    limited = backend.create_agent(mbp, env=env, **fake)
    with window(backend, f"/a/{limited}", NARROW) as page:
        write(page, f"@@limit {int(time.time()) + 7_200}\n@@error 429 rate_limit")
        asks = page.get_by_text(re.compile("rate limit until .*, waits for your word"))
        expect(asks).to_be_visible()
        page.get_by_role("button", name="Continue").click()
        waits = re.compile("waits: rate limit, resumes ")
        expect(page.locator(".message.own").get_by_text(waits)).to_be_visible()
        expect(page.locator(".busy-bar")).to_contain_text(waits)
        expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    thrifty = backend.create_agent(mbp, limits={"day_tokens": 1}, **fake)
    with window(backend, f"/a/{thrifty}") as page:
        write(page, "@@reply first")
        expect(said(page).last).to_contain_text("first")
        expect(page.get_by_text("claude started · replied")).to_be_visible()
        write(page, "@@reply second")
        banner = page.get_by_role("region", name=re.compile("waits for your decision"))
        expect(banner).to_contain_text("1 message waits")
        banner.get_by_role("button", name="Continue").click()
        expect(said(page).last).to_contain_text("second")
        expect(banner).to_have_count(0)


def test_a_program_that_is_not_installed_is_named_before_and_after(
    backend: Backend, mbp: str, window: Window
) -> None:
    agent = backend.create_agent(mbp, driver="claude_code")
    with window(backend, f"/a/{agent}", NARROW) as page:
        expect(page.get_by_text("Claude Code is missing on mbp").last).to_be_visible()
        write(page, "hello")
        card = page.locator(".failed-run")
        expect(card).to_contain_text("Program not found on this machine")
        expect(card).to_contain_text("npm install -g @anthropic-ai/claude-code")


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_machine_and_an_agent_are_added_with_what_the_page_shows(
    backend: Backend, tmp_path: Path, window: Window, size: tuple[int, int]
) -> None:
    home = tmp_path / "laptop"
    home.mkdir()
    newcomer = replace(backend)
    newcomer.let_in(f"newcomer-{size[0]}@example.com")
    with window(newcomer, size=size) as page:
        page.get_by_role("link", name="Connect a machine").click()
        page.get_by_role("button", name="With a key").click()
        page.get_by_label("What do you call it?").fill("mbp-ana")
        page.get_by_role("button", name="Make a key").click()
        page.get_by_role("button", name="Just try it").click()
        shown = page.get_by_role("group", name="the one-shot command").inner_text()
        uvx, program, *rest = shlex.split(shown)
        assert uvx == "uvx"
        # uvx would fetch what is installed here.
        daemon = Process([str(BIN / program), *rest], env=clean_environment(home), cwd=home)
        try:
            expect(page.get_by_text("mbp-ana is connected.")).to_be_visible()
            expect(page.get_by_text("Found Scripted demo")).to_be_visible()
            page.get_by_role("link", name="Add an agent on mbp-ana").click()
            page.get_by_label("Name").fill("shop")
            page.get_by_role("button", name="Add the agent").click()
            expect(page.get_by_role("heading", name="Say something to shop")).to_be_visible()
            write(page, "first words")
            expect(said(page).last).to_contain_text("You said: first words")
            expect(page.get_by_text("on mbp-ana · scripted agent started")).to_be_visible()
        finally:
            daemon.stop()
        assert [*home.iterdir()] == []


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_machine_that_stops_is_said_to_be_offline_and_its_message_waits_for_it(
    backend: Backend, tmp_path: Path, window: Window, size: tuple[int, int]
) -> None:
    host, key = backend.create_host("nas")
    agent = backend.create_agent(host, driver="scripted")
    with (
        running_daemon(tmp_path / "nas", backend.url, key) as daemon,
        window(backend, f"/a/{agent}", size) as page,
    ):
        expect(page.get_by_text("ready on nas").last).to_be_visible()
        daemon.stop()
        expect(page.get_by_text(re.compile("What you write waits on the server"))).to_be_visible()
        write(page, "@@say back again")
        waits = r"nas is offline since \d\d:\d\d, will be delivered when it is back"
        expect(page.get_by_text(re.compile(waits))).to_be_visible()
        with running_daemon(tmp_path / "nas", backend.url, ""):
            expect(said(page).last).to_contain_text("back again")
            expect(page.get_by_text("scripted agent started · replied")).to_be_visible()


@pytest.mark.real_cli
def test_a_person_talks_with_the_real_claude(
    backend: Backend, tmp_path: Path, window: Window
) -> None:
    host, key = backend.create_host("studio")
    agent = backend.create_agent(host, driver="claude_code")
    with StubModel() as model:
        environment = claude_environment(model)
        environment["PATH"] = os.pathsep.join([str(BIN), environment["PATH"]])
        with (
            running_daemon(tmp_path / "studio", backend.url, key, **environment),
            window(backend, f"/a/{agent}") as page,
        ):
            write(page, '@@call send_message {"text": "hello from **claude**"}')
            expect(said(page).locator("strong")).to_have_text("claude")
            expect(page.get_by_text("on studio · claude started · replied")).to_be_visible()
            write(page, f"@@say {' '.join(WORDS)}\n@@stream 40 0.02")
            expect(page.get_by_text("on studio · claude started · replied")).to_have_count(2)
            assert words_in(page) == WORDS


def test_what_is_allowed_on_a_phone_is_done_though_daemon_and_backend_died_in_between(
    backend: Backend, home: Path, window: Window
) -> None:
    host_id, key = backend.create_host("nas")
    own, effects = home / "nas", home / "nas-effects"
    agent = backend.create_agent(
        host_id,
        "ops",
        driver="acp",
        command=[sys.executable, str(ASKING_CLI)],
        env={"FAKE_STATE": str(home / "nas-state"), "FAKE_EFFECTS": str(effects)},
    )

    def done() -> list[str]:
        return [line for line in effects.read_text().splitlines() if line.startswith("did ")]

    with running_daemon(own, backend.url, key) as daemon, backend.follow() as follower:
        sent = backend.send(agent, "@@ask execute alembic upgrade head\n@@reply migrated")
        follower.until(lambda event: event["type"] == "approval.requested")
        status = [str(BIN / "cloudagent-daemon"), "status"]
        report, deadline = "", time.monotonic() + 20  # it tells five times a second at most
        while "1 approval is waiting" not in report and time.monotonic() < deadline:
            report = checked(forked_run(status, clean_environment(own), own)).stdout
        assert re.search(r"waiting +ops +approval: alembic upgrade head", report), report
        daemon.kill()
        backend.process.kill()
    backend.start_again()
    with (
        running_daemon(own, backend.url, key),
        window(backend, "/approvals", NARROW) as page,
    ):
        card = page.get_by_role("region", name="ops wants to use alembic upgrade head")
        expect(card).to_contain_text("alembic upgrade head")
        assert done() == []
        card.get_by_role("link").click()
        card.get_by_role("button", name="Allow once").click()
        # The message, and not the card of the tool that sends it.
        expect(page.locator('article p:text-is("migrated")')).to_be_visible()
        expect(card).to_have_count(0)
        assert done() == ["did alembic upgrade head"]
    trace = backend.call("GET", f"/v1/messages/{sent['id']}/trace")["deliveries"][0]
    assert (trace["state"], trace["outcome"]) == ("done", "replied")
    rungs = {rung["rung"]: rung for rung in trace["rungs"]}
    assert (rungs["waiting"]["reason"], rungs["answered"]["detail"]) == ("approval", "once")
