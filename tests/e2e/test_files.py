"""Files both ways, by the real programs, through the death of either at any step."""

import os
import time
from pathlib import Path

import pytest

from e2e.harness import DEADLINE_S, Backend, Json, running_backend, running_daemon
from faults.proxy import Bandwidth, running_proxy

pytestmark = pytest.mark.slow

SHOT = b"\x89PNG\r\n\x1a\n" + bytes(3_000)
CHART = b"GIF89a" + bytes(40_000)
ORDERS = '@@call attach_file {"path": "chart.gif"}\n@@call send_message {"text": "as you asked"}'


def sent_with_a_file(backend: Backend, agent_id: str) -> Json:
    made = backend.http.post("/v1/attachments", params={"name": "shot.png"}, content=SHOT).json()
    body = {"text": ORDERS, "attachments": [made["id"]]}
    return backend.call("POST", f"/v1/agents/{agent_id}/messages", body)


def test_files_go_both_ways_once_whenever_the_daemon_dies(tmp_path: Path) -> None:
    folder, laptop = tmp_path / "project", tmp_path / "laptop"
    folder.mkdir()
    with running_backend(tmp_path / "server") as backend, backend.follow() as events:
        host_id, key = backend.create_host()
        agent_id = backend.create_agent(host_id, driver="scripted", cwd=str(folder))
        for point in ("after_copy", "after_send", "after_bring", ""):
            (folder / "chart.gif").write_bytes(CHART)
            with running_daemon(laptop, backend.url, key, CLOUDAGENT_CRASH_AT=point) as daemon:
                sent = sent_with_a_file(backend, agent_id)
                if point:
                    assert daemon.popen.wait(30) == 137
                else:
                    events.delivery(sent["id"], "done")
            if point != "after_copy":
                # What was said to go along was taken then: from here on it is the daemon's own.
                (folder / "chart.gif").unlink()
            if point:
                with running_daemon(laptop, backend.url, key):
                    events.delivery(sent["id"], "done")
            home = laptop / ".cloudagent"
            [shot] = home.glob(f"agents/*/attachments/{sent['id']}/*")
            assert (shot.name, shot.read_bytes()) == ("shot.png", SHOT)
            [reply] = [
                message
                for message in backend.messages(sent["conversation_id"])
                if message.get("in_reply_to") == sent["id"]
            ]
            assert reply["text"] == "as you asked"
            [file] = reply["attachments"]
            assert (file["name"], file["media_type"]) == ("chart.gif", "image/gif")
            assert backend.http.get(f"/v1/attachments/{file['id']}").content == CHART


def until_in_the_middle(backend: Backend, size: int) -> None:
    """Until a part of a file that is being brought lies at the backend."""
    drafts = backend.database.with_name(f"{backend.database.name}.attachments") / "drafts"
    deadline = time.monotonic() + DEADLINE_S
    # No event tells of what another process has on its disk.
    while not any(0 < draft.stat().st_size < size for draft in drafts.glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_on_its_way_arrives_once_though_the_backend_is_killed_or_restarted(
    tmp_path: Path,
) -> None:
    folder, laptop = tmp_path / "project", tmp_path / "laptop"
    folder.mkdir()
    with running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host()
        agent_id = backend.create_agent(host_id, driver="scripted", cwd=str(folder))
        port = int(backend.url.rpartition(":")[2])
        with (
            running_proxy(("127.0.0.1", port)) as proxy,
            running_daemon(laptop, proxy.url, key),
        ):
            for end in ("killed", "restarted"):
                chart = b"GIF89a" + os.urandom(2_000_000)
                (folder / "chart.gif").write_bytes(chart)
                with proxy.toxic(Bandwidth(200_000), "up"):
                    sent = backend.send(agent_id, ORDERS)
                    until_in_the_middle(backend, len(chart))
                    backend.process.kill() if end == "killed" else backend.process.stop()
                backend.start_again()
                with backend.follow() as events:
                    rungs = backend.rungs(sent["id"])
                    if "replied" not in rungs:
                        assert events.delivery(sent["id"], "done")["outcome"] == "replied"
                [reply] = [
                    message
                    for message in backend.messages(sent["conversation_id"])
                    if message.get("in_reply_to") == sent["id"]
                ]
                [file] = reply["attachments"]
                assert reply["text"] == "as you asked"
                assert backend.http.get(f"/v1/attachments/{file['id']}").content == chart
