"""What systemd is told, and that nobody else's words become part of it."""

import os
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from cloudagent_daemon.service import notify
from cloudagent_daemon.service.notify import Notifier, standing_text


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(4_096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Manager]:
    abstract = f"@cloudagent-test-{os.getpid()}"
    made = Manager(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    with made.socket:
        yield made


def test_a_manager_hears_how_the_daemon_is(manager: Manager) -> None:
    told = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"})
    assert (told.listens, told.pet_s) == (True, 20.0)
    told.ready()
    assert manager.heard() == ["READY=1"]
    for _ in range(2):
        told.alive("connected")
    assert manager.heard() == ["WATCHDOG=1", "STATUS=connected"]
    assert manager.heard() == ["WATCHDOG=1"]
    told.stopping()
    assert manager.heard() == ["STOPPING=1"]


def test_what_a_server_says_cannot_become_a_message_of_ours(manager: Manager) -> None:
    told = Notifier({"NOTIFY_SOCKET": manager.address})
    told.alive(standing_text("connecting", "502\nMAINPID=1\r\nREADY=1", "http://x", None, 0))
    assert len(manager.heard()) == 2


def test_a_manager_that_is_not_there_is_no_hindrance(tmp_path: Path) -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive("connected")


def test_children_do_not_hear_of_the_manager() -> None:
    assert notify.without_manager({"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1", "A": "b"}) == {
        "A": "b"
    }


@pytest.mark.parametrize(
    ("state", "working", "text"),
    [
        ("connected", 0, "connected to http://x as host_1, idle"),
        ("connected", 2, "connected to http://x as host_1, 2 working"),
        ("unauthorized", 0, "key rejected by http://x: why; run cloudagent-daemon login"),
        ("connecting", 0, "reconnecting to http://x: why"),
        ("draining", 1, "draining: 1 still working"),
    ],
)
def test_each_standing_has_its_line(state: str, working: int, text: str) -> None:
    assert standing_text(state, "why", "http://x", "host_1", working) == text
