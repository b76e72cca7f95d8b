"""What Tab completes: asked as a shell asks, and by a real bash where there is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloudagent_daemon.cli import completion
from cloudagent_daemon.cli.dispatch import _parser

PROGRAM = Path(sys.executable).parent / "cloudagent-daemon"
SHELLS = sorted(completion.SCRIPTS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ".cloudagent"
    monkeypatch.setenv("CLOUDAGENT_HOME", str(folder))
    monkeypatch.delenv("CLOUDAGENT_DAEMON_PROFILE", raising=False)
    for profile in ("fr", "de"):
        config = folder / "daemon" / "profiles" / profile / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text("{}")
    for agent in ("agents/agent_a", "agents/agent_b", "agents/.archive", "agents-fr/agent_fr"):
        (folder / agent / ".meta").mkdir(parents=True)
    (folder / "agents" / "$(touch owned)" / ".meta").mkdir(parents=True)
    return tmp_path


def completed(line: str) -> list[str]:
    """For a line whose last word is the one to complete; empty after a blank."""
    words = ["cloudagent-daemon", *line.split(" ")]
    return completion.answer(_parser(words), [str(len(words) - 1), "--", *words])


def test_commands_and_their_verbs_are_completed(home: Path) -> None:
    assert {"login", "start", "status", "agent", "completion"} <= set(completed(""))
    assert "mcp-bridge" not in completed(""), "it is for programs"
    assert completed("sta") == ["start", "status"]
    assert set(completed("agent ")) == {"register", "unregister", "list", "clean", "rules"}
    assert completed("--profile fr agent un") == ["unregister"]
    assert completed("completion ") == ["bash", "fish", "zsh"]


def test_options_are_those_of_the_command(home: Path) -> None:
    assert "--json" in completed("status --")
    assert "--yes" in completed("agent clean --")
    assert "--yes" not in completed("agent list --")
    assert completed("status --prof") == ["--profile"]


def test_profiles_and_agents_come_from_this_machine(home: Path) -> None:
    assert completed("status --profile ") == ["de", "fr"]
    assert completed("status --profile=f".replace("=", " = ")) == ["fr"], "as bash splits it"
    assert completed("agent unregister --agent-id ") == ["agent_a", "agent_b"]
    assert completed("--profile fr agent unregister --agent-id ") == ["agent_fr"]
    assert completed("--profile ../.. agent unregister --agent-id agent_b") == ["agent_b"]
    assert len(completed("logs --level ")) > 2


def test_files_are_the_shells_own_business(home: Path) -> None:
    assert completed("login --ca-file ") == [completion.FILES]
    assert completed("agent register --cwd /t") == [completion.FILES]
    assert completed("login --server ") == []


@pytest.mark.parametrize(
    "words", [[], ["1"], ["x", "--", "a"], ["-1", "--", "a"], ["9", "--", "a"]]
)
def test_no_question_of_a_shell_breaks_it(home: Path, words: list[str]) -> None:
    assert isinstance(completion.answer(_parser(words), words), list)


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_that_names_the_program_and_asks_it(shell: str) -> None:
    done = subprocess.run(
        [PROGRAM, "completion", shell], capture_output=True, text=True, check=True
    )
    assert done.stdout == completion.SCRIPTS[shell]
    assert "cloudagent-daemon completion --words" in done.stdout
    assert completion.FILES in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.skipif(
    not shutil.which("bash") and not os.environ.get("CI"), reason="there is no bash here"
)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sta"], ["start", "status"]),
        (["agent", "unregister", "--agent-id", "agent_"], ["agent_a", "agent_b"]),
        (["login", "--ca-file", ""], []),
    ],
)
def test_a_real_bash_completes(home: Path, words: list[str], expected: list[str]) -> None:
    line = ["cloudagent-daemon", *words]
    script = """
eval "$(cloudagent-daemon completion bash)"
compopt() { :; }  # outside of a completion there is nothing to set
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_cloudagent_daemon
printf '%s\\n' "${COMPREPLY[@]}"
complete -p cloudagent-daemon >&2
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *line],
        env={**os.environ, "PATH": f"{PROGRAM.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == expected
    assert "-F _cloudagent_daemon" in done.stderr
    assert not list(home.rglob("owned"))
