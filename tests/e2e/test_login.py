"""`login` as a person meets it, in a terminal; each whole screen is kept in tests/golden/login.

A change of what is shown is looked at, and then taken over with GOLDEN=write.
"""

import json
import os
import re
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from cloudagent_backend.store import keys
from e2e.forks import forked_in
from fakes.certificates import authority, self_signed
from fakes.front import page_front, tls_front
from fakes.server import Backend, running_backend
from fakes.terminal import Terminal, terminal
from faults.proxy import running_proxy

PROGRAM = str(Path(sys.executable).parent / "cloudagent-daemon")
GOLDEN = Path(__file__).parents[1] / "golden" / "login"


class Machine:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / ".cloudagent" / "daemon" / "config.json"
        self.env = {
            "HOME": str(home),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
        }

    @asynccontextmanager
    async def command(self, *words: str, **env: str) -> AsyncGenerator[Terminal]:
        """The command, forked: test_a_machine_is_let_in_by_a_code starts it as a shell does."""
        async with terminal([PROGRAM, *words], {**self.env, **env}, self.home, forked_in) as shown:
            yield shown

    @property
    def kept(self) -> dict[str, Any]:
        return json.loads(self.config.read_text())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home)


@asynccontextmanager
async def backend_at(tmp_path: Path, **changes: Any) -> AsyncGenerator[Backend]:
    folder = tmp_path / "server"
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"device_interval_s": 1, **changes}
    async with running_backend(folder, **settings) as backend:
        yield backend


async def code_on(shown: Terminal) -> str:
    await shown.until("never share it")
    found = re.search(r"Code   (\S+)", shown.screen)
    assert found
    return found[1]


async def answer(backend: Backend, code: str, **more: Any) -> None:
    async with backend.client() as client:
        said = await client.post("/v1/auth/device/approve", json={"user_code": code, **more})
        assert said.status_code == 200, said.text


def check(name: str, shown: str, url: str, *secrets: str) -> None:
    """Compares a screen with the one that was looked at and kept."""
    for secret in secrets:
        assert secret not in shown
    told = shown.replace(url, "https://agents.example.com")
    told = re.sub(r"host_[0-9A-Z]{26}", "host_01J9ZK", told)
    told = re.sub(r"\b[B-Z]{4}-[B-Z]{4}\b", "WDJB-MJHT", told)
    told = re.sub(r"127\.0\.0\.1:\d+", "agents.example.com:443", told)
    told = re.sub(r"ending in …\w{4}", "ending in …1a2b", told)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(told)
    assert told == path.read_text()


async def test_a_machine_is_let_in_by_a_code(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path, public_url="https://agents.example.com") as backend:
        command = [PROGRAM, "login", "--server", backend.url]
        async with terminal(command, machine.env, machine.home) as shown:
            code = await code_on(shown)
            await shown.until("▀")
            await shown.until("left; Ctrl-C ends it.")
            await answer(backend, code, name="mbp-ana")
            assert await shown.ended() == 0
        kept = machine.kept
        assert (kept["server_url"], machine.config.stat().st_mode & 0o777) == (backend.url, 0o600)
        own = httpx2.AsyncClient(headers={"Authorization": f"Bearer {kept['machine_key']}"})
        async with own as client:
            said = (await client.get(f"{backend.url}/v1/daemon/host")).json()
        assert (said["id"], said["name"]) == (kept["host_id"], "mbp-ana")
        screen = re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)^  [ ▀▄█]+\n", "", shown.screen))
        check("approved", screen, backend.url, kept["machine_key"])


async def test_without_colour_there_is_no_picture_and_nothing_moves(
    tmp_path: Path, machine: Machine
) -> None:
    async with backend_at(tmp_path, public_url="https://agents.example.com") as backend:
        for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            async with machine.command("login", backend.url, **env) as shown:
                await answer(backend, await code_on(shown), name="mbp-ana")
                assert await shown.ended() == 0
            assert not set("\x1b▀▄█") & set(shown.raw)
            assert shown.raw.replace("\r\n", "").count("\r") == 0
        check("approved_again_without_colour", shown.screen, backend.url)


