"""What `status` says in each state, against files that a person has read for clarity.

`python tests/daemon/test_standing.py` writes them anew; read them before you commit.
"""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.cli.standing import clip, duration, lines

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"
NOW = datetime(2026, 11, 20, 12, 24, 0, tzinfo=UTC)
HOSTILE = "\x1b]0;owned\x07\nline\r\x9b2J\u202e" + "ü" * 65_536


def ago(**time: float) -> str:
    return (NOW - timedelta(**time)).isoformat()


def agent(name: str, status: str, **more: Any) -> dict[str, Any]:
    base = {"id": f"agent_{name}", "name": name, "driver": "claude_code", "status": status}
    return {**base, "since": None, "queued": 0, "cwd": f"/home/ana/src/{name}"} | more


AGENTS = [
    agent("docs", "idle", last_turn_at=ago(hours=2, minutes=7)),
    agent("api", "idle", queued=0),
    agent(
        "frontend", "working", since=ago(minutes=4, seconds=3), queued=2, cwd="/home/ana/src/shop"
    ),
]
RUNTIMES = [
    {"name": "claude_code", "version": "2.1.197", "path": "/usr/bin/claude"},
    {"name": "codex", "version": "0.61.0", "path": "/usr/bin/codex", "logged_in": False},
    {"name": "gemini", "version": None, "path": None, "problem": "not found"},
]


def report(state: str = "connected", **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "schema": "cloudagent.status/1",
        "profile": "default",
        "state": state,
        "detail": None,
        "attempt": 0,
        "next_attempt_at": None,
        "server_url": "https://agents.example.com",
        "hostname": "mbp-ana",
        "host_id": "host_01J9ZK3M5Q7R8S9T0V1W2X3Y4Z",
        "pid": 4711,
        "since": ago(hours=3, minutes=12),
        "round_trip_ms": 21.4,
        "runtimes": RUNTIMES,
        "agents": AGENTS,
        "guards": [{"name": "memory", "state": "ok", "detail": ""}],
        "service": {"manager": "systemd", "name": "cloudagent-daemon.service", "restarts": 0},
    }
    return base | more


def waits(name: str, **more: Any) -> dict[str, Any]:
    base = {"agent_id": f"agent_{name[:20]}", "agent": name, "program": "/usr/bin/claude", "pid": 9}
    times = {"since": ago(minutes=4), "until": ago(minutes=-6), "ahead": False}
    talk = {"conversation_id": "conv_01J9ZK3M5Q7R8S9T0V1W2X3Y4Z", "memory_bytes": 203_000_000}
    return {**base, **times, **talk} | more


