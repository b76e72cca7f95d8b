"""Which file an agent means to send, and whether it may: opened here, so that it is the one that was checked.

An agent may send what lies in its own folders: where it works, its own one, and the temporary one. The
daemon reads with more rights than the agent has (the mask hides files from agents, not from it), so no
link is followed on the way, and what was opened is looked at, not what a name says.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Final

from cloudagent_daemon.config import Settings
from cloudagent_daemon.link.copies import Copies, NotCopiedError
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.attachments import SNIFFED_BYTES, file_name
from cloudagent_protocol.content import Attachment

#: An address, of whatever kind; a file of such a name is `./name`.
_ADDRESS: Final = re.compile(r"\s*(?:[a-z][a-z0-9+.-]+:|//)", re.IGNORECASE)
#: Folders that hold logins and keys, and files that do (security.md INJ-6).
_SECRET_FOLDERS: Final = frozenset(
    {
        ".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", "gcloud", ".claude", ".codex",
        ".gemini", ".cloudagent", ".password-store", "keyrings",
    }
)  # fmt: skip
_SECRET_FILES: Final = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.keychain*",
    "id_rsa", "id_dsa", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass",
    ".htpasswd", ".git-credentials", "credentials", "credentials.*", ".*_history",
)  # fmt: skip
_HARMLESS: Final = (".env.example", ".env.sample", ".env.template", "*.pub")
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
#: A pipe without a writer must not hold us until it is refused.
_FILE: Final = _READ | os.O_NONBLOCK
_FOLDER: Final = _READ | os.O_DIRECTORY


class UnpickedError(Exception):
    """The file is not sent; `str()` says why, and what to do."""


@dataclass(frozen=True)
class Reach:
    """Where an agent may pick files."""

    #: What a path that is not absolute begins at.
    cwd: Path
    #: Its folders.
    roots: Sequence[Path]
    #: Those of them that it shares with others: only its own user's files there.
    shared: Sequence[Path] = ()
    #: Folders of ours, which no walk goes into.
    hidden: Sequence[Path] = ()


def copies_of(settings: Settings) -> Copies:
    """Where copies lie until the backend has them; agents do not see it."""
    return Copies((settings.state_dir or settings.runtime_dir) / "outgoing")


def reach_of(settings: Settings, space: Workspace) -> Reach:
    environment = {**settings.environment, **space.agent.env}
    ours = (settings.home, settings.state_dir, settings.runtime_dir, settings.agents_dir)
    temporary = list(dict.fromkeys((Path(environment.get("TMPDIR") or "/tmp"), Path("/tmp"))))  # noqa: S108 - where agents put such files
    own = (space.folder, space.notes, space.attachments, space.home)
    # A folder of ours is none of an agent's, even where a person has set it so.
    works_in = () if _lies_in(space.cwd, filter(None, ours)) else (space.cwd,)
    return Reach(
        cwd=space.cwd,
        roots=(*works_in, *own, *temporary),
        shared=temporary,
        hidden=[*filter(None, ours), space.meta],
    )


@dataclass(frozen=True)
class Baggage:
    """What an agent may take along: files within its reach, as copies. All functions block."""

    #: Asked for each file: where an agent works may be settled after its run has begun.
    reach: Callable[[], Reach]
    copies: Copies

    def pick(self, path: str) -> Attachment:
        """A copy of the file as it is now.

        Raises:
            UnpickedError: there is none, or it may not be sent.
        """
        try:
            with picked(path, self.reach()) as file:
                return self.copies.keep(file, file_name(PurePosixPath(path).name))
        except NotCopiedError as error:
            raise UnpickedError(
                f"{path} cannot be sent: {error}. Send less of it, or say where it is."
            ) from error
        except OSError as error:
            raise UnpickedError(
                f"{path} cannot be sent: {error.strerror or error}. Try again later."
            ) from error

    def drop(self, files: Sequence[Attachment]) -> None:
        """These are not sent after all."""
        self.copies.drop(one.id for one in files)


@contextmanager
def picked(path: str, reach: Reach) -> Generator[IO[bytes]]:
    """The file, open for reading. Blocks.

    Raises:
        UnpickedError: there is none, or it may not be sent.
    """
    if _ADDRESS.match(path):
        raise UnpickedError(
            f"{path[:200]!r} is an address, and nothing is fetched from addresses. Download it into "
            "your folder, then attach that file."
        )
    root, below = _placed(path, reach)
    if secret := secret_in(below):
        raise UnpickedError(
            f"{path} is not sent: {secret} is where keys and logins are kept. If the person needs "
            "something of it, write that into a file of its own."
        )
    with _opened(path, root, below, reach) as file:
        yield file


def secret_in(below: Sequence[str]) -> str | None:
    """The part of a path that is named like something secret."""
    *folders, name = [part.casefold() for part in below]
    for folder in folders:
        if folder in _SECRET_FOLDERS:
            return folder
    if any(fnmatchcase(name, one) for one in _HARMLESS):
        return None
    return name if any(fnmatchcase(name, one) for one in _SECRET_FILES) else None


def _placed(path: str, reach: Reach) -> tuple[Path, list[str]]:
    """The folder of the agent's that the path lies in, and the parts from there on."""
    if "\0" in path:
        raise UnpickedError("A path has no NUL character. Give the path of a file.")
    meant = PurePosixPath(os.path.normpath(reach.cwd / path))
    found: list[tuple[int, Path, list[str]]] = []
    for root in reach.roots:
        for spelled in (str(root), os.path.realpath(root)):
            with suppress(ValueError):
                parts = list(meant.relative_to(spelled).parts)
                found.append((-len(parts), root, parts))
    # The innermost: the agent's own folder may lie in one that is hidden from it.
    _, root, parts = max(found, default=(0, reach.cwd, list[str]()), key=lambda one: one[0])
    if not parts:
        raise UnpickedError(
            f"{path[:200]} is no file in your folders. Copy it to {reach.cwd} and attach the copy."
        )
    return root, parts


