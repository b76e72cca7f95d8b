"""What a warm process is worth, and what we cost on top of it.

From the POST of a message to the first piece of its answer on the page's stream, in a conversation
whose real `claude` has had a turn; beside `claude -p --resume` by hand, to the first piece on its
standard output, and beside a `claude` that is kept warm by hand. The difference to the latter is our
own share: from the POST to the line on its standard input, and from its line to the page. Only the
model is scripted: it answers at once, so what a real one takes to its first piece is in no figure.
"""

import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.bridge import serving_bridge
from benchmarks.cold_turn import CLIS, environment, made, with_tools
from benchmarks.measure import Figure, figure, paired
from benchmarks.servers import running_model
from e2e.harness import clean_environment, processes_with, running_backend, running_daemon

RUNS = 7
PROMPT = "@@stream 4 0.05"
_STREAM = ("--output-format", "stream-json", "--verbose", "--include-partial-messages")
_MB = 1e6


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        with (
            running_model(made(folder / "model")) as model,
            running_backend(folder / "server") as backend,
            serving_bridge(made(folder / "b")) as shim,
        ):
            extra = environment(model)
            host_id, key = backend.create_host()
            agent_id = backend.create_agent(host_id, driver="claude_code")
            home = folder / "laptop"
            env = clean_environment(home, **extra)
            with (
                running_daemon(home, backend.url, key, **extra),
                backend.follow() as events,
                _kept_by_hand(made(folder / "warm"), env, list(shim)) as (kept, by_hand),
            ):
                first = backend.send(agent_id, PROMPT)
                conversation_id = first["conversation_id"]
                events.delivery(first["id"], "done")

                def ours() -> float:
                    began = time.perf_counter()
                    sent = backend.send(agent_id, PROMPT, conversation_id)
                    events.until(_shows_text)
                    taken_s = time.perf_counter() - began
                    events.delivery(sent["id"], "done")
                    return taken_s

                resumed = paired(ours, _resumed(made(folder / "cold"), env, list(shim)), runs=RUNS)
                warm = paired(ours, kept, runs=RUNS * 6)
                mine = filter(_is_claude, processes_with(str(home / ".cloudagent")))
                memory = [(max(map(_rss, mine)), _rss(by_hand))]
    return [
        figure(
            "warm turn: POST to its first piece at the page",
            "claude -p --resume by hand",
            resumed,
            goal="<= 1/8",
            max_ratio=1 / 8,
        ),
        figure(
            "warm turn: our own share",
            "a claude kept warm by hand",
            warm,
            goal="<= +25 ms",
            max_difference_ms=25,
        ),
        figure("memory of a warm process", "of one by hand", memory, unit="MB", scale=1),
    ]


def _resumed(cwd: Path, env: dict[str, str], shim: list[str]) -> Callable[[], float]:
    """Resumes a session of its own and times the first piece of its answer."""
    session_id = str(uuid.uuid4())
    argv = [str(CLIS / "claude"), "-p", *_STREAM, *with_tools(cwd, shim)]

    def turn(which: str) -> float:
        began = time.perf_counter()
        with subprocess.Popen(
            [*argv, which],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin
            process.stdin.write(PROMPT.encode())
            process.stdin.close()
            _until(process.stdout, _is_piece)
            taken_s = time.perf_counter() - began
            _until(process.stdout, _is_result)
        return taken_s

    turn(f"--session-id={session_id}")
    return lambda: turn(f"--resume={session_id}")


@contextmanager
def _kept_by_hand(
    cwd: Path, env: dict[str, str], shim: list[str]
) -> Generator[tuple[Callable[[], float], int]]:
    """A process that has had a turn: a function that times the next one, and its number."""
    argv = [str(CLIS / "claude"), "-p", "--input-format", "stream-json", *_STREAM]
    process = subprocess.Popen(
        [*argv, *with_tools(cwd, shim)],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    def turn() -> float:
        assert process.stdin
        message = {"role": "user", "content": [{"type": "text", "text": PROMPT}]}
        began = time.perf_counter()
        process.stdin.write(json.dumps({"type": "user", "message": message}).encode() + b"\n")
        process.stdin.flush()
        _until(process.stdout, _is_piece)
        taken_s = time.perf_counter() - began
        _until(process.stdout, _is_result)
        return taken_s

    with process:
        try:
            turn()
            yield turn, process.pid
        finally:
            process.kill()


def _until(stdout: IO[bytes] | None, wanted: Callable[[dict[str, Any]], bool]) -> None:
    assert stdout
    for line in stdout:
        if wanted(json.loads(line)):
            return
    raise AssertionError("claude has ended")


def _shows_text(event: dict[str, Any]) -> bool:
    """A piece, or the whole: pieces may be left out where that follows at once."""
    whole = event["type"] == "run.event" and event["data"]["event"]["type"] == "text"
    return whole or event["type"] == "run.delta"


def _is_piece(line: dict[str, Any]) -> bool:
    return line.get("event", {}).get("delta", {}).get("type") == "text_delta"


def _is_result(line: dict[str, Any]) -> bool:
    return line["type"] == "result"


def _is_claude(pid: int) -> bool:
    return Path(psutil.Process(pid).exe()).name.startswith("claude")


def _rss(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / _MB
