"""The live links of this process: one per host, the newest wins. It knows nothing of sockets."""

import secrets
from collections.abc import Collection
from typing import Final

import anyio

from cloudagent_backend.delivery.hints import Hints
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store.outbox import OutboxRow
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import Capability, Command, CommandResult, Expect
from cloudagent_protocol.ids import HostId

#: Connections of one key at once, and then per second: a daemon that flaps must not keep the
#: server busy with handshakes, one that is restarted by hand a few times must not be kept out.
_HANDSHAKES: Final = 30.0
_HANDSHAKES_PER_S: Final = 0.5
#: A machine is told at most so often where a person looks: each may mean a process.
_EXPECTS_S: Final = 2.0


class Asked:
    """A command that waits for its result, or for the end of the connection."""

    __slots__ = ("over", "result")

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.result: CommandResult | None = None


class Session:
    """One connection of a host's daemon, from its hello to its close.

    Whoever serves the connection writes what the store has for it, and closes when it is `closed`;
    the hub hints at it for both.
    """

    __slots__ = (
        "asked",
        "behind",
        "capabilities",
        "close_code",
        "close_reason",
        "closed",
        "draining",
        "expects_from",
        "fresh",
        "host_id",
        "id",
        "instance_id",
        "parent_id",
        "ready",
        "unsaid",
    )

    def __init__(
        self,
        host_id: HostId,
        instance_id: str,
        parent_id: HostId | None = None,
        capabilities: Collection[str] = (),
        *,
        draining: bool = False,
    ) -> None:
        self.id = f"ses_{secrets.token_hex(12)}"
        self.host_id = host_id
        #: Members of `Capability`, of the daemon's own version.
        self.capabilities = frozenset(capabilities)
        #: Of an ephemeral host: the host whose agents it serves.
        self.parent_id = parent_id
        #: Names one life of the daemon's process (`hello.instance_id`).
        self.instance_id = instance_id
        self.closed = False
        self.close_code = CloseCode.GOING_AWAY
        self.close_reason = ""
        #: Whether the handshake is done, so that work may be leased to it.
        self.ready = False
        #: Whether its daemon is shutting down: it is given nothing new.
        self.draining = draining
        #: What its daemon is to be told and was not yet, and what people asked it and was not answered.
        self.unsaid: list[Command | Expect] = []
        self.asked: dict[int, Asked] = {}
        #: When it may be told again where a person looks; monotonic seconds.
        self.expects_from = 0.0
        #: Whether the store may have frames that were not sent.
        self.behind = True
        #: Frames that came into the store since it was looked at last, so that they need no look.
        self.fresh: list[OutboxRow] = []

    @property
    def takes_work(self) -> bool:
        return self.ready and not self.draining


