"""Which work trees of conversations may go (`agent clean`): those that nobody uses and nobody worked in.

Whether there is work in one is asked without git reading what its repository says of programs (differ.py).
What may go is taken away as `git worktree remove` would, which itself would run such programs to look.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon import config

UNUSED_DAYS: Final = 14
_LOOK_S: Final = 60.0
_DIFFER: Final = Path(__file__).parent.with_name("differ.py")


@dataclass(frozen=True)
class Tree:
    """A work tree, as its record tells."""

    folder: Path
    record: Path
    root: str
    common_dir: str
    branch: str
    base: str
    made: bool

    @property
    def git_dir(self) -> Path | None:
        """Its own part of the repository; null unless both say that they belong to each other."""
        try:
            said = (self.folder / ".git").read_text("utf-8").strip().removeprefix("gitdir: ")
            found = Path(said).resolve()
            back = Path((found / "gitdir").read_text("utf-8").strip()).resolve()
        except (OSError, ValueError):
            return None
        mine = found.parent == Path(self.common_dir, "worktrees").resolve()
        return found if mine and back == (self.folder / ".git").resolve() else None


def trees_in(agents_dir: Path) -> Iterator[Tree]:
    """Those of all agents; nothing that a link leads to."""
    for record in sorted(agents_dir.glob("*/worktrees/*.json")):
        if record.is_symlink() or record.parent.is_symlink() or record.parent.parent.is_symlink():
            continue
        folder = record.with_suffix("")
        try:
            said = json.loads(record.read_bytes())
            words = {name: str(said[name]) for name in ("root", "common_dir", "branch", "base")}
            tree = Tree(folder, record, **words, made=said["made"] is True)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if folder.is_dir() and not folder.is_symlink():
            yield tree


def why_kept(tree: Tree, unused_days: float = UNUSED_DAYS) -> str | None:
    """Why it stays; null if it may go."""
    if not tree.made:
        return "it is half made; the next message of its conversation makes it anew"
    days = (time.time() - tree.record.stat().st_mtime) / 86_400
    if days < unused_days:
        return f"it was used {_ago(days)}"
    if tree.git_dir is None:
        return f"it is no work tree of {tree.root} any more, so nobody knows what it holds"
    why = _work_in(tree)
    return f"{why}: git -C {tree.root} worktree remove {tree.folder}" if why else None


def _ago(days: float) -> str:
    return "today" if days < 1 else "yesterday" if days < 2 else f"{days:.0f} days ago"


def _work_in(tree: Tree) -> str | None:
    """What there is in it that is nowhere else; null if nothing."""
    asked = {
        "root": str(tree.folder),
        "git_dir": str(tree.git_dir),
        "common_dir": tree.common_dir,
        "base": tree.base,
    }
    with tempfile.TemporaryDirectory(prefix="cloudagent-") as folder:
        said = _said([sys.executable, "-I", "-S", str(_DIFFER), "same", folder], json.dumps(asked))
    return str(said.get("work") or said.get("problem")) if said != {"work": None} else None


def _said(argv: list[str], feed: str) -> dict[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            argv, input=feed, capture_output=True, text=True, timeout=_LOOK_S, check=True
        )
        return dict(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"problem": f"it could not be looked at ({type(error).__name__})"}


def remove(tree: Tree) -> str | None:
    """Takes it away, with its branch if that has not moved; returns what went wrong."""
    git_dir = tree.git_dir
    if git_dir is None:
        return f"{tree.folder} is no work tree any more"
    try:
        shutil.rmtree(tree.folder)
        shutil.rmtree(git_dir)
        tree.record.unlink()
    except OSError as error:
        return f"{tree.folder} could not be removed: {error}"
    git = shutil.which("git", path=config.environment().get("PATH"))
    quiet = ["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"]
    if git:
        # Only where it is still what it was: git looks at that itself.
        subprocess.run(  # noqa: S603 - as above
            [
                git,
                *quiet,
                "-C",
                tree.root,
                "update-ref",
                "-d",
                f"refs/heads/{tree.branch}",
                tree.base,
            ],
            capture_output=True,
            timeout=_LOOK_S,
            check=False,
        )
    return None
