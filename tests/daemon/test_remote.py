"""What people ask of the daemon from afar, and what becomes of it."""

import sys
from pathlib import Path

import pytest

from cloudagent_daemon.ending import Ending, why_no_restart
from cloudagent_daemon.runs.breaker import CRASHES
from cloudagent_protocol.events import Finished
from cloudagent_protocol.frames import (
    Command,
    CommandResult,
    Heartbeat,
    HostReport,
    RunReport,
    encode,
)
from cloudagent_protocol.ids import AgentId, new_conversation_id
from cloudagent_protocol.resources import AgentSpec
from fakes.backend import KEY, HostConnection, ScriptedBackend, scripted_backend
from fakes.home import Home
from fakes.runs import FAKE

CLAUDE = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "9.9.9 (Claude Code)"; exit; fi
if [ "$1" = auth ]; then exit 1; fi
read -r request
echo '{"type": "control_response", "response": {"response": {"models": [{"value": "opus"}]}}}'
"""

INSTALLED = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "9.9.9 (Claude Code)"; exit; fi
exec {python} {fake} "$@"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def ask(backend: ScriptedBackend, link: HostConnection, op: str) -> CommandResult:
    number = len(backend.all(CommandResult)) + 1
    await link.say(encode(Command(id=number, op=op, actor="ana")))
    result = await backend.reported(CommandResult, number)
    assert result.id == number
    return result


async def test_a_daemon_looks_again_and_starts_anew_in_the_same_process(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            link = await backend.connected()
            assert "commands" in link.hello.capabilities
            before = await backend.reported(HostReport)
            assert not [one for one in before.runtimes if one.version == "9.9.9"]
            bin_ = home.folder / "bin"
            bin_.mkdir()
            claude = bin_ / "claude"
            claude.write_text(CLAUDE)
            claude.chmod(0o755)
            result = await ask(backend, link, "rescan")
            assert result.error is None
            found = {one.name: one.version for one in backend.all(HostReport)[-1].runtimes}
            assert found["claude_code"] == "9.9.9"
            # Asked for its models afterwards, as that takes a real one a second.
            await backend.until(
                lambda: ["opus"] in [one.models for one in backend.all(HostReport)[-1].runtimes]
            )

            result = await ask(backend, link, "dance")
            assert result.error
            assert "knows no 'dance'" in result.error

            assert (await ask(backend, link, "restart")).error is None
            await daemon.until("restarting: ana asked for it")
            again = await backend.connected(2)
            assert again.hello.instance_id != link.hello.instance_id
            assert (await home.status())["pid"] == daemon.process.pid
            code, out, _ = await home.command("stop")
            assert code == 0
            assert f"pid {daemon.process.pid}" in out
            assert await daemon.ended() == 0


async def test_a_rescan_has_an_agent_tried_at_once_that_was_left_alone(home: Home) -> None:
    fake = AgentSpec(
        id=AgentId("agent_1"),
        name="shop",
        driver="claude_code",
        command=[sys.executable, str(FAKE)],
        env={"FAKE_STATE": str(home.folder / "fake"), "FAKE_EFFECTS": str(home.folder / "effects")},
    )
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            link = await backend.connected()
            conversation = new_conversation_id()
            for _ in range(CRASHES):
                backend.deliver("@@kill", conversation=conversation, agent=fake)
            waits = backend.deliver("@@reply hi", conversation=conversation, agent=fake)

            def ended() -> list[str]:
                runs = [one for one in backend.all(RunReport) if isinstance(one.event, Finished)]
                return [one.delivery_ids[0] for one in runs]

            def paused() -> bool:
                beats = backend.all(Heartbeat)
                return bool(beats and [hold.reason for hold in beats[-1].holds] == ["crash_loop"])

            await backend.until(paused)
            assert waits.delivery_id not in ended()
            assert (await ask(backend, link, "rescan")).error is None
            await backend.until(lambda: waits.delivery_id in ended())
            await backend.until(lambda: backend.all(Heartbeat)[-1].holds == [])
            assert daemon.process.returncode is None


async def test_a_message_whose_program_was_installed_since_the_last_one_has_it_looked_for(
    home: Home,
) -> None:
    agent = AgentSpec(
        id=AgentId("agent_1"),
        name="shop",
        driver="claude_code",
        env={"FAKE_STATE": str(home.folder / "fake"), "FAKE_EFFECTS": str(home.folder / "effects")},
    )
    bin_ = home.folder / "bin"
    bin_.mkdir()
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started(PATH=str(bin_)):
            await backend.connected()

            def ended() -> dict[str, str | None]:
                return {
                    one.delivery_ids[0]: one.event.reason
                    for one in backend.all(RunReport)
                    if isinstance(one.event, Finished)
                }

            lacks = backend.deliver("@@reply hi", agent=agent)
            await backend.until(lambda: lacks.delivery_id in ended())
            assert ended()[lacks.delivery_id] == "runtime_missing"
            claude = bin_ / "claude"
            claude.write_text(INSTALLED.format(python=sys.executable, fake=FAKE))
            claude.chmod(0o755)
            goes_on = backend.deliver("@@reply hi", agent=agent)
            await backend.until(lambda: goes_on.delivery_id in ended())
            assert ended()[goes_on.delivery_id] is None
            found = {one.name: one.version for one in backend.all(HostReport)[-1].runtimes}
            assert found["claude_code"] == "9.9.9"


async def test_one_that_nobody_would_start_again_refuses_and_goes_on(home: Home) -> None:
    async with scripted_backend() as backend:
        words = ("--server-url", backend.url)
        async with home.started(*words, CLOUDAGENT_API_KEY=KEY) as daemon:
            link = await backend.connected()
            result = await ask(backend, link, "restart")
            assert result.error
            assert "nobody would start it again" in result.error
            assert daemon.process.returncode is None
            assert (await ask(backend, link, "rescan")).error is None


def test_a_restart_is_refused_by_whoever_could_not_come_back() -> None:
    assert why_no_restart(Ending(), one_shot=False, unusable="") is None
    broken = why_no_restart(Ending(), one_shot=False, unusable="its files are gone")
    assert broken == "it could not be started again: its files are gone"
    begun = Ending()
    begun.restart("version 9 is installed", 300)
    assert why_no_restart(begun, one_shot=False, unusable="") is None
    stopping = Ending()
    stopping.request(0)
    assert why_no_restart(stopping, one_shot=False, unusable="") == "it is being stopped"
