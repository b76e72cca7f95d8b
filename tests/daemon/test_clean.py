"""What workspaces take, and what `agent clean` removes and never removes."""

import argparse
import json
import os
from pathlib import Path

import pytest

from cloudagent_daemon.cli import agent, clean
from cloudagent_daemon.usage import size_of, why_kept, words


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUDAGENT_HOME", str(tmp_path / ".cloudagent"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cloudagent" / "agents"
    for name in ("agent_a", "agent_b"):
        meta = folder / name / ".meta" / "sessions"
        meta.mkdir(parents=True)
        (meta.parent / "identity.json").write_text(json.dumps({"id": name, "name": name[-1]}))
        (folder / name / "workspace").mkdir()
    return folder


def archived(agents: Path, name: str, size: int = 100_000) -> Path:
    folder = agents / ".archive" / f"{name}-20261101T000000Z"
    (folder / "workspace").mkdir(parents=True)
    (folder / "workspace" / "file").write_bytes(b"x" * size)
    return folder


def cleaned(*words: str) -> argparse.Namespace:
    return argparse.Namespace(yes="--yes" in words, json="--json" in words, unused_days=14.0)


def test_it_shows_what_it_would_remove_and_removes_nothing(
    agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = archived(agents, "agent_old")
    aside = agents / "agent_a" / ".meta" / "sessions" / "conv_1.json.corrupt-20261101T000000Z"
    aside.write_text("{")
    assert clean.run(cleaned()) == 0
    out = capsys.readouterr().out
    assert out.startswith("would remove\n")
    assert "archived workspace  ~/.cloudagent/agents/.archive/agent_old-20261101T000000Z" in out
    assert "damaged record" in out
    assert "next      cloudagent-daemon agent clean --yes" in out
    assert old.exists()
    assert aside.exists()


def test_with_yes_it_removes_that_and_nothing_else(
    agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = archived(agents, "agent_old")
    (agents / "agent_a" / "workspace" / "mine").write_text("kept")
    assert clean.run(cleaned("--yes", "--json")) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["schema"], body["removed"]) == ("cloudagent.clean/1", True)
    assert [item["path"] for item in body["items"]] == [str(old)]
    assert body["items"][0]["size_bytes"] >= 100_000
    assert not old.exists()
    assert (agents / "agent_a" / "workspace" / "mine").read_text() == "kept"
    assert clean.run(cleaned("--yes")) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_git_work_tree_stays_and_is_named(
    agents: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = archived(agents, "agent_old")
    repository = old / "workspace" / "deep" / "shop"
    repository.mkdir(parents=True)
    # `.git` is a file in a work tree that was added (git-worktree(1)).
    (repository / ".git").mkdir() if kind == "folder" else (repository / ".git").write_text("x")
    assert clean.run(cleaned("--yes")) == 0
    out = capsys.readouterr().out
    assert f"{repository} is a git work tree" in out
    assert (old / "workspace" / "file").exists()


def test_no_link_leads_it_outside(agents: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (outside / "conv_1.json.corrupt-20261101T000000Z").write_text("x")
    old = archived(agents, "agent_old")
    (old / "workspace" / "link").symlink_to(outside)
    (agents / ".archive" / "agent_link").symlink_to(outside)
    (agents / "agent_c").mkdir()
    (agents / "agent_c" / ".meta").symlink_to(outside)
    assert clean.run(cleaned("--yes")) == 0
    assert not old.exists()
    assert sorted(path.name for path in outside.iterdir()) == [
        "conv_1.json.corrupt-20261101T000000Z",
        "precious",
    ]
    # An archive that is a link itself is none.
    (agents / ".archive" / "agent_link").unlink()
    (agents / ".archive").rmdir()
    (agents / ".archive").symlink_to(outside)
    assert list(clean.found_in(agents)) == []


def test_what_cannot_be_removed_is_said_and_fails(
    agents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archived(agents, "agent_old")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # The far end here is the operating system: root, as whom tests may run, is refused nothing.
    monkeypatch.setattr("shutil.rmtree", refuse)
    assert clean.run(cleaned("--yes")) == 1
    assert "could not be removed" in capsys.readouterr().err


def test_the_list_says_what_each_workspace_takes(
    agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (agents / "agent_a" / "workspace" / "big").write_bytes(b"x" * 3_000_000)
    assert agent.run_list(argparse.Namespace(json=True)) == 0
    first, second = json.loads(capsys.readouterr().out)["agents"]
    assert 3_000_000 <= first["size_bytes"] < 3_200_000
    assert second["size_bytes"] < 100_000
    assert first["size_complete"]
    assert agent.run_list(argparse.Namespace(json=False)) == 0
    assert "offline     3.0 MB  agent_a" in capsys.readouterr().out


def test_hard_links_count_once_and_a_look_that_takes_too_long_says_at_least(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1_000_000)
    os.link(tmp_path / "a", tmp_path / "b")
    assert 1_000_000 <= size_of(tmp_path).size_bytes < 1_100_000
    short = size_of(tmp_path, look_s=-1)
    assert not short.complete
    assert short.shown.startswith("> ")


def test_a_folder_that_is_gone_or_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert why_kept(tmp_path / "file")
    assert why_kept(tmp_path / "gone")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (12_300, "12 kB"),
        (999_999, "1.0 MB"),
        (1_240_000_000, "1.2 GB"),
        (34_000_000_000, "34 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_are_told_as_people_read_them(size: int, said: str) -> None:
    assert words(size) == said
