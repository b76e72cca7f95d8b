"""A work tree for each conversation, by a real git: made once, found again, and never another folder."""

import json
import os
import resource
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon.mask import Masks
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.trees import Trees, short
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.frames import RunDiff
from cloudagent_protocol.ids import ConversationId
from fakes.repositories import a_repository, bytes_of, git
from fakes.runs import World, a_world
from faults.disk import small_disk

CONVERSATION = ConversationId("conv_01K9ZZZZZZZZZZZZZZZZZZABCD")
BRANCH = "cloudagent/zzzzzzabcd"


async def settle(
    world: World,
    cwd: Path | None,
    conversation: ConversationId = CONVERSATION,
    *,
    path: str | None = None,
    make_s: float = 120,
    **agent: Any,
) -> tuple[Workspace, Failure | None]:
    settings = world.settings
    if path is not None:
        settings = replace(settings, environment={**settings.environment, "PATH": path})
    update = {"cwd": str(cwd) if cwd else None, "worktree": "per_conversation", **agent}
    space = Workspace(settings.agents_dir, world.agent.model_copy(update=update))
    space.prepare()
    trees = Trees(settings, Masks(settings), make_s=make_s)
    with anyio.fail_after(60):
        return space, await trees.settle(space, conversation)


async def test_each_conversation_works_in_a_tree_of_its_own(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"price.py": "VAT = 0.19\n", "deep/f": "1\n"})
    (repo / "price.py").write_text("the person's own work\n")
    async with a_world(tmp_path) as world:
        order = "@@edit price.py VAT = 0.20\n@@recall"
        how = {"cwd": str(repo), "worktree": "per_conversation", "mode": "bypassPermissions"}
        first = await world.run(world.deliver(order, **how))
        again = await world.run(world.deliver("@@recall", **how))
        world.conversation = ConversationId("conv_other")
        other = await world.run(world.deliver("@@edit deep/f 2\n@@reply x", **how))
    assert first.end.session_id == again.end.session_id, "a session is known by its folder"
    told = {
        frame.diff.files[0].path: frame.diff.root
        for seen in (first, other)
        for frame in seen.frames
        if isinstance(frame, RunDiff)
    }
    assert set(told) == {"price.py", "deep/f"}
    assert len(set(told.values())) == 2
    assert all(Path(root).is_relative_to(world.workspace / "worktrees") for root in told.values())
    assert (repo / "price.py").read_text() == "the person's own work\n"
    assert (Path(told["deep/f"]) / "price.py").read_text() == "VAT = 0.19\n"
    assert git(repo, "branch", "--list", "cloudagent/*").count("cloudagent/") == 2
    assert git(repo, "status", "--porcelain") == " M price.py\n"


async def test_it_is_made_once_on_its_own_branch_and_found_again(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"app/f": "1\n"})
    async with a_world(tmp_path) as world:
        space, failure = await settle(world, repo / "app")
        assert failure is None
        assert space.cwd.name == "app"
        assert git(space.cwd, "rev-parse", "--abbrev-ref", "HEAD").strip() == BRANCH
        (space.cwd / "work").write_text("of an agent\n")
        git(repo, "commit", "--allow-empty", "-qm", "the person goes on")
        found = bytes_of(repo / ".git")
        again, failure = await settle(world, repo / "app")
        assert (again.cwd, failure) == (space.cwd, None)
        assert (again.cwd / "work").read_text() == "of an agent\n"
        assert bytes_of(repo / ".git") == found


async def test_making_it_runs_no_hook_and_changes_nothing_else(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    hook = repo / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(hook))
    before = bytes_of(repo / ".git")
    async with a_world(tmp_path) as world:
        assert (await settle(world, repo))[1] is None
    assert not (tmp_path / "ran").exists()
    after = bytes_of(repo / ".git")
    fresh = {name for name in after.keys() - before.keys() if not name.startswith("worktrees")}
    assert fresh == {
        "refs/heads/cloudagent", f"refs/heads/{BRANCH}",
        "logs/refs/heads/cloudagent", f"logs/refs/heads/{BRANCH}",
    }  # fmt: skip
    assert {name for name in before if before[name][0] != after[name][0]} == set()


async def test_what_a_crash_left_half_made_is_made_anew(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path) as world:
        space, _ = await settle(world, repo)
        tree = space.cwd
        record = tree.with_name(f"{tree.name}.json")
        half = json.loads(record.read_text()) | {"made": False}
        record.write_text(json.dumps(half))
        (tree / "price.py").write_text("half of a fi")
        (repo / ".git" / "worktrees" / tree.name / "locked").write_text("initializing")
        (tree / ".git").unlink()
        space, failure = await settle(world, repo)
        assert failure is None
        assert (space.cwd, (tree / "price.py").read_text()) == (tree, "VAT = 0.19\n")
        assert git(tree, "status", "--porcelain") == ""
        assert git(repo, "worktree", "list").count("\n") == 2


async def test_a_tree_that_somebody_removed_comes_back_with_its_commits(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path) as world:
        space, _ = await settle(world, repo)
        (space.cwd / "price.py").write_text("committed\n")
        git(space.cwd, "commit", "-qam", "work")
        shutil.rmtree(space.cwd)
        again, failure = await settle(world, repo)
    assert (again.cwd, failure) == (space.cwd, None)
    assert (again.cwd / "price.py").read_text() == "committed\n"


