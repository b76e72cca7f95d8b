"""`agent clean`: what lies on this machine for no agent any more, and its removal."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon.cli import trees
from cloudagent_daemon.cli.options import FAILED, Here, safe
from cloudagent_daemon.usage import Size, size_of, why_kept, words

SCHEMA: Final = "cloudagent.clean/1"
ARCHIVE: Final = ".archive"


@dataclass(frozen=True)
class Item:
    """Something that is not needed any more."""

    path: Path
    what: str
    size: Size
    #: Why it stays all the same; null: it may go.
    kept: str | None
    #: Where it is a conversation's work tree.
    tree: trees.Tree | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "what": self.what,
            "size_bytes": self.size.size_bytes,
            "kept": self.kept,
        }


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    items = list(found_in(here.paths.agents_dir, arguments.unused_days))
    going = [item for item in items if item.kept is None]
    failed = [problem for item in going if (problem := _remove(item))] if arguments.yes else []
    if arguments.json:
        body = {
            "schema": SCHEMA,
            "profile": here.profile,
            "removed": bool(arguments.yes),
            "items": [item.as_json() for item in items],
            "problems": failed,
        }
        print(json.dumps(body))
    else:
        print(safe("\n".join(_lines(here, items, removed=bool(arguments.yes)))))
        for problem in failed:
            print(safe(f"! {problem}"), file=sys.stderr)
    return FAILED if failed else 0


def found_in(agents_dir: Path, unused_days: float = trees.UNUSED_DAYS) -> Iterator[Item]:
    """What may go below an agents' folder: archived workspaces, work trees, damaged records set aside.

    Nothing that a link leads to: neither the archive itself nor what is in it may be one.
    """
    archive = agents_dir / ARCHIVE
    if archive.is_dir() and not archive.is_symlink():
        for folder in sorted(archive.iterdir()):
            yield Item(folder, "archived workspace", size_of(folder), why_kept(folder))
    for tree in trees.trees_in(agents_dir):
        size, kept = size_of(tree.folder), trees.why_kept(tree, unused_days)
        yield Item(tree.folder, f"work tree {tree.branch}", size, kept, tree)
    for agent in sorted(agents_dir.glob("*/.meta")):
        if agent.is_symlink() or agent.parent.is_symlink():
            continue
        for folder in (agent, agent / "sessions", agent / "turns"):
            if folder.is_symlink():
                continue
            for file in sorted(folder.glob("*.corrupt-*")):
                if file.is_file() and not file.is_symlink():
                    size = Size(file.stat().st_size)
                    yield Item(file, "damaged record that was set aside", size, None)


def _remove(item: Item) -> str | None:
    """Removes it, and follows no link; returns what went wrong."""
    if item.tree:
        return trees.remove(item.tree)
    path = item.path
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        return f"{path} could not be removed: {error}"
    return None


def _lines(here: Here, items: list[Item], *, removed: bool) -> list[str]:
    going = [item for item in items if item.kept is None]
    kept = [item for item in items if item.kept is not None]
    found: list[str] = []
    if going:
        found.append("removed" if removed else "would remove")
        found += [f"  {item.size.shown:>8}  {item.what}  {here.shown(item.path)}" for item in going]
    for number, item in enumerate(kept):
        found += ["keeps"] if number == 0 else []
        found += [
            f"  {item.size.shown:>8}  {item.what}  {here.shown(item.path)}",
            f"            {item.kept}; remove it yourself if you need nothing of it",
        ]
    total = words(sum(item.size.size_bytes for item in going))
    if not going:
        found.append("nothing to remove: workspaces of agents stay until they are unregistered")
    elif not removed:
        found.append(f"{total} in all; nothing was removed yet")
        found.append(f"  next      {here.command('agent clean --yes')}")
    else:
        found.append(f"{total} in all")
    return found
