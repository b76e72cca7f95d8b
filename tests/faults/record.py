"""Collects the history of a real run: from the API, the agents' effects and the frames on the wire."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from e2e.harness import Backend
from faults.history import (
    Accepted,
    Acked,
    Done,
    Effect,
    EpochBegan,
    Exited,
    Interrupted,
    Linked,
    Record,
    Reply,
    RunEnded,
    Sent,
    Spawned,
)
from faults.proxy import Seen

Json = dict[str, Any]
_ENDS = ("replied", "silent", "auto_published", "failed", "cancelled", "dead")


@dataclass(frozen=True)
class Post:
    """A message that the test sent; `message` is its id if it was answered 201."""

    at: float
    key: str
    agent: str
    conversation: str
    text: str
    message: str | None


@dataclass
class Recorder:
    """What one test sent, and where its agents write; `history` asks for the rest.

    Args:
        effects: the file that the agents (faults/agent.py) append to.
    """

    effects: Path
    posts: list[Post] = field(default_factory=list[Post])

    def history(self, backend: Backend, frames: Iterable[Seen] = ()) -> list[Record]:
        """All that can be seen of what happened, by time."""
        records: list[Record] = []
        posts = [*self.posts, *told_by_agents(backend)]
        for post in posts:
            name = post.message or post.key
            records.append(Sent(post.at, name, post.agent, post.conversation))
        for conversation in dict.fromkeys(post.conversation for post in posts):
            records += _from_api(backend, conversation)
        records += self._from_effects(posts)
        records += _from_frames(frames)
        return sorted(records, key=lambda record: record.at)

    def lines(self) -> list[Json]:
        """What the agents wrote, in the order of their writes."""
        if not self.effects.exists():
            return []
        lines = self.effects.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _from_effects(self, sent: Iterable[Post]) -> Iterator[Record]:
        posts = {post.key: post for post in sent}
        live: dict[str, dict[str, None]] = {}
        for line in self.lines():
            post = posts.get(line["key"])
            launch, at = line["launch"], line["at"]
            where = post.conversation if post else "nowhere"
            message = (post.message or post.key) if post else line["key"]
            match line["what"]:
                case "spawned":
                    if line["alone"]:
                        # It has the conversation's lock, so whoever had it before is gone.
                        yield from (Exited(at, gone) for gone in live.get(where, {}))
                        live[where] = {}
                    live.setdefault(where, {})[launch] = None
                    yield Spawned(at, launch, where, post.agent if post else "nobody", message)
                case "effect":
                    yield Effect(at, message, line["n"], launch)
                case "exited" if launch in live.get(where, {}):
                    del live[where][launch]
                    yield Exited(at, launch)
                case _:
                    pass


def pages(backend: Backend, path: str) -> Iterator[Json]:
    """All entries of a list of the API."""
    after = ""
    while True:
        query = f"?limit=200&after={after}" if after else "?limit=200"
        page = backend.call("GET", path + query)
        yield from page["data"]
        if not (after := page.get("next_cursor") or ""):
            return


def told_by_agents(backend: Backend) -> Iterator[Post]:
    """What agents said to agents (`@@tell`), as posts of theirs."""
    for conversation in pages(backend, "/v1/conversations"):
        if conversation["kind"] != "agents":
            continue
        for message in pages(backend, f"/v1/conversations/{conversation['id']}/messages"):
            key = message["text"].split()[1]
            at = _seconds(message["created_at"])
            for delivery in message["deliveries"]:
                agent, where = delivery["agent_id"], conversation["id"]
                yield Post(at, key, agent, where, message["text"], message["id"])


def _from_api(backend: Backend, conversation: str) -> Iterator[Record]:
    here = f"/v1/conversations/{conversation}"
    runs = {run["id"]: run for run in pages(backend, f"{here}/runs")}
    messages = list(pages(backend, f"{here}/messages"))
    for message in messages:
        at = _seconds(message["created_at"])
        yield Linked(
            at, message["id"], message["chain_id"], message["depth"], message.get("caused_by")
        )
        for delivery in message["deliveries"]:
            yield Acked(at, message["id"], delivery["seq"])
        if message["author"]["type"] == "agent" and not message["deliveries"]:
            yield _reply(message, at)
    message_of: dict[str, str] = {}
    for trace in pages(backend, f"{here}/traces"):
        message_of[trace["id"]] = trace["message_id"]
        yield from _from_ladder(trace)
    for run in runs.values():
        if run["state"] == "finished":
            cut_off = run.get("reason") == "daemon_stopped"
            at = _seconds(run["ended_at"])
            for delivery in run["delivery_ids"]:
                yield RunEnded(at, run["id"], message_of[delivery], cut_off)


def _reply(message: Json, at: float) -> Reply:
    """Replies of a message are told apart by the number at the end of their text, if there is one."""
    number = message["text"].rpartition("#")[2]
    to = message.get("in_reply_to") or "nothing"
    return Reply(at, to, message["id"], int(number) if number.isdecimal() else 1)


def _from_ladder(trace: Mapping[str, Any]) -> Iterator[Record]:
    for rung in trace["rungs"]:
        at = _seconds(rung["at"])
        if rung["rung"] == "interrupted":
            yield Interrupted(at, trace["message_id"])
        if rung["rung"] in _ENDS:
            yield Done(at, trace["message_id"], rung["rung"])


def _from_frames(frames: Iterable[Seen]) -> Iterator[Record]:
    """Which deliveries the machine acknowledged, under which number of which epoch.

    Only the newest connection counts. An ack that a stalled older one lets go at last was said in its
    day, and the backend has long stopped listening there.
    """
    wire = _Wire()
    for seen in frames:
        kind, seq = seen.frame.get("type"), seen.frame.get("seq", 0)
        if (kind, seen.direction) == ("welcome", "down"):
            if wire.welcome(seen.connection, seen.frame["epoch"]):
                yield EpochBegan(seen.at, wire.epoch)
        elif seen.connection != wire.newest:
            continue
        elif (kind, seen.direction) == ("ack", "up"):
            yield from (Accepted(seen.at, *taken) for taken in wire.acked(seq))
        elif seen.direction == "down" and kind != "ack" and seq:
            wire.gave(seq, seen.frame["message"]["id"] if kind == "deliver" else None)


@dataclass
class _Wire:
    """What the backend gave the machine, by number, and what of it was acknowledged."""

    newest: int = 0
    epoch: str = ""
    _reached: int = 0
    #: Deliveries of the newest connection, of this epoch, and of all older ones: their messages.
    _offered: dict[int, str] = field(default_factory=dict[int, str])
    _given: dict[int, str] = field(default_factory=dict[int, str])
    _older: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    _taken: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    def welcome(self, connection: int, epoch: str) -> bool:
        """Whether an epoch begins."""
        self.newest, self._offered = connection, {}
        if epoch == self.epoch:
            return False
        self._older |= {seq: (message, self.epoch) for seq, message in self._given.items()}
        self.epoch, self._reached, self._given = epoch, 0, {}
        return True

    def gave(self, seq: int, message: str | None) -> None:
        self._reached = max(self._reached, seq)
        if message:
            self._offered[seq] = self._given[seq] = message

    def acked(self, seq: int) -> Iterator[tuple[str, str, int]]:
        """Message, epoch and number of what is acknowledged for the first time.

        A number that this epoch has not reached was given in an older one, or never.
        """
        if seq > self._reached:
            yield (*self._older.get(seq, ("nothing", self.epoch)), seq)
        for number, message in sorted(self._offered.items()):
            if number <= seq and (self.epoch, number) not in self._taken:
                self._taken.add((self.epoch, number))
                yield message, self.epoch, number


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