@contextmanager
def _opened(path: str, root: Path, below: Sequence[str], reach: Reach) -> Generator[IO[bytes]]:
    try:
        descriptor = _walked(path, root, below, _known(reach.hidden))
    except OSError as error:
        raise UnpickedError(f"{path} cannot be sent: {_why(error)}") from error
    try:
        _check(path, descriptor, shared=root in reach.shared)
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def _walked(
    path: str, root: Path, below: Sequence[str], hidden: Mapping[tuple[int, int], Path]
) -> int:
    """Each part is opened from the one before, and no link is one."""
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for index, part in enumerate(below):
            opened = os.open(part, _FILE if index == len(below) - 1 else _FOLDER, dir_fd=current)
            os.close(current)
            current = opened
            _refuse_hidden(path, current, hidden)
    except BaseException:
        os.close(current)
        raise
    return current


def _refuse_hidden(path: str, opened: int, hidden: Mapping[tuple[int, int], Path]) -> None:
    if _identity(os.fstat(opened)) in hidden:
        raise UnpickedError(f"{path} is not sent: it lies in a folder of cloudagent's own.")


def _check(path: str, opened: int, *, shared: bool) -> None:
    facts = os.fstat(opened)
    if not stat.S_ISREG(facts.st_mode):
        what = "a folder: pack it first" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise UnpickedError(f"{path} cannot be sent: it is {what}.")
    if facts.st_nlink > 1:
        # It may be another name of a file that the agent itself could not read.
        raise UnpickedError(f"{path} has more than one name (a hard link). Attach a copy of it.")
    if shared and facts.st_uid != os.geteuid():
        raise UnpickedError(f"{path} belongs to another user. Attach a file of your own.")
    if _PRIVATE_KEY.search(os.pread(opened, SNIFFED_BYTES, 0)):
        raise UnpickedError(f"{path} is not sent: it holds a private key.")


def _lies_in(folder: Path, others: Iterable[Path]) -> bool:
    real = os.path.realpath(folder)
    return any(Path(real).is_relative_to(os.path.realpath(other)) for other in others)


def _known(folders: Sequence[Path]) -> dict[tuple[int, int], Path]:
    found: dict[tuple[int, int], Path] = {}
    for folder in folders:
        with suppress(OSError):
            found[_identity(folder.stat())] = folder
    return found


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _why(error: OSError) -> str:
    match error.errno:
        case errno.ELOOP:
            return "it is a link, or lies behind one. Attach the file itself."
        case errno.ENOTDIR:
            return "it lies behind a link, or in what is no folder. Attach the file itself."
        case errno.ENOENT:
            return "there is no such file. Write it first, and give its path."
        case errno.ENXIO | errno.ENODEV:
            return "it is no regular file."
        case _:
            return f"{os.strerror(error.errno or 0)}. Attach a file that you can read."
