"""Judges what really happened to messages, in the manner in which Jepsen judges databases.

A history is a list of records, ordered by time. Nobody is asked what should have happened: `check`
looks only at what was seen (answers of the API, acks on the wire, effects of processes) and names
every breach of seven invariants (docs/testing.md):

    I1  an acknowledged message has exactly one outcome, and a reply that is claimed exists
    I2  a message is worked on once; repeats only after a run was cut off, and never silently
    I3  an agent's messages begin in their order
    I4  a conversation has at most one live process
    I5  a message has at most one reply of each number
    I6  nothing is accepted from an older epoch, or twice
    I7  a message is one deeper than its cause, and agents take no more turns than people allow
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import TypeAlias

# --- what can be seen -----------------------------------------------------------------
# `at` is Unix seconds; ids are the API's. A message that was sent to two agents is two messages here.


@dataclass(frozen=True)
class Sent:
    """Someone tried to send it; whether it was acknowledged is another record."""

    at: float
    message: str
    agent: str
    conversation: str


@dataclass(frozen=True)
class Acked:
    """Answered 201; `order` is its delivery's place among its agent's deliveries."""

    at: float
    message: str
    order: int


@dataclass(frozen=True)
class EpochBegan:
    """Backend and machine number their frames anew."""

    at: float
    epoch: str


@dataclass(frozen=True)
class Accepted:
    """The machine acknowledged this message's delivery, number `seq` of the epoch, the first time."""

    at: float
    message: str
    epoch: str
    seq: int


@dataclass(frozen=True)
class Spawned:
    """A process began to work on the message."""

    at: float
    launch: str
    conversation: str
    agent: str
    message: str


@dataclass(frozen=True)
class Exited:
    """The process is gone."""

    at: float
    launch: str


@dataclass(frozen=True)
class Effect:
    """The process did the message's `n`th thing that outlives it."""

    at: float
    message: str
    n: int
    launch: str


@dataclass(frozen=True)
class Reply:
    """A message of the agent's; `n` tells several replies to one message apart."""

    at: float
    message: str
    reply: str
    n: int = 1


@dataclass(frozen=True)
class Interrupted:
    """The ladder says that work on the message was cut off and may repeat."""

    at: float
    message: str


@dataclass(frozen=True)
class RunEnded:
    """`cut_off`: by the death of the daemon, not by an end of its own."""

    at: float
    run: str
    message: str
    cut_off: bool = False


@dataclass(frozen=True)
class Done:
    """The message's outcome: replied, silent, auto_published, failed, cancelled or dead."""

    at: float
    message: str
    outcome: str


@dataclass(frozen=True)
class Linked:
    """A message's place among messages: its chain, and what its author worked on (null: a person's)."""

    at: float
    message: str
    chain: str
    depth: int
    cause: str | None = None


@dataclass(frozen=True)
class Allowed:
    """A chain may have so many turns more: by the cap at first, then by a person; 0: it was stopped."""

    at: float
    chain: str
    turns: int


Record: TypeAlias = (
    Sent
    | Linked
    | Allowed
    | Acked
    | EpochBegan
    | Accepted
    | Spawned
    | Exited
    | Effect
    | Reply
    | Interrupted
    | RunEnded
    | Done
)


class Invariant(StrEnum):
    OUTCOME = "I1"
    ONCE = "I2"
    ORDER = "I3"
    ALONE = "I4"
    ONE_REPLY = "I5"
    EPOCH = "I6"
    CHAIN = "I7"


@dataclass(frozen=True)
class Violation:
    invariant: Invariant
    #: The message, launch or frame it is about.
    about: str
    what: str


def check(records: Iterable[Record]) -> list[Violation]:
    """All breaches, by invariant; an empty list is what a test wants."""
    history = sorted(records, key=lambda record: record.at)
    rules = (_outcomes, _repeats, _ends, _order, _live_processes, _replies, _epochs, _links, _turns)
    return [violation for rule in rules for violation in rule(history)]


def maybe_repeated(records: Iterable[Record]) -> dict[str, int]:
    """Messages whose work may have been repeated, and how often: what was said, so never silent."""
    return dict(Counter(r.message for r in records if isinstance(r, Interrupted)))


def _outcomes(history: Sequence[Record]) -> Iterator[Violation]:
    sent = {r.message for r in history if isinstance(r, Sent)}
    acked = {r.message for r in history if isinstance(r, Acked)}
    replied = {r.message for r in history if isinstance(r, Reply)}
    done: dict[str, list[str]] = defaultdict(list)
    for r in history:
        if isinstance(r, Done):
            done[r.message].append(r.outcome)
    for message in sorted(acked - done.keys()):
        yield Violation(Invariant.OUTCOME, message, "acknowledged, and has no outcome: lost")
    for message, outcomes in done.items():
        if len(outcomes) > 1:
            yield Violation(Invariant.OUTCOME, message, f"has outcomes {outcomes}")
        if {"replied", "auto_published"} & set(outcomes) and message not in replied:
            yield Violation(Invariant.OUTCOME, message, f"{outcomes[0]}, but there is no reply")
    known = (Acked, Accepted, Spawned, Effect, Reply, Done)
    for message in sorted({r.message for r in history if isinstance(r, known)} - sent):
        yield Violation(Invariant.OUTCOME, message, "came from nowhere: nobody sent it")


