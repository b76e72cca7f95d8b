"""One machine with agents that write down what they do, at a real backend: what a fault acts on."""

import contextlib
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from e2e.harness import Backend, Follower, Json, Process, running_backend, running_daemon
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
    key: str
    places: list[Place]
    recorder: Recorder
    proxy: Proxy | None = None
    _acked: list[str] = field(default_factory=list[str])

    # --- the machine ---

    @contextlib.contextmanager
    def daemon(self, name: str = "laptop", **environment: str) -> Generator[Process]:
        """The machine's daemon; another `name` is another machine with the same key."""
        url = self.proxy.url if self.proxy else self.backend.url
        with running_daemon(self.home / name, url, self.key, **environment) as process:
            yield process

    def crash(self, point: str, count: int, *orders: str) -> None:
        """A life of the daemon that ends at a crash point, by one of these messages."""
        with self.daemon(CLOUDAGENT_CRASH_AT=point) as daemon:
            self.post(count, *orders)
            assert daemon.wait() == 137

    # --- messages ---

    def post(self, count: int, *orders: str) -> None:
        """Sends messages to the agents in turn; each has an effect and is answered.

        Args:
            orders: for the agent, after the effect and instead of the answer.
        """
        for _ in range(count):
            number = len(self.recorder.posts)
            key, place = f"m{number}", self.places[number % len(self.places)]
            lines = [f"@@is {key} {place.name}", "@@effect 1"]
            lines += orders or [f"@@answer about {key} #1"]
            at = time.time()
            path = f"/v1/conversations/{place.conversation}/messages"
            made = self.backend.call("POST", path, {"text": "\n".join(lines)})
            post = Post(at, key, place.agent, place.conversation, made["id"])
            self.recorder.posts.append(post)

    def settle(self, backend: Backend | None = None, deadline_s: float = 60.0) -> None:
        """Waits until every message that was acknowledged has an outcome."""
        open_ = {post.message for post in self.recorder.posts if post.message}

        def all_over(event: Json) -> bool:
            if event["type"] == "delivery.updated" and event["data"]["state"] in ENDS:
                open_.discard(event["data"]["message_id"])
            return not open_

        with (backend or self.backend).follow(after=0) as events:
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


@contextlib.contextmanager
def site(home: Path, agents: int, *, proxied: bool = False) -> Generator[Site]:
    """A backend and a machine with so many agents; no daemon runs yet."""
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(running_backend(home / "server"))
        host, key = backend.create_host("mbp")
        state = home / "agents"
        state.mkdir()
        places: list[Place] = []
        for number in range(agents):
            agent = backend.create_agent(
                host,
                f"agent {number}",
                driver="claude_code",
                command=[sys.executable, str(AGENT)],
                env={"FAKE_STATE": str(state), "FAKE_EFFECTS": str(state / "effects")},
            )
            made = backend.call("POST", "/v1/conversations", {"agent_ids": [agent]})
            places.append(Place(f"place{number}", agent, made["id"]))
        address = ("127.0.0.1", int(backend.url.rpartition(":")[2]))
        proxy = stack.enter_context(running_proxy(address)) if proxied else None
        yield Site(backend, home, key, places, Recorder(state / "effects"), proxy)
