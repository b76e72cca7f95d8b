"""The recorder sees what processes and frames really did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from faults.history import Accepted, EpochBegan, Exited, Invariant, Sent, Spawned, check
from faults.proxy import Seen
from faults.record import Post, Recorder, _from_frames

AGENT = Path(__file__).parent / "agent.py"
#: No daemon is there to give the agent its tools.
ALONE = "@@tools missing"


class Bench:
    """Starts agents by hand, as a daemon that breaks its promises might."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recorder = Recorder(folder / "effects")
        (folder / "prompt").write_text("You are an agent.")

    def start(self, key: str, launch: str, *orders: str) -> subprocess.Popen[str]:
        self.recorder.posts.append(Post(0.0, key, "agent", "conversation", "", key))
        state = {"FAKE_STATE": str(self.folder), "FAKE_EFFECTS": str(self.recorder.effects)}
        process = subprocess.Popen(
            [
                *(sys.executable, AGENT, "-p", "--input-format", "stream-json"),
                *("--append-system-prompt-file", self.folder / "prompt"),
            ],
            env={**os.environ, **state, "CLOUDAGENT_LAUNCH_ID": launch},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        text = "\n".join([ALONE, f"@@is {key} place", *orders])
        content = [{"type": "text", "text": text}]
        message = {"type": "user", "message": {"role": "user", "content": content}, "uuid": key}
        process.stdin.write(f"{json.dumps(message)}\n")
        process.stdin.close()
        return process

    def seen(self) -> list[Any]:
        return list(self.recorder._from_effects(self.recorder.posts))


def until_holding(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert any("holding" in line for line in process.stdout)


def test_two_processes_of_a_conversation_at_once_are_seen(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.start("one", "first", "@@hold") as first:
        until_holding(first)
        with bench.start("two", "second", "@@effect 1") as second:
            assert second.wait(20) == 0
        first.kill()
    alone = [v.about for v in check(bench.seen()) if v.invariant is Invariant.ALONE]
    assert alone == ["second"]


def test_a_process_that_was_killed_is_known_to_be_gone_when_the_next_begins(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    with bench.start("one", "first", "@@hold") as first:
        until_holding(first)
        first.kill()
    with bench.start("two", "second", "@@effect 1") as second:
        assert second.wait(20) == 0
    seen = bench.seen()
    assert [type(record) for record in seen[:3]] == [Spawned, Exited, Spawned]
    assert not [v for v in check(seen) if v.invariant is Invariant.ALONE]


def frame(connection: int, direction: Any, kind: str, **fields: Any) -> Seen:
    return Seen(float(connection), connection, direction, {"type": kind, **fields})


def deliver(connection: int, seq: int, message: str) -> Seen:
    return frame(connection, "down", "deliver", seq=seq, message={"id": message})


def test_a_delivery_counts_as_accepted_once_however_often_it_is_acknowledged() -> None:
    frames = [
        frame(1, "down", "welcome", epoch="e"),
        deliver(1, 1, "m"),
        deliver(1, 2, "n"),
        frame(1, "up", "ack", seq=1),
        frame(2, "down", "welcome", epoch="e"),
        deliver(2, 1, "m"),
        deliver(2, 2, "n"),
        frame(2, "up", "ack", seq=1),
        frame(2, "up", "ack", seq=2),
    ]
    assert list(_from_frames(frames)) == [
        EpochBegan(1.0, "e"),
        Accepted(1.0, "m", "e", 1),
        Accepted(2.0, "n", "e", 2),
    ]


def test_an_ack_that_a_stalled_older_connection_lets_go_late_is_no_acceptance() -> None:
    frames = [
        frame(1, "down", "welcome", epoch="e"),
        deliver(1, 1, "m"),
        deliver(1, 2, "n"),
        frame(2, "down", "welcome", epoch="e"),
        deliver(2, 3, "o"),
        frame(2, "up", "ack", seq=3),
        Seen(3.0, 1, "up", {"type": "ack", "seq": 2}),
    ]
    seen = list(_from_frames(frames))
    assert seen == [EpochBegan(1.0, "e"), Accepted(2.0, "o", "e", 3)]
    assert not [v for v in check(seen) if v.invariant is Invariant.EPOCH]


def test_an_ack_of_what_only_an_older_epoch_gave_is_a_violation() -> None:
    frames = [
        frame(1, "down", "welcome", epoch="old"),
        deliver(1, 7, "m"),
        frame(2, "down", "welcome", epoch="new"),
        deliver(2, 1, "n"),
        frame(2, "up", "ack", seq=7),
    ]
    seen = list(_from_frames(frames))
    assert Accepted(2.0, "m", "old", 7) in seen
    assert Invariant.EPOCH in {v.invariant for v in check(seen)}


def test_an_ack_of_what_nobody_gave_is_a_violation() -> None:
    frames = [
        frame(1, "down", "welcome", epoch="e"),
        deliver(1, 1, "m"),
        frame(1, "up", "ack", seq=2),
    ]
    seen = list(_from_frames(frames))
    wrong = [v.about for v in check([*seen, Sent(0.0, "m", "a", "c")])]
    assert "nothing" in wrong


def test_a_message_that_is_taken_again_under_another_number_is_a_violation() -> None:
    frames = [
        frame(1, "down", "welcome", epoch="e"),
        deliver(1, 1, "m"),
        frame(1, "up", "ack", seq=1),
        frame(2, "down", "welcome", epoch="e"),
        deliver(2, 2, "m"),
        frame(2, "up", "ack", seq=2),
    ]
    assert Invariant.EPOCH in {v.invariant for v in check(_from_frames(frames))}
