"""What each run changed in the repository that it works in: a look before it, one after it, the difference.

The looks are the differ's (differ.py), which runs as agents do: masked, watched, with a deadline. The agent
waits for none of them. What is needed in between lies in `<agent>/.meta/looks/<run>/`; a folder that is
found there by a later life of the daemon stands for a run that nobody looked at afterwards.
"""

import json
import logging
import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import anyio.to_thread

from cloudagent_daemon.config import Settings
from cloudagent_daemon.drivers.base import PermissionAsked
from cloudagent_daemon.drivers.lines import parse_object
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import Child, SpawnError, spawn
from cloudagent_daemon.runs.diffs import diff_of
from cloudagent_daemon.runs.ports import Uplink
from cloudagent_daemon.runs.redaction import Redaction
from cloudagent_daemon.runs.repository import Repository, repository_of
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.diffs import Diff
from cloudagent_protocol.events import ToolCall
from cloudagent_protocol.frames import Deliver, RunDiff
from cloudagent_protocol.ids import RunId

logger = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).parent.with_name("differ.py")
#: How long each look may take. The agent works meanwhile.
BEFORE_S: Final = 5.0
AFTER_S: Final = 10.0
#: What the differ may print.
_PRINTED_BYTES: Final = 16_000_000
_ENVIRONMENT: Final = ("HOME", "PATH", "XDG_CONFIG_HOME", "LANG")
_ABOUT: Final = "about.json"
TOO_LARGE: Final = (
    "There is no diff: the repository is too large to be compared in a few seconds, or has too many "
    "changes that are not committed. This is said once."
)
LOST: Final = "There is no diff: the daemon stopped before it could look at what this run changed."


class Changes:
    """Looks at the repositories of all runs of one machine."""

    def __init__(
        self,
        settings: Settings,
        masks: Masks,
        uplink: Uplink,
        *,
        before_s: float = BEFORE_S,
        after_s: float = AFTER_S,
    ) -> None:
        self._settings = settings
        self._masks = masks
        self._uplink = uplink
        self._before_s = before_s
        self._after_s = after_s
        #: Runs under way, by the top of their work tree.
        self._here: dict[str, set[Change]] = {}
        #: Repositories that are too large.
        self._given_up: set[str] = set()
        #: Where and why there was no diff, as far as it was said.
        self._said: set[tuple[str, str]] = set()

    def of(self, workspace: Workspace, deliver: Deliver, run_id: RunId) -> "Change":
        """What this run changes; to be begun."""
        return Change(self, workspace, deliver, run_id)

    async def recover(self) -> None:
        """Tells of the runs that an earlier life of the daemon did not look at to their end."""
        for folder in await anyio.to_thread.run_sync(_left, self._settings.agents_dir):
            try:
                about = json.loads(await anyio.Path(folder / _ABOUT).read_bytes())
                frame = RunDiff.model_validate({**about, "diff": Diff(problem=LOST)})
            except (OSError, ValueError):
                logger.info("a look that says nothing: %s", folder, extra={"action": "diff"})
            else:
                await self._uplink.report(frame)
            await anyio.to_thread.run_sync(_remove, folder)

    # --- for `Change` ---

    def enter(self, root: str, change: "Change") -> None:
        others = self._here.setdefault(root, set())
        for one in others:
            one.shared = change.shared = True
        others.add(change)

    def leave(self, root: str, change: "Change") -> None:
        if here := self._here.get(root):
            here.discard(change)
            if not here:
                del self._here[root]

    def watches(self, root: str) -> bool:
        return root not in self._given_up

    async def look(self, step: str, folder: Path, repository: Repository, home: Path) -> Any:
        """What the differ says. A `problem` that was said before is null."""
        said: dict[str, Any]
        try:
            with anyio.fail_after(self._before_s if step == "before" else self._after_s):
                said = await self._printed(step, folder, repository, home)
        except TimeoutError:
            said = {"problem": "too_large"}
        except (SpawnError, UnmaskedError, OSError, ValueError) as error:
            said = {"problem": str(error)}
        if "problem" in said:
            said["problem"] = self._told(repository.root, str(said["problem"]))
        return said

    def _told(self, root: str, problem: str) -> str | None:
        if problem == "too_large":
            self._given_up.add(root)
        known = (root, problem) in self._said
        self._said.add((root, problem))
        logger.info("no diff of %s: %s", root, problem, extra={"action": "diff"})
        text = TOO_LARGE if problem == "too_large" else f"There is no diff: {problem}"
        return None if known else text[:1_000]

    async def _printed(
        self, step: str, folder: Path, repository: Repository, home: Path
    ) -> dict[str, Any]:
        environment = self._settings.environment
        env = {name: environment[name] for name in _ENVIRONMENT if name in environment}
        argv = [sys.executable, "-I", "-S", str(PROGRAM), step, str(folder)]
        mask = await self._masks.of_run(home)
        async with spawn(
            argv, env=env, cwd=Path("/"), launch_id=uuid.uuid4().hex, mask=mask
        ) as one:
            await one.feed(json.dumps(repository.said).encode())
            printed = await _all_of(one)
        said = parse_object(printed)
        if said is None:
            raise ValueError("the comparison ended without a word")
        return said

    async def tell(self, change: "Change", diff: Diff) -> None:
        deliver = change.deliver
        await self._uplink.report(
            RunDiff(
                run_id=change.run_id,
                agent_id=deliver.agent.id,
                conversation_id=deliver.message.conversation_id,
                diff=diff,
            )
        )

    def redaction(self, deliver: Deliver) -> Callable[[str], str]:
        return Redaction({**self._settings.environment, **deliver.agent.env}).clean


