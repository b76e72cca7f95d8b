"""What we cost: from the POST of a message to the model's first request, less the same by hand.

Both sides resume a session of the real `claude` with the same flags and an MCP server behind the
same shim; only the model is scripted. The same is measured against `claude -p --resume` with no
flags at all, as a person types it: the difference to that is what having tools costs.
"""

import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.bridge import serving_bridge
from benchmarks.measure import Figure, figure, paired
from e2e.harness import BIN, clean_environment, running_backend, running_daemon
from fakes.model import StubModel

RUNS = 15
CLIS = Path(__file__).parents[1] / "tests" / "e2e" / "clis" / "node_modules" / ".bin"


class Requests:
    """The model server's log, read on from where it was."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def first_after(self, began: float) -> float:
        """When the first model request since `began` came in, in seconds after it."""
        for line in self._log.read_text().splitlines():
            entry = json.loads(line)
            if entry.get("protocol") == "anthropic" and entry["at"] >= began:
                return entry["at"] - began
        raise AssertionError("the model was not asked")


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        log = folder / "model.jsonl"
        with (
            StubModel(log=log) as model,
            running_backend(folder / "server") as backend,
            serving_bridge(made(folder / "b")) as shim,
        ):
            extra = environment(model.url, CLOUDAGENT_WARM_S="0")
            host_id, key = backend.create_host()
            agent_id = backend.create_agent(host_id, driver="claude_code")
            requests = Requests(log)
            home = folder / "laptop"
            with running_daemon(home, backend.url, key, **extra), backend.follow() as events:
                first = backend.send(agent_id, "@@say hello")
                conversation_id = first["conversation_id"]
                events.delivery(first["id"], "done")

                def ours() -> float:
                    began = time.time()
                    sent = backend.send(agent_id, "@@say again", conversation_id)
                    events.delivery(sent["id"], "done")
                    return requests.first_after(began)

                env = clean_environment(home, **extra)
                same = _by_hand(folder / "same", env, requests, list(shim))
                bare = _by_hand(folder / "bare", env, requests, None)
                same_pairs = paired(ours, same, runs=RUNS)
                bare_pairs = paired(ours, bare, runs=RUNS // 2)
    return [
        figure(
            "cold turn: POST to the model's request",
            "claude --resume, same flags",
            same_pairs,
            goal="<= 1.10x, <= +60 ms",
            max_ratio=1.10,
            max_difference_ms=60,
        ),
        figure(
            "cold turn: POST to the model's request",
            "claude -p --resume, no tools",
            bare_pairs,
            goal="(what tools cost)",
        ),
    ]


def environment(model_url: str, **extra: str) -> dict[str, str]:
    """For a daemon or a `claude` that works with the model there."""
    return {
        "PATH": f"{CLIS}:{BIN}:/usr/local/bin:/usr/bin:/bin",
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "dummy",
        "IS_SANDBOX": "1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **extra,
    }


def with_tools(cwd: Path, shim: list[str]) -> list[str]:
    """The flags that give `claude` our tools; their files are put into `cwd`."""
    server = {"command": shim[0], "args": shim[1:], "alwaysLoad": True}
    (cwd / "mcp.json").write_text(json.dumps({"mcpServers": {"cloudagent": server}}))
    (cwd / "system.md").write_text("You answer with the tools of the server cloudagent.")
    return [
        *("--mcp-config", str(cwd / "mcp.json"), "--strict-mcp-config"),
        *("--append-system-prompt-file", str(cwd / "system.md")),
        *("--allowedTools", "mcp__cloudagent", "--permission-mode", "default"),
    ]


def _by_hand(
    cwd: Path, env: dict[str, str], requests: Requests, shim: list[str] | None
) -> Callable[[], float]:
    """A function that resumes a session of its own and times its first model request."""
    cwd.mkdir()
    session_id = str(uuid.uuid4())
    argv = [str(CLIS / "claude"), "-p"]
    if shim:
        argv += ["--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        argv += with_tools(cwd, shim)

    def turn(which: str) -> float:
        began = time.time()
        subprocess.run(
            [*argv, which],
            cwd=cwd,
            env=env,
            input=b"@@say again",
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return requests.first_after(began)

    turn(f"--session-id={session_id}")
    return lambda: turn(f"--resume={session_id}")


def made(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o700)
    return folder