async def test_one_object_for_a_script(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path) as backend:
        async with machine.command("login", backend.url, "--json") as shown:
            await answer(backend, await code_on(shown), name="mbp-ana")
            assert await shown.ended() == 0
        last = shown.screen.strip().splitlines()[-1]
        said = json.loads(last)
        assert said == {
            "schema": "cloudagent.login/1",
            "profile": "default",
            "server_url": backend.url,
            "host_id": machine.kept["host_id"],
            "host_name": "mbp-ana",
            "approved_by": "ana@example.com",
            "known_before": False,
        }


async def test_logging_in_again_keeps_the_host_and_needs_no_address(
    tmp_path: Path, machine: Machine
) -> None:
    async with backend_at(tmp_path) as backend:
        seen: list[dict[str, Any]] = []
        for words in (("login", backend.url), ("login",)):
            async with machine.command(*words) as shown:
                await answer(backend, await code_on(shown))
                assert await shown.ended() == 0
            seen.append(machine.kept)
        assert seen[0]["host_id"] == seen[1]["host_id"]
        assert seen[0]["machine_key"] != seen[1]["machine_key"]
        assert "as before" in shown.screen


async def test_who_denies_is_told_so(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path) as backend:
        async with machine.command("login", backend.url) as shown:
            await answer(backend, await code_on(shown), decision="deny")
            assert await shown.ended() == 4
        check("denied", shown.screen, backend.url)
    assert not machine.config.exists()


async def test_a_code_that_nobody_approves_ends(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path, device_code_s=2) as backend:
        async with machine.command("login", backend.url) as shown:
            assert await shown.ended() == 4
        check("expired", shown.screen, backend.url)


async def test_ctrl_c_ends_the_wait(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path) as backend:
        async with machine.command("login", backend.url) as shown:
            await code_on(shown)
            await shown.until("left; Ctrl-C")
            shown.type("\x03")
            assert await shown.ended() == 130
        check("interrupted", shown.screen.replace("^C", ""), backend.url)
    assert list(machine.config.parent.iterdir()) == []


async def test_a_network_that_fails_meanwhile_is_waited_for(
    tmp_path: Path, machine: Machine
) -> None:
    async with backend_at(tmp_path) as backend:
        port = int(backend.url.rpartition(":")[2])
        with running_proxy(("127.0.0.1", port), websocket=False) as proxy:
            async with machine.command("login", proxy.url, NO_COLOR="1") as shown:
                code = await code_on(shown)
                proxy.refuse()
                proxy.reset()
                await shown.until("No answer for now")
                proxy.allow()
                await answer(backend, code)
                assert await shown.ended() == 0
    assert machine.kept["server_url"] == proxy.url


async def test_a_key_is_typed_without_being_shown(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path) as backend:
        key = backend.ana.host.raw_key
        async with machine.command("login", backend.url, "--api-key-file", "-") as shown:
            await shown.until("Machine key (not shown)")
            shown.type(f"{key}\n")
            assert await shown.ended() == 0
        check("typed_key", shown.screen, backend.url, key)
        assert machine.kept["machine_key"] == key


async def test_a_key_on_the_command_line_is_taken_with_a_warning(
    tmp_path: Path, machine: Machine
) -> None:
    async with backend_at(tmp_path) as backend:
        key = backend.ana.host.raw_key
        async with machine.command("login", backend.url, "--api-key", key) as shown:
            assert await shown.ended() == 0
        assert "warning: --api-key leaves the key in your shell's history" in shown.screen


async def test_a_wrong_key_is_not_kept(tmp_path: Path, machine: Machine) -> None:
    async with backend_at(tmp_path) as backend:
        file = tmp_path / "key"
        file.write_text(wrong := keys.new_key(keys.MACHINE))
        async with machine.command("login", backend.url, "--api-key-file", str(file)) as shown:
            assert await shown.ended() == 4
        check("wrong_key", shown.screen, backend.url, wrong)
    assert not machine.config.exists()


