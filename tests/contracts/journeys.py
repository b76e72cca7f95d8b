"""The behaviours of `contracts/drivers.py` and `contracts/asking.py`, several in each start of a program.

For programs that take seconds of CPU to start: what they do is judged by the same functions.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloudagent_protocol.events import Outcome
from cloudagent_protocol.ids import new_conversation_id
from contracts import asking
from contracts.drivers import (
    FILES,
    STATUSES,
    Behaviour,
    assert_apart,
    assert_begun_anew,
    assert_failed,
    assert_hung,
    assert_killed,
    assert_limited,
    assert_no_child,
    assert_nothing_left,
    assert_replied,
    assert_resumed,
    assert_stopped,
    assert_streamed,
    at_once,
    forget_session,
    killed,
    limited,
    pictures,
    stopped,
    with_files,
)
from contracts.kits import Kit
from fakes.people import a_machine_in

JOURNEYS: Final[dict[str, Behaviour]] = {}
#: The behaviours that a journey shows.
SHOWS: Final[dict[str, tuple[str, ...]]] = {}


def journey(name: str, *behaviours: str) -> Callable[[Behaviour], Behaviour]:
    def add(check: Behaviour) -> Behaviour:
        JOURNEYS[name], SHOWS[name] = check, behaviours
        return check

    return add


@journey(
    "turns",
    "a reply by our tool",
    "text as it is written",
    "text that is published if nothing is sent",
    "a session resumed",
    "a picture that its model sees",
    "two conversations at once",
    "an unknown session begun anew, and told",
)
async def turns(kit: Kit, home: Path) -> None:
    """It goes on in a second process, beside another conversation that has lost its session."""
    said = "one two three four five"
    async with kit.world(home) as world:
        orders = f"@@say {said}\n{kit.reply('hello Ana')}\n@@say and more words"
        first = await world.run(orders)
        recall = with_files(world, "@@recall\n@@pictures", FILES)
        world.conversation = new_conversation_id()
        forget_session(world)
        again, other = await at_once(world, recall, world.deliver(kit.reply("still here")))
    assert_replied(kit, first, "hello Ana")
    assert_streamed(first, said)
    assert_resumed(kit, first, again)
    assert again.end.outcome is Outcome.AUTO_PUBLISHED
    [published] = again.sends
    assert published.text.endswith(pictures(kit))
    assert "hello Ana" in published.text or not kit.resumes
    assert [send.text for send in other.sends] == ["still here"]
    assert_begun_anew(kit, other)
    assert_apart(again, other)


@journey(
    "ends",
    "a stop, with all that it started gone",
    "a process that is killed, with all that it started gone",
    "a process that hangs",
)
async def ends(kit: Kit, home: Path) -> None:
    """Of one conversation, so that each goes on after the one before."""
    async with kit.world(home, hang_timeout_s=kit.patience_s) as world:
        first = await stopped(kit, world)
        assert_stopped(kit, world, first)
        assert_nothing_left(first)
        second = await killed(kit, world)
        assert_killed(second)
        assert_no_child(kit, world, runs=2)
        third = await world.run(f"{kit.reply('back')}\n{kit.hang}")
    assert_hung(third)
    assert [send.text for seen in (first, second, third) for send in seen.sends] == [
        "on it",
        "on it",
        "back",
    ]


@journey("errors", "401: log in", "429: rate limit", "429 with its end", "529: overloaded")
async def errors(kit: Kit, home: Path) -> None:
    """All at once: programs ask their model again by themselves, and wait in between."""
    until = int(time.time()) + 7_200
    async with kit.world(home) as world:
        texts = [kit.error(status) for status in STATUSES]
        delivers = []
        for text in (*texts, *([limited(kit, until)] if kit.limit else [])):
            world.conversation = new_conversation_id()
            delivers.append(world.deliver(text))
        seen = await at_once(world, *delivers)
    for status, one in zip(STATUSES, seen, strict=False):
        assert_failed(kit, one, status)
    assert_limited(kit, seen[3 if kit.limit else 1], until)


#: A person who answers at once takes less, on a busy machine, too.
_PARK_S: Final = 5.0


@journey(
    "people",
    "leave to act, asked of a person",
    "a question to a person",
    "leave that is given when its process is gone",
)
async def people(kit: Kit, home: Path) -> None:
    """Leave comes when the process is gone; the next one asks a question, and is refused another leave."""
    assert kit.act
    async with (
        kit.world(home, mask="off", approval_park_s=_PARK_S) as world,
        a_machine_in(world) as machine,
    ):
        question = kit.call("ask_user", asking.QUESTION)
        orders = [kit.act(asking.ALLOWED), question, kit.act(asking.REFUSED), kit.reply("done")]
        delivery = await machine.say("\n".join(orders))
        await asking.parked(kit, machine, delivery)
        await asking.answer(machine, delivery)
        refused = await machine.event("approval_requested")
        asking.assert_asked(kit, refused, asking.REFUSED)
        await machine.decide(refused, delivery, "deny", reason="not that")
        finished = await machine.event("finished")
        did = [kit.acted(world, command) for command in (asking.ALLOWED, asking.REFUSED)]
    assert did == [True, False]
    assert finished.outcome is (Outcome.REPLIED if kit.goes_on else Outcome.FAILED)
    asking.assert_came_back(kit, machine)
    assert [one for one in asking.decisions(machine) if one != "answered"][-1] == "deny"
    asking.assert_answered(machine)
