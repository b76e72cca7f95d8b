"""One machine with agents that write down what they do, at a real backend: what a fault acts on."""

import contextlib
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import psutil

from cloudagent_backend.store import tokens, users
from cloudagent_backend.store.database import connect, migrate
from cloudagent_daemon.config import Stored, write_file
from cloudagent_daemon.paths import Paths
from e2e.forks import forked
from e2e.harness import (
    Backend,
    Follower,
    Json,
    Process,
    Start,
    clean_environment,
    database_of,
    processes_with,
    running_backend,
    started_daemon,
)
from faults.history import Record, check, maybe_repeated
from faults.proxy import Proxy, running_proxy
from faults.record import Post, Recorder

AGENT = Path(__file__).parent / "agent.py"
ENDS = frozenset({"done", "failed", "cancelled", "dead"})


@dataclass(frozen=True)
class Place:
    """An agent and its conversation."""

    name: str
    agent: str
    conversation: str


@dataclass
class Site:
    backend: Backend
    home: Path
    host: str
    key: str
    places: list[Place]
    recorder: Recorder
    proxy: Proxy | None = None
    #: The backend's answers to what was posted, in order.
    answers: list[httpx2.Response] = field(default_factory=list[httpx2.Response])

    # --- the machine ---

    @contextlib.contextmanager
    def daemon(
        self,
        name: str = "laptop",
        *,
        wait_for: str = "Connected",
        start: Start = forked,
        **environment: str,
    ) -> Generator[Process]:
        """The machine's daemon; another `name` is another machine with the same key."""
        home = self.home / name
        self.log_in(home)
        env = clean_environment(home, **environment)
        with started_daemon(home, env, wait_for=wait_for, start=start) as process:
            yield process

    @property
    def url(self) -> str:
        """Where the daemon finds the backend."""
        return self.proxy.url if self.proxy else self.backend.url

    def log_in(self, home: Path) -> None:
        """What `cloudagent-daemon login` writes; it takes as long as a message, for every row."""
        file = Paths(home / ".cloudagent", "default").config
        if not file.exists():
            write_file(file, Stored(self.url, self.key, self.host))

    def crash(self, point: str, count: int, *orders: str) -> None:
        """A life of the daemon that ends at a crash point, by one of these messages."""
        with self.daemon(CLOUDAGENT_CRASH_AT=point) as daemon:
            self.post(count, *orders)
            assert daemon.wait() == 137

    def alive(self) -> list[psutil.Process]:
        """The living processes of its agents, and what they started."""
        found: list[psutil.Process] = []
        for pid in processes_with(f"FAKE_STATE={self.home / 'agents'}"):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    # --- messages ---

    def post(self, count: int, *orders: str, acked: bool = True) -> None:
        """Sends messages to the agents in turn; each has an effect and is answered.

        Args:
            orders: for the agent, after the effect and instead of the answer.
            acked: whether the backend must take them; those that it does not `post_again` sends.
        """
        for _ in range(count):
            number = len(self.recorder.posts)
            key, place = f"m{number}", self.places[number % len(self.places)]
            lines = [f"@@is {key} {place.name}", "@@effect 1"]
            lines += orders or [f"@@answer about {key} #1"]
            post = Post(time.time(), key, place.agent, place.conversation, "\n".join(lines), None)
            self.recorder.posts.append(self._sent(post))
            assert self.recorder.posts[-1].message or not acked, f"{key} was not taken"

    def post_again(self) -> None:
        """Once more, as the same request, what the backend did not take, or took without saying so."""
        self.recorder.posts = [
            post if post.message else self._sent(post) for post in self.recorder.posts
        ]
        assert all(post.message for post in self.recorder.posts)

    def _sent(self, post: Post) -> Post:
        """With the message's id, if the backend took it."""
        path = f"/v1/conversations/{post.conversation}/messages"
        try:
            answer = self.backend.http.post(
                path,
                json={"text": post.text},
                headers={"Idempotency-Key": f"{self.home}/{post.key}"},
            )
        except httpx2.TransportError:
            return post
        self.answers.append(answer)
        return replace(post, message=answer.json()["id"]) if answer.status_code == 201 else post

    def settle(self, deadline_s: float = 60.0) -> None:
        """Waits until every message that was acknowledged has an outcome, and what agents told agents."""
        open_ = {post.message for post in self.recorder.posts if post.message}

        def all_over(event: Json) -> bool:
            data = event["data"]
            # It is stored before the end of the run that told it is, so that it is seen in time.
            if event["type"] == "message.created" and data["author"]["type"] == "agent":
                open_.update([data["id"]] if data["deliveries"] else [])
            if event["type"] == "delivery.updated" and data["state"] in ENDS:
                open_.discard(data["message_id"])
            return not open_

        with self.backend.follow(after=0) as events:
            events.until(all_over, deadline_s)

    def until_held(self, events: Follower, count: int) -> None:
        """Waits until so many agents hold."""
        held: set[str] = set()

        def all_held(event: Json) -> bool:
            if event["type"] == "run.event" and event["data"]["event"].get("text") == "holding":
                held.add(event["data"]["run_id"])
            return len(held) >= count

        events.until(all_held)

    # --- the verdict ---

    def history(self) -> list[Record]:
        """What is seen of what happened; also written to `history.txt`."""
        history = self.recorder.history(self.backend, self.proxy.seen if self.proxy else ())
        text = "\n".join(map(str, history))
        (self.home / "history.txt").write_text(f"{text}\n")
        return history

    def judge(self, *, repeats: bool = False) -> list[Record]:
        """The history, which has no violation.

        Args:
            repeats: whether work may have been cut off and done again, if that is told.
        """
        history, shown = self.history(), self.home / "history.txt"
        violations = check(history)
        assert not violations, "\n".join(["", *map(str, violations), f"all of it: {shown}"])
        assert repeats or not (flagged := maybe_repeated(history)), f"{flagged}; {shown}"
        return history


def count(records: Iterable[Record], kind: type[Record]) -> int:
    return sum(isinstance(record, kind) for record in records)


def sign_up(home: Path) -> str:
    """A token of a new account, in a database that no backend has open yet."""
    path = database_of(home)
    migrate(path)
    with contextlib.closing(connect(path)) as connection, connection:
        user = users.create(connection, "ana@example.com", name="ana")
        return tokens.create(connection, user.id, "test").raw_token or ""


@contextlib.contextmanager
def site(
    home: Path, agents: int, *, proxied: bool = False, start: Start = forked, **environment: str
) -> Generator[Site]:
    """A backend and a machine with so many agents; no daemon runs yet.

    Args:
        start: how the backend is started, with the environment.
    """
    with contextlib.ExitStack() as stack:
        token = sign_up(home / "server")
        backend = stack.enter_context(
            running_backend(home / "server", port=0, token=token, start=start, **environment)
        )
        host, key = backend.create_host("mbp")
        state = home / "agents"
        state.mkdir()
        places: list[Place] = []
        for number in range(agents):
            agent = backend.create_agent(
                host,
                f"agent {number}",
                driver="claude_code",
                command=[sys.executable, "-I", "-S", str(AGENT)],
                env={"FAKE_STATE": str(state), "FAKE_EFFECTS": str(state / "effects")},
            )
            made = backend.call("POST", "/v1/conversations", {"agent_ids": [agent]})
            places.append(Place(f"place{number}", agent, made["id"]))
        address = ("127.0.0.1", int(backend.url.rpartition(":")[2]))
        proxy = stack.enter_context(running_proxy(address)) if proxied else None
        yield Site(backend, home, host, key, places, Recorder(state / "effects"), proxy)
