"""Whole screens of commands, against files that a person has read for clarity.

`GOLDEN=write` takes a change over; read the files before you commit.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon import config
from cloudagent_daemon.cli.dispatch import run
from cloudagent_daemon.paths import Paths
from cloudagent_daemon.runs.once import OneMessage
from cloudagent_protocol.events import Finished, Outcome, Reason, Usage
from cloudagent_protocol.frames import RunReport
from cloudagent_protocol.ids import new_run_id
from cloudagent_protocol.resources import Author
from daemon.test_once import link
from fakes.runs import a_delivery

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"
#: Of `start --once`: 2026-11-20 09:12:00 UTC.
BEGIN = 1_795_165_920.0

LOG = """\
2026-11-20T09:12:00.101Z INFO daemon Serving action=serve profile=default
2026-11-20T09:12:00.312Z INFO link.client Connected as host_01J9ZK action=connected session_id=ses_1
2026-11-20T09:12:04.020Z INFO runs.queue shop begins to work action=run_started agent_id=agent_1
2026-11-20T09:12:31.877Z INFO runs.queue shop is done action=run_ended agent_id=agent_1 outcome=failed
2026-11-20T09:12:31.878Z WARNING runs.queue shop: It crashed 3 times in a row and is left alone for 1 min, or until one of its messages is retried. The last time: The agent's process ended early (exit 1). action=crash_loop agent_id=agent_1
2026-11-20T09:13:02.004Z ERROR link.client the link failed action=link_failed
Traceback (most recent call last):
  File "client.py", line 7, in run
ValueError: \x1b[31mboom
2026-11-20T09:13:40.500Z INFO runs.queue docs begins to work action=run_started agent_id=agent_2
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name in ("CLOUDAGENT_DAEMON_PROFILE", "CLOUDAGENT_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def check(name: str, told: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(told, "utf-8")
    assert told == file.read_text("utf-8"), file


def log_in(home: Path, profile: str, url: str, host: str) -> Paths:
    paths = Paths(home / ".cloudagent", profile)
    config.write_file(paths.config, config.Stored(url, "sk_machine_x", host))
    return paths


def with_profiles(home: Path) -> None:
    paths = log_in(home, "default", "https://agents.example.com", "host_01J9ZK")
    log_in(home, "fr", "https://fr.example.com", "host_01J9ZM")
    for agent in ("agent_1", "agent_2"):
        meta = paths.agents_dir / agent / ".meta"
        meta.mkdir(parents=True)
        (meta / "identity.json").write_text(f'{{"id": "{agent}", "name": "{agent}"}}')


def with_log(home: Path) -> None:
    paths = log_in(home, "default", "https://agents.example.com", "host_01J9ZK")
    paths.logs_dir.mkdir(parents=True)
    (paths.logs_dir / "daemon-2026-11-20.log").write_text(LOG)


def nothing(home: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "prepare", "words"),
    [
        ("list-profiles", with_profiles, "list-profiles"),
        ("list-profiles-none", nothing, "list-profiles"),
        ("logs", with_log, "logs"),
        ("logs-warnings", with_log, "logs --level warning"),
        ("logs-agent", with_log, "logs --agent agent_1 --json"),
        ("logs-none", nothing, "logs"),
        ("logs-slip", with_log, "logs --level loud"),
    ],
)
def test_a_screen_is_as_a_person_has_read_it(
    home: Path,
    name: str,
    prepare: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(home)
    code = run(words.split())
    out, error = capsys.readouterr()
    told = f"$ cloudagent-daemon {words}\n{error}{out}(exit {code})\n"
    assert "\x1b" not in told
    check(name, told.replace(str(home), "/home/ana"))


ENDS: dict[str, dict[str, Any]] = {
    "replied": {
        "outcome": Outcome.REPLIED,
        "usage": Usage(input_tokens=41_200, output_tokens=2_950),
    },
    "failed": {
        "outcome": Outcome.FAILED,
        "reason": Reason.OUT_OF_MEMORY,
        "detail": "The agent and what it started took 6,310 MB of memory, and 6,000 MB are allowed; it "
        "was ended.",
    },
}


@pytest.mark.parametrize("name", ENDS)
async def test_a_job_s_transcript_is_as_a_person_has_read_it(name: str) -> None:
    now = [BEGIN]
    said: list[str] = []
    once = OneMessage(said.append, cwd=Path("/builds/shop"), idle_exit_s=120.0, wall=lambda: now[0])
    deliver = a_delivery()
    author = Author(type="user", id="usr_1", name="Ana")
    message = deliver.message.model_copy(update={"id": "msg_01J9ZK3M5Q", "author": author})
    agent = deliver.agent.model_copy(update={"name": "shop"})
    deliver = deliver.model_copy(update={"message": message, "agent": agent})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(once.watch, link())
        await anyio.wait_all_tasks_blocked()
        now[0] += 4
        once.delivered(deliver)
        now[0] += 158
        event = Finished(at=datetime.now(UTC), **ENDS[name])
        once.finished(
            RunReport(
                run_id=new_run_id(),
                agent_id=deliver.agent.id,
                conversation_id=deliver.message.conversation_id,
                delivery_ids=[deliver.delivery_id],
                event=event,
            )
        )
        once.over()
    check(f"once-{name}", "\n".join(said) + "\n")
