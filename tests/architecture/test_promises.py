"""What we mean about the shape of the code, held by tests (layers are held by import-linter)."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cloudagent
from cloudagent_daemon.cli import completion, dispatch
from cloudagent_protocol import frames, version

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "daemon_cli", ROOT / "backend" / "cloudagent_backend"]
#: What costs more than everything that a quick command does (docs/benchmarks.md).
HEAVY = {"mcp", "httpx2", "pydantic", "fastapi", "uvicorn", "websockets", "typer", "rich"}
#: A fifth of a quick command each, for what it does not need.
NEEDLESS = {"asyncio", "hashlib", "random", "secrets", "socket", "ssl"}


def modules_loaded_by(*argv: str) -> set[str]:
    """The modules that are there after the daemon's command has run."""
    code = (
        "import sys; sys.argv = ['cloudagent-daemon', *sys.argv[1:]]\n"
        "from cloudagent_daemon.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["status"],
        ["status", "--json"],
        ["completion", "bash"],
        ["completion", "--words", "1", "--", "cloudagent-daemon", ""],
    ],
)
def test_a_quick_command_imports_nothing_heavy(words: list[str], monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CLOUDAGENT_HOME", str(tmp_path))
    loaded = {name.partition(".")[0] for name in modules_loaded_by(*words)}
    assert loaded & (HEAVY | NEEDLESS) == set()


def test_a_command_costs_no_import_of_another_one(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CLOUDAGENT_HOME", str(tmp_path))
    commands = {f"cloudagent_daemon.cli.{name}" for name in dispatch._COMMANDS}
    assert modules_loaded_by("--help") & commands == set()
    assert modules_loaded_by("status") & commands == {"cloudagent_daemon.cli.status"}


def test_every_command_is_where_the_list_of_commands_says() -> None:
    for names in dispatch._COMMANDS.values():
        for name in names:
            whole = completion._verbs(dispatch._parser([name]))[name]
            assert completion._verbs(whole) or whole.get_default("run"), name


def test_the_version_is_written_in_two_places_that_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == version.DISTRIBUTION


def test_every_public_name_of_the_client_exists_and_is_documented() -> None:
    assert cloudagent.__all__ == sorted(cloudagent.__all__)
    for name in cloudagent.__all__:
        public = getattr(cloudagent, name)
        assert public.__doc__ or not isinstance(public, type), f"cloudagent.{name} has no docstring"


def test_every_environment_variable_of_ours_is_documented() -> None:
    named = {
        name
        for root in SOURCES
        for path in root.rglob("*.py")
        for name in re.findall(r"\"(CLOUDAGENT_[A-Z_]+)\"", path.read_text())
    }
    documented = (ROOT / "docs" / "operations.md").read_text()
    assert {name for name in named if f"`{name}" not in documented} == set()


def test_every_frame_is_described_in_the_protocol_page() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    assert {kind for kind in frames._TYPES if f"`{kind}" not in page} == set()


def test_no_commit_holds_a_machine_s_path_or_a_key() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    forbidden = re.compile(
        rf"sk_machine_[0-9A-Za-z]{{46}}|{re.escape(str(ROOT))}/|BEGIN [A-Z ]*PRIVATE KEY"
    )
    here = Path(__file__).relative_to(ROOT)
    found = [
        name
        for name in files
        if name
        and Path(name) != here
        and not name.endswith((".png", ".lock"))
        and forbidden.search((ROOT / name).read_text(errors="replace"))
    ]
    assert found == []
