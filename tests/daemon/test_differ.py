"""What changed in a work tree between two moments, by a real git, which must not be seen to have looked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.runs.changes import PROGRAM
from cloudagent_daemon.runs.repository import repository_of
from fakes.repositories import a_repository, bytes_of, git


class Looks:
    """The differ at work on a folder."""

    def __init__(self, cwd: Path, private: Path, **limits: Any) -> None:
        found = repository_of(cwd)
        assert found is not None
        self.asked = {**found.said, **limits}
        self.folder = private
        private.mkdir(parents=True, exist_ok=True)

    def say(self, step: str, **env: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(PROGRAM), step, str(self.folder)],
            input=json.dumps(self.asked),
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **env},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    def before(self) -> dict[str, Any]:
        return self.say("before")

    def after(self) -> dict[str, Any]:
        return self.say("after")


def told(said: dict[str, Any]) -> dict[str, tuple[str, int, int]]:
    return {f["path"]: (f["status"], f["additions"], f["deletions"]) for f in said["files"]}


def test_only_what_changed_between_the_looks_is_told(tmp_path: Path) -> None:
    files = {"a": "1\n2\n", "old name": "x\n" * 20, "gone": "g\n", "dirty": "d\n", "same": "s\n"}
    repo = a_repository(tmp_path / "repo", files | {".gitignore": "ignored\n"})
    (repo / "dirty").write_text("d\ndirtier\n")
    (repo / "untracked").write_text("u\n")
    looks = Looks(repo, tmp_path / "look")
    assert looks.before() == {}
    (repo / "a").write_text("1\n3\n4\n")
    (repo / "old name").rename(repo / "neuer Name ü")
    (repo / "gone").unlink()
    (repo / "dirty").write_text("d\ndirtier\nstill\n")
    (repo / "new").mkdir()
    (repo / "new" / "file").write_text("n\n")
    (repo / "ignored").write_text("secret\n")
    (repo / "same").touch()
    (repo / "image").write_bytes(bytes(range(256)))
    said = looks.after()
    assert told(said) == {
        "a": ("modified", 2, 1),
        "dirty": ("modified", 1, 0),
        "gone": ("deleted", 0, 1),
        "image": ("added", 0, 0),
        "neuer Name ü": ("renamed", 0, 0),
        "new/file": ("added", 1, 0),
    }
    assert (said["additions"], said["deletions"], said["more"]) == (4, 2, 0)
    [change] = [file for file in said["files"] if file["path"] == "a"]
    assert change["patch"].endswith("@@ -1,2 +1,3 @@\n 1\n-2\n+3\n+4\n")
    [image] = [file for file in said["files"] if file["path"] == "image"]
    assert image["binary"]


def test_what_the_agent_commits_or_checks_out_is_told_as_well(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    looks = Looks(repo, tmp_path / "look")
    looks.before()
    (repo / "price.py").write_text("VAT = 0.20\n")
    git(repo, "commit", "-qam", "raise")
    git(repo, "checkout", "-q", "-b", "other")
    (repo / "b").write_text("b\n")
    git(repo, "add", "b")
    git(repo, "commit", "-qm", "b")
    git(repo, "gc", "-q", "--prune=now")
    assert told(looks.after()) == {"b": ("added", 1, 0), "price.py": ("modified", 1, 1)}


def test_the_repository_is_not_written_to_and_runs_nothing(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"a": "1\n", "deep/b": "2\n", "c": "3\n"})
    ran = tmp_path / "ran"
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\necho $0 $* >> {ran}\ncat\n")
    trap.chmod(0o755)
    for name in ("filter.t.clean", "filter.t.smudge", "filter.t.process", "diff.t.command",
                 "diff.t.textconv", "core.fsmonitor", "diff.external", "core.pager",
                 "core.sshCommand", "core.editor"):  # fmt: skip
        git(repo, "config", name, str(trap))
    git(repo, "config", "core.hooksPath", str(tmp_path))
    (tmp_path / "post-index-change").symlink_to(trap)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    for attributes in (repo / ".gitattributes", repo / ".git" / "info" / "attributes"):
        attributes.write_text("* filter=t diff=t\n")
    (repo / "a").write_text("1\nchanged back in a moment\n")
    found = bytes_of(repo / ".git")
    looks = Looks(repo, tmp_path / "look")
    assert looks.before() == {}
    assert bytes_of(repo / ".git") == found
    (repo / "a").write_text("1\n")  # as it is committed: that object exists
    (repo / "deep" / "b").write_text("22\n")
    assert told(looks.after()) == {"a": ("modified", 0, 1), "deep/b": ("modified", 1, 1)}
    assert bytes_of(repo / ".git") == found
    assert not ran.exists(), ran.read_text()


def test_the_trap_of_that_test_would_have_been_sprung(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    git(repo, "config", "filter.t.clean", f"echo >> {tmp_path / 'ran'}; cat")
    (repo / ".gitattributes").write_text("* filter=t\n")
    (repo / "price.py").write_text("other\n")
    git(repo, "add", "-A")
    assert (tmp_path / "ran").exists()


def test_a_work_tree_of_another_one_has_a_look_of_its_own(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    git(repo, "worktree", "add", "-q", str(tmp_path / "tree"))
    found = bytes_of(repo / ".git")
    looks = Looks(tmp_path / "tree", tmp_path / "look")
    looks.before()
    (tmp_path / "tree" / "price.py").write_text("VAT = 0.20\n")
    (repo / "price.py").write_text("somebody else\n")
    assert told(looks.after()) == {"price.py": ("modified", 1, 1)}
    assert bytes_of(repo / ".git") == found


def test_settings_that_say_how_files_are_read_are_heeded(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"a": "1\n2\n"})
    git(repo, "config", "core.autocrlf", "true")
    git(repo, "config", "core.excludesFile", str(tmp_path / 'odd "name"'))
    git(repo, "config", "core.fileMode", "false")
    (tmp_path / 'odd "name"').write_text("left-out\n")
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "exclude").write_text("excluded\n")
    looks = Looks(repo, tmp_path / "look")
    looks.before()
    (repo / "a").write_bytes(b"1\r\n2\r\n3\r\n")
    (repo / "a").chmod(0o755)
    (repo / "left-out").write_text("x")
    (repo / "excluded").write_text("x")
    assert told(looks.after()) == {"a": ("modified", 1, 0)}


@pytest.mark.parametrize(
    "prepare",
    [
        ["init", "-q"],
        ["init", "-q", "--object-format=sha256"],
    ],
)
def test_a_repository_without_a_commit_has_a_diff(tmp_path: Path, prepare: list[str]) -> None:
    (tmp_path / "repo").mkdir()
    git(tmp_path / "repo", *prepare)
    looks = Looks(tmp_path / "repo", tmp_path / "look")
    assert looks.before() == {}
    (tmp_path / "repo" / "a").write_text("1\n")
    assert told(looks.after()) == {"a": ("added", 1, 0)}


def test_an_index_in_two_files_is_read_without_touching_the_second(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"a": "1\n", "b": "2\n"})
    git(repo, "update-index", "--split-index")
    found = bytes_of(repo / ".git")
    looks = Looks(repo, tmp_path / "look")
    assert looks.before() == {}
    (repo / "a").write_text("2\n")
    assert told(looks.after()) == {"a": ("modified", 1, 1)}
    assert bytes_of(repo / ".git") == found


def test_a_conflict_that_is_solved_is_the_difference_to_what_stood_there(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"a": "1\n"})
    git(repo, "checkout", "-q", "-b", "other")
    (repo / "a").write_text("2\n")
    git(repo, "commit", "-qam", "2")
    git(repo, "checkout", "-q", "main")
    (repo / "a").write_text("3\n")
    git(repo, "commit", "-qam", "3")
    with pytest.raises(subprocess.CalledProcessError):
        git(repo, "merge", "other")
    looks = Looks(repo, tmp_path / "look")
    assert looks.before() == {}
    (repo / "a").write_text("23\n")
    git(repo, "add", "a")
    assert told(looks.after()) == {"a": ("modified", 1, 5)}


def test_large_files_are_named_and_not_looked_into(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"grows": "1\n"})
    (repo / "there").write_text("x" * 2_000)
    (repo / "stays").write_text("x" * 2_000)
    (repo / "shrinks").write_text("x" * 2_000)
    looks = Looks(repo, tmp_path / "look", max_file_bytes=1_000)
    looks.before()
    (repo / "grows").write_text("y" * 2_000)
    (repo / "new").write_text("y" * 2_000)
    (repo / "shrinks").write_text("small\n")
    (repo / "there").unlink()
    said = looks.after()
    assert told(said) == {
        "grows": ("modified", 0, 0),
        "new": ("added", 0, 0),
        "shrinks": ("modified", 0, 0),
        "there": ("deleted", 0, 0),
    }
    assert all(file["binary"] and not file["patch"] for file in said["files"])


@pytest.mark.parametrize("limit", ["max_paths", "max_bytes", "max_index_bytes"])
def test_too_much_to_compare_is_no_diff(tmp_path: Path, limit: str) -> None:
    repo = a_repository(tmp_path / "repo")
    (repo / "one").write_text("1\n")
    (repo / "two").write_text("2\n")
    assert Looks(repo, tmp_path / "look", **{limit: 1}).before() == {"problem": "too_large"}


def test_of_many_files_the_first_are_told_and_the_others_counted(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    looks = Looks(repo, tmp_path / "look", max_files=2)
    looks.before()
    for number in range(5):
        (repo / f"f{number}").write_text("1\n")
    said = looks.after()
    assert list(told(said)) == ["f0", "f1"]
    assert (said["more"], said["additions"]) == (3, 5)


def test_a_machine_without_git_says_so(tmp_path: Path) -> None:
    looks = Looks(a_repository(tmp_path / "repo"), tmp_path / "look")
    assert "git is not installed" in looks.say("before", PATH=str(tmp_path))["problem"]


def test_a_broken_repository_says_what_git_says(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    (repo / ".git" / "index").write_bytes(b"no index at all, whatever it is called")
    said = Looks(repo, tmp_path / "look").before()
    assert said["problem"].startswith("git ls-files failed: ")


def test_the_copy_of_the_index_is_as_old_as_the_index(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    looks = Looks(repo, tmp_path / "look")
    looks.before()
    # By its age git knows which entries were written in the same moment as their files.
    ages = [
        path.stat().st_mtime_ns for path in (repo / ".git" / "index", tmp_path / "look" / "index")
    ]
    assert ages[0] == ages[1]


def test_a_file_that_becomes_a_folder_and_back_is_told(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"a": "1\n", "b/c": "2\n"})
    looks = Looks(repo, tmp_path / "look")
    looks.before()
    (repo / "a").unlink()
    (repo / "a").mkdir()
    (repo / "a" / "x").write_text("new\n")
    (repo / "b" / "c").unlink()
    (repo / "b").rmdir()
    (repo / "b").symlink_to("a")
    assert told(looks.after()) == {
        "a": ("deleted", 0, 1),
        "a/x": ("added", 1, 0),
        "b": ("added", 1, 0),
        "b/c": ("deleted", 0, 1),
    }


def test_a_repository_is_found_from_inside_and_not_above_an_agents_own_folder(
    tmp_path: Path,
) -> None:
    repo = a_repository(tmp_path / "repo", {"deep/er/f": "1\n"})
    found = repository_of(repo / "deep" / "er")
    assert found is not None
    assert found.root == str(repo)
    assert repository_of(tmp_path) is None
    assert repository_of(tmp_path / "missing") is None
    home = repo / ".cloudagent" / "agents" / "agent_1"
    (home / "workspace").mkdir(parents=True)
    assert repository_of(home / "workspace", home) is None
    assert repository_of(home / "workspace") is not None
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".git").write_text("nonsense")
    assert repository_of(tmp_path / "odd") is None
