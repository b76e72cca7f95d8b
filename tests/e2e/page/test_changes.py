"""What a run changed, under its answer."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from cloudagent_protocol.diffs import Diff, FileDiff
from e2e.page.conftest import NARROW, WIDE, Visitor
from e2e.page.scripted_backend import ScriptedBackend, Work

HEAD = "diff --git a/f b/f\nindex 1..2 100644\n--- a/f\n+++ b/f\n"
PRICE = HEAD + (
    "@@ -1,4 +1,5 @@ def total(prices):\n def total(prices, discount=0):\n"
    "-    return round(sum(prices) * (1 - discount / 100))\n"
    "+    whole = sum(prices) * (1 - discount / 100)  # a comment that is much wider than a telephone's display is\n"
    "+    return round(whole, 2)\n \n # <script>document.title = 'gone'</script>\n"
)
DIFF = Diff(
    root="/home/ana/shop",
    files=[
        FileDiff(path="shop/basket.py", status="modified", additions=2, deletions=1, patch=PRICE),
        FileDiff(path="a/very/long/folder/for/one/file/that/has/been/moved/test_basket.py",
                 old_path="test_basket.py", status="renamed"),
        FileDiff(path="long.txt", status="added", additions=600,
                 patch=HEAD + "@@ -0,0 +1,600 @@\n" + "".join(f"+line {n}\n" for n in range(600))),
        FileDiff(path="logo.png", status="added", binary=True),
    ],
    additions=602,
    deletions=1,
    shared=True,
)  # fmt: skip


def a_changed_run(backend: ScriptedBackend) -> Work:
    agent = backend.add_agent("shop", backend.add_host("mbp"))
    conversation = backend.add_conversation(agent)
    backend.say(conversation, "The basket test fails.")
    work = backend.work(backend.message_in(conversation), ago=12)
    work.reply("Found it: the cents were lost. The test passes now.")
    work.finish()
    return work


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (NARROW, True)])
def test_what_a_run_changed_opens_under_its_answer(
    visitor: Visitor, backend: ScriptedBackend, size: tuple[int, int], dark: bool
) -> None:
    work = a_changed_run(backend)
    page = visitor.window(size, dark=dark)
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("The test passes now.")).to_be_visible()
    work.change(DIFF)
    line = page.get_by_role("button", name="4 files changed")
    expect(line).to_contain_text("+602")
    line.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Others worked in this folder at the same time")).to_be_visible()
    first = page.get_by_role("group", name="Changes of shop/basket.py")
    expect(first).to_contain_text("-    return round(sum(prices)")
    expect(first).to_contain_text("<script>document.title")
    expect(page.get_by_role("button", name="logo.png")).to_be_disabled()
    file = page.get_by_role("button", name="long.txt")
    expect(file).to_have_attribute("aria-expanded", "false")
    file.click()
    expect(page.get_by_text("+line 398")).to_be_attached()
    assert page.get_by_text("+line 399").count() == 0
    page.get_by_role("button", name="Show all 601 lines").click()
    expect(page.get_by_text("+line 599")).to_be_attached()
    file.click()
    assert _width(page) <= size[0], "only the lines scroll, not the page"
    assert first.evaluate("lines => lines.scrollWidth > lines.clientWidth")
    _keep(page, f"{size[0]}-{'dark' if dark else 'light'}")
    line.click()
    expect(first).to_have_count(0)


def test_why_there_is_no_diff_stands_in_its_place(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    work = a_changed_run(backend)
    work.change(Diff(problem="There is no diff: the repository is too large."))
    page = visitor.window()
    page.goto(f"{backend.url}/a/shop")
    expect(page.get_by_text("There is no diff: the repository is too large.")).to_be_visible()
    assert page.get_by_role("button", name="changed").count() == 0


def _width(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def _keep(page: Page, name: str) -> None:
    """For a person to look at, where they asked for it."""
    if folder := os.environ.get("CLOUDAGENT_PICTURES"):
        page.screenshot(path=Path(folder) / f"changes-{name}.png")