async def test_a_server_that_is_not_there(machine: Machine) -> None:
    url = "http://127.0.0.1:9"
    async with machine.command("login", url) as shown:
        assert await shown.ended() == 5
    check("unreachable", shown.screen, url)


async def test_a_web_page_is_no_backend(machine: Machine) -> None:
    async with page_front("<html>Welcome to the hotel</html>") as hotel:
        url = f"http://{hotel.address}"
        async with machine.command("login", url) as shown:
            assert await shown.ended() == 5
        check("captive_portal", shown.screen, url)


async def test_a_certificate_that_cannot_be_trusted(tmp_path: Path, machine: Machine) -> None:
    signer = authority(tmp_path)
    contexts = {
        "self_signed": self_signed(tmp_path),
        "unknown_authority": signer.server(),
        "wrong_name": signer.server("other.example"),
        "expired_certificate": signer.server(age=timedelta(days=3)),
    }
    async with backend_at(tmp_path) as backend:
        port = int(backend.url.rpartition(":")[2])
        for name, context in contexts.items():
            async with tls_front(context, port) as front:
                url = f"https://{front.address}"
                trusted = ("--ca-file", str(signer.ca_file))
                options = trusted if name in {"wrong_name", "expired_certificate"} else ()
                async with machine.command("login", url, *options) as shown:
                    assert await shown.ended() == 5
                check(name, shown.screen, url)
                assert front.heard == b""
        async with tls_front(signer.server(), port) as front:
            url = f"https://{front.address}"
            async with machine.command("login", url, "--ca-file", str(signer.ca_file)) as shown:
                await answer(backend, await code_on(shown))
                assert await shown.ended() == 0
            assert machine.kept["ca_file"] == str(signer.ca_file)


async def test_an_unencrypted_way_is_refused_and_never_kept(machine: Machine) -> None:
    for name, url in (
        ("refused_in_private", "http://nas.local:8700"),
        ("refused_in_public", "http://agents.example.com"),
    ):
        async with machine.command("login", url) as shown:
            assert await shown.ended() == 2
        check(name, shown.screen, "no url")


async def test_logging_in_again_cuts_no_run_off_and_removing_the_machine_ends_it(
    tmp_path: Path, machine: Machine
) -> None:
    async with backend_at(tmp_path) as backend, backend.client() as client:

        async def call(method: str, path: str, body: Any = None) -> Any:
            said = await client.request(method, f"/v1/{path}", json=body)
            assert said.is_success, said.text
            return said.json() if said.content else None

        async def state_of(message: Any) -> str:
            trace = await call("GET", f"messages/{message['id']}/trace")
            return trace["deliveries"][0]["state"]

        async def until(message: Any, state: str) -> None:
            with anyio.fail_after(20):
                while await state_of(message) != state:
                    continue

        async with machine.command("login", backend.url) as shown:
            await answer(backend, await code_on(shown))
            assert await shown.ended() == 0
        host = machine.kept["host_id"]
        body = {"name": "api", "driver": "scripted", "host_machine_id": host}
        agent = await call("POST", "agents", body)
        async with machine.command("start") as daemon:
            await daemon.until("Connecting to")
            text = {"text": "@@sleep 60\n@@say too late"}
            message = await call("POST", f"agents/{agent['id']}/messages", text)
            await until(message, "running")
            async with machine.command("login") as shown:
                await answer(backend, await code_on(shown))
                assert await shown.ended() == 0
            assert "is connected with it; nothing was restarted" in shown.screen
            assert await state_of(message) == "running"
            trace = await call("GET", f"messages/{message['id']}/trace")
            assert trace["deliveries"][0]["attempt"] == 1
            assert (await call("GET", f"host-machines/{host}"))["state"] == "online"

            began = time.monotonic()
            await call("DELETE", f"host-machines/{host}")
            status: dict[str, Any] = {}
            while status.get("state") != "unauthorized":
                async with machine.command("status", "--json", NO_COLOR="1") as told:
                    await told.ended()
                status = json.loads(told.screen)
            assert time.monotonic() - began < 10
            assert "revoked" in status["detail"]
            assert daemon.process.poll() is None
    assert machine.kept["host_id"] == host, "a credential is never deleted"
