"""The link to the page, and opening it where somebody would see it."""

import shlex
import socket
import sys
import webbrowser
from dataclasses import dataclass, field
from urllib.parse import quote

import anyio.to_thread

from cloudagent import config, terminal
from cloudagent.local import ports
from cloudagent.local.report import Report


@dataclass(frozen=True)
class Page:
    url: str
    agent: str
    #: Signs in once, without a password.
    link_key: str = field(repr=False)

    @property
    def link(self) -> str:
        return f"{self.url}/a/{quote(self.agent, safe='')}?k={quote(self.link_key, safe='')}"


async def offer(page: Page, report: Report, *, browser: bool) -> None:
    """Show the way to the chat; open it if there is a browser that the person would see."""
    opened = browser and sys.stderr.isatty() and config.can_open_browser()
    if opened:
        opened = await anyio.to_thread.run_sync(webbrowser.open, page.link)
    report.clear()
    terminal.say("")
    terminal.show(f"  Chat      {page.link}" + ("   opened in your browser" if opened else ""))
    if config.over_ssh():
        port = ports.of(page.url)
        host = socket.gethostname()
        terminal.say(f"            over SSH, first: ssh -L {port}:127.0.0.1:{port} {host}")
    terminal.say(
        f"  Script    cloudagent send {shlex.quote(terminal.safe(page.agent))} hello --wait"
    )
