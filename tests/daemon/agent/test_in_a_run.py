"""The built-in agent where it is at home: behind the daemon's runner and bridge."""

from pathlib import Path

import anyio

from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_protocol.events import Outcome, Reason, Retry, Started, Text
from cloudagent_protocol.frames import RunReport
from fakes.model import StubModel
from fakes.runs import RecordedUplink, a_world


async def test_a_plain_message_is_echoed_in_deltas_and_published(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(world.deliver("hello Ada", driver="scripted"))
    assert seen.types == ["started", "ready", "text", "usage", "finished"]
    assert "".join(delta.text for delta in seen.deltas) == "You said: hello Ada"
    assert seen.end.outcome is Outcome.AUTO_PUBLISHED
    assert [send.text for send in seen.sends] == ["You said: hello Ada"]


async def test_a_message_sent_by_tool_is_the_reply(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        script = '@@call send_message {"text": "hi"}\n@@say done'
        seen = await world.run(world.deliver(script, driver="scripted"))
    assert seen.end.outcome is Outcome.REPLIED
    assert [send.text for send in seen.sends] == ["hi"]


async def test_the_next_message_resumes_the_session(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.run(world.deliver("first", driver="scripted"))
        seen = await world.run(world.deliver("@@recall", driver="scripted"))
    assert isinstance(seen.events[0], Started)
    assert seen.events[0].resumed
    assert seen.sends[0].text == "first"


async def test_a_session_file_that_is_gone_becomes_a_fresh_session(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.run(world.deliver("first", driver="scripted"))
        for history in tmp_path.rglob("*.jsonl"):
            history.unlink()
        seen = await world.run(world.deliver("second", driver="scripted"))
    [retry] = [event for event in seen.events if isinstance(event, Retry)]
    assert retry.reason is Reason.SESSION_LOST
    assert "second" in seen.sends[0].text


async def test_a_stop_ends_it_as_cancelled_and_keeps_what_was_said(tmp_path: Path) -> None:
    uplink, stop = RecordedUplink(), StopSignal()
    async with a_world(tmp_path) as world, anyio.create_task_group() as tasks:

        async def work() -> None:
            deliver = world.deliver("@@stream 1000 0.05", driver="scripted")
            await world.run(deliver, uplink=uplink, stop=stop)

        tasks.start_soon(work)
        await uplink.until(lambda f: isinstance(f, RunReport) and f.event.type == "ready")
        stop.request("Ana")
    assert uplink.end.outcome is Outcome.CANCELLED
    assert not any(isinstance(event, Text) and not event.text for event in uplink.events)


async def test_the_hosted_model_is_reached_by_the_agents_own_settings(tmp_path: Path) -> None:
    with StubModel() as stub:
        env = {"OPENAI_BASE_URL": f"{stub.url}/v1", "OPENAI_API_KEY": "k"}
        async with a_world(tmp_path) as world:
            script = '@@call send_message {"text": "hi"}'
            deliver = world.deliver(script, driver="builtin", env=env, model="stub-model")
            seen = await world.run(deliver)
            refused = await world.run(world.deliver("@@error 401", driver="builtin", env=env))
    assert seen.end.outcome is Outcome.REPLIED
    assert seen.end.usage is not None
    assert seen.end.usage.input_tokens == 20
    assert refused.end.reason is Reason.AUTHENTICATION
