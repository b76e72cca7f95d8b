"""A job's one message: what its log says, and when it is over."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cloudagent_daemon.runs.once import OneMessage, short, words
from cloudagent_protocol.events import Finished, Outcome, Reason, Usage, UsageReported
from cloudagent_protocol.frames import RunReport, Send
from cloudagent_protocol.ids import new_message_id, new_run_id
from fakes.runs import a_delivery


def now() -> datetime:
    return datetime.now(UTC)


class Clock:
    now = 1_000_000_000.0


CLOCK = Clock()


def watcher(**more: Any) -> tuple[OneMessage, list[str]]:
    said: list[str] = []
    options: dict[str, Any] = {"cwd": Path("/job"), "idle_exit_s": 120.0} | more
    return OneMessage(said.append, wall=lambda: CLOCK.now, **options), said


def report(deliver: Any, event: Any) -> RunReport:
    return RunReport(
        run_id=new_run_id(),
        agent_id=deliver.agent.id,
        conversation_id=deliver.message.conversation_id,
        delivery_ids=[deliver.delivery_id],
        event=event,
    )


def link(*, connected: bool = True, state: str = "connected") -> Any:
    """A link that stands as it is told to."""
    standing = SimpleNamespace(state=state, detail="refused")
    return SimpleNamespace(
        connection=object() if connected else None, standing=standing, changed=anyio.Event()
    )


def test_an_agent_without_a_folder_works_where_the_job_does() -> None:
    once, _ = watcher()
    assert once.delivered(a_delivery()).agent.cwd == "/job"
    own = a_delivery()
    own.agent.cwd = "/srv/own"
    assert once.delivered(own).agent.cwd == "/srv/own"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Finished(
                at=now(),
                outcome=Outcome.REPLIED,
                usage=Usage(input_tokens=41_200, output_tokens=2_950),
            ),
            "completed in 2 min 38 s, 41 k tokens in, 3 k out",
        ),
        (
            Finished(at=now(), outcome=Outcome.SILENT, detail="only a thank-you"),
            "completed in 2 min 38 s; the agent chose not to reply: only a thank-you",
        ),
        (
            Finished(at=now(), outcome=Outcome.FAILED, reason=Reason.CRASHED, detail="exit 1"),
            "failed after 2 min 38 s: crashed: exit 1",
        ),
        (
            Finished(
                at=now(), outcome=Outcome.CANCELLED, reason=Reason.INTERRUPTED, detail="by Ana"
            ),
            "stopped after 2 min 38 s: interrupted: by Ana",
        ),
    ],
)
async def test_the_log_says_how_it_ended(event: Finished, line: str) -> None:
    once, said = watcher()
    deliver = a_delivery()
    once.delivered(deliver)
    CLOCK.now += 158
    once.finished(report(deliver, event))
    once.over()
    with anyio.fail_after(5):
        await once.watch(link())
    assert [one[9:] for one in said] == [
        f"{deliver.message.id} delivered to {deliver.agent.name}",
        line,
    ]


async def test_what_the_agent_says_and_spends_is_kept_for_the_result() -> None:
    once, _ = watcher()
    deliver = a_delivery()
    once.delivered(deliver)
    once.said(report(deliver, UsageReported(at=now(), usage=Usage(input_tokens=7))))
    for text in ("first", "last"):
        once.said(
            Send(
                message_id=new_message_id(),
                agent_id=deliver.agent.id,
                conversation_id=deliver.message.conversation_id,
                run_id=new_run_id(),
                text=text,
                sent_at=now(),
            )
        )
    once.finished(report(deliver, Finished(at=now(), outcome=Outcome.REPLIED)))
    assert once.turn.reply == "last"
    assert once.turn.usage == Usage(input_tokens=7)


async def test_no_message_in_time_is_told_from_no_backend() -> None:
    for client, verdict in (
        (link(), "idle"),
        (link(connected=False, state="unauthorized"), "unauthorized"),
        (link(connected=False, state="connecting"), "unreachable"),
    ):
        once, _ = watcher(idle_exit_s=0.01, connect_s=0.01)
        with anyio.fail_after(5):
            await once.watch(client)
        assert once.gave_up == verdict


async def test_a_machine_without_room_is_told_from_no_message() -> None:
    once, said = watcher(idle_exit_s=0.01)
    with anyio.fail_after(5):
        await once.watch(link(), lambda: "99 MB of memory are available")
    assert once.gave_up == "failed"
    assert said[-1].endswith("this machine starts nothing: 99 MB of memory are available")


async def test_a_host_that_was_removed_meanwhile_ends_the_wait() -> None:
    once, _ = watcher(idle_exit_s=None)
    client = link()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(once.watch, client)
        await anyio.lowlevel.checkpoint()
        client.connection, client.standing.state = None, "unauthorized"
        client.changed.set()
        with anyio.fail_after(5):
            while once.gave_up is None:
                await anyio.lowlevel.checkpoint()
    assert once.gave_up == "unauthorized"


async def test_a_message_that_was_stopped_before_it_began_is_over() -> None:
    once, said = watcher()
    once.finished(
        report(
            a_delivery(),
            Finished(
                at=now(), outcome=Outcome.CANCELLED, reason=Reason.INTERRUPTED, detail="by Ana"
            ),
        )
    )
    with anyio.fail_after(5):
        await once.watch(link())
    assert said[-1].endswith("stopped: interrupted: by Ana")


def test_durations_and_counts_are_short() -> None:
    assert [words(s) for s in (0, 8, 120, 158, 3_900, 90_000)] == [
        "0 s",
        "8 s",
        "2 min",
        "2 min 38 s",
        "1 h 5 min",
        "25 h",
    ]
    assert [short(n) for n in (512, 2_950, 41_200, 1_234_567)] == ["512", "3 k", "41 k", "1.2 M"]