async def test_a_warm_process_of_a_tree_that_was_removed_is_not_gone_on_with(
    tmp_path: Path,
) -> None:
    repo = a_repository(tmp_path / "repo")
    how = {"cwd": str(repo), "worktree": "per_conversation", "mode": "bypassPermissions"}
    async with a_world(tmp_path, warm=Warm(60, 3)) as world:
        await world.run(world.deliver("@@reply one", **how))
        [tree] = world.workspace.glob("worktrees/*/")
        shutil.rmtree(tree)
        seen = await world.run(world.deliver("@@edit price.py VAT = 0.20\n@@reply two", **how))
        assert seen.end.outcome is Outcome.REPLIED
        assert (tree / "price.py").read_text() == "VAT = 0.20\n"


async def test_two_agents_of_one_conversation_have_two_branches(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path) as world:
        await settle(world, repo)
        space, failure = await settle(world, repo, id="agent_other")
        assert failure is None
        branch = git(space.cwd, "rev-parse", "--abbrev-ref", "HEAD").strip()
        assert branch == f"{BRANCH}-{short('agent_other')}"
        third = ConversationId("conv_3" + CONVERSATION[-10:])
        shutil.rmtree(space.trees)  # and so is what is known of them
        (space.home / "worktrees").mkdir()
        _, failure = await settle(world, repo, third, id="agent_other")
    assert failure is not None
    assert f"the branches {BRANCH} and {branch} already" in failure.detail


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", "has no folder. Set its folder to a repository, or switch"),
        ("missing", "does not exist. Create it"),
        ("plain", "is in no git repository. Set the agent's folder to one (or `git init` there"),
        ("bare", "is a bare repository"),
        ("empty", "has no commit yet"),
        ("submodules", "has submodules"),
        ("untracked", "new is not in the last commit"),
        ("no git", "git is not installed"),
        ("too slow", "within 0 s"),
        ("in the way", "git could not make a work tree"),
    ],
)
async def test_without_a_tree_nothing_is_started_and_it_says_what_to_do(
    tmp_path: Path, case: str, words: str
) -> None:
    repo = a_repository(
        tmp_path / "repo", {"f": "1\n", ".gitmodules": ""} if case == "submodules" else None
    )
    (repo / "new").mkdir()
    (tmp_path / "plain").mkdir()
    cwd: Path | None = {
        "none": None, "missing": tmp_path / "nowhere", "plain": tmp_path / "plain",
        "bare": tmp_path / "bare", "empty": tmp_path / "empty", "untracked": repo / "new",
    }.get(case, repo)  # fmt: skip
    git(tmp_path, "init", "-q", "--bare", "bare")
    git(tmp_path, "init", "-q", "empty")
    async with a_world(tmp_path) as world:
        if case == "in the way":
            (repo / ".git" / "worktrees").write_text("a file where git wants a folder")
        path = str(tmp_path) if case == "no git" else None
        space, failure = await settle(
            world, cwd, path=path, make_s=0.0 if case == "too slow" else 120
        )
        assert failure is not None
        assert failure.reason is Reason.WORKTREE
        assert words in failure.detail
        assert space.place is None
        how = {"cwd": str(cwd) if cwd else None, "worktree": "per_conversation"}
        if case in {"plain", "none"}:
            seen = await world.run(world.deliver("@@reply never", **how))
            assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.WORKTREE)
            assert seen.launches == []
            assert world.effects() == []
    assert "cloudagent" not in git(repo, "branch")


def files_of(repo: Path) -> dict[str, tuple[bytes, int, int]]:
    """All of it but its folders, of which git leaves an empty one and times."""
    return {name: told for name, told in bytes_of(repo).items() if (repo / name).is_file()}


@contextmanager
def full(folder: Path, *, at_once: bool) -> Generator[None]:
    """The disk of `folder` takes no whole work tree, or nothing at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    filler = folder / "filler"
    if os.path.ismount(folder):
        with filler.open("wb") as file, suppress(OSError):
            for _ in range(16 if at_once else 12):
                file.write(b"x" * 1_048_576)
                file.flush()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if at_once else 500_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        filler.unlink(missing_ok=True)


@pytest.mark.parametrize("at_once", [False, True], ids=["in the middle", "from the beginning"])
async def test_on_a_full_disk_it_says_so_and_leaves_nothing_half_made(
    tmp_path: Path, at_once: bool
) -> None:
    files = {f"part-{number}": os.urandom(500_000).hex() for number in range(8)}
    repo = a_repository(tmp_path / "repo", files)
    before = files_of(repo)
    home = tmp_path / "home"
    with small_disk(home) as mounted:
        async with a_world(home) as world:
            agent = {"cwd": str(repo), "worktree": "per_conversation"}
            Workspace(world.settings.agents_dir, world.agent.model_copy(update=agent)).prepare()
            with full(home, at_once=at_once):
                _, failure = await settle(world, repo)
                assert failure
                assert failure.reason is Reason.WORKTREE
                assert "the disk is full" in failure.detail or not mounted
                trees = world.workspace / "worktrees"
                left = [path for path in trees.rglob("*") if path.suffix != ".json"]
                assert left == []
                assert files_of(repo) == before
            # With room again it is as if nothing had been.
            space, failure = await settle(world, repo)
            assert failure is None
            assert git(space.cwd, "status", "--porcelain") == ""
            assert git(repo, "worktree", "list").count("\n") == 2


async def test_a_folder_that_is_no_longer_a_tree_is_left_alone(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path) as world:
        space, _ = await settle(world, repo)
        (space.cwd / "work").write_text("of an agent\n")
        (space.cwd / ".git").unlink()
        again, failure = await settle(world, repo)
    assert failure is not None
    assert "is no longer one of" in failure.detail
    assert again.place is None
    assert (space.cwd / "work").read_text() == "of an agent\n"


async def test_without_the_setting_agents_work_where_they_did(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path) as world:
        for off in (None, "off"):
            space, failure = await settle(world, repo, worktree=off)
            assert (space.cwd, failure) == (repo, None)
    assert git(repo, "worktree", "list").count("\n") == 1
