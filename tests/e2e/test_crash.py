"""The daemon is killed in the middle of a run: its agents die with it, and its next life goes on."""

import time

import pytest

from e2e.harness import processes_with, running_backend, running_daemon

pytestmark = pytest.mark.slow

#: The promise: how long after the daemon's death anything that it started may live.
GONE_S = 5.0


def test_a_killed_daemon_s_agents_are_gone_before_its_next_life_which_resumes(tmp_path) -> None:
    with running_backend(tmp_path / "server") as backend, backend.follow() as events:
        host_id, key = backend.create_host()
        agent_id = backend.create_agent(host_id, driver="scripted")
        laptop = tmp_path / "laptop"
        with running_daemon(laptop, backend.url, key) as daemon:
            sent = backend.send(agent_id, "@@sleep 60\n@@say too late")
            events.until(lambda e: e["type"] == "run.started")
            started = set(processes_with(str(laptop))) - {daemon.popen.pid}
            assert len(started) >= 2  # the agent and its guardian
            daemon.kill()
            died = time.monotonic()
            while left := processes_with(str(laptop)):
                assert time.monotonic() - died < GONE_S, left
        with running_daemon(laptop, backend.url, key):
            again = events.until(lambda e: e["type"] == "run.started")["data"]
            assert again["attempt"] == 2
            assert "interrupted" in backend.rungs(sent["id"])
            backend.call("POST", f"/v1/runs/{again['id']}/interrupt")
            events.delivery(sent["id"], "cancelled")
        assert processes_with(str(laptop)) == []
