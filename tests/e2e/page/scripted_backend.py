"""A backend that a test plays by hand: the built page, the JSON API's shapes, and one event log.

Real HTTP and a real WebSocket on a loopback port, so that lines can be cut, refused and come back.
What it says is made of the protocol package's models; what it does between requests is the test's.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from cloudagent_protocol.attachments import PICTURES, SNIFFED_BYTES, file_name, media_type_of
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.device import DeviceLogin, DeviceState
from cloudagent_protocol.diffs import Diff
from cloudagent_protocol.events import Finished, Outcome, Reason, Usage
from cloudagent_protocol.ids import (
    MessageId,
    UserId,
    new_agent_id,
    new_approval_id,
    new_attachment_id,
    new_conversation_id,
    new_delivery_id,
    new_host_id,
    new_message_id,
    new_run_id,
)
from cloudagent_protocol.resources import (
    Agent,
    AgentStatus,
    Approval,
    ApprovalKind,
    ApprovalState,
    Author,
    Chain,
    ChainAnswer,
    ChainState,
    Conversation,
    DeliveryState,
    DeliverySummary,
    DeliveryTrace,
    EventType,
    HostMachine,
    HostState,
    Message,
    Run,
    RunDiff,
    Rung,
    RungName,
    RunState,
    Runtime,
    User,
)

UI = Path(__file__).parents[3] / "backend" / "cloudagent_backend" / "_ui"

#: security.md INJ-5: what the real backend sends with the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
PASSWORD = "correct horse battery"
LINK_KEY = "one-time-key"
SETUP_KEY = "set-up-key"
#: The largest file.
MOST_BYTES = 1_000_000
MACHINE_KEY = "sk_machine_" + "x" * 46


@dataclass
class Log:
    """A person's event log, and who follows it."""

    kept: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    followers: dict[WebSocket, asyncio.Queue[dict[str, Any]]] = field(
        default_factory=dict[WebSocket, "asyncio.Queue[dict[str, Any]]"]
    )
    #: (run, block) → text so far: what a new follower is sent whole.
    partial: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    #: Ids before this one are no longer kept.
    trimmed: int = 0

    @property
    def cursor(self) -> int:
        return len(self.kept)


