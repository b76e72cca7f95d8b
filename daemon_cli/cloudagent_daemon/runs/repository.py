"""Finds the git repository that a folder lies in, by looking at names and small files: no git is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_MOST_BYTES: Final = 4_096


@dataclass(frozen=True)
class Repository:
    #: The top of the work tree.
    root: str
    #: Of this work tree: its index and HEAD.
    git_dir: str
    #: Of all of the repository's work trees: objects and branches.
    common_dir: str

    @property
    def said(self) -> dict[str, Any]:
        return {"root": self.root, "git_dir": self.git_dir, "common_dir": self.common_dir}


def repository_of(cwd: Path, home: Path | None = None) -> Repository | None:
    """The repository whose work tree `cwd` is in; null if there is none, or none that can be read.

    Args:
        cwd: looked in, and above.
        home: an agent's folder; from inside of it nothing is looked for above: where a person's
            whole home is a repository, that is not what the agent works on.
    """
    try:
        cwd = cwd.resolve()
        home = home.resolve() if home else None
        for folder in (cwd, *cwd.parents):
            if (folder / ".git").exists():
                return _at(folder)
            if folder == home:
                return None
    except (OSError, ValueError):
        return None
    return None


def _at(folder: Path) -> Repository | None:
    """See gitrepository-layout: `.git` may be a file that says where, `commondir` another one."""
    git_dir = folder / ".git"
    if git_dir.is_file():
        said = _words(git_dir)
        if not said.startswith("gitdir: "):
            return None
        git_dir = (folder / said.removeprefix("gitdir: ")).resolve()
    common = git_dir / "commondir"
    common_dir = (git_dir / _words(common)).resolve() if common.is_file() else git_dir
    if not (common_dir / "objects").is_dir() or not (git_dir / "HEAD").exists():
        return None
    return Repository(str(folder), str(git_dir), str(common_dir))


def _words(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("utf-8", "surrogateescape").rstrip("\r\n")
