"""What a run changed: the clients' call and the command."""

import json
from pathlib import Path
from typing import Any

from client import bodies
from client.server import Answer, Server, problem
from client.test_commands import run

PATCH = "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n"
DIFF: dict[str, Any] = {
    "run_id": "run_1",
    "root": "/repo",
    "files": [
        {"path": "f", "status": "modified", "additions": 1, "deletions": 1, "patch": PATCH},
        {"path": "logo\x1b[2J", "status": "added", "binary": True, "truncated": True},
    ],
    "more": 1,
    "additions": 1,
    "deletions": 1,
    "shared": True,
    "late": True,
    "redacted": True,
}


def test_a_diff_is_fetched(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/runs/run_1/diff", Answer(body=DIFF))
    diff = ca.runs.diff("run_1")
    assert (diff.files[0].patch, diff.count.files) == (PATCH, 3)


def test_the_diff_of_a_message_is_printed_as_git_prints_it(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/messages/msg_1", Answer(body=bodies.message("hello")))
    traced = bodies.delivery("done", "stored") | {"run_id": "run_1"}
    server.on(
        "GET",
        "/v1/messages/msg_1/trace",
        Answer(body={"message_id": "msg_1", "deliveries": [traced]}),
    )
    server.on("GET", "/v1/runs/run_1/diff", Answer(body=DIFF))
    done = run(own_home, server, "diff", "msg_1")
    assert done.stdout.decode().startswith(PATCH)
    assert "\x1b" not in done.stdout.decode()
    said = done.stderr.decode()
    assert "3 files changed, +1 -1" in said
    for word in ("not listed", "too long", "key", "same time", "first changes"):
        assert word in said
    as_json = json.loads(run(own_home, server, "diff", "run_1", "--json").stdout)
    assert (as_json["schema"], as_json["diffs"][0]["run_id"]) == ("cloudagent.diff/1", "run_1")
    listed = run(own_home, server, "diff", "run_1", "--stat").stdout.decode()
    assert listed.splitlines()[0].split() == ["modified", "+1", "-1", "f"]


def test_a_run_without_a_diff_says_what_that_may_mean(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/runs/run_1/diff", problem(404, "not_found", "gone"))
    server.on("GET", "/v1/runs/run_1", Answer(body=bodies.run("finished")))
    done = run(own_home, server, "diff", "run_1")
    assert (done.returncode, done.stdout) == (0, b"")
    assert "No change is known" in done.stderr.decode()
    server.on("GET", "/v1/runs/run_2/diff", problem(404, "not_found", "gone"))
    server.on("GET", "/v1/runs/run_2", problem(404, "not_found", "gone"))
    assert run(own_home, server, "diff", "run_2").returncode == 1