def _repeats(history: Sequence[Record]) -> Iterator[Violation]:
    allowed = maybe_repeated(history)
    spawns = Counter(r.message for r in history if isinstance(r, Spawned))
    effects = Counter((r.message, r.n) for r in history if isinstance(r, Effect))
    for message, times in spawns.items():
        if times - 1 > (told := allowed.get(message, 0)):
            what = f"was begun {times} times; {told} interruptions are told"
            yield Violation(Invariant.ONCE, message, what)
    for (message, n), times in effects.items():
        if times - 1 > (told := allowed.get(message, 0)):
            what = f"effect {n} happened {times} times; {told} interruptions are told"
            yield Violation(Invariant.ONCE, message, what)


def _ends(history: Sequence[Record]) -> Iterator[Violation]:
    completed: set[str] = set()
    for r in history:
        if isinstance(r, Spawned) and r.message in completed:
            yield Violation(Invariant.ONCE, r.message, "began again after its run's end")
        if isinstance(r, RunEnded) and not r.cut_off:
            if r.message in completed:
                yield Violation(Invariant.ONCE, r.message, "has two completed runs")
            completed.add(r.message)


def _order(history: Sequence[Record]) -> Iterator[Violation]:
    """Of two conversations two programs may start side by side: the daemon starts them in their order, and
    which of them the machine lets run first is not in anybody's hand. So of these one is out of order
    only if it begins when what was given later is over already.
    """
    order = {r.message: r.order for r in history if isinstance(r, Acked)}
    over = {r.launch: r.at for r in history if isinstance(r, Exited)}
    begun: dict[str, dict[str, Spawned]] = defaultdict(dict)
    for r in history:
        if isinstance(r, Spawned) and r.message in order:
            begun[r.agent].setdefault(r.message, r)
    for agent, messages in begun.items():
        for earlier, later in combinations(messages.values(), 2):
            side_by_side = (
                earlier.conversation != later.conversation
                and over.get(earlier.launch, math.inf) > later.at
            )
            if order[earlier.message] > order[later.message] and not side_by_side:
                what = f"began after {earlier.message}, which {agent} was given later"
                yield Violation(Invariant.ORDER, later.message, what)


def _live_processes(history: Sequence[Record]) -> Iterator[Violation]:
    live: dict[str, str] = {}
    newest: dict[str, str] = {}
    place: dict[str, str] = {}
    for r in history:
        match r:
            case Spawned():
                others = [one for one, where in live.items() if where == r.conversation]
                if others:
                    what = f"lives beside {', '.join(others)} in {r.conversation}"
                    yield Violation(Invariant.ALONE, r.launch, what)
                live[r.launch] = place[r.launch] = r.conversation
                newest[r.conversation] = r.launch
            case Exited():
                live.pop(r.launch, None)
            case Effect() if r.launch in place:
                if r.launch not in live:
                    yield Violation(Invariant.ALONE, r.launch, "had an effect after its end")
                elif newest[place[r.launch]] != r.launch:
                    yield Violation(Invariant.ALONE, r.launch, "had an effect when superseded")
            case Effect():
                yield Violation(Invariant.ALONE, r.launch, "had an effect, and nobody started it")
            case _:
                pass


def _replies(history: Sequence[Record]) -> Iterator[Violation]:
    replies: dict[tuple[str, int], list[str]] = defaultdict(list)
    for r in history:
        if isinstance(r, Reply):
            replies[r.message, r.n].append(r.reply)
    for (message, n), ids in replies.items():
        if len(ids) > 1:
            yield Violation(Invariant.ONE_REPLY, message, f"has reply {n} {len(ids)} times: {ids}")


def _epochs(history: Sequence[Record]) -> Iterator[Violation]:
    epoch: str | None = None
    last = 0
    accepted: set[tuple[str, str]] = set()
    for r in history:
        match r:
            case EpochBegan():
                epoch, last = r.epoch, 0
            case Accepted():
                about = f"{r.message} ({r.epoch}, {r.seq})"
                if r.epoch != epoch:
                    yield Violation(Invariant.EPOCH, about, f"accepted, but the epoch is {epoch}")
                    continue
                if r.seq <= last:
                    yield Violation(Invariant.EPOCH, about, f"accepted after {last}")
                if (r.message, r.epoch) in accepted:
                    yield Violation(Invariant.EPOCH, about, "accepted under two numbers")
                accepted.add((r.message, r.epoch))
                last = max(last, r.seq)
            case _:
                pass


def _links(history: Sequence[Record]) -> Iterator[Violation]:
    links = {r.message: r for r in history if isinstance(r, Linked)}
    for r in links.values():
        cause = links.get(r.cause) if r.cause else None
        if r.cause and cause is None:
            yield Violation(Invariant.CHAIN, r.message, f"caused by {r.cause}, which nobody said")
        elif cause and (r.depth, r.chain) != (cause.depth + 1, cause.chain):
            what = f"depth {r.depth} of {r.chain}; its cause: depth {cause.depth} of {cause.chain}"
            yield Violation(Invariant.CHAIN, r.message, what)
        elif cause is None and (r.chain != r.message or r.depth > 1):
            what = f"depth {r.depth} of {r.chain} without a cause"
            yield Violation(Invariant.CHAIN, r.message, what)


def _turns(history: Sequence[Record]) -> Iterator[Violation]:
    """A turn is the first process that works on an agent's message."""
    links = {r.message: r for r in history if isinstance(r, Linked)}
    left: dict[str, int] = {}
    begun: set[str] = set()
    for r in history:
        if isinstance(r, Allowed):
            left[r.chain] = left.get(r.chain, 0) + r.turns if r.turns else 0
        elif isinstance(r, Spawned) and r.message not in begun and (link := links.get(r.message)):
            begun.add(r.message)
            if link.depth and link.chain in left:
                left[link.chain] -= 1
                if left[link.chain] < 0:
                    what = f"begun, but {link.chain} had no turn left"
                    yield Violation(Invariant.CHAIN, r.message, what)
