"""Whether the installation that this daemon was started from is still there, and still the same.

An upgrade replaces or removes files under a running daemon, in several steps. What is compared is
the distribution's own list of files (RECORD, which installers write anew, and last): by what it is on
the disk, never by a version that is read from it, so that no mistake there can restart for ever.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon import leash
from cloudagent_daemon.rounds import Rounds
from cloudagent_protocol.resources import Hold

logger = logging.getLogger(__name__)

NAME: Final = "cloudagent-daemon"
_RECORDS: Final = f"{NAME.replace('-', '_')}-*.dist-info/RECORD"
#: Until the second look at what has changed.
AGAIN_S: Final = 1.0
#: How long the new code may take to be imported, on a machine that is very busy.
TRY_S: Final = 120.0
_TRIED: Final = "import cloudagent_daemon.daemon"
_AGAIN: Final = "reinstall it: uv tool install --reinstall cloudagent-daemon"

#: `gone`: files are missing, for good or in the middle of an upgrade. `orphaned`: the Python that it
#: runs in is missing. `broken`: another one is complete, and does not start. `changed`: it does.
State: TypeAlias = Literal["same", "gone", "orphaned", "broken", "changed"]


@dataclass(frozen=True)
class Seen:
    """What is there now; two that are equal are the same installation."""

    python: bool
    #: The files that children are started with.
    programs: bool
    #: Name, inode, time and size of each RECORD.
    records: tuple[tuple[str, int, int, int], ...]

    @property
    def complete(self) -> bool:
        return self.python and self.programs and bool(self.records)


@dataclass(frozen=True)
class Place:
    """Where an installation is."""

    python: Path
    #: The folder with the distribution's metadata.
    packages: Path
    programs: tuple[Path, ...]

    def look(self) -> Seen:
        """What is there now.

        Raises:
            OSError: the folder cannot be read.
        """
        return Seen(
            self.python.exists(),
            all(program.exists() for program in self.programs),
            tuple(sorted(filter(None, map(_signature, self.packages.glob(_RECORDS))))),
        )


def place() -> Place | None:
    """This daemon's own; None where it runs from what was never installed."""
    try:
        packages = metadata.distribution(NAME).locate_file("")
    except metadata.PackageNotFoundError:
        return None
    programs = [leash.PROGRAM, Path(__file__).with_name("bridge") / "shim.py"]
    if (command := Path(sys.prefix) / "bin" / NAME).exists():
        programs.append(command)
    return Place(Path(sys.executable), Path(str(packages)), tuple(programs))


def _signature(record: Path) -> tuple[str, int, int, int] | None:
    try:
        info = record.stat()
    except OSError:
        return None
    return record.parent.name, info.st_ino, info.st_mtime_ns, info.st_size


class Installation:
    """Looks again and again; `state` says what was found last.

    Args:
        place: what to look at; None: nothing, and it stays the `same`.
        environment: for the try of a new one.
        rounds: when to look; a look costs a few stat(2).
        again_s: until the second look at what has changed.
    """

    def __init__(
        self,
        place: Place | None,
        environment: Mapping[str, str],
        *,
        rounds: Rounds,
        again_s: float = AGAIN_S,
    ) -> None:
        self._place = place
        self._environment = environment
        self._rounds = rounds
        self._again_s = again_s
        self._first = place.look() if place else None
        self.state: State = "same"
        #: For a person; empty if it is the same.
        self.detail = ""
        #: Set, and replaced, when `state` changes.
        self.changed = anyio.Event()

    async def watch(self) -> None:
        """Until cancelled."""
        before, judged = self._first, self._first
        while self._place:
            changing = before is not None and before.complete and before != judged
            try:
                seen = await self._look(self._place, None if changing else before)
            except OSError:  # no free descriptor, say: nothing can be told from this look
                continue
            if not seen.complete:
                judged = None
                self._say(*_missing(seen, self._place))
            elif seen == before and seen != judged:
                # An upgrade is many steps: judged is only what has stayed as it is.
                judged = seen
                await self._judge(seen)
            before = seen

    async def _look(self, place: Place, before: Seen | None) -> Seen:
        """What differs from `before`: no event tells of it on every system. Without it: soon."""
        if before is None:
            await anyio.sleep(self._again_s)
        else:
            await self._rounds.until(lambda: place.look() != before)
        return await run_sync(place.look)

    def report(self) -> dict[str, Any]:
        return {"state": self.state, "detail": self.detail or None}

    @property
    def holds(self) -> list[Hold]:
        """Why nothing may be started: children would come from files that are not ours, or not there."""
        if self.state in ("same", "changed"):
            return []
        return [Hold(reason=f"installation_{self.state}", detail=self.detail[:500])]

    async def _judge(self, seen: Seen) -> None:
        if seen == self._first:
            self._say("same", "")
        elif why := await self._why_not():
            detail = f"another version is installed, and does not start ({why}); {_AGAIN}"
            self._say("broken", detail)
        else:
            [*_, (name, *_)] = seen.records
            version = name.removesuffix(".dist-info").rpartition("-")[2]
            self._say("changed", f"version {version} is installed")

    async def _why_not(self) -> str:
        """Why the code that is installed now cannot be loaded; empty if it can."""
        argv = [sys.executable, "-c", _TRIED]
        try:
            with anyio.fail_after(TRY_S):
                done = await anyio.run_process(argv, check=False, env=self._environment, cwd="/")
        except TimeoutError:
            return f"not loaded within {TRY_S:.0f} s"
        except OSError as error:
            return f"{sys.executable}: {error.strerror}"
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return "" if done.returncode == 0 else said[:200] or f"exit {done.returncode}"

    def _say(self, state: State, detail: str) -> None:
        if (state, detail) == (self.state, self.detail):
            return
        self.state, self.detail = state, detail
        logger.warning(
            "installation: %s", detail or "as it was", extra={"action": f"installation_{state}"}
        )
        self.changed.set()
        self.changed = anyio.Event()


def _missing(seen: Seen, place: Place) -> tuple[State, str]:
    if not seen.python:
        target = place.python.resolve()
        why = f"the Python that runs this daemon is gone ({target} was moved or removed)"
        return "orphaned", f"{why}; {_AGAIN}"
    where = (
        place.packages if not seen.records else next(p for p in place.programs if not p.exists())
    )
    return "gone", f"the daemon's own files are gone ({where}); {_AGAIN}"