class ScriptedBackend:
    """The state of the world, and verbs that change it and tell the page."""

    def __init__(self) -> None:
        self.url = ""
        self.log = Log()
        self.user = User(
            id=UserId("usr_ana"), email="ana@example.com", name="Ana", created_at=datetime.now(UTC)
        )
        #: Machines that wait to be let in, by code.
        self.asking: dict[str, DeviceLogin] = {}
        self.hosts: dict[str, HostMachine] = {}
        #: What machines were asked for: `rescan` or `restart`, and the machine's name.
        self.ordered: list[tuple[str, str]] = []
        self.agents: dict[str, Agent] = {}
        self.conversations: dict[str, Conversation] = {}
        self.messages: dict[str, Message] = {}
        self.traces: dict[str, DeliveryTrace] = {}
        self.runs: dict[str, Run] = {}
        self.chains: dict[str, Chain] = {}
        self.approvals: dict[str, Approval] = {}
        self.files: dict[str, tuple[Attachment, bytes]] = {}
        self.run_events: dict[str, list[dict[str, Any]]] = {}
        self.diffs: dict[str, RunDiff] = {}
        self.idempotent: dict[str, dict[str, Any]] = {}
        #: Requests as "METHOD /path", in their order.
        self.asked: list[str] = []
        #: How each message that was written in the page wanted to be taken; null: as usual.
        self.modes: list[str | None] = []
        #: While true, sockets are refused and answers withheld: the network is gone.
        self.down = False
        #: After this many POSTs of messages were stored, their answers are lost on the way.
        self.lose_answers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._server: uvicorn.Server | None = None

    # --- verbs of a test -----------------------------------------------------------------

    def tell(self, kind: EventType, data: dict[str, Any], *, kept: bool = True) -> None:
        """Append to the log, and send to whoever follows."""

        def on_loop() -> None:
            event_id = self.log.cursor + 1 if kept else self.log.cursor
            event = {"id": event_id, "type": kind, "at": _now(), "data": data}
            if kept:
                self.log.kept.append(event)
            for queue in self.log.followers.values():
                queue.put_nowait(event)

        self._on_loop(on_loop)

    def cut(self) -> None:
        """End every socket without a word, as a network does."""

        def on_loop() -> None:
            for socket in list(self.log.followers):
                self._abort(socket)
            self.log.followers.clear()

        self._on_loop(on_loop)

    def stall(self) -> None:
        """The lines that are open stay open, and nothing comes through any more."""
        self._on_loop(self.log.followers.clear)

    def _abort(self, connection: Request | WebSocket) -> None:
        """Reset the TCP connection of a request or socket."""
        assert self._server is not None
        for protocol in list(self._server.server_state.connections):
            # Both of uvicorn's protocol classes have it; their common type does not say so.
            if getattr(protocol, "client", None) == tuple(connection.client or ()):
                protocol.transport.abort()

    def _on_loop(self, work: Callable[[], None]) -> None:
        loop = self._loop
        assert loop is not None
        if threading.get_ident() == self._thread:
            work()
            return
        done = threading.Event()

        def call() -> None:
            try:
                work()
            finally:
                done.set()

        loop.call_soon_threadsafe(call)
        assert done.wait(5)

    def add_host(
        self, name: str, state: HostState = HostState.ONLINE, runtimes: list[Runtime] | None = None
    ) -> HostMachine:
        host = HostMachine(
            id=new_host_id(),
            name=name,
            hostname=name,
            os="Linux",
            daemon_version="0.3.0",
            state=state,
            last_seen_at=datetime.now(UTC),
            runtimes=runtimes
            if runtimes is not None
            else [
                Runtime(name="claude_code", version="2.1.197", path="/usr/local/bin/claude"),
                Runtime(name="builtin", version="0.3.0", problem="no model key in the environment"),
            ],
            key_last_four="9f3K",
            created_at=datetime.now(UTC),
        )
        self.put_host(host)
        return host

    def put_host(self, host: HostMachine) -> None:
        self.hosts[host.id] = host
        self.tell(EventType.HOST_UPDATED, host.model_dump(mode="json"))

    def add_agent(self, name: str, host: HostMachine, **more: Any) -> Agent:
        agent = Agent.model_validate(
            {
                "id": new_agent_id(),
                "name": name,
                "driver": "claude_code",
                "host_machine_id": host.id,
                "status": AgentStatus.IDLE
                if host.state is HostState.ONLINE
                else AgentStatus.OFFLINE,
                "created_at": datetime.now(UTC),
                "cwd": f"~/src/{name}",
                **more,
            }
        )
        self.put_agent(agent)
        return agent

    def put_agent(self, agent: Agent) -> None:
        self.agents[agent.id] = agent
        self.tell(EventType.AGENT_UPDATED, agent.model_dump(mode="json"))

    def set_status(self, agent_id: str, status: AgentStatus) -> None:
        self.put_agent(self.agents[agent_id].model_copy(update={"status": status}))

    def add_conversation(self, agent: Agent, title: str | None = "Work") -> Conversation:
        conversation = Conversation(
            id=new_conversation_id(),
            title=title,
            agent_ids=[agent.id],
            created_at=datetime.now(UTC),
        )
        self.conversations[conversation.id] = conversation
        return conversation

    def add_exchange(self, one: Agent, other: Agent) -> Conversation:
        """The conversation that two agents have with each other."""
        conversation = Conversation(
            id=new_conversation_id(),
            kind="agents",
            agent_ids=[one.id, other.id],
            created_at=datetime.now(UTC),
        )
        self.conversations[conversation.id] = conversation
        return conversation

    def tell_agent(
        self, exchange: Conversation, cause: Message, text: str, place: Conversation | None = None
    ) -> Message:
        """What one agent says to the other because of a message; `place` is where it is worked on."""
        author_id = cause.deliveries[0].agent_id
        author = self.agents[author_id]
        [to] = [one for one in exchange.agent_ids if one != author_id]
        trace = DeliveryTrace(
            id=new_delivery_id(),
            message_id=new_message_id(),
            conversation_id=(place or exchange).id,
            agent_id=to,
            state=DeliveryState.QUEUED,
            rungs=[Rung(rung=RungName.STORED, at=datetime.now(UTC), actor="backend")],
        )
        message = Message(
            id=trace.message_id,
            conversation_id=exchange.id,
            author=Author(type="agent", id=author_id, name=author.name),
            text=text,
            created_at=datetime.now(UTC),
            deliveries=[DeliverySummary(id=trace.id, agent_id=to, seq=1, state=trace.state)],
            chain_id=cause.chain_id or cause.id,
            depth=cause.depth + 1,
            caused_by=cause.id,
        )
        self.traces[trace.id] = trace
        self.add_message(message)
        self.put_trace(trace)
        return message

    def pause(self, first: Message, *held: Message, turns: int = 30) -> Chain:
        """A chain has had its turns: what is held waits for a person."""
        for message in held:
            [delivery] = message.deliveries
            trace = self.traces[delivery.id]
            rung = Rung(
                rung=RungName.WAITING, at=datetime.now(UTC), actor="backend", reason="chain_paused"
            )
            self.put_trace(trace.model_copy(update={"rungs": [*trace.rungs, rung]}))
        places = [first.conversation_id, *(message.conversation_id for message in held)]
        chain = Chain(
            id=first.id,
            conversation_id=first.conversation_id,
            author=first.author,
            opening=first.text,
            state=ChainState.PAUSED,
            turns=turns,
            turns_allowed=turns,
            waiting=len(held),
            pauses=1,
            conversation_ids=list(dict.fromkeys(places)),
            agent_ids=self.conversations[held[0].conversation_id].agent_ids,
        )
        self.put_chain(chain)
        return chain

    def ask(self, message: Message, **asked: Any) -> Approval:
        """The agent asks while it works on a message."""
        [delivery] = message.deliveries
        host = next(iter(self.hosts))
        kind = ApprovalKind.QUESTION if "question" in asked else ApprovalKind.PERMISSION
        approval = Approval(
            id=new_approval_id(),
            kind=kind,
            state=ApprovalState.PENDING,
            agent_id=delivery.agent_id,
            conversation_id=message.conversation_id,
            host_machine_id=self.hosts[host].id,
            delivery_id=delivery.id,
            run_id=new_run_id(),
            requested_at=datetime.now(UTC),
            **asked,
        )
        self.put_approval(approval)
        return approval

    def put_approval(self, approval: Approval) -> None:
        self.approvals[approval.id] = approval
        waits = approval.state is ApprovalState.PENDING
        kind = EventType.APPROVAL_REQUESTED if waits else EventType.APPROVAL_RESOLVED
        self.tell(kind, approval.model_dump(mode="json"))

    def put_chain(self, chain: Chain) -> None:
        self.chains[chain.id] = chain
        self.tell(EventType.CHAIN_UPDATED, chain.model_dump(mode="json"))

    def add_file(self, name: str, content: bytes) -> Attachment:
        """A file that somebody uploaded."""
        attachment = Attachment(
            id=new_attachment_id(),
            name=file_name(name),
            media_type=media_type_of(content[:SNIFFED_BYTES]),
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self.files[attachment.id] = (attachment, content)
        return attachment

    def say(
        self,
        conversation: Conversation,
        text: str,
        *,
        ago: float = 0.0,
        files: Sequence[Attachment] = (),
        model: str | None = None,
        permission_mode: str | None = None,
    ) -> Message:
        """A person's message, stored and on its way; `ago` in seconds."""
        at = datetime.now(UTC) - timedelta(seconds=ago)
        message_id = new_message_id()
        deliveries: list[DeliverySummary] = []
        for agent_id in conversation.agent_ids:
            trace = DeliveryTrace(
                id=new_delivery_id(),
                message_id=message_id,
                conversation_id=conversation.id,
                agent_id=agent_id,
                state=DeliveryState.QUEUED,
                rungs=[Rung(rung=RungName.STORED, at=at, actor="backend")],
            )
            self.traces[trace.id] = trace
            seq = len(self.traces)
            deliveries.append(
                DeliverySummary(id=trace.id, agent_id=agent_id, seq=seq, state=trace.state)
            )
        message = Message(
            id=message_id,
            conversation_id=conversation.id,
            author=Author(type="user", id=self.user.id, name=self.user.name),
            text=text,
            attachments=list(files),
            created_at=at,
            deliveries=deliveries,
            model=model,
            permission_mode=permission_mode,
        )
        self.add_message(message)
        for delivery in deliveries:
            self.put_trace(self.traces[delivery.id])
        return message

    def add_message(self, message: Message) -> None:
        self.messages[message.id] = message
        conversation = self.conversations[message.conversation_id]
        self.conversations[conversation.id] = conversation.model_copy(
            update={"last_message_at": message.created_at}
        )
        self.tell(EventType.MESSAGE_CREATED, message.model_dump(mode="json"))

    def put_trace(self, trace: DeliveryTrace) -> None:
        self.traces[trace.id] = trace
        self.tell(EventType.DELIVERY_UPDATED, trace.model_dump(mode="json"))

    def climb(
        self,
        message: Message,
        *rungs: RungName,
        state: DeliveryState,
        detail: str | None = None,
        **more: Any,
    ) -> None:
        """The message's delivery goes on: `rungs` are added, one second of the clock each."""
        for delivery in message.deliveries:
            trace = self.traces[delivery.id]
            host = self.hosts[self.agents[trace.agent_id].host_machine_id]
            at = trace.rungs[-1].at
            added = [
                Rung(rung=rung, at=at + timedelta(seconds=0.4 * n), actor=host.name, detail=detail)
                for n, rung in enumerate(rungs, 1)
            ]
            self.put_trace(
                trace.model_copy(update={"rungs": [*trace.rungs, *added], "state": state, **more})
            )

    def work(self, message: Message, *, ago: float = 0.0) -> "Work":
        """The agent begins to work on a message."""
        return Work(self, message, ago)

    def message_in(self, conversation: Conversation) -> Message:
        """The newest message of a person in a conversation."""
        return [
            m
            for m in self.messages.values()
            if m.conversation_id == conversation.id and m.author.type == "user"
        ][-1]

    # --- the API ---------------------------------------------------------------------------

    def app(self) -> Starlette:
        routes = [
            Route("/v1/events/ws", self._no_socket),
            WebSocketRoute("/v1/events/ws", self._follow),
            Route("/v1/{path:path}", self._api, methods=["GET", "POST", "PATCH", "DELETE"]),
            Mount("/assets", StaticFiles(directory=UI / "assets")),
            Route("/{path:path}", self._page),
        ]
        return Starlette(routes=routes)

    async def _no_socket(self, _request: Request) -> Response:
        return Response(status_code=426)

    async def _page(self, request: Request) -> Response:
        file = UI / (request.path_params["path"] or "index.html")
        path = file if file.is_file() else UI / "index.html"
        return FileResponse(
            path, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        )

    async def _api(self, request: Request) -> Response:
        path = request.path_params["path"]
        self.asked.append(f"{request.method} /v1/{path}")
        if self.down:
            self._abort(request)
            return Response()
        parts = path.split("/")
        content = await request.body()
        uploaded = parts == ["attachments"]
        body = content if uploaded else await request.json() if content else None
        if parts[0] == "auth" and parts[1] != "device":
            return self._auth(parts[1], body)
        if request.cookies.get("cloudagent_session") != "yes":
            return problem(401, "unauthorized", "Nobody is signed in.", "Sign in.")
        if request.method != "GET" and request.headers.get("x-cloudagent") != "1":
            return problem(403, "forbidden", "Not from the page.")
        key = request.headers.get("idempotency-key")
        if key is not None and key in self.idempotent:
            return JSONResponse(self.idempotent[key], status_code=201)
        answer = self._answer(request, parts, body)
        if isinstance(answer, Response):
            return answer
        if key is not None:
            self.idempotent[key] = answer
        if parts[-1] == "messages" and request.method == "POST" and self.lose_answers > 0:
            self.lose_answers -= 1
            self._abort(request)
        return JSONResponse(answer, status_code=201 if request.method == "POST" else 200)

    def _auth(self, what: str, body: Any) -> Response:
        good = {
            "link": body == {"key": LINK_KEY},
            "login": body == {"email": self.user.email, "password": PASSWORD},
            "setup": (body or {}).get("key") == SETUP_KEY,
            "logout": True,
        }[what]
        if not good:
            return problem(
                401,
                "unauthorized",
                "This does not open anything.",
                "Start `cloudagent up` again, or sign in.",
            )
        response = JSONResponse({"user": self.user.model_dump(mode="json")})
        response.set_cookie(
            "cloudagent_session", "" if what == "logout" else "yes", httponly=True, samesite="lax"
        )
        return response

    def _answer(self, request: Request, parts: list[str], body: Any) -> Any:
        if request.method == "POST" and parts == ["attachments"]:
            return self._taken(request.query_params["name"], body)
        if request.method != "GET" and parts[0] == "messages":
            return self._of_message(request.method, parts[1], body)
        if request.method != "GET":
            return self._changed(request.method, parts, body)
        if parts[0] == "conversations" and len(parts) == 3:
            return self._of_conversation(request, parts[1], parts[2])
        return self._shown(parts)

    def _shown(self, parts: list[str]) -> Any:
        match parts:
            case ["me"]:
                return self.user.model_dump(mode="json")
            case ["messages", message_id, "trace"]:
                message = self.messages[message_id]
                traces = [self.traces[d.id].model_dump(mode="json") for d in message.deliveries]
                return {"message_id": message_id, "deliveries": traces}
            case ["runs", run_id, "events"]:
                return {"data": self.run_events[run_id], "next_cursor": None}
            case ["runs", run_id, "diff"]:
                return self.diffs[run_id].model_dump(mode="json")
            case ["attachments", file_id] if file_id in self.files:
                return self._file(*self.files[file_id])
            case [kind]:
                return page(reversed(self._all(kind).values()))
            case [kind, thing_id] if thing_id in self._all(kind):
                return self._all(kind)[thing_id].model_dump(mode="json")
            case _:
                return problem(404, "not_found", "There is no such thing.")

    def _file(self, attachment: Attachment, content: bytes) -> Response:
        how = "inline" if attachment.media_type in PICTURES else "attachment"
        headers = {
            "Content-Disposition": f"{how}; filename*=UTF-8''{quote(attachment.name, safe='')}"
        }
        return Response(content, media_type=attachment.media_type, headers=headers)

    def _all(self, kind: str) -> dict[str, Any]:
        return {
            "host-machines": self.hosts,
            "agents": self.agents,
            "conversations": self.conversations,
            "messages": self.messages,
            "runs": self.runs,
            "chains": self.chains,
            "approvals": self.approvals,
            "attachments": self.files,
            "usage": {},
        }[kind]

    def _of_conversation(self, request: Request, conversation_id: str, what: str) -> Any:
        if what == "messages":
            return self._messages(request, conversation_id)
        things = self.traces if what == "traces" else self.runs
        found = [t for t in things.values() if t.conversation_id == conversation_id]
        return page(reversed(found))

    def _agent(self, which: list[str], body: Any) -> Agent:
        """A new one, or the changed one."""
        if not which:
            return self.add_agent(body.pop("name"), self.hosts[body.pop("host_machine_id")], **body)
        self.put_agent(Agent.model_validate({**self.agents[which[0]].model_dump(), **body}))
        return self.agents[which[0]]

    def _changed(self, method: str, parts: list[str], body: Any) -> Any:
        match (method, *parts):
            case ("POST", "auth", "device", step):
                return self._device(step, body)
            case ("POST", "host-machines"):
                host = self.add_host(body["name"], HostState.OFFLINE, [])
                host = host.model_copy(update={"last_seen_at": None})
                self.put_host(host)
                return {**host.model_dump(mode="json"), "raw_key": MACHINE_KEY}
            case ("POST", "host-machines", host_id, what):
                return self._asked(self.hosts[host_id], what)
            case ("POST" | "PATCH", "agents", *which):
                return self._agent(which, body).model_dump(mode="json")
            case ("POST", "conversations"):
                agent = self.agents[body["agent_ids"][0]]
                return self.add_conversation(agent, title=None).model_dump(mode="json")
            case ("POST", "conversations", conversation_id, "messages"):
                self.modes.append(body.get("mode"))
                return self._posted(conversation_id, body)
            case ("POST", "chains" | "approvals", thing_id):
                return self._person_says(thing_id, body)
            case ("POST", "runs", run_id, "interrupt"):
                return self.runs[run_id].model_dump(mode="json")
            case ("DELETE", kind, thing_id):
                return self._removed(kind, thing_id)
            case _:
                return problem(404, "not_found", "There is no such thing.")

    def _of_message(self, method: str, message_id: str, body: Any) -> Any:
        """Taken back; other words, or the place of the message in front, which gets its own."""
        message = self.messages[message_id]
        if method == "DELETE":
            end = DeliveryState.CANCELLED
            self.climb(message, RungName.CANCELLED, state=end, outcome="cancelled")
            return {}
        [delivery] = message.deliveries
        if self.traces[delivery.id].state is not DeliveryState.QUEUED:
            said = "Too late: the message has been sent to its machine, as it was."
            return problem(409, "conflict", said, "Stop it, or send another one.")
        if "text" in body:
            return self._update(message.model_copy(update={"text": body["text"]}))
        other = self.messages[body["before"]]
        [front] = other.deliveries
        self._update(other.model_copy(update={"deliveries": [_at(front, delivery.seq)]}))
        return self._update(message.model_copy(update={"deliveries": [_at(delivery, front.seq)]}))

    def _update(self, message: Message) -> Any:
        self.messages[message.id] = message
        data = message.model_dump(mode="json")
        self.tell(EventType.MESSAGE_UPDATED, data)
        return data

    def _person_says(self, thing_id: str, body: Any) -> Any:
        if approval := self.approvals.get(thing_id):
            return self._answered(approval, body)
        return self._decided(self.chains[thing_id], body["decision"])

    def _answered(self, approval: Approval, body: Any) -> Any:
        if approval.state is not ApprovalState.PENDING:
            said = f"{approval.decided_by} has answered already: {approval.decision}."
            return problem(409, "conflict", said, "Look again.")
        answer = {"state": ApprovalState.ANSWERED, "decided_by": "ana", **body}
        self.put_approval(approval.model_copy(update=answer))
        return self.approvals[approval.id].model_dump(mode="json")

    def _decided(self, chain: Chain, decision: Any) -> Any:
        if chain.state is not ChainState.PAUSED:
            return problem(409, "conflict", "bo has answered already: stop.", "Look again.")
        state = ChainState.ACTIVE if decision == "continue" else ChainState.STOPPED
        answer = ChainAnswer(decision=decision, by="ana", at=datetime.now(UTC))
        self.put_chain(chain.model_copy(update={"state": state, "answers": [answer]}))
        return self.chains[chain.id].model_dump(mode="json")

    def _asked(self, host: HostMachine, op: str) -> Any:
        if op == "rotate-key":
            return {**host.model_dump(mode="json"), "raw_key": MACHINE_KEY}
        self.ordered.append((op, host.name))
        if host.state is HostState.OFFLINE:
            detail = f"{host.name} is offline, so its daemon cannot be asked."
            how = "Start it on that machine: cloudagent-daemon start"
            return problem(409, "conflict", detail, how)
        if op == "restart":
            host = host.model_copy(update={"state": HostState.DRAINING})
        else:
            codex = Runtime(name="codex", version="0.61.0", path="/usr/local/bin/codex")
            host = host.model_copy(update={"runtimes": [*host.runtimes, codex]})
        self.put_host(host)
        return host.model_dump(mode="json")

    def _device(self, step: str, body: Any) -> Any:
        asking = self.asking.get(body["user_code"])
        if asking is None:
            detail = "No machine waits with this code."
            return problem(404, "not_found", detail, "Compare it with the machine's screen.")
        if step == "approve":
            if asking.state is not DeviceState.PENDING:
                return problem(409, "conflict", "This login was answered before.")
            approved = body["decision"] == "approve"
            state = DeviceState.APPROVED if approved else DeviceState.DENIED
            asking = asking.model_copy(
                update={"state": state, "name": body.get("name") or asking.name}
            )
            self.asking[body["user_code"]] = asking
        return JSONResponse(asking.model_dump(mode="json"))

    def ask_in(self, code: str = "WDJB-MJHT", **changes: Any) -> DeviceLogin:
        """A machine waits to be let in."""
        now = datetime.now(UTC)
        asking = DeviceLogin(
            user_code=code,
            state=DeviceState.PENDING,
            hostname="mbp-ana.local",
            os="darwin",
            daemon_version="0.3.0",
            address="203.0.113.9",
            your_address="203.0.113.9",
            requested_at=now - timedelta(seconds=20),
            expires_at=now + timedelta(minutes=9, seconds=40),
            name="mbp-ana",
        )
        self.asking[code] = asking.model_copy(update=changes)
        return self.asking[code]

    def _taken(self, name: str, content: bytes) -> Any:
        if len(content) > MOST_BYTES:
            said = f"The body is larger than {MOST_BYTES} bytes."
            return problem(413, "too_large", said, "Send less at once.")
        return self.add_file(name, content).model_dump(mode="json")

    def _removed(self, kind: str, thing_id: str) -> Response:
        """It is gone; of a file, the message that it went with says so."""
        del self._all(kind)[thing_id]
        for message in list(self.messages.values()):
            for one in message.attachments:
                if one.id == thing_id:
                    one.removed_at = datetime.now(UTC)
                    self._update(message)
        return Response(status_code=204)

    def _posted(self, conversation_id: str, body: Any) -> Any:
        if body["text"] == "refuse me":
            return problem(
                429, "backlog_full", "mbp has 100,000 messages waiting.", "Start its daemon."
            )
        files = [self.files[one][0] for one in body.get("attachments", [])]
        wishes = {what: body.get(what) for what in ("model", "permission_mode")}
        conversation = self.conversations[conversation_id]
        message = self.say(conversation, body["text"], files=files, **wishes)
        return message.model_dump(mode="json")

    def _messages(self, request: Request, conversation_id: str) -> dict[str, Any]:
        found = [m for m in self.messages.values() if m.conversation_id == conversation_id]
        if request.query_params.get("order") == "desc":
            found.reverse()
        after = request.query_params.get("after")
        if after is not None:
            found = found[[m.id for m in found].index(MessageId(after)) + 1 :]
        limit = int(request.query_params["limit"])
        more = len(found) > limit
        return {**page(found[:limit]), "next_cursor": found[limit - 1].id if more else None}

    async def _follow(self, socket: WebSocket) -> None:
        if self.down or socket.cookies.get("cloudagent_session") != "yes":
            await socket.close()
            return
        await socket.accept()
        asked = socket.query_params.get("after")
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if asked is not None and int(asked) < self.log.trimmed:
            first, kept = {"id": self.log.cursor, "type": "resync"}, []
        else:
            start = self.log.cursor if asked is None else int(asked)
            first, kept = {"id": start, "type": "ping"}, self.log.kept[start:]
        for event in [{**first, "at": _now(), "data": {}}, *kept, *self._partials()]:
            queue.put_nowait(event)
        self.log.followers[socket] = queue
        with suppress(WebSocketDisconnect, RuntimeError):
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._speak, socket, queue)
                while (await socket.receive())["type"] != "websocket.disconnect":
                    pass
                tg.cancel_scope.cancel()
        self.log.followers.pop(socket, None)

    async def _speak(self, socket: WebSocket, queue: "asyncio.Queue[dict[str, Any]]") -> None:
        while True:
            await socket.send_json(await queue.get())

    def _partials(self) -> list[dict[str, Any]]:
        cursor, at = self.log.cursor, _now()
        return [
            {"id": cursor, "type": "run.delta", "at": at, "data": data}
            for data in self.log.partial.values()
        ]


