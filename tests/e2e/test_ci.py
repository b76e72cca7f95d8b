"""A CI job: one message, the exit code its verdict, and nothing left behind. All real."""

import contextlib
import json
import signal
import subprocess
import textwrap
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudagent_daemon import ci, profile
from cloudagent_daemon.runs.once import OneMessage
from e2e.forks import forked, forked_run
from e2e.harness import BIN, Backend, Process, clean_environment, running_backend
from fakes.ssh import install

KEY = "sk_machine_" + "k" * 40 + "000000"


class Job:
    """`start --once` in a home of its own; forked, but for the documented lines."""

    def __init__(self, home: Path, url: str, key: str) -> None:
        self.home = home
        self.url = url
        self.key = key
        home.mkdir()
        self.env = clean_environment(home, TMPDIR=str(home.parent))

    def argv(self, *words: str) -> list[str]:
        program = str(BIN / "cloudagent-daemon")
        return [program, "start", "--server-url", self.url, "--api-key-file", "-", "--once", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return forked_run(self.argv(*words), self.env, self.home.parent, stdin=self.key)

    @contextlib.contextmanager
    def started(self, *words: str) -> Generator[Process]:
        process = Process(
            self.argv(*words), env=self.env, cwd=self.home.parent, stdin=self.key, start=forked
        )
        try:
            yield process
        finally:
            process.kill()

    def result(self, *words: str) -> dict[str, Any]:
        done = self.run("--json", *words)
        result = json.loads(done.stdout)
        assert result["exit_code"] == done.returncode
        assert result["schema"] == "cloudagent.run/1"
        return result

    def left(self) -> list[str]:
        """What lies in the home, and of ours in the temporary folder."""
        found = [*self.home.rglob("*"), *self.home.parent.glob("cloudagent-*")]
        return [str(path) for path in found]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Generator[Backend]:
    with running_backend(tmp_path_factory.mktemp("ci") / "server") as running:
        yield running


@pytest.fixture(scope="module")
def key(backend: Backend) -> str:
    host_id, key = backend.create_host("ci")
    backend.create_agent(host_id, "ci-reviewer", driver="scripted")
    return key


@pytest.fixture
def job(tmp_path: Path, backend: Backend, key: str) -> Job:
    return Job(tmp_path / "job", backend.url, key)


def agent_of(backend: Backend) -> str:
    return backend.call("GET", "/v1/agents")["data"][0]["id"]


def hosts_of(backend: Backend) -> list[str]:
    return [host["name"] for host in backend.call("GET", "/v1/host-machines")["data"]]


def trace(backend: Backend, message: dict[str, Any]) -> dict[str, Any]:
    return backend.call("GET", f"/v1/messages/{message['id']}/trace")["deliveries"][0]


def test_a_message_is_answered_and_nothing_is_left(backend: Backend, job: Job) -> None:
    message = backend.send(agent_of(backend), "review 4f1c")
    done = job.run("--agent", "ci-reviewer", "--idle-exit", "1m")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Detected runtimes:"
    told = [line for line in lines if not line.startswith("  ")][1:]
    host_id = told[0].split()[5]
    assert told[0] == f"Connecting to {backend.url} as host {host_id} (ephemeral, removed on exit)"
    assert [line[9:] for line in told[1:3]] == [
        "ready, waiting for one message (limit 1 min)",
        f"{message['id']} delivered to ci-reviewer",
    ]
    assert told[3][9:].startswith("completed in ")
    assert told[4:] == ["Host removed. Nothing was written to ~/.cloudagent."]
    assert done.stderr == ""
    assert backend.messages(message["conversation_id"])[-1]["text"] == "You said: review 4f1c"
    assert hosts_of(backend) == ["ci"]
    assert job.left() == []


def test_the_result_is_one_line_of_json(backend: Backend, job: Job) -> None:
    message = backend.send(agent_of(backend), "review 4f1c")
    result = job.result("--agent", agent_of(backend))
    assert result["verdict"] == "done"
    assert result["message_id"] == message["id"]
    assert result["outcome"] == "auto_published"
    assert result["reply"] == "You said: review 4f1c"
    assert result["agent"]["name"] == "ci-reviewer"
    assert result["usage"]["input_tokens"] > 0
    assert result["host_removed"] is True


def test_a_failed_turn_is_the_jobs_failure(backend: Backend, job: Job) -> None:
    message = backend.send(agent_of(backend), "@@error 401")
    result = job.result()
    assert (result["verdict"], result["exit_code"]) == ("failed", 1)
    assert result["reason"] == "authentication"
    assert trace(backend, message)["state"] == "failed"
    assert hosts_of(backend) == ["ci"]


def test_no_message_in_time_exits_7(backend: Backend, job: Job) -> None:
    done = job.run("--idle-exit", "1s")
    assert done.returncode == 7
    assert "no message within 1 s" in done.stdout
    assert hosts_of(backend) == ["ci"]


def test_an_agent_that_is_not_there_is_a_slip_with_the_ones_that_are(
    backend: Backend, job: Job
) -> None:
    done = job.run("--agent", "ci-reviwer")
    assert done.returncode == 2
    assert "(it has: ci-reviewer)" in done.stderr
    assert done.stdout == ""


def test_a_rejected_key_exits_4_with_a_result(backend: Backend, tmp_path: Path) -> None:
    job = Job(tmp_path / "job", backend.url, KEY)
    result = job.result()
    assert (result["verdict"], result["exit_code"]) == ("unauthorized", 4)
    assert "401" in result["detail"]
    assert "does not accept this machine key" in job.run().stderr


async def test_an_unreachable_backend_exits_5() -> None:
    with profile.one_shot("default", "http://127.0.0.1:9", KEY, {}) as settings:
        watched = OneMessage(print, cwd=Path("/"), idle_exit_s=None)
        job = await ci.run(settings, None, watched, print, make_s=0.1)
        result = ci.result(job, watched, settings.server_url)
    assert (result["verdict"], result["exit_code"]) == ("unreachable", 5)
    assert "127.0.0.1:9 cannot be reached" in result["detail"]


def test_a_job_reaches_its_backend_through_a_tunnel_of_its_own(
    backend: Backend, job: Job, tmp_path: Path
) -> None:
    """From the making of its host to the removal, and not a moment longer."""
    ssh = install(tmp_path / "bin")
    job.env["PATH"] = ssh.path
    backend.send(agent_of(backend), "through a tunnel")
    done = job.run("--ssh-tunnel", "ana@server")
    assert done.returncode == 0, done.stderr
    assert "Host removed." in done.stdout
    [(argv, pid)] = ssh.starts
    assert argv[-1] == "server"
    assert not psutil.pid_exists(pid)
    assert hosts_of(backend) == ["ci"]
    assert job.left() == []


async def test_a_tunnel_that_does_not_open_is_no_backend_and_says_why(
    backend: Backend, tmp_path: Path
) -> None:
    ssh = install(tmp_path / "bin")
    ssh.fail("ana@server: Permission denied (publickey).")
    environ = {"PATH": ssh.path}
    with profile.one_shot("default", backend.url, KEY, environ, ssh_tunnel="server") as settings:
        settings.runtime_dir.mkdir()
        watched = OneMessage(print, cwd=Path("/"), idle_exit_s=None)
        job = await ci.run(settings, None, watched, print, make_s=0.1)
    assert job.verdict == "unreachable"
    assert "Permission denied (publickey)" in job.why


async def test_a_fault_of_the_daemon_removes_the_host_too(backend: Backend, key: str) -> None:
    with profile.one_shot("default", backend.url, key, {}) as settings:
        broken = replace(settings, runtime_dir=Path("/proc/no-such-folder"))
        watched = OneMessage(print, cwd=Path("/"), idle_exit_s=None)
        with pytest.raises(BaseExceptionGroup):
            await ci.run(broken, None, watched, print)
    assert hosts_of(backend) == ["ci"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting_removes_the_host(
    backend: Backend, job: Job, number: signal.Signals
) -> None:
    with job.started() as process:
        process.wait_for_line("ready, waiting")
        assert len(hosts_of(backend)) == 2
        process.popen.send_signal(number)
        assert process.wait() == 130
    assert hosts_of(backend) == ["ci"]
    assert job.left() == []


def test_a_signal_during_the_turn_ends_it_and_says_so(backend: Backend, job: Job) -> None:
    message = backend.send(agent_of(backend), "@@sleep 60")
    with backend.follow(after=0) as follower, job.started() as process:
        process.wait_for_line("delivered to ci-reviewer")
        follower.delivery(message["id"], "running")
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for_line("stopped after")
        process.wait_for_line("Host removed.")
        assert process.wait() == 130
    delivery = trace(backend, message)
    assert (delivery["state"], delivery["reason"]) == ("cancelled", "daemon_stopped")
    assert hosts_of(backend) == ["ci"]


def test_two_jobs_with_one_key_work_side_by_side(
    backend: Backend, job: Job, tmp_path: Path, key: str
) -> None:
    other = Job(tmp_path / "other", backend.url, key)
    agent = agent_of(backend)
    with job.started() as one, other.started() as two:
        ids = [p.wait_for_line("(ephemeral").split()[5] for p in (one, two)]
        assert len(set(ids)) == 2
        # Each to its own, in the order that a mix-up would show.
        for host_id in reversed(ids):
            backend.call(
                "POST",
                f"/v1/agents/{agent}/messages",
                {"text": f"for {host_id}", "host_machine_id": host_id},
            )
        assert [p.wait() for p in (one, two)] == [0, 0]
    runs = [
        backend.call("GET", f"/v1/runs/{trace(backend, found)['run_id']}")
        for conversation in backend.call("GET", "/v1/conversations")["data"]
        for found in backend.messages(conversation["id"])
        if found["text"].startswith("for host_")
    ]
    assert len(runs) == 2
    assert {run["outcome"] for run in runs} == {"auto_published"}
    assert hosts_of(backend) == ["ci"]


def test_the_answer_arrives_though_the_backend_restarts_during_the_turn(tmp_path: Path) -> None:
    home = tmp_path / "server"
    with running_backend(home) as backend:
        host_id, key = backend.create_host("ci")
        agent = backend.create_agent(host_id, "ci-reviewer", driver="scripted")
        job = Job(tmp_path / "job", backend.url, key)
        message = backend.send(agent, "@@sleep 3\n@@say Fine.")
        with job.started() as process:
            process.wait_for_line("delivered to ci-reviewer")
            backend.process.kill()
            port = int(backend.url.rpartition(":")[2])
            with running_backend(home, port=port) as again:
                assert process.wait() == 0
                assert again.messages(message["conversation_id"])[-1]["text"] == "Fine."
                assert hosts_of(again) == ["ci"]


# --- docs/ci.md ---------------------------------------------------------------------------------


def documented(heading: str) -> str:
    """The shell lines of a page's example, as the CI would run them."""
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text("utf-8")
    block = page.partition(f"## {heading}")[2].partition("```yaml")[2].partition("```")[0]
    if heading == "GitLab":
        [line] = [one for one in block.splitlines() if "cloudagent-daemon start" in one]
        return line.strip().removeprefix("- ")
    return textwrap.dedent(block.rpartition("run: |\n")[2])


@pytest.mark.parametrize("heading", ["GitHub Actions", "GitLab"])
def test_the_documented_lines_work_as_they_stand(backend: Backend, job: Job, heading: str) -> None:
    programs = job.home.parent / "bin"
    programs.mkdir()
    uvx = programs / "uvx"
    uvx.write_text('#!/bin/sh\n[ "$1" = --from ] && shift 2\nexec "$@"\n')
    uvx.chmod(0o755)
    token = backend.call("POST", "/v1/tokens", {"name": "ci"})["raw_token"]
    name = "CLOUDAGENT_KEY" if heading == "GitLab" else "CLOUDAGENT_API_KEY"
    more = {name: job.key, "CLOUDAGENT_URL": backend.url, "CLOUDAGENT_TOKEN": token, "SHA": "4f1c"}
    if heading == "GitLab":
        backend.send(agent_of(backend), "nightly")
    done = subprocess.run(
        ["bash", "-e", "-c", documented(heading)],
        env={**job.env, **more, "PATH": f"{programs}:{job.env['PATH']}"},
        cwd=job.home.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if heading == "GitLab":
        result = json.loads((job.home.parent / "result.json").read_text("utf-8"))
        assert result["reply"] == "You said: nightly"
    else:
        reply = json.loads((job.home.parent / "review.json").read_text("utf-8"))
        assert reply["text"] == "You said: Review 4f1c against origin/main."
