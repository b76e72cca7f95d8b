"""What every driver has to do with people who are asked: leave to act, questions, and a process that does not wait."""

from pathlib import Path
from typing import Any

from cloudagent_protocol.events import Outcome
from contracts.drivers import behaviour
from contracts.kits import Kit
from fakes.people import Machine, a_machine_in
from fakes.runs import alive

ALLOWED, REFUSED = "touch allowed", "touch refused"
QUESTION: dict[str, Any] = {"question": "Which port?", "options": ["1", "2"]}


@behaviour("leave to act, asked of a person")
async def asks_leave(kit: Kit, home: Path) -> None:
    assert kit.act
    async with kit.world(home, mask="off") as world, a_machine_in(world) as machine:
        orders = [kit.act(ALLOWED), kit.act(REFUSED), kit.reply("done")]
        delivery = await machine.say("\n".join(orders))
        first = await machine.event("approval_requested")
        assert_asked(kit, first, ALLOWED)
        assert not kit.acted(world, ALLOWED)
        await machine.decide(first, delivery, "once")
        second = await machine.event("approval_requested")
        await machine.decide(second, delivery, "deny", reason="not that")
        finished = await machine.event("finished")
        assert (kit.acted(world, ALLOWED), kit.acted(world, REFUSED)) == (True, False)
    assert finished.outcome is (Outcome.REPLIED if kit.goes_on else Outcome.FAILED)
    assert decisions(machine) == ["once", "deny"]


def assert_asked(kit: Kit, asked: Any, command: str) -> None:
    """What a person is shown is the command itself."""
    assert asked.action == "execute"
    assert command in (asked.input["command"] if kit.tells_input else asked.tool)


def decisions(machine: Machine) -> list[str]:
    return [one.decision for one in machine.uplink.events if one.type == "approval_resolved"]


@behaviour("a question to a person")
async def asks_a_question(kit: Kit, home: Path) -> None:
    async with kit.world(home, mask="off") as world, a_machine_in(world) as machine:
        delivery = await machine.say(f"{kit.call('ask_user', QUESTION)}\n{kit.reply('done')}")
        await answer(machine, delivery)
        finished = await machine.event("finished")
    assert finished.outcome is Outcome.REPLIED
    assert_answered(machine)


async def answer(machine: Machine, delivery: Any) -> None:
    asked = await machine.event("question")
    assert (asked.question, asked.options) == ("Which port?", ["1", "2"])
    await machine.decide(asked, delivery, "once", answer="2")


def assert_answered(machine: Machine) -> None:
    results = [event.output for event in machine.uplink.events if event.type == "tool_result"]
    assert any("Ana answered: 2" in output for output in results)


@behaviour("leave that is given when its process is gone")
async def outlives_its_process(kit: Kit, home: Path) -> None:
    assert kit.act
    async with (
        kit.world(home, mask="off", approval_park_s=0.2) as world,
        a_machine_in(world) as machine,
    ):
        delivery = await machine.say(f"{kit.act(ALLOWED)}\n{kit.reply('done')}")
        await parked(kit, machine, delivery)
        finished = await machine.event("finished")
        assert kit.acted(world, ALLOWED)
    assert finished.outcome is Outcome.REPLIED
    assert_came_back(kit, machine)


async def parked(kit: Kit, machine: Machine, delivery: Any) -> None:
    """Nobody answers, its process ends, and then somebody does."""
    asked = await machine.event("approval_requested")
    assert_asked(kit, asked, ALLOWED)
    await machine.parked()
    assert machine.queue.waits_for[delivery.agent.id].startswith("approval: ")
    assert not any(alive(launch.pid) for launch in machine.uplink.launches)
    assert not kit.acted(machine.world, ALLOWED)
    await machine.decide(asked, delivery, "once")


def assert_came_back(kit: Kit, machine: Machine) -> None:
    """In a second process, with the first one's session where the program can."""
    started = [event for event in machine.uplink.events if event.type == "started"]
    assert [one.resumed for one in started] == [False, kit.resumes]
    assert len({one.pid for one in started}) == 2
    assert machine.uplink.types.count("approval_requested") == 1 + decisions(machine).count("deny")