STOPPED: dict[str, Any] = {
    "pid": None,
    "since": None,
    "runtimes": [],
    "agents": [],
    "service": None,
    "hostname": None,
    "guards": [],
}
STATES: dict[str, dict[str, Any]] = {
    "connected": report(),
    "not-logged-in": report("stopped", **STOPPED, server_url=None, host_id=None),
    "not-running": report("stopped", **STOPPED),
    "starting": report("connecting", runtimes=[], agents=[], since=ago(seconds=1)),
    "reconnecting": report(
        "connecting",
        detail="https://agents.example.com answers 502 Bad Gateway",
        attempt=6,
        next_attempt_at=ago(seconds=-12),
        since=ago(seconds=40),
        agents=[],
    ),
    "key-rejected": report(
        "unauthorized",
        detail="401: This machine key is not valid.",
        attempt=3,
        since=ago(hours=3, minutes=12),
        agents=[],
    ),
    "draining": report(draining=True),
    "approval-waiting": report(
        agents=[
            *AGENTS[1:],
            agent("shop two", "waiting", waiting_for="approval: Bash “alembic upgrade”"),
        ]
    ),
    "demo": report(
        runtimes=[*RUNTIMES[2:], {"name": "scripted", "version": "1"}],
        agents=[agent("demo", "idle", driver="scripted")],
    ),
    "no-runtime": report(runtimes=[*RUNTIMES[2:], {"name": "scripted", "version": "1"}], agents=[]),
    "no-room": report(
        guards=[
            {
                "name": "memory",
                "state": "memory_low",
                "detail": "212 MB of memory are available, 512 MB are needed to start an agent",
            }
        ]
    ),
    "crash-loop": report(
        agents=[
            *AGENTS,
            agent(
                "ios",
                "crashed",
                queued=2,
                last_turn_at=ago(seconds=20),
                hold={
                    "reason": "crash_loop",
                    "until": ago(seconds=-280),
                    "detail": "It crashed 4 times in a row and is left alone for 5 min, or until one "
                    "of its messages is retried. The last time: The agent's process ended early "
                    "(killed by SIGSEGV).",
                },
            ),
        ]
    ),
    "rate-limit": report(
        agents=[
            *AGENTS,
            agent(
                "ios",
                "waiting",
                queued=2,
                waiting_for="rate_limit",
                hold={
                    "reason": "rate_limit",
                    "until": ago(seconds=-7_200),
                    "detail": "The account that claude_code uses has reached its limit; it resumes at "
                    "2026-11-20 11:12 UTC.",
                },
            ),
        ]
    ),
    "warm": report(
        warm=[
            waits("docs", ahead=True, since=ago(seconds=20), until=ago(seconds=-100)),
            waits("api", memory_bytes=197_400_000),
            waits("frontend", memory_bytes=None, agent=None, since=ago(minutes=9)),
        ]
    ),
    "by-hand-with-notes": report(
        service=None,
        notes=["state.db could not be read and was set aside as state.db.corrupt-20261120T091200Z"],
        weaknesses=["the server's certificate is not checked (--insecure)"],
        own_files={"state": "open", "detail": "unprivileged user namespaces are off"},
    ),
    "hostile": report(
        profile="default",
        detail=HOSTILE,
        host_id=HOSTILE,
        hostname=HOSTILE,
        runtimes=[{"name": HOSTILE, "version": HOSTILE, "problem": None}],
        agents=[
            agent("a", "working", since=ago(seconds=5)) | {"name": HOSTILE, "cwd": HOSTILE},
            agent("b", "waiting", waiting_for=f"approval: {HOSTILE}"),
        ],
        notes=[HOSTILE],
        warm=[waits(HOSTILE, program=HOSTILE, conversation_id=HOSTILE)],
    ),
}


def shown(state: dict[str, Any], width: int = 0) -> str:
    told = lines(
        state,
        lambda words: f"cloudagent-daemon {words}",
        now=NOW.timestamp(),
        log=Path("/home/ana/.cloudagent/daemon/logs"),
        user_home="/home/ana",
        width=width,
    )
    return "\n".join(told) + "\n"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize("name", STATES)
def test_each_state_is_told_as_a_person_has_read_it(name: str) -> None:
    for width in (0, 80):
        file = GOLDEN / f"status-{name}{f'-{width}' if width else ''}.txt"
        assert shown(STATES[name], width) == file.read_text("utf-8"), file


@pytest.mark.parametrize("name", STATES)
def test_nothing_steers_the_terminal_and_rows_of_agents_fit_it(name: str) -> None:
    for width in (0, 80):
        told = shown(STATES[name], width).splitlines()
        assert all(line.isprintable() for line in told)
        assert len(told) < 20
        rows = [line for line in told if line.startswith("    ")]
        assert all(len(row) <= (width or 1_000) for row in rows)


@given(st.text(), st.integers(1, 300))
def test_a_clipped_text_is_one_line_of_its_length(text: str, most: int) -> None:
    cut = clip(text, most)
    assert len(cut) <= most
    assert cut.isprintable()
    assert len(text) > most or len(cut) == len(text)


def test_durations_have_two_units_at_most() -> None:
    found = [duration(s) for s in (0, 8.9, 200, 11_520, 187_200)]
    assert found == ["0 s", "8 s", "3 min 20 s", "3 h 12 min", "2 d 4 h"]


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    for name, state in STATES.items():
        for width in (0, 80):
            file = GOLDEN / f"status-{name}{f'-{width}' if width else ''}.txt"
            file.write_text(shown(state, width), "utf-8")
