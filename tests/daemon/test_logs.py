"""`logs` as a person types it: real processes, and files that a daemon wrote, or somebody else."""

import json
import re
import signal
from pathlib import Path

import anyio
import pytest

from cloudagent_daemon import config
from cloudagent_daemon.config import Stored
from fakes.backend import KEY, scripted_backend
from fakes.home import Home

AT = "2026-11-20T21:00:0"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, *lines: str, name: str = "daemon-2026-11-20.log") -> None:
    logs = home.state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / name).open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


async def test_a_daemons_log_is_shown_with_how_it_stands(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until("Connected")
            with anyio.fail_after(20):  # what commands read of it is written a moment later
                while (await home.status())["state"] != "connected":
                    pass
            code, out, error = await home.command("logs")
            assert code == 0
            assert re.search(r"^\S+Z INFO link.client Connected as host_", out, re.MULTILINE)
            assert error.startswith("● default")
            assert str(home.state / "logs") in error
            # About one agent: when it began and ended, and nothing else.
            backend.deliver("@@say secret words")
            await daemon.until("run_ended")
            _, out, _ = await home.command("logs", "--agent", "agent_1")
            assert [line.rpartition("action=")[2].split()[0] for line in out.splitlines()] == [
                "run_started",
                "run_ended",
            ]
            assert "secret words" not in out
        code, out, error = await home.command("logs", "-n", "1", "--json")
        assert (code, error) == (0, "")
        [line] = out.splitlines()
        assert json.loads(line)["schema"] == "cloudagent.log/1"


async def test_lines_are_chosen_by_number_age_and_level(home: Home) -> None:
    write(home, f"{AT}1.000Z INFO a one", f"{AT}2.000Z ERROR a two", "Traceback:", "  boom")
    write(home, f"{AT}3.000Z WARNING a three action=x", f"{AT}4.000Z DEBUG a four")
    _, out, _ = await home.command("logs", "-n", "2")
    assert out.splitlines() == [f"{AT}3.000Z WARNING a three action=x", f"{AT}4.000Z DEBUG a four"]
    _, out, _ = await home.command("logs", "--level", "warn", "--json")
    assert [json.loads(one)["message"] for one in out.splitlines()] == ["two", "three"]
    _, out, _ = await home.command("logs", "--level", "error")
    assert out.splitlines()[1:] == ["Traceback:", "  boom"]
    _, out, _ = await home.command("logs", "--since", f"{AT}3+00:00")
    assert len(out.splitlines()) == 2
    _, out, _ = await home.command("logs", "--since", "10m")
    assert out == ""


async def test_what_lies_in_the_files_cannot_steer_the_terminal(home: Home) -> None:
    hostile = "\x1b]0;owned\x07\x1b]52;c;AAAA\x07\x1b]8;;http://x\x07\r\x9b2J\u202e\x08"
    write(home, f"{AT}1.000Z INFO a name {hostile} end agent_id=agent_{hostile}", hostile)
    for words in (("logs",), ("logs", "--json"), ("logs", "--agent", hostile)):
        _, out, error = await home.command(*words)
        assert not set(out + error) & set("\x1b\x07\x08\x9b\r\u202e")
        assert "end" in out or "--agent" in words


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-n", "many"), "'many'"),
        (("-n", "-3"), ""),
        (("--since", "soon"), "'soon'"),
        (("--level", "loud"), "'loud'"),
    ],
)
async def test_a_slip_exits_2_with_three_lines(
    home: Home, words: tuple[str, ...], why: str
) -> None:
    write(home, f"{AT}1.000Z INFO a one")
    code, out, error = await home.command("logs", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .+\n  why:  .+\n  next: .+\n", error), error
    assert why in error


async def test_without_a_log_it_says_what_to_do(home: Home) -> None:
    code, out, error = await home.command("logs")
    assert (code, out) == (1, "")
    assert "has no log yet" in error
    assert "next: cloudagent-daemon login --server URL" in error
    config.write_file(home.state / "config.json", Stored("http://127.0.0.1:9", KEY, "host_1"))
    code, _, error = await home.command("logs")
    assert code == 1
    assert "next: cloudagent-daemon start\n" in error


async def test_following_goes_on_over_midnight_and_ends_with_ctrl_c(home: Home) -> None:
    write(home, f"{AT}1.000Z INFO a one", f"{AT}1.500Z INFO a quiet")
    async with home.running("logs", "-f", "-n", "1", "--level", "info") as command:
        await command.until("quiet")
        write(home, f"{AT}2.000Z INFO a two", f"{AT}2.500Z DEBUG a hidden", "  hidden too")
        write(home, f"{AT}3.000Z ERROR a three", "  its trace", name="daemon-2026-11-21.log")
        await command.until("its trace")
        command.process.send_signal(signal.SIGINT)
        assert await command.ended() == 130
    shown = [line for line in command.output.splitlines() if "2026" in line or "  its" in line]
    assert [line.split()[-1] for line in shown] == ["quiet", "two", "three", "trace"]
    assert "hidden" not in command.output


async def test_an_agent_may_be_named_as_people_call_it(home: Home) -> None:
    words = ("--agent-id", "agent_01", "--name", "Frontend")
    await home.command("agent", "register", *words)
    write(home, f"{AT}1.000Z INFO a one agent_id=agent_01", f"{AT}2.000Z INFO a two")
    for name in ("Frontend", "agent_01"):
        with anyio.fail_after(30):
            _, out, _ = await home.command("logs", "--agent", name)
        assert out.splitlines() == [f"{AT}1.000Z INFO a one agent_id=agent_01"]
