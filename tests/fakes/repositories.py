"""Real git repositories for tests, and what their bytes are."""

import os
import subprocess
from pathlib import Path


def git(folder: Path, *words: str) -> str:
    """What git prints there; nothing of this user's configuration counts."""
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "Ana",
        "GIT_AUTHOR_EMAIL": "ana@example.org",
        "GIT_COMMITTER_NAME": "Ana",
        "GIT_COMMITTER_EMAIL": "ana@example.org",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *words], env=env, capture_output=True, check=True, text=True
    )
    return done.stdout


def a_repository(folder: Path, files: dict[str, str] | None = None) -> Path:
    """One with a commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for name, text in (files or {"price.py": "VAT = 0.19\n"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "begin")
    return folder


def bytes_of(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """All files below it: content, time and mode; of folders the names."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"",
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
        )
        for path in sorted(folder.rglob("*"))
    }
