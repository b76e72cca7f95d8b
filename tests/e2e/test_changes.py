"""What a run changed, and in whose work tree, with real processes on both sides."""

import sys
from pathlib import Path

from e2e.harness import running_backend, running_daemon
from fakes.repositories import a_repository, bytes_of, git

FAKE = Path(__file__).parents[1] / "fakes" / "agent_cli.py"


def test_a_conversation_works_in_a_tree_of_its_own_and_its_changes_come_back(tmp_path) -> None:
    repo = a_repository(tmp_path / "repo")
    home = tmp_path / "laptop"
    with running_backend(tmp_path / "server") as backend, backend.follow() as events:
        host, key = backend.create_host("mbp")
        agent = backend.create_agent(
            host,
            "shop",
            driver="claude_code",
            command=[sys.executable, str(FAKE)],
            env={"FAKE_STATE": str(tmp_path / "fake")},
            mode="bypassPermissions",
            cwd=str(repo),
            worktree="per_conversation",
        )
        with running_daemon(home, backend.url, key):
            first = backend.send(agent, "@@edit price.py VAT = 0.20\n@@reply done")
            told = events.until(lambda e: e["type"] == "run.updated")["data"]
            found = bytes_of(repo / ".git")
        # Found again by another life of the daemon, which is not to make it anew.
        with running_daemon(home, backend.url, key):
            backend.send(
                agent, "@@edit price.py VAT = 0.21\n@@reply done", first["conversation_id"]
            )
            again = events.until(
                lambda e: e["type"] == "run.updated" and e["data"]["id"] != told["id"]
            )["data"]
        assert told["changes"] == again["changes"]
        assert told["changes"] == {"files": 1, "additions": 1, "deletions": 1, "problem": None}
        one, two = (backend.call("GET", f"/v1/runs/{run['id']}/diff") for run in (told, again))
    assert one["files"][0]["patch"].endswith("-VAT = 0.19\n+VAT = 0.20\n")
    assert two["files"][0]["patch"].endswith("-VAT = 0.20\n+VAT = 0.21\n")
    assert (one["late"], one["shared"], one["root"]) == (False, False, two["root"])
    assert Path(one["root"]).is_relative_to(home / ".cloudagent" / "agents" / agent / "worktrees")
    assert (repo / "price.py").read_text() == "VAT = 0.19\n"
    assert git(repo, "status", "--porcelain") == ""
    assert bytes_of(repo / ".git").keys() == found.keys()