def _at(delivery: DeliverySummary, seq: int) -> DeliverySummary:
    return delivery.model_copy(update={"seq": seq})


class Work:
    """One run of an agent, told step by step."""

    def __init__(self, backend: ScriptedBackend, message: Message, ago: float) -> None:
        self.backend = backend
        self.message = message
        self.block = 0
        self.text = ""
        trace = backend.traces[message.deliveries[0].id]
        self.agent = backend.agents[trace.agent_id]
        self.started_at = datetime.now(UTC) - timedelta(seconds=ago)
        self.run = Run(
            id=new_run_id(),
            agent_id=self.agent.id,
            conversation_id=trace.conversation_id,
            delivery_ids=[trace.id],
            driver=str(self.agent.driver),
            state=RunState.RUNNING,
            started_at=self.started_at,
        )
        backend.runs[self.run.id] = self.run
        backend.run_events[self.run.id] = []
        backend.climb(
            message,
            RungName.SENT,
            RungName.RECEIVED,
            RungName.STARTED,
            RungName.READY,
            RungName.SEEN,
            state=DeliveryState.RUNNING,
            run_id=self.run.id,
            attempt=1,
        )
        backend.tell(EventType.RUN_STARTED, self.run.model_dump(mode="json"))
        backend.set_status(self.agent.id, AgentStatus.WORKING)
        self.event({"type": "started", "driver": self.run.driver, "attempt": 1, "launch_id": "l"})
        self.event({"type": "ready", "model": "claude-opus-4-8"})

    def event(self, event: dict[str, Any]) -> None:
        events = self.backend.run_events[self.run.id]
        full = {"seq": len(events) + 1, "at": _now(), **event}
        events.append(full)
        self.backend.tell(EventType.RUN_EVENT, {**self._where(), "event": full})

    def write(self, piece: str) -> None:
        """A piece of the block that is being written."""
        data = {**self._where(), "block": self.block, "offset": len(self.text), "text": piece}
        self.text += piece
        self.backend.log.partial[self.run.id] = {**data, "offset": 0, "text": self.text}
        self.backend.tell(EventType.RUN_DELTA, data, kept=False)

    def end_block(self) -> str:
        text, self.text = self.text, ""
        self.backend.log.partial.pop(self.run.id, None)
        self.event({"type": "text", "block": self.block, "text": text})
        self.block += 1
        return text

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        call_id = f"call_{len(self.backend.run_events[self.run.id])}"
        self.event(
            {
                "type": "tool_call",
                "tool_call_id": call_id,
                "name": name,
                "input": arguments,
            }
        )
        return call_id

    def result(self, call_id: str, output: str, *, is_error: bool = False) -> None:
        self.event(
            {
                "type": "tool_result",
                "tool_call_id": call_id,
                "output": output,
                "is_error": is_error,
            }
        )

    def reply(self, text: str, *, auto: bool = False, **more: Any) -> Message:
        message = Message(
            id=new_message_id(),
            conversation_id=self.run.conversation_id,
            author=Author(type="agent", id=self.agent.id, name=self.agent.name),
            text=text,
            created_at=datetime.now(UTC),
            in_reply_to=self.message.id,
            run_id=self.run.id,
            auto_published=auto,
            **more,
        )
        self.backend.add_message(message)
        return message

    def change(self, diff: Diff) -> None:
        """What it changed is known, a moment after its end."""
        self.backend.diffs[self.run.id] = RunDiff(run_id=self.run.id, **dict(diff))
        self.run = self.run.model_copy(update={"changes": diff.count})
        self.backend.runs[self.run.id] = self.run
        self.backend.tell(EventType.RUN_UPDATED, self.run.model_dump(mode="json"))

    def finish(
        self,
        outcome: Outcome = Outcome.REPLIED,
        reason: Reason | None = None,
        detail: str = "",
        stderr_tail: str = "",
        exit_code: int | None = None,
    ) -> None:
        usage = Usage(input_tokens=5120, output_tokens=842, cost_usd=0.031)
        end = Finished(
            at=datetime.now(UTC),
            outcome=outcome,
            reason=reason,
            detail=detail,
            stderr_tail=stderr_tail,
            exit_code=exit_code,
            usage=usage,
        )
        self.event(end.model_dump(mode="json", exclude={"seq", "at"}))
        self.run = self.run.model_copy(
            update={
                "state": RunState.FINISHED,
                "outcome": outcome,
                "reason": reason,
                "usage": usage,
                "ended_at": datetime.now(UTC),
            }
        )
        self.backend.runs[self.run.id] = self.run
        self.backend.tell(EventType.RUN_FINISHED, self.run.model_dump(mode="json"))
        ends = {
            Outcome.FAILED: (RungName.FAILED, DeliveryState.FAILED),
            Outcome.CANCELLED: (RungName.CANCELLED, DeliveryState.CANCELLED),
        }
        rung, state = ends.get(outcome, (RungName(outcome.value), DeliveryState.DONE))
        self.backend.climb(
            self.message, rung, state=state, outcome=outcome, reason=reason, detail=detail or None
        )
        crashed = outcome is Outcome.FAILED
        self.backend.set_status(self.agent.id, AgentStatus.CRASHED if crashed else AgentStatus.IDLE)

    def _where(self) -> dict[str, Any]:
        return {
            "run_id": self.run.id,
            "conversation_id": self.run.conversation_id,
            "agent_id": self.run.agent_id,
        }


def page(things: Any) -> dict[str, Any]:
    return {"data": [thing.model_dump(mode="json") for thing in things], "next_cursor": None}


def problem(status: int, code: str, detail: str, way_out: str | None = None) -> JSONResponse:
    body = {"title": code, "status": status, "code": code, "detail": detail, "next": way_out}
    return JSONResponse(body, status, media_type="application/problem+json")


def _now() -> str:
    return datetime.now(UTC).isoformat()


@contextmanager
def serving() -> Generator[ScriptedBackend]:
    """A scripted backend on a free loopback port, until the block ends."""
    backend = ScriptedBackend()
    server = uvicorn.Server(
        uvicorn.Config(
            backend.app(), port=0, log_level="error", ws="websockets-sansio", lifespan="off"
        )
    )
    backend._server = server
    started = threading.Event()

    async def serve() -> None:
        backend._loop = asyncio.get_running_loop()
        backend._thread = threading.get_ident()
        config = server.config
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        backend.url = f"http://127.0.0.1:{port}"
        started.set()
        await server.main_loop()
        await server.shutdown()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield backend
    finally:
        backend.cut()
        server.should_exit = True
        thread.join(10)
