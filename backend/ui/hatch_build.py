"""Builds the page into the packages, so that whoever installs them needs no Node.

A stamp beside the built page says from which sources it was made: an sdist carries both, and a
wheel made of it finds that nothing is to be done.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCES = ("index.html", "package.json", "package-lock.json", "vite.config.ts", "tsconfig.json")
_SOURCE_FOLDERS = ("src", "public")
_STAMP = ".source-hash"

_NO_NPM = """\
The page (backend/ui) has to be built, and npm is not on the PATH. Ways out:
  1. install Node 20 or newer (https://nodejs.org) and build again;
  2. build from the source distribution or install the wheel: both carry the built page;
  3. leave the page out: CLOUDAGENT_SKIP_UI=1 (the backend then answers 503 where it would be)."""


class PageBuildHook(BuildHookInterface[Any]):
    """Runs `npm ci` and `npm run build` when the built page does not fit its sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Makes `backend/cloudagent_backend/_ui`.

        Raises:
            RuntimeError: npm is missing or failed.
        """
        # The build's own environment; no Settings exist here.
        skip = os.environ.get("CLOUDAGENT_SKIP_UI", "")  # noqa: TID251 - a build, not the program
        if version == "editable" or skip not in {"", "0"}:
            return
        sources = Path(self.root, "backend", "ui")
        output = Path(self.root, "backend", "cloudagent_backend", "_ui")
        stamp = output / _STAMP
        wanted = source_hash(sources)
        if (output / "index.html").is_file() and _read(stamp) == wanted:
            return
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(_NO_NPM)
        self.app.display_waiting("Building the page")
        _run(npm, "ci", "--no-audit", "--no-fund", cwd=sources)
        _run(npm, "run", "build", cwd=sources)
        stamp.write_text(wanted + "\n", encoding="utf-8")


def source_hash(sources: Path) -> str:
    """SHA-256 over the names and bytes of all that the page is built from, as hex."""
    files = [sources / name for name in _SOURCES]
    for folder in _SOURCE_FOLDERS:
        files += sorted(path for path in (sources / folder).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(sources).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _read(stamp: Path) -> str | None:
    return stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else None


def _run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603 - npm, with fixed arguments
    if done.returncode != 0:
        raise RuntimeError(
            f"`npm {' '.join(command[1:])}` failed in {cwd} with {done.returncode}:\n"
            f"{done.stdout[-4000:]}{done.stderr[-4000:]}\n"
            "CLOUDAGENT_SKIP_UI=1 leaves the page out."
        )