class Hub:
    """Which hosts are connected here."""

    def __init__(self) -> None:
        self._sessions: dict[HostId, Session] = {}
        #: Of them, by parent, those of ephemeral hosts.
        self._helpers: dict[HostId, dict[HostId, Session]] = {}
        #: Handshakes that a host has left, and when that was counted; monotonic seconds.
        self._allowed: dict[HostId, tuple[float, float]] = {}
        #: Daemons that another one of the same key has superseded, while that one is here.
        self._superseded: dict[HostId, set[str]] = {}
        self._closing = False
        #: Sessions that have something to send, or are to be closed.
        self.hints: Hints[Session] = Hints()

    def admit(self, host_id: HostId, now: float) -> bool:
        """Whether the host may connect (again) now; it counts if so."""
        left, counted = self._allowed.get(host_id, (_HANDSHAKES, now))
        left = min(_HANDSHAKES, left + (now - counted) * _HANDSHAKES_PER_S)
        self._allowed[host_id] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def attach(self, session: Session) -> bool:
        """The session is its host's connection from now on; an older one is closed.

        To be called before the first write of the session: what the older one wrote until then
        comes before it, and nothing of it after.

        Of two daemons with one key the one that came last has the host until it leaves: the other
        may not take over again, or each would forever take the other's work. False is returned then,
        and the session is closed.
        """
        if older := self._sessions.get(session.host_id):
            superseded = self._superseded.setdefault(session.host_id, set())
            if session.instance_id in superseded:
                self._close(
                    session, CloseCode.SUPERSEDED, "another daemon with this key is connected"
                )
                return False
            if older.instance_id != session.instance_id:
                superseded.add(older.instance_id)
            self._close(older, CloseCode.SUPERSEDED, "another connection with this key took over")
        self._sessions[session.host_id] = session
        if session.parent_id:
            self._helpers.setdefault(session.parent_id, {})[session.host_id] = session
        if self._closing:
            self._close(session, CloseCode.RESTART)
        return True

    def detach(self, session: Session) -> bool:
        """The session is over; returns whether it was its host's newest."""
        for asked in session.asked.values():
            asked.over.set()
        if self._sessions.get(session.host_id) is not session:
            return False
        del self._sessions[session.host_id]
        self._superseded.pop(session.host_id, None)
        if helpers := self._helpers.get(session.parent_id) if session.parent_id else None:
            del helpers[session.host_id]
            if not helpers and session.parent_id:
                del self._helpers[session.parent_id]
        return True

    def hint(self, host_id: HostId) -> None:
        """The host's outbox has grown."""
        if session := self._sessions.get(host_id):
            session.behind = True
            self.hints.hint(session)

    def push(self, host_id: HostId, frame: OutboxRow) -> None:
        """A frame for the host is on the disk, the last of its outbox."""
        if session := self._sessions.get(host_id):
            session.fresh.append(frame)
            self.hints.hint(session)

    def session(self, host_id: HostId) -> Session | None:
        """The host's connection, once its handshake is done."""
        session = self._sessions.get(host_id)
        return session if session and session.ready and not session.closed else None

    def ask(self, session: Session, command: Command) -> Asked:
        """Sends a command; whoever awaits the result takes it out of `asked` again."""
        asked = session.asked[command.id] = Asked()
        session.unsaid.append(command)
        self.hints.hint(session)
        return asked

    def expect(self, host_id: HostId, frame: Expect, now: float) -> bool:
        """Says where a person looks, if the daemon heeds it and was not told just now."""
        session = self.session(host_id)
        if session is None or Capability.EXPECT not in session.capabilities:
            return False
        if now < session.expects_from:
            return False
        session.expects_from = now + _EXPECTS_S
        session.unsaid.append(frame)
        self.hints.hint(session)
        return True

    def all_ready(self) -> list[ReadyHost]:
        """The hosts that can take work."""
        return [one for host_id in self._sessions if (one := self.ready(host_id))]

    def here(self, host_id: HostId) -> bool:
        """Whether the host is connected, if only just now."""
        return host_id in self._sessions

    def helpers(self, host_id: HostId) -> list[HostId]:
        """Ephemeral hosts that can take work of this host's agents."""
        found = self._helpers.get(host_id, {}).values()
        return [session.host_id for session in found if session.takes_work]

    def helps(self, host_id: HostId) -> HostId | None:
        """Whose agents this host serves, if it is a connected ephemeral one."""
        session = self._sessions.get(host_id)
        return session.parent_id if session else None

    def forget(self, host_id: HostId) -> None:
        """The host is gone for good."""
        self._allowed.pop(host_id, None)

    def ready(self, host_id: HostId) -> ReadyHost | None:
        """The host, if it can take work."""
        session = self._sessions.get(host_id)
        if session is None or not session.takes_work:
            return None
        return ReadyHost(host_id, Capability.INTERRUPT_MODE in session.capabilities)

    def disconnect(self, host_id: HostId, code: CloseCode) -> None:
        """Close the host's connection, if there is one: its key was revoked or changed."""
        if session := self._sessions.get(host_id):
            self._close(session, code)

    def shutdown(self) -> None:
        """Close every connection: the backend restarts, daemons come back with jitter."""
        self._closing = True
        for session in self._sessions.values():
            self._close(session, CloseCode.RESTART)

    def _close(self, session: Session, code: CloseCode, reason: str = "") -> None:
        """Ask whoever serves the connection to close it; the first code counts."""
        if not session.closed:
            session.closed, session.close_code, session.close_reason = True, code, reason
            self.hints.hint(session)

    @property
    def connected(self) -> int:
        return len(self._sessions)
