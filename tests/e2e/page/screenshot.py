"""Takes the README's picture of the page: a real backend, a real daemon, a scripted model.

.venv/bin/python tests/e2e/page/screenshot.py [docs/images/page.png]
"""

import json
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402  (the path comes first)

from e2e.harness import BIN, running_backend, running_daemon  # noqa: E402
from e2e.page.conftest import ARGUMENTS, CHROMIUM, WIDE, build_page  # noqa: E402
from e2e.real_cli import claude_environment, real_claude  # noqa: E402
from fakes import model  # noqa: E402

#: How much larger the window is than its picture, so that a whole conversation fits.
ZOOM = 1.2
#: A small repository, so that the tool card shows what really ran.
FILES = {
    "basket.py": """\
def total(prices, discount=0):
    return round(sum(prices) * (1 - discount / 100))
""",
    "test_basket.py": """\
import unittest

from basket import total


class Basket(unittest.TestCase):
    def test_total_keeps_the_cents(self):
        self.assertEqual(total([19.99, 5.00], discount=10), 22.49)


if __name__ == "__main__":
    unittest.main()
""",
}
QUESTION = "The basket test fails since yesterday. Can you find out why, and fix it?"
ANSWER = """\
Found it: `total()` rounds to **whole euros**, so the cents are lost:

```python
def total(prices, discount=0):
    return round(sum(prices) * (1 - discount / 100), 2)
```

The test passes now. Shall I add one for an empty basket?"""
BROKEN = "return round(sum(prices) * (1 - discount / 100))"
FIXED = "return round(sum(prices) * (1 - discount / 100), 2)"


def script() -> str:
    """What the model does when it is asked the question, in the stub's language."""
    basket = "basket.py"
    steps = {
        "Read": {"file_path": basket},
        "Edit": {"file_path": basket, "old_string": BROKEN, "new_string": FIXED},
        "Bash": {"command": "python3 -m unittest test_basket", "description": "Run the test"},
        "send_message": {"text": ANSWER},
    }
    calls = [f"@@sleep 1\n@@call {tool} {json.dumps(given)}" for tool, given in steps.items()]
    return "\n".join([*calls, "@@say Fixed, tested, and told Ana."])


@contextmanager
def playing(orders: str) -> Generator[None]:
    """Lets the scripted model take its orders from here: the question shall look like one."""
    usual = model.next_turn

    def next_turn(asked: model.Conversation) -> model.Turn:
        asked.prompts.append(orders)
        return usual(asked)

    model.next_turn = next_turn
    try:
        yield
    finally:
        model.next_turn = usual


def let_it_work(page: Page) -> None:
    page.get_by_role("textbox", name="Message shop").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_text("claude started · replied")).to_be_visible()
    page.get_by_role("button", name="claude started · replied").click()
    page.get_by_role("button", name="Worked for").click()


def main(target: Path) -> None:
    build_page()
    real_claude()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "laptop"
        folder = home / "src" / "shop"
        folder.mkdir(parents=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)
        with (
            model.StubModel() as stub,
            running_backend(Path(directory) / "server") as backend,
            sync_playwright() as playwright,
        ):
            host_id, key = backend.create_host("mbp-ana")
            for name in ("docs", "billing"):
                backend.create_agent(host_id, name, driver="claude_code")
            backend.create_agent(
                host_id, driver="claude_code", cwd="~/src/shop", mode="bypassPermissions"
            )
            environment = claude_environment(stub)
            environment["PATH"] = os.pathsep.join([str(BIN), environment["PATH"]])
            with running_daemon(home, backend.url, key, **environment):
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
                page = browser.new_page(
                    viewport={"width": round(WIDE[0] * ZOOM), "height": round(WIDE[1] * ZOOM)},
                    device_scale_factor=1 / ZOOM,
                )
                expect.set_options(timeout=30_000)
                page.goto(f"{backend.url}/a/shop?k={backend.link_key}")
                expect(page.get_by_text("ready on mbp-ana").first).to_be_visible()
                with playing(script()):
                    let_it_work(page)
                page.mouse.move(0, 0)
                page.screenshot(path=target, animations="disabled")
                browser.close()
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images" / "page.png"))
