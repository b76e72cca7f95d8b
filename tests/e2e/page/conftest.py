"""Headless Chromium on the built page, against a backend that the test plays."""

import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from e2e.page.scripted_backend import LINK_KEY, UI, ScriptedBackend, serving

SOURCES = Path(__file__).parents[3] / "backend" / "ui"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = (1200, 800)
NARROW = (390, 844)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.browser)


def build_page() -> Path:
    """Build the page, unless what is built is as new as the sources that lie here."""
    index = UI / "index.html"
    files = [
        SOURCES / "index.html",
        *(SOURCES / "src").rglob("*"),
        *(SOURCES / "public").rglob("*"),
    ]
    newest = max(file.stat().st_mtime for file in files)
    if not index.is_file() or index.stat().st_mtime < newest:
        npm = shutil.which("npm")
        assert npm is not None, "npm is needed to build the page"
        if not (SOURCES / "node_modules").is_dir():
            subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=SOURCES, check=True)
        subprocess.run([npm, "run", "--silent", "build"], cwd=SOURCES, check=True)
    return index


@pytest.fixture(scope="session")
def built_page() -> Path:
    return build_page()


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    # Not for the session: while it is open its event loop runs in this thread, and no test of
    # another module could run one of its own.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def backend(built_page: Path) -> Generator[ScriptedBackend]:
    with serving() as scripted:
        yield scripted


class Visitor:
    """A person with a browser window."""

    def __init__(self, browser: Browser, backend: ScriptedBackend) -> None:
        self._browser = browser
        self.backend = backend
        self._contexts: list[BrowserContext] = []
        #: What went wrong in any of the windows: errors, dialogs, requests to elsewhere.
        self.trouble: list[str] = []

    def window(
        self, size: tuple[int, int] = WIDE, *, dark: bool = False, signed_in: bool = True
    ) -> Page:
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            has_touch=size == NARROW,
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(10_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self._look(request.url))
        if signed_in:
            page.goto(f"{self.backend.url}/?k={LINK_KEY}")
            page.locator("nav.sidebar").wait_for(state="attached")  # hidden where it is narrow
        return page

    def _look(self, url: str) -> None:
        own = (self.backend.url, self.backend.url.replace("http", "ws"), "data:")
        if not url.startswith(own):
            self.trouble.append(f"fetched: {url}")

    def leave(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visitor(browser: Browser, backend: ScriptedBackend) -> Generator[Visitor]:
    visitor = Visitor(browser, backend)
    yield visitor
    visitor.leave()
    assert visitor.trouble == []