@dataclass(eq=False)
class Change:
    """What one run changes."""

    of_all: Changes
    workspace: Workspace
    deliver: Deliver
    run_id: RunId
    #: Another run worked in the same folder at some time.
    shared: bool = False
    _looked: anyio.Event = field(default_factory=anyio.Event)
    _over: anyio.Event = field(default_factory=anyio.Event)
    _begun: bool = False
    _dropped: bool = False
    _root: str = ""
    #: Tools that were used before the first look was over, with what they were given.
    _early: list[tuple[str, dict[str, Any]]] = field(
        default_factory=list[tuple[str, dict[str, Any]]]
    )

    def begin(self, tasks: anyio.abc.TaskGroup) -> None:
        """From now on, once; the looking goes on in `tasks`, and the run does not wait for it."""
        if not self._begun:
            self._begun = True
            tasks.start_soon(self._watch)

    def acted(self, call: ToolCall) -> None:
        """The agent uses a tool, or is about to ask whether it may."""
        if not self._looked.is_set():
            self._early.append((call.name, call.input))

    async def looked(self, asked: PermissionAsked) -> None:
        """Returns when the first look is over, which takes a moment; the agent waits with this one."""
        await self._looked.wait()
        if (asked.tool, asked.input) in self._early:
            self._early.remove((asked.tool, asked.input))

    @property
    def late(self) -> bool:
        """Whether the agent may have changed something before the first look was over."""
        return bool(self._early)

    def over(self) -> None:
        """Nothing of the run works any more."""
        self.of_all.leave(self._root, self)
        self._over.set()

    def drop(self) -> None:
        """The daemon ends before the run does: its next life tells that nobody looked."""
        self._dropped = True
        self.over()

    async def _watch(self) -> None:
        try:
            await self._seen()
        except Exception:
            # The edge of a task: what a run has changed is worth no daemon.
            logger.exception("a look failed", extra={"action": "diff", "run_id": self.run_id})
        finally:
            self._looked.set()

    async def _seen(self) -> None:
        found = await anyio.to_thread.run_sync(
            repository_of, self.workspace.cwd, self.workspace.home
        )
        if found is None or not self.of_all.watches(found.root) or self._over.is_set():
            return
        self._root = found.root
        self.of_all.enter(found.root, self)
        folder = self.workspace.looks / self.run_id
        await anyio.to_thread.run_sync(_prepare, folder, self._about())
        before = await self.of_all.look("before", folder, found, self.workspace.home)
        self._looked.set()
        await self._over.wait()
        if self._dropped:
            return
        # The daemon may end meanwhile: it waits for so long.
        with anyio.CancelScope(shield=True):
            after = before
            if "problem" not in before:
                after = await self.of_all.look("after", folder, found, self.workspace.home)
            if diff := self._diff(after):
                await self.of_all.tell(self, diff)
            await anyio.to_thread.run_sync(_remove, folder)

    def _diff(self, said: dict[str, Any]) -> Diff | None:
        """What there is to tell."""
        if "problem" in said:
            return Diff(root=self._root, problem=said["problem"]) if said["problem"] else None
        diff = diff_of(said, self._root, self.of_all.redaction(self.deliver))
        diff = diff.model_copy(update={"shared": self.shared, "late": self.late})
        return diff if diff.files or diff.late else None

    def _about(self) -> str:
        return json.dumps(
            {
                "run_id": self.run_id,
                "agent_id": self.deliver.agent.id,
                "conversation_id": self.deliver.message.conversation_id,
            }
        )


def _left(agents_dir: Path) -> list[Path]:
    return [folder for folder in sorted(agents_dir.glob("*/.meta/looks/*")) if folder.is_dir()]


def _prepare(folder: Path, about: str) -> None:
    folder.mkdir(mode=0o700, parents=True)
    (folder / _ABOUT).write_text(about, encoding="utf-8")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


async def _all_of(child: Child) -> bytes:
    """What it prints; a child that prints too much is cut off."""
    printed = bytearray()
    async with anyio.create_task_group() as pumps:

        async def ignore() -> None:
            while await child.read_stderr():
                pass

        pumps.start_soon(ignore)
        while (data := await child.read_stdout()) and len(printed) < _PRINTED_BYTES:
            printed += data
        await child.end(at_once=True)
    return bytes(printed)
