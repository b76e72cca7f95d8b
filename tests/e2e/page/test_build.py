"""The hook that puts the page into the wheel (backend/ui/hatch_build.py)."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a build needs, without a built page."""
    here = tmp_path / "checkout"
    skip = shutil.ignore_patterns("node_modules", "_ui", "__pycache__")
    for name in ("backend", "daemon_cli", "service_templates"):
        shutil.copytree(ROOT / name, here / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, here / name)
    return here


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel where there is no npm."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    return subprocess.run(
        command,
        cwd=checkout,
        env={"PATH": str(checkout), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def page_in(checkout: Path) -> list[str]:
    [wheel] = (checkout / "dist").glob("*.whl")
    return [name for name in zipfile.ZipFile(wheel).namelist() if "/_ui/" in name]


def test_without_npm_and_without_a_built_page_the_error_names_the_ways_out(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode != 0
    assert "npm is not on the PATH" in done.stderr
    assert "CLOUDAGENT_SKIP_UI=1" in done.stderr


def test_the_page_can_be_left_out(checkout: Path) -> None:
    done = build(checkout, CLOUDAGENT_SKIP_UI="1")
    assert done.returncode == 0, done.stderr
    assert page_in(checkout) == []


def test_a_page_that_fits_its_sources_needs_no_npm(checkout: Path) -> None:
    output = checkout / "backend" / "cloudagent_backend" / "_ui"
    output.mkdir()
    (output / "index.html").write_text("built", encoding="utf-8")
    stamp = (
        "import sys; sys.path.insert(0, 'backend/ui'); from pathlib import Path;"
        "from hatch_build import source_hash; print(source_hash(Path('backend/ui')))"
    )
    hashed = subprocess.run(
        [sys.executable, "-c", stamp], cwd=checkout, capture_output=True, text=True, check=True
    )
    (output / ".source-hash").write_text(hashed.stdout, encoding="utf-8")
    done = build(checkout)
    assert done.returncode == 0, done.stderr
    assert "cloudagent_backend/_ui/index.html" in page_in(checkout)

    (checkout / "backend" / "ui" / "src" / "main.tsx").write_text("changed", encoding="utf-8")
    assert "npm is not on the PATH" in build(checkout).stderr
