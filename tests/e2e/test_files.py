"""Files both ways, by the real programs, through the death of the daemon at each step of its own."""

from pathlib import Path

import pytest

from e2e.harness import Backend, Json, running_backend, running_daemon

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
