"""What the tests of runs share: a recorded uplink, a runner with its bridge, a delivery."""

import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import psutil

from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.config import Limits, Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.base import Decision, PermissionAsked, Reported, Turn
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.process import Ladder
from cloudagent_daemon.runs.attempt import Attempt, Seen
from cloudagent_daemon.runs.launching import Held, Launcher, Wanted
from cloudagent_daemon.runs.ports import Launch, Said, StopSignal, UplinkError
from cloudagent_daemon.runs.runner import Runner
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.events import Finished, Text
from cloudagent_protocol.frames import (
    AgentEntry,
    Deliver,
    DeliveredMessage,
    Delta,
    FindAgent,
    FoundAgent,
    ListAgents,
    ListMessages,
    RunReport,
    Send,
    encode,
)
from cloudagent_protocol.ids import (
    ConversationId,
    DeliveryId,
    UserId,
    new_agent_id,
    new_conversation_id,
    new_delivery_id,
    new_message_id,
    new_run_id,
)
from cloudagent_protocol.resources import AgentSpec, Author

FAKE = Path(__file__).parent / "agent_cli.py"
KEY = "sk_machine_" + "k" * 46


class RecordedUplink:
    """An uplink that keeps what it is given, as the spool would."""

    #: How long a frame may be waited for.
    deadline_s = 20.0

    def __init__(self) -> None:
        self.frames: list[Said] = []
        self.deltas: list[Delta] = []
        self.launches: list[Launch] = []
        #: Of processes that were started ahead: launch and pid, 0 before the start.
        self.waiting: list[tuple[str, int]] = []
        #: Launches that were to stay, and are gone.
        self.ended: list[str] = []
        self.finished: list[RunReport] = []
        #: What is part of a turn that has left, and whose.
        self.aboard: list[tuple[DeliveryId, DeliveryId]] = []
        #: What the backend would answer; None while it cannot be reached.
        self.history: list[dict[str, Any]] | None = None
        self.queries: list[ListMessages] = []
        #: Other agents: as they are listed, and where a message to one goes.
        self.others: list[AgentEntry] = []
        self.known: dict[str, FoundAgent] = {}
        self.searches: list[FindAgent] = []
        self._news = anyio.Event()

    full = False

    async def report(self, frame: Said) -> None:
        encode(frame)  # every frame must fit the wire
        self.frames.append(frame)
        self._news.set()
        self._news = anyio.Event()
        await anyio.lowlevel.checkpoint()

    async def finish(self, frame: RunReport) -> None:
        self.finished.append(frame)
        await self.report(frame)

    async def launched(self, launch: Launch) -> None:
        self.launches.append(launch)

    async def waits(self, launch_id: str, pid: int, started_at: float) -> None:
        self.waiting.append((launch_id, pid))

    async def gone(self, launch_id: str) -> None:
        self.ended.append(launch_id)

    async def stays_aboard(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        self.aboard.append((delivery_id, into))

    def delta(self, frame: Delta) -> None:
        self.deltas.append(frame)

    async def list_messages(self, query: ListMessages) -> list[dict[str, Any]]:
        self.queries.append(query)
        if self.history is None:
            raise UplinkError("The backend cannot be reached now; try again later.")
        return self.history

    async def list_agents(self, query: ListAgents) -> list[AgentEntry]:
        return self.others

    async def find_agent(self, query: FindAgent) -> FoundAgent:
        self.searches.append(query)
        if query.wanted not in self.known:
            raise UplinkError(f"There is no agent {query.wanted!r}.")
        return self.known[query.wanted]

    async def until(self, wanted: Callable[[Said], bool]) -> Said:
        """The first frame that is wanted, there already or still to come."""
        with anyio.fail_after(self.deadline_s):
            while True:
                if found := next(filter(wanted, self.frames), None):
                    return found
                await self._news.wait()

    @property
    def events(self) -> list[Any]:
        return [frame.event for frame in self.frames if isinstance(frame, RunReport)]

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    @property
    def sends(self) -> list[Send]:
        return [frame for frame in self.frames if isinstance(frame, Send)]

    @property
    def end_report(self) -> RunReport:
        [report] = self.finished
        return report

    @property
    def end(self) -> Finished:
        report = self.end_report
        assert isinstance(report.event, Finished)
        return report.event


def a_delivery() -> Deliver:
    return Deliver(
        delivery_id=new_delivery_id(),
        delivery_seq=1,
        agent=AgentSpec(id=new_agent_id(), name="shop", driver="scripted"),
        message=DeliveredMessage(
            id=new_message_id(),
            conversation_id=new_conversation_id(),
            author=Author(type="user", id=UserId("usr_1"), name="Ana"),
            text="hello",
            created_at=datetime.now(UTC),
        ),
    )


@dataclass
class World:
    """A machine with a runner, and one agent whose coding agent is the fake one."""

    home: Path
    settings: Settings
    bridge: Bridge
    uplink: RecordedUplink
    runner: Runner
    agent: AgentSpec
    conversation: ConversationId = field(default_factory=new_conversation_id)
    #: What stays between runs; None: nothing.
    warm: Warm | None = None
    #: How long a run may take; real programs start slowly on a busy machine.
    deadline_s: float = 30.0

    def deliver(self, text: str, **agent: Any) -> Deliver:
        author = Author(type="user", id=UserId("usr_1"), name="Ana")
        return Deliver(
            delivery_id=new_delivery_id(),
            delivery_seq=1,
            agent=self.agent.model_copy(update=agent),
            message=DeliveredMessage(
                id=new_message_id(),
                conversation_id=self.conversation,
                author=author,
                text=text,
                created_at=datetime.now(UTC),
            ),
        )

    async def run(
        self,
        text: str | Deliver,
        *,
        attempt: int = 1,
        stop: StopSignal | None = None,
        uplink: RecordedUplink | None = None,
    ) -> RecordedUplink:
        """Runs one message; returns what was reported of it."""
        seen = self.uplink = uplink or RecordedUplink()
        deliver = self.deliver(text) if isinstance(text, str) else text
        runner = self.runner_for(seen)
        with anyio.fail_after(self.deadline_s):
            finished = await runner.run(deliver, attempt=attempt, stop=stop or StopSignal())
        assert finished == seen.end
        return seen

    def runner_for(self, uplink: RecordedUplink) -> Runner:
        masks = Masks(self.settings)
        return Runner(
            self.settings, self.bridge, uplink, masks, relaunch_s=(0.0, 0.0), warm=self.warm
        )

    @asynccontextmanager
    async def process(self, session_id: str | None = None) -> AsyncGenerator[Held]:
        """A process of the agent's, without a run; ended at the end."""
        space = Workspace(self.settings.agents_dir, self.agent)
        space.prepare()
        made = (self.settings, self.bridge, Masks(self.settings), Keeper(), Ladder(0.5))
        wanted = Wanted(
            space, new_run_id(), uuid.uuid4().hex, session_id, on_spawn=anyio.lowlevel.checkpoint
        )
        async with anyio.create_task_group() as tasks:
            held: Held = await tasks.start(Launcher(*made).live, wanted)
            try:
                yield held
            finally:
                with anyio.CancelScope(shield=True):
                    await held.worker.close()

    @property
    def workspace(self) -> Path:
        return self.settings.agents_dir / self.agent.id

    def effects(self) -> list[str]:
        path = self.home / "effects"
        return path.read_text().splitlines() if path.exists() else []


@asynccontextmanager
async def a_world(
    home: Path, *, env: dict[str, str] | None = None, warm: Warm | None = None, **limits: Any
) -> AsyncGenerator[World]:
    """A runner whose files are below `home`; `env` adds to the daemon's environment.

    Args:
        warm: keeps processes between runs; not served yet.
    """
    environment = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "CLOUDAGENT_DAEMON_PROFILE": "default",
        "SECRET_OF_THE_DAEMON": "not for children",
        **(env or {}),
    }
    made = Settings(
        profile="default",
        server_url="http://127.0.0.1:1",
        machine_key=KEY,
        host_id=None,
        home=None,
        state_dir=None,
        runtime_dir=home / "rt",
        agents_dir=home / "agents",
        environment=environment,
        limits=Limits(**limits),
    )
    agent = AgentSpec(
        id=new_agent_id(),
        name="shop",
        driver="claude_code",
        command=[sys.executable, str(FAKE)],
        env={"FAKE_STATE": str(home / "fake"), "FAKE_EFFECTS": str(home / "effects")},
    )
    bridge = Bridge(None, home / "rt")
    uplink = RecordedUplink()
    async with anyio.create_task_group() as tasks:
        await tasks.start(bridge.serve)
        await bridge.warm_up()
        if warm:
            await tasks.start(warm.serve)
        runner = Runner(made, bridge, uplink, Masks(made), warm=warm)
        yield World(home, made, bridge, uplink, runner, agent, warm=warm)
        tasks.cancel_scope.cancel()


async def a_turn(
    held: Held,
    prompt: str,
    decide: Callable[[PermissionAsked], Awaitable[Decision]],
    stop: StopSignal | None = None,
) -> tuple[Seen, list[str]]:
    """One turn in a process, without a run; returns what the agent has written, too."""
    said: list[str] = []

    async def event(event: Reported) -> None:
        if isinstance(event, Text):
            said.append(event.text)

    attempt = Attempt(
        worker=held.worker,
        turn=Turn(prompt),
        on_event=event,
        stop=stop or StopSignal(),
        hang_timeout_s=30.0,
        decide=decide,
        keeps=True,
        shut=held.place.shut,
        spared=held.tool_servers,
    )
    with anyio.fail_after(60):
        return await attempt.run(), said


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
