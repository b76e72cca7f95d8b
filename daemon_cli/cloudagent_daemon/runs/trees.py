"""A git work tree for each conversation of an agent, on a branch of its own (docs/decisions/0028).

    <agent>/worktrees/<name>/         the work tree
    <agent>/worktrees/<name>.json     whose it is, written before it is made, and again when it is there

Its making is the one write to a repository that an agent's `worktree` setting asks for. Nothing that the
repository's hooks say is run; what its filters say is, as `git worktree add` checks files out, and that
as agents run: masked, with a guardian and a deadline. A run never begins in another folder instead.
"""

import errno
import hashlib
import json
import logging
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from pydantic import BaseModel, ValidationError

from cloudagent_daemon.config import Settings
from cloudagent_daemon.leash import Mask
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import Child, SpawnError, spawn
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.repository import Repository, repository_of
from cloudagent_daemon.runs.workspace import Place, Workspace
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import ConversationId

logger = logging.getLogger(__name__)

#: How long the making may take: all files are written.
MAKE_S: Final = 120.0
_SAID_BYTES: Final = 100_000
_ENVIRONMENT: Final = ("HOME", "PATH", "XDG_CONFIG_HOME", "LANG")
#: Nothing that was not asked for: no hooks, no watcher, no tidying up, no question to nobody.
QUIET: Final = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "branch.autoSetupMerge": "false",
}
QUIET_ENV: Final = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "SSH_ASKPASS_REQUIRE": "never",
}
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL: Final = "the disk is full"
OFF: Final = "or switch its work trees off (`worktree: off` in its settings)"


class TreeRecord(BaseModel):
    """A work tree that is there, or was about to be."""

    conversation_id: str
    #: The person's own work tree, and the repository of both.
    root: str
    common_dir: str
    branch: str
    #: The commit that it began at.
    base: str
    made: bool = False
    #: Of this making.
    id: str = ""


class NoTreeError(Exception):
    """There is none to work in; `str()` says why, and what to do, for a person."""


@dataclass(frozen=True)
class _Said:
    code: int
    out: str
    err: str


class Trees:
    """Finds the work trees of one machine's agents, and makes those that are missing."""

    def __init__(self, settings: Settings, masks: Masks, *, make_s: float = MAKE_S) -> None:
        self._settings = settings
        self._masks = masks
        self._make_s = make_s

    async def settle(self, space: Workspace, conversation_id: ConversationId) -> Failure | None:
        """Has the agent work in the conversation's own tree; returns why it cannot work at all."""
        if not wants_tree(space):
            return None
        try:
            if await anyio.to_thread.run_sync(take_known, space, conversation_id):
                return None
            with anyio.fail_after(self._make_s):
                await self._make(space, conversation_id)
        except TimeoutError:
            why = f"git did not make the work tree within {self._make_s:g} s"
        except OSError as error:
            why = f"{_FULL} ({error})" if error.errno in _NO_ROOM else str(error)
        except (NoTreeError, SpawnError, UnmaskedError) as error:
            why = str(error)
        else:
            return None
        logger.warning("no work tree: %s", why, extra={"action": "worktree"})
        return Failure(Reason.WORKTREE, f"Nothing was started: {why}.")

    async def _make(self, space: Workspace, conversation_id: ConversationId) -> None:
        repository, inside = await anyio.to_thread.run_sync(_repository, space)
        git = _Git(self._settings, await self._masks.of_run(space.home), repository.root)
        base = await _base(git, inside)
        folder, file = _names(space, conversation_id, repository)
        if (left := await anyio.to_thread.run_sync(_load, file)) is not None:
            base = await _clear(git, folder, left, base)
        branch = left.branch if left else await _branch(git, space, conversation_id)
        record = TreeRecord(
            conversation_id=conversation_id,
            root=repository.root,
            common_dir=repository.common_dir,
            branch=branch,
            base=base,
            id=uuid.uuid4().hex,
        )
        await anyio.to_thread.run_sync(space.keep_tree, file, record.model_dump_json(indent=2))
        there = await git.says("show-ref", "--verify", "--quiet", f"refs/heads/{branch}")
        made = await git.run(
            "worktree", "add", "--quiet",
            *([str(folder), branch] if there else ["-b", branch, str(folder), base]),
        )  # fmt: skip
        if made.code:
            await _clear(git, folder, record, base)
            if lack := await _lack_of_room(git, folder.parent, base):
                raise NoTreeError(f"{_FULL}: {lack}. Make room there, {OFF}")
            raise NoTreeError(f"git could not make a work tree in {folder} ({_last(made)})")
        record.made = True
        await anyio.to_thread.run_sync(space.keep_tree, file, record.model_dump_json(indent=2))
        logger.info("a work tree was made", extra={"action": "worktree", "branch": branch})
        if not await anyio.to_thread.run_sync(take_known, space, conversation_id):
            raise NoTreeError(f"the work tree in {folder} is not there, though git has made it")


