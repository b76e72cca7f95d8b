"""The `Uplink` of runs: through the spool what must arrive, past it what may be lost."""

from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.tables import Leftover
from cloudagent_daemon.link.transport import NotConnectedError
from cloudagent_daemon.runs.ports import Launch, UplinkError
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import (
    AgentEntry,
    DeliveryReport,
    Delta,
    FindAgent,
    FoundAgent,
    HostReport,
    ListAgents,
    ListMessages,
    LiveRun,
    Question,
    RunDiff,
    RunReport,
    Send,
)
from cloudagent_protocol.ids import DeliveryId, RunId

T = TypeVar("T")
#: Frames that wait for the backend, above which runs report no more than what must be known.
UNSENT: Final = 10_000
#: A run that reports this has left, and waits for people.
_PARKED: Final = frozenset({Reason.APPROVAL, Reason.QUESTION})
_AGENTS: Final = TypeAdapter(list[AgentEntry])
_FOUND: Final = TypeAdapter(FoundAgent)


class LiveRuns:
    """The runs whose process is alive, as heartbeats list them."""

    def __init__(self) -> None:
        self._runs: dict[RunId, LiveRun] = {}

    def add(self, run: LiveRun) -> None:
        if known := self._runs.get(run.run_id):
            joined = dict.fromkeys([*known.delivery_ids, *run.delivery_ids])
            run = LiveRun(run_id=run.run_id, delivery_ids=list(joined))
        self._runs[run.run_id] = run

    def remove(self, run_id: RunId) -> None:
        self._runs.pop(run_id, None)

    def leave(self, delivery_id: DeliveryId) -> None:
        """Nothing runs for this delivery at the moment."""
        self._runs = {
            run_id: run for run_id, run in self._runs.items() if delivery_id not in run.delivery_ids
        }

    def all(self) -> list[LiveRun]:
        return list(self._runs.values())


class SpoolUplink:
    """What runs say goes through `spool`, what they ask goes to `client`."""

    def __init__(
        self, spool: Spool, client: LinkClient, live: LiveRuns, keeper: Keeper | None = None
    ) -> None:
        self._spool = spool
        self._keeper = keeper or Keeper()
        self._client = client
        self._live = live

    @property
    def full(self) -> bool:
        return self._spool.marks.unsent >= UNSENT

    async def report(self, frame: RunReport | Send | DeliveryReport | HostReport | RunDiff) -> None:
        await self._keeper.kept(lambda: self._spool.append(frame))
        if isinstance(frame, DeliveryReport) and frame.reason in _PARKED:
            self._live.leave(frame.delivery_id)
        if isinstance(frame, RunReport):
            self._client.deltas.reported(frame)

    async def finish(self, frame: RunReport) -> None:
        await self._keeper.kept(lambda: self._spool.finish(frame))
        self._client.deltas.reported(frame)
        self._live.remove(frame.run_id)

    async def launched(self, launch: Launch) -> None:
        process = Leftover(launch.launch_id, launch.pid, launch.started_at)
        await self._keeper.kept(
            lambda: self._spool.record_launch(
                launch.delivery_id, process, launch.attempt, stays=launch.stays
            )
        )
        self._live.add(LiveRun(run_id=launch.run_id, delivery_ids=[launch.delivery_id]))

    async def waits(self, launch_id: str, pid: int, started_at: float) -> None:
        process = Leftover(launch_id, pid, started_at)
        await self._keeper.kept(
            lambda: self._spool.record_launch(DeliveryId(""), process, 0, stays=True)
        )

    async def gone(self, launch_id: str) -> None:
        await self._keeper.kept(lambda: self._spool.forget_launches([launch_id]))

    async def stays_aboard(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        await self._keeper.kept(lambda: self._spool.ride(delivery_id, into))

    def delta(self, frame: Delta) -> None:
        self._client.deltas.add(frame)

    async def list_messages(self, query: ListMessages) -> list[dict[str, Any]]:
        answer = await self._ask(query)
        return cast("list[dict[str, Any]]", answer.get("messages", []))

    async def list_agents(self, query: ListAgents) -> list[AgentEntry]:
        return _understood(_AGENTS, (await self._ask(query)).get("agents", []))

    async def find_agent(self, query: FindAgent) -> FoundAgent:
        return _understood(_FOUND, await self._ask(query))

    async def _ask(self, query: Question) -> dict[str, Any]:
        try:
            return await self._client.ask(query)
        except NotConnectedError as error:
            raise UplinkError(str(error)) from error


def _understood(adapter: TypeAdapter[T], answer: Any) -> T:
    try:
        return adapter.validate_python(answer)
    except ValidationError as error:
        raise UplinkError("the backend's answer could not be understood") from error
