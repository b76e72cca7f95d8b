"""Which work trees of conversations `agent clean` removes: never one with work in it."""

import argparse
import json
import os
import time
from pathlib import Path

import pytest

from cloudagent_daemon.cli import clean, trees
from fakes.repositories import a_repository, bytes_of, git

OLD = time.time() - 30 * 86_400


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUDAGENT_HOME", str(tmp_path / ".cloudagent"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cloudagent" / "agents"


def a_tree(repo: Path, agents: Path, name: str, *, used: float = OLD, made: bool = True) -> Path:
    """As trees.py makes it."""
    folder = agents / "agent_a" / "worktrees" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(repo, "worktree", "add", "-q", "-b", f"cloudagent/{name}", str(folder))
    record = folder.with_name(f"{name}.json")
    said = {
        "conversation_id": f"conv_{name}",
        "root": str(repo),
        "common_dir": str(repo / ".git"),
        "branch": f"cloudagent/{name}",
        "base": git(repo, "rev-parse", "HEAD").strip(),
        "made": made,
    }
    record.write_text(json.dumps(said))
    os.utime(record, (used, used))
    return folder


def run(capsys: pytest.CaptureFixture[str], *, yes: bool) -> dict[str, str | None]:
    """What it says of each."""
    assert clean.run(argparse.Namespace(yes=yes, json=True, unused_days=14.0)) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    return {Path(item["path"]).name: item["kept"] for item in items}


def test_only_old_trees_without_work_go_and_their_branches_with_them(
    tmp_path: Path, agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = a_repository(tmp_path / "repo", {"f": "1\n", ".gitignore": "built\n"})
    empty = a_tree(repo, agents, "empty")
    (empty / "built").write_text("by a compiler")
    kept = {
        name: a_tree(repo, agents, name)
        for name in ("edited", "new", "staged", "committed", "nested")
    }
    kept["fresh"] = a_tree(repo, agents, "fresh", used=time.time() - 90_000)
    kept["half"] = a_tree(repo, agents, "half", made=False)
    kept["strange"] = a_tree(repo, agents, "strange")
    (kept["edited"] / "f").write_text("2\n")
    (kept["new"] / "n").write_text("n\n")
    (kept["staged"] / "f").write_text("2\n")
    git(kept["staged"], "add", "f")
    (kept["staged"] / "f").write_text("1\n")
    git(kept["committed"], "commit", "-q", "--allow-empty", "-m", "work")
    git(kept["nested"], "init", "-q", "inner")
    (kept["nested"] / "inner" / "x").write_text("x\n")
    (kept["strange"] / ".git").write_text(f"gitdir: {repo}/.git")

    found = bytes_of(repo / ".git")
    said = run(capsys, yes=False)
    assert bytes_of(repo / ".git") == found
    assert empty.is_dir()
    words = {
        "edited": "changes that are not committed", "new": "files that are not committed",
        "staged": "staged", "committed": "commits of its own", "nested": "not committed",
        "fresh": "used yesterday", "half": "half made", "strange": "no work tree of",
    }  # fmt: skip
    assert said.pop("empty") is None
    assert said.keys() == words.keys()
    for name, why in said.items():
        assert words[name] in str(why), name
    assert f"git -C {repo} worktree remove {kept['new']}" in str(said["new"])

    run(capsys, yes=True)
    assert not empty.exists()
    assert all(folder.is_dir() for folder in kept.values())
    assert "cloudagent/empty" not in git(repo, "branch")
    assert str(empty) not in git(repo, "worktree", "list")
    assert git(repo, "branch").count("cloudagent/") == len(kept)
    git(repo, "fsck", "--strict")


def test_to_look_into_a_tree_runs_nothing_that_its_repository_names(
    tmp_path: Path, agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = a_repository(tmp_path / "repo", {"f": "1\n", ".gitattributes": "* filter=t\n"})
    folder = a_tree(repo, agents, "empty")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    trap.chmod(0o755)
    for name in ("filter.t.clean", "core.fsmonitor"):
        git(repo, "config", name, str(trap))
    (repo / ".git" / "hooks").mkdir(exist_ok=True)
    (repo / ".git" / "hooks" / "reference-transaction").symlink_to(trap)
    os.utime(folder / "f")
    assert run(capsys, yes=True) == {"empty": None}
    assert not folder.exists()
    assert "cloudagent/" not in git(repo, "branch")
    assert not (tmp_path / "ran").exists()


def test_a_tree_that_is_used_again_before_it_is_removed_stays_a_matter_of_its_record(
    tmp_path: Path, agents: Path
) -> None:
    repo = a_repository(tmp_path / "repo")
    a_tree(repo, agents, "one")
    [tree] = trees.trees_in(agents)
    assert trees.why_kept(tree) is None
    tree.record.touch()
    assert trees.why_kept(tree) == "it was used today"
