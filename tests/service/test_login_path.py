"""The PATH of a login shell, whatever the shell's files do."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.service import login_path

WELL = b"\0__CLOUDAGENT_PATH__/a/bin:/usr/bin__CLOUDAGENT_PATH__\0"


async def asked(home: Path, profile: str, *, limit_s: float = 20.0) -> login_path.LoginPath:
    (home / ".bash_profile").write_text(profile)
    environ = {"HOME": str(home), "PATH": "/only/in/the/terminal", "SECRET": "s"}
    return await login_path.ask("/bin/bash", environ, limit_s=limit_s)


@pytest.mark.parametrize(
    "noise",
    [
        "",
        "echo Welcome; printf '\\0'; echo __CLOUDAGENT_PATH__/evil__CLOUDAGENT_PATH__",
        "exec 2>&1; set -xv",
        "sleep 1000 &",
        "false; nonsense-command; return 3",
        "read answer",
        "cat /dev/zero | head -c 300000",
    ],
)
async def test_files_that_print_wait_or_fail_do_not_matter(tmp_path: Path, noise: str) -> None:
    found = await asked(tmp_path, f'export PATH="$HOME/my tools:$PATH:relative:"\n{noise}\n')
    assert found.problem == ""
    assert found.entries[0] == f"{tmp_path}/my tools"
    assert "/usr/bin" in found.entries
    assert not {"relative", "", "/only/in/the/terminal"} & set(found.entries)


async def test_a_shell_that_becomes_something_else_is_asked_in_another_way(tmp_path: Path) -> None:
    profile = 'export PATH="/x/bin:$PATH"\ncase $- in *i*) exec true ;; esac\n'
    assert (await asked(tmp_path, profile)).entries[0] == "/x/bin"


async def test_a_shell_that_hangs_or_is_not_there_is_told(tmp_path: Path) -> None:
    found = await asked(tmp_path, "sleep 1000\n", limit_s=0.5)
    assert (found.entries, found.problem) == ((), "/bin/bash took more than 0.5 s to start")
    gone = await login_path.ask("/nonexistent/sh", {})
    assert "/nonexistent/sh" in gone.problem


async def test_a_shell_s_files_see_no_variables_of_ours(tmp_path: Path) -> None:
    await asked(tmp_path, 'printf "%s" "$SECRET" > "$HOME/seen"\n')
    assert (tmp_path / "seen").read_text() == ""


@given(st.binary(max_size=200).filter(lambda noise: b"__CLOUDAGENT_PATH__" not in noise))
def test_what_stands_around_the_marks_is_left_out(noise: bytes) -> None:
    assert login_path.parse(noise) is None
    assert login_path.parse(noise + WELL + noise) == ("/a/bin", "/usr/bin")


@given(st.lists(st.text(max_size=20)), st.lists(st.text(max_size=20)))
def test_a_joined_path_can_be_written_down_and_holds_each_entry_once(
    first: list[str], second: list[str]
) -> None:
    entries = login_path.joined(first, second).split(os.pathsep)
    assert len(entries) == len(set(entries))
    assert set(login_path.STANDARD) <= set(entries)
    assert all(entry.startswith("/") and entry.isprintable() for entry in entries)


def test_64_kb_of_path_are_cut_to_what_a_process_can_get() -> None:
    assert len(login_path.joined(f"/{number:030}" for number in range(10_000))) < 70_000
