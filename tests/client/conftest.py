from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from client.faces import client
from client.server import Server


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the developer's server, token or home."""
    for name in ("CLOUDAGENT_URL", "CLOUDAGENT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDAGENT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server() -> Generator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: Server) -> Generator[Callable[..., Any]]:
    """Opens a client of either kind to the server: the suite holds for both."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(client(request.param, server.url, **options))


@pytest.fixture
def ca(connect: Callable[..., Any]) -> Any:
    return connect()
