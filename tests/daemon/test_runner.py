"""One run with a fake coding agent: every way that it may go ends in exactly one `Finished`."""

import json
import re
import signal
import threading
from pathlib import Path

import anyio
import pytest
from typing_extensions import override

from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.ports import Said, StopSignal
from cloudagent_daemon.runs.workspace import TurnRecord, Workspace
from cloudagent_protocol.events import Outcome, Reason, Retry, Started, Stderr, Text, ToolResult
from cloudagent_protocol.frames import RunReport
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, new_run_id
from fakes.runs import KEY, RecordedUplink, a_world, alive


def is_text(frame: Said) -> bool:
    return isinstance(frame, RunReport) and isinstance(frame.event, Text)


async def test_a_reply_by_tool_is_sent_before_the_run_ends_as_replied(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@reply hello Ana")
    assert seen.types == [
        "started",
        "ready",
        "tool_call",
        "tool_result",
        "usage",
        "finished",
    ]
    [sent] = seen.sends
    assert (sent.text, sent.auto_published) == ("hello Ana", False)
    assert sent.conversation_id == world.conversation
    assert seen.frames.index(sent) < len(seen.frames) - 1
    assert (seen.end.outcome, seen.end.reason, seen.end.exit_code) == (Outcome.REPLIED, None, 0)
    assert seen.end.usage is not None
    assert seen.end.usage.cost_usd == 0.01


async def test_events_are_numbered_from_1_without_gaps(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@say one\n@@stderr note\n@@reply two\n@@say three")
    assert [event.seq for event in seen.events] == list(range(1, len(seen.events) + 1))


async def test_a_reason_to_stay_silent_is_the_outcome(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@silent only thanks were given\n@@say done")
    assert (seen.end.outcome, seen.end.detail) == (Outcome.SILENT, "only thanks were given")
    assert seen.sends == []


async def test_a_turn_without_a_tool_call_is_published_and_marked(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@say some thoughts\n@@say the answer is 4")
    assert seen.end.outcome is Outcome.AUTO_PUBLISHED
    assert [(send.text, send.auto_published) for send in seen.sends] == [("the answer is 4", True)]


async def test_a_turn_without_any_words_fails_rather_than_pass_for_done(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@stderr thinking")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.NO_RESULT)


async def test_deltas_add_up_to_the_blocks_that_follow(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@say ein zwei 𝄞 drei\n@@reply x\n@@say vier")
    blocks: dict[int, str] = {}
    for delta in seen.deltas:
        assert delta.offset == len(blocks.get(delta.block, ""))
        blocks[delta.block] = blocks.get(delta.block, "") + delta.text
    texts = {event.block: event.text for event in seen.events if isinstance(event, Text)}
    assert blocks == texts == {0: "ein zwei 𝄞 drei", 1: "vier"}


async def test_the_next_message_of_a_conversation_resumes_its_session(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        first = await world.run("@@reply hello")
        second = await world.run("@@recall")
        world.conversation = ConversationId("conv_other")
        third = await world.run("@@recall")
    assert first.end.session_id == second.end.session_id
    assert second.sends[0].text == "@@reply hello"
    assert isinstance(second.events[0], Started)
    assert second.events[0].resumed
    assert third.sends[0].text == "nothing"


async def test_a_lost_session_becomes_a_fresh_one_with_a_note(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.run("@@reply hello")
        [history] = (tmp_path / "fake").glob("*.jsonl")
        history.unlink()
        uplink = RecordedUplink()
        uplink.history = [{"author": {"name": "Ana"}, "text": "@@say injected"}]
        seen = await world.run("@@recall", uplink=uplink)
        follow = await world.run("@@recall")
    [retry] = [event for event in seen.events if isinstance(event, Retry)]
    assert retry.reason is Reason.SESSION_LOST
    assert seen.sends[0].text == "nothing"
    assert len(seen.launches) == 2
    assert "> Ana: @@say injected" in follow.sends[0].text
    assert follow.sends[0].text.startswith("[Note from cloudagent")


async def test_a_session_of_another_folder_is_not_resumed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.run("@@reply hello")
        seen = await world.run(world.deliver("@@recall", cwd=str(tmp_path)))
    assert seen.sends[0].text == "nothing"


@pytest.mark.parametrize("state", ["pending", "failed", "missing"])
async def test_an_agent_without_its_tools_is_ended_and_tried_once_more(
    tmp_path: Path, state: str
) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(f"@@tools {state} 1\n@@reply now I can")
    [retry] = [event for event in seen.events if isinstance(event, Retry)]
    assert retry.reason is Reason.TOOLS_UNAVAILABLE
    assert seen.end.outcome is Outcome.REPLIED
    assert seen.types.count("started") == 1


async def test_an_agent_that_never_gets_its_tools_fails_for_that_reason(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@tools pending\n@@hang")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.DEAD, Reason.TOOLS_UNAVAILABLE)
    assert len(seen.launches) == 6, "three launches, each with its retry"
    assert "ready" not in seen.types


async def test_a_turn_that_is_done_without_ever_having_had_its_tools_counts_as_such(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@mute\n@@say an answer")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.TOOLS_UNAVAILABLE)
    assert seen.sends == []


@pytest.mark.parametrize(
    ("last", "outcome"), [("@@reply done", Outcome.REPLIED), ("@@quit", Outcome.FAILED)]
)
async def test_what_an_agent_leaves_running_neither_delays_nor_survives_its_turn(
    tmp_path: Path, last: str, outcome: Outcome
) -> None:
    async with a_world(tmp_path) as world:
        with anyio.fail_after(8):  # they hold its pipes open; waiting for those takes 10 s
            seen = await world.run(f"@@setsid\n{last}")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
    assert seen.end.outcome is outcome
    assert len(children) == 1
    assert not any(map(alive, children))


@pytest.mark.parametrize(
    ("orders", "reason"),
    [
        ("@@error 401 authentication_failed", Reason.AUTHENTICATION),
        ("@@error 401", Reason.AUTHENTICATION),
        ("@@error 0 billing_error", Reason.BILLING),
        ("@@error 429 rate_limit", Reason.RATE_LIMIT),
        ("@@error 529 overloaded", Reason.OVERLOADED),
        ("@@error 500 server_error", Reason.SERVER_ERROR),
        ("@@error 503", Reason.SERVER_ERROR),
        ("@@error 400 invalid_request", Reason.INVALID_REQUEST),
        ("@@retry 0 unknown\n@@error 0", Reason.CONNECTION),
        ("@@error 0", Reason.MODEL_ERROR),
        ("@@result error_max_turns", Reason.MAX_TURNS),
        ("@@result error_during_execution", Reason.MODEL_ERROR),
        ("@@crash 3", Reason.CRASHED),
        ("@@kill", Reason.CRASHED),
        ("@@quit", Reason.NO_RESULT),
        ("@@reply partly\n@@crash", Reason.CRASHED),
    ],
)
async def test_each_failure_has_its_reason(tmp_path: Path, orders: str, reason: Reason) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(f"@@stderr last words\n{orders}")
        after = await world.run("@@reply still here")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, reason)
    assert seen.end.detail
    assert "last words" in seen.end.stderr_tail
    assert not any(send.auto_published for send in seen.sends)
    assert after.end.outcome is Outcome.REPLIED


async def test_what_dies_before_it_is_ready_is_launched_three_times_and_then_given_up(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@mute\n@@stderr last words\n@@crash 3")
        after = await world.run("@@reply still here")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.DEAD, Reason.CRASHED)
    assert "Given up after 3 launches" in seen.end.detail
    assert "last words" in seen.end.stderr_tail
    assert len(seen.launches) == 3
    retries = [event.reason for event in seen.events if isinstance(event, Retry)]
    assert retries == [Reason.CRASHED, Reason.CRASHED]
    assert after.end.outcome is Outcome.REPLIED


async def test_what_has_worked_is_not_launched_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@mute\n@@say I have begun\n@@crash 3")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.CRASHED)
    assert len(seen.launches) == 1


async def test_failed_launches_are_counted_over_the_daemons_lives(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        deliver = world.deliver("@@mute\n@@crash 3")
        space = Workspace(world.settings.agents_dir, deliver.agent)
        space.prepare()
        record = TurnRecord(run_id=new_run_id(), launch_id="gone", failed_launches=2)
        space.keep_turn(deliver.delivery_id, record)
        seen = await world.run(deliver, attempt=2)
    assert seen.end.outcome is Outcome.DEAD
    assert len(seen.launches) == 1


async def test_work_that_began_before_the_spool_was_lost_is_a_further_attempt(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        deliver = world.deliver("@@reply ok")
        space = Workspace(world.settings.agents_dir, deliver.agent)
        space.prepare()
        space.keep_turn(deliver.delivery_id, TurnRecord(run_id=new_run_id(), launch_id="gone"))
        seen = await world.run(deliver, attempt=1)
    [started] = [event for event in seen.events if isinstance(event, Started)]
    assert started.attempt == 2
    assert seen.launches[0].attempt == 2


async def test_a_retried_request_is_told_with_its_reason_and_delay(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@retry 529 overloaded\n@@reply ok")
    [retry] = [event for event in seen.events if isinstance(event, Retry)]
    assert (retry.reason, retry.delay_s) == (Reason.OVERLOADED, 0.5)


async def test_a_silent_process_is_taken_for_hung_and_ended_in_the_time_that_an_end_has(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path, hang_timeout_s=1.5, term_timeout_s=1.0) as world:
        seen = await world.run("@@deaf\n@@setsid\n@@hang")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.HUNG)
    # Its interrupt took that time: there is none left for a SIGTERM.
    assert seen.end.exit_code == -signal.SIGKILL
    assert children
    assert not any(map(alive, children))


async def test_a_turn_of_a_newer_daemon_fails_its_message_with_the_repair(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        deliver = world.deliver("@@reply hi")
        file = world.workspace / ".meta" / "turns" / f"{deliver.delivery_id}.json"
        file.parent.mkdir(parents=True)
        file.write_text('{"schema": 2}')
        seen = await world.run(deliver)
        assert file.read_text() == '{"schema": 2}'
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.INTERNAL)
    assert "uv tool upgrade cloudagent-daemon" in seen.end.detail


async def test_an_agents_own_hang_timeout_counts_and_not_its_machines(tmp_path: Path) -> None:
    async with a_world(tmp_path, hang_timeout_s=600) as world:
        world.agent = world.agent.model_copy(update={"hang_timeout_s": 1.0})
        seen = await world.run("@@hang")
    assert seen.end.reason == Reason.HUNG
    assert "for 1 s" in seen.end.detail


async def test_a_session_journal_that_grows_is_a_sign_of_life(tmp_path: Path) -> None:
    async with a_world(tmp_path, hang_timeout_s=1.5) as world:
        seen = await world.run("@@journal 4\n@@reply done")
    assert (seen.end.outcome, [send.text for send in seen.sends]) == (Outcome.REPLIED, ["done"])


async def test_a_tree_that_takes_too_much_memory_is_warned_and_then_ended_whole(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path, run_memory_mb=300) as world:
        seen = await world.run("@@allocate 320\n@@hang")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.OUT_OF_MEMORY)
    assert re.search(r"took 3\d\d MB of memory, and 300 MB are allowed", seen.end.detail)
    [warning] = [event.text for event in seen.events if event.type == "stderr"]
    assert "it is ended if it goes on so" in warning
    assert children
    assert not any(map(alive, children))


async def test_a_stop_ends_the_tree_and_names_who_asked(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        stop, uplink = StopSignal(), RecordedUplink()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: world.run("@@setsid\n@@spawn\n@@say x\n@@hang", stop=stop, uplink=uplink)
            )
            await uplink.until(is_text)
            stop.request("Ana")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
    assert (uplink.end.outcome, uplink.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert "Ana" in uplink.end.detail
    assert uplink.end.exit_code == 1  # it heeded the interrupt, and left
    assert len(children) == 2
    assert not any(map(alive, [*children, uplink.launches[0].pid]))


async def test_a_10_mb_line_and_bytes_that_are_no_text_pass(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run("@@line 10000000\n@@garbage\n@@line 20000000\n@@reply ok")
    big = next(event for event in seen.events if isinstance(event, ToolResult))
    assert big.truncated
    assert 30_000 < len(big.output) < 31_000
    assert "a\ufffd\ufffdb" in [event.text for event in seen.events if isinstance(event, Text)]
    assert any("too long" in event.text for event in seen.events if isinstance(event, Stderr))
    assert seen.end.outcome is Outcome.REPLIED


async def test_a_child_sees_what_it_needs_and_no_more(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        env = {**world.agent.env, "ADDED": "by the agent", "LEAK": f"x{KEY}x"}
        for name, expected in {
            "ADDED": "by the agent",
            "LEAK": "unset",
            "SECRET_OF_THE_DAEMON": "unset",
            "CLOUDAGENT_DAEMON_PROFILE": "default",
            "DISABLE_AUTOUPDATER": "1",
        }.items():
            seen = await world.run(world.deliver(f"@@env {name}", env=env))
            assert seen.sends[0].text == expected, name


async def test_a_missing_program_or_folder_is_told_apart(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        gone = await world.run(world.deliver("hi", command=["/nonexistent/claude"]))
        nowhere = await world.run(world.deliver("hi", cwd="/nonexistent/folder"))
        none = await world.run(world.deliver("hi", command=None))
        unknown = await world.run(world.deliver("hi", driver="of_tomorrow"))
    assert (gone.end.reason, "/nonexistent/claude" in gone.end.detail) == (
        Reason.SPAWN_FAILED,
        True,
    )
    assert (nowhere.end.reason, "/nonexistent/folder" in nowhere.end.detail) == (
        Reason.SPAWN_FAILED,
        True,
    )
    assert (none.end.reason, "npm install" in none.end.detail) == (Reason.RUNTIME_MISSING, True)
    assert (unknown.end.reason, "of_tomorrow" in unknown.end.detail) == (
        Reason.RUNTIME_MISSING,
        True,
    )
    for seen in (none, unknown):
        assert (seen.types, seen.end.outcome) == (["finished"], Outcome.FAILED)
    for seen in (gone, nowhere):
        assert (seen.types, seen.end.outcome) == (["retry", "retry", "finished"], Outcome.DEAD)


async def test_an_agent_id_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(world.deliver("hi", id=AgentId("../../etc")))
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.INTERNAL)


async def test_the_last_spawn_is_written_down_for_people(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.run("@@stderr oh no\n@@crash 4")
        record = json.loads((world.workspace / ".meta" / "last-spawn.json").read_text())
    assert (record["exit_code"], record["stderr_tail"]) == (4, "oh no\n")
    assert "--mcp-config" in record["argv"]
    assert record["pid"]


async def test_a_turn_cut_off_by_the_daemons_death_is_repeated_with_a_note(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        uplink, deliver = RecordedUplink(), world.deliver("@@say working\n@@hang")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(deliver, uplink=uplink))
            await uplink.until(is_text)
            tasks.cancel_scope.cancel()
        assert uplink.finished == []
        assert not alive(uplink.launches[0].pid)
        again = deliver.model_copy(
            update={"message": deliver.message.model_copy(update={"text": "@@recall"})}
        )
        seen = await world.run(again, attempt=2)
        after = await world.run("@@recall")
    assert seen.events[0].attempt == 2
    assert seen.events[0].resumed
    assert seen.sends[0].text == "@@say working\n@@hang"
    assert "was interrupted" in after.sends[0].text


async def test_a_reply_that_was_the_last_act_is_not_repeated_after_a_crash(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        uplink, deliver = RecordedUplink(), world.deliver("@@reply all done\n@@say bye\n@@hang")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(deliver, uplink=uplink))
            await uplink.until(is_text)
            tasks.cancel_scope.cancel()
        seen = await world.run(deliver, attempt=2)
    assert seen.launches == []
    assert seen.end.outcome is Outcome.REPLIED
    assert [send.message_id for send in seen.sends] == [send.message_id for send in uplink.sends]
    assert world.effects().count("reply all done") == 1


async def test_a_verdict_that_was_reached_before_a_crash_stands(tmp_path: Path) -> None:
    class Dying(RecordedUplink):
        def __init__(self) -> None:
            super().__init__()
            self.asked = anyio.Event()

        @override
        async def finish(self, frame: RunReport) -> None:
            self.asked.set()
            await anyio.sleep_forever()

    async with a_world(tmp_path) as world:
        uplink, deliver = Dying(), world.deliver("@@say the words")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(deliver, uplink=uplink))
            with anyio.fail_after(10):
                await uplink.asked.wait()
            tasks.cancel_scope.cancel()
        seen = await world.run(deliver, attempt=2)
        # Even should the spool be lost that knows it: the backend delivers again, and is answered.
        again = await world.run(deliver, attempt=1)
    assert seen.launches == again.launches == []
    assert again.finished == seen.finished
    assert (seen.end.outcome, seen.end.seq) == (Outcome.AUTO_PUBLISHED, len(uplink.events) + 1)
    assert seen.finished[0].run_id == uplink.sends[0].run_id
    assert [send.message_id for send in seen.sends] == [send.message_id for send in uplink.sends]


async def test_a_turn_that_was_stopped_before_its_process_starts_none(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        stop = StopSignal()
        stop.request("Ana")
        seen = await world.run("@@reply too late", attempt=2, stop=stop)
    assert (seen.launches, seen.sends) == ([], [])
    assert (seen.end.outcome, seen.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert seen.end.detail == "Stopped by Ana."


async def test_a_prompt_too_long_for_a_command_line_arrives_whole(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.run("@@reply ok\n" + "é" * 80_000)  # 160 kB; one word may have 128
        seen = await world.run("@@recall")
    assert len(seen.sends[0].text) > 80_000


async def test_a_message_to_another_conversation_is_sent_only_if_the_backend_knows_it(
    tmp_path: Path,
) -> None:
    call = '@@call send_message {"text": "over there", "conversation_id": "conv_there"}'
    async with a_world(tmp_path) as world:
        refused = await world.run(f"{call}\n@@reply here")
        uplink = RecordedUplink()
        uplink.history = []
        sent = await world.run(call, uplink=uplink)
    assert [send.text for send in refused.sends] == ["here"]
    assert sent.sends[0].conversation_id == "conv_there"
    assert sent.sends[0].in_reply_to is None


class _HeldUp(Workspace):
    """A disk whose first write is overtaken by the second, if there is one meanwhile."""

    overtaken = threading.Event()
    writes = 0

    @override
    def keep_turn(self, delivery: DeliveryId, record: TurnRecord, *, synced: bool = True) -> None:
        self.writes += 1
        if self.writes == 1:
            self.overtaken.wait(0.3)
        super().keep_turn(delivery, record, synced=synced)
        self.overtaken.set()


async def test_two_sends_at_once_are_both_in_the_turns_record(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        deliver = world.deliver("hello")
        workspace = _HeldUp(world.settings.agents_dir, deliver.agent)
        workspace.prepare()
        desk = RunDesk(deliver, new_run_id(), workspace, world.uplink, lambda: None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.send, "one", None)
            tasks.start_soon(desk.send, "two", None)
        record = workspace.turn_of(deliver.delivery_id)
        assert record
        assert sorted(send.text for send in record.sends) == ["one", "two"]