def wants_tree(space: Workspace) -> bool:
    return space.agent.worktree == "per_conversation"


def take_known(space: Workspace, conversation_id: ConversationId) -> bool:
    """Has the agent work in the conversation's tree if that is there and whole. Blocks."""
    repository = repository_of(Path(space.agent.cwd).expanduser()) if space.agent.cwd else None
    if repository is None:
        return False
    folder, file = _names(space, conversation_id, repository)
    record = _load(file)
    if record is None or not record.made:
        return False
    tree = repository_of(folder, folder)
    cwd = Path(space.agent.cwd or "").expanduser().resolve()
    place = folder / cwd.relative_to(repository.root)
    if tree is None or tree.common_dir != repository.common_dir or not place.is_dir():
        return False
    with suppress(OSError):  # a full disk
        file.touch()  # for `agent clean`: it is in use
    space.place = Place(place, folder, record.branch, repository.root, record.id)
    return True


def _names(
    space: Workspace, conversation_id: ConversationId, repository: Repository
) -> tuple[Path, Path]:
    """Where the conversation's tree of that repository is, and its record."""
    told = hashlib.sha256(repository.root.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    name = f"{short(conversation_id)}-{told}"
    return space.trees / name, space.trees / f"{name}.json"


def short(one_id: str) -> str:
    """The end of an id: its beginning is the time."""
    return one_id[-10:].lower()


def _repository(space: Workspace) -> tuple[Repository, Path]:
    """Where the agent would work without a tree: the repository, and the folder in it. Blocks."""
    if not space.agent.cwd:
        raise NoTreeError(
            "the agent is to work in a git work tree of its own, and has no folder. Set its folder to "
            f"a repository, {OFF}"
        )
    cwd = Path(space.agent.cwd).expanduser()
    if not cwd.is_dir():
        raise NoTreeError(f"the agent's folder {cwd} does not exist. Create it, or set another one")
    found = repository_of(cwd)
    if found is None:
        bare = (cwd / "HEAD").is_file() and (cwd / "objects").is_dir()
        what = "is a bare repository, with no files in it" if bare else "is in no git repository"
        repair = "a clone of it" if bare else "one (or `git init` there, and commit)"
        raise NoTreeError(f"{cwd} {what}. Set the agent's folder to {repair}, {OFF}")
    return found, cwd.resolve().relative_to(found.root)


async def _base(git: "_Git", inside: Path) -> str:
    """The commit to begin at, in which the agent's folder must be."""
    head = await git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if head.code:
        said = f" ({_last(head)})" if head.err.strip() else ""
        raise NoTreeError(
            f"{git.root} has no commit yet{said}. Commit something there (`git commit`), {OFF}"
        )
    if await git.says("cat-file", "-e", "HEAD:.gitmodules"):
        raise NoTreeError(
            f"{git.root} has submodules, which would be empty in a work tree. Set the agent's folder "
            f"to one without, {OFF}"
        )
    if str(inside) != "." and not await git.says("cat-file", "-e", f"HEAD:{inside}"):
        raise NoTreeError(
            f"{inside} is not in the last commit of {git.root}, so no work tree has it. Commit it, {OFF}"
        )
    return head.out.strip()


async def _branch(git: "_Git", space: Workspace, conversation_id: ConversationId) -> str:
    """A name that nobody has: two agents may have one conversation."""
    first = f"cloudagent/{short(conversation_id)}"
    names = (first, f"{first}-{short(space.agent.id)}")
    for name in names:
        if not await git.says("show-ref", "--verify", "--quiet", f"refs/heads/{name}"):
            return name
    raise NoTreeError(
        f"{git.root} has the branches {names[0]} and {names[1]} already. Rename or delete the second "
        f"(`git branch -m`, `git branch -d`), {OFF}"
    )


async def _clear(git: "_Git", folder: Path, left: TreeRecord, base: str) -> str:
    """Takes away what is half made; of one that was whole and is gone, git's memory. The base to use.

    No agent has worked in a half one: runs begin after it was told to be made.
    """
    if not left.made:
        await anyio.to_thread.run_sync(_remove, folder)
    elif await anyio.Path(folder).exists():
        raise NoTreeError(
            f"the work tree {folder} is no longer one of {git.root}. Move away what you need of it, "
            f"and remove it, {OFF}"
        )
    await git.run("worktree", "remove", "--force", "--force", str(folder))
    if left.made:
        return left.base
    # Only where it still is: a branch that has moved is somebody's work.
    await git.run("update-ref", "-d", f"refs/heads/{left.branch}", left.base)
    return base


async def _lack_of_room(git: "_Git", trees: Path, base: str) -> str | None:
    """Why a whole work tree does not fit, if it does not; git does not say why it could not write a file."""
    listed = (await git.run("ls-tree", "-r", "-l", base)).out.splitlines()
    sizes = [words[3] for line in listed if len(words := line.split(maxsplit=4)) == 5]
    needed = sum(int(size) for size in sizes if size.isdecimal())
    free = (await anyio.to_thread.run_sync(shutil.disk_usage, trees)).free
    if needed < free:
        return None
    return f"the files of {git.root} take {_mb(needed)}, and {_mb(free)} are free in {trees}"


def _mb(size: int) -> str:
    return f"{size / 1_000_000:,.1f} MB"


class _Git:
    """git in the person's repository, as agents run: masked and guarded."""

    def __init__(self, settings: Settings, mask: Mask, root: str) -> None:
        environment = settings.environment
        inherited = {name: environment[name] for name in _ENVIRONMENT if name in environment}
        self._env = inherited | QUIET_ENV
        self._mask = mask
        self.root = root

    async def run(self, *words: str) -> _Said:
        """What it says.

        Raises:
            NoTreeError: it is not there.
        """
        settings = [word for name, value in QUIET.items() for word in ("-c", f"{name}={value}")]
        argv = ["git", *settings, "-C", self.root, *words]
        try:
            async with spawn(
                argv, env=self._env, cwd=Path("/"), launch_id=uuid.uuid4().hex, mask=self._mask
            ) as child:
                return await _said(child)
        except SpawnError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise NoTreeError(
                    f"git is not installed on this machine, or not on the daemon's PATH. Install it, {OFF}"
                ) from error
            raise

    async def says(self, *words: str) -> bool:
        """Whether it agrees."""
        return (await self.run(*words)).code == 0


async def _said(child: Child) -> _Said:
    out, err = bytearray(), bytearray()

    async def keep(kept: bytearray, *, error: bool) -> None:
        while data := await (child.read_stderr() if error else child.read_stdout()):
            kept.extend(data[: _SAID_BYTES - len(kept)])

    async with anyio.create_task_group() as pumps:
        pumps.start_soon(partial(keep, out, error=False))
        pumps.start_soon(partial(keep, err, error=True))
        await child.close_stdin()
        await child.wait()
        await child.end(at_once=True)
    code = child.exit_code
    assert code is not None, "it was waited for"
    return _Said(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def _last(said: _Said) -> str:
    lines = said.err.strip().splitlines()
    return lines[-1][:300] if lines else f"exit {said.code}"


def _load(file: Path) -> TreeRecord | None:
    try:
        return TreeRecord.model_validate(json.loads(file.read_bytes()))
    except (FileNotFoundError, ValueError, ValidationError):
        return None


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
