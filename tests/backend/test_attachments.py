"""Files of people and of machines: taken in, kept once, given to whom they are meant for, forgotten."""

import errno
import json
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.delivery import sending
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store import blobs, clock
from cloudagent_backend.store.attachments import Brought
from cloudagent_backend.store.blobs import Draft
from cloudagent_protocol.frames import Deliver, decode
from cloudagent_protocol.ids import new_attachment_id
from fakes.desk import Run
from fakes.server import Backend, Person, running_backend

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
OLD = 86_401 * 1_000_000


async def upload(client: httpx2.AsyncClient, body: bytes = PNG, name: str = "shot.png") -> Any:
    answer = await client.post("/v1/attachments", params={"name": name}, content=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def send(
    backend: Backend, client: httpx2.AsyncClient, *ids: str, text: str = "look"
) -> httpx2.Response:
    path = f"/v1/agents/{backend.ana.agent.id}/messages"
    return await client.post(path, json={"text": text, "attachments": list(ids)})


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.glob("backend.db.attachments/??/*") if path.is_file())


def as_machine(backend: Backend, person: Person | None = None) -> httpx2.AsyncClient:
    key = (person or backend.ana).host.raw_key
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=backend.url, headers=headers, timeout=10)


async def test_a_picture_goes_up_with_a_message_and_comes_back_as_it_was(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = await upload(client)
        assert (made["name"], made["media_type"], made["size_bytes"]) == (
            "shot.png",
            "image/png",
            len(PNG),
        )
        sent = await send(backend, client, made["id"], text="")
        assert sent.status_code == 201, sent.text
        assert sent.json()["attachments"] == [made]
        path = f"/v1/conversations/{sent.json()['conversation_id']}/messages"
        [shown] = (await client.get(path)).json()["data"]
        assert shown["attachments"] == [made]
        got = await client.get(f"/v1/attachments/{made['id']}")
        assert got.content == PNG
        assert got.headers["content-type"] == "image/png"
        assert got.headers["content-disposition"].startswith("inline;")
        again = await client.get(
            f"/v1/attachments/{made['id']}", headers={"If-None-Match": got.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
        part = await client.get(f"/v1/attachments/{made['id']}", headers={"Range": "bytes=8-11"})
        assert (part.status_code, part.content) == (206, PNG[8:12])
        [only] = files(tmp_path)
        assert only.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("body", "name", "media_type"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "x.svg", "text/plain"),
        (b"<!doctype html><script>alert(1)</script>", "x.html", "text/plain"),
        (b"%PDF-1.7 /JS", "x.pdf", "application/pdf"),
        (b"\x00\x01GIF89a", "x.gif", "application/octet-stream"),
    ],
)
async def test_what_could_be_a_program_is_only_ever_saved(
    tmp_path: Path, body: bytes, name: str, media_type: str
) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = await upload(client, body, name)
        got = await client.get(f"/v1/attachments/{made['id']}")
        assert got.headers["content-type"].partition(";")[0] == media_type
        assert got.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in got.headers["content-security-policy"]
        assert "script-src" not in got.headers["content-security-policy"]


async def test_a_file_goes_with_one_message_of_its_owner(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        ben = await backend.person("ben")
        async with backend.client(ben) as bens:
            theirs = await upload(bens)
        mine = await upload(client)
        assert (await send(backend, client, theirs["id"])).status_code == 404
        assert (await send(backend, client, mine["id"], "att_none")).status_code == 404
        # What was refused was not half done.
        assert (await send(backend, client, mine["id"], mine["id"])).status_code == 201
        assert (await send(backend, client, mine["id"])).status_code == 409
        unsent = await upload(client)
        assert (await client.delete(f"/v1/attachments/{unsent['id']}")).status_code == 204
        assert (await client.get(f"/v1/attachments/{unsent['id']}")).status_code == 404
        listed = await client.get("/v1/conversations")
        assert len(listed.json()["data"]) == 1  # nothing was begun by what was refused


async def test_an_address_is_no_file(tmp_path: Path) -> None:
    corpus = Path(__file__).parents[1] / "daemon" / "addresses.jsonl"
    async with running_backend(tmp_path) as backend, backend.client() as client:
        for row in map(json.loads, corpus.read_text().splitlines()):
            answer = await send(backend, client, row["url"])
            assert answer.status_code in (404, 422), row
        listed = await client.get("/v1/conversations")
        assert listed.json()["data"] == []


async def test_a_file_is_refused_where_it_is_too_large_empty_or_too_much(tmp_path: Path) -> None:
    async def chunks(size: int) -> AsyncGenerator[bytes]:
        for _ in range(size // 100):
            yield b"x" * 100

    limits = {"attachment_bytes": 1_000, "attachments_of_user_bytes": 1_500}
    async with running_backend(tmp_path, **limits) as backend, backend.client() as client:
        for body, code, status in (
            (b"x" * 1_001, "too_large", 413),
            (chunks(2_000), "too_large", 413),
            (b"", "invalid", 422),
        ):
            answer = await client.post("/v1/attachments", content=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        await upload(client, b"x" * 1_000)
        answer = await client.post("/v1/attachments", content=b"y" * 501)
        assert (answer.status_code, answer.json()["code"]) == (413, "storage_full")
        assert "1.5 kB are allowed" in answer.json()["detail"]
        await upload(client, b"y" * 500)
        full = await client.post("/v1/attachments", content=b"z")
        assert full.json()["code"] == "storage_full"
        assert len(files(tmp_path)) == 2
        assert not list((tmp_path / "backend.db.attachments" / "drafts").iterdir())


async def test_an_upload_that_stops_is_cut_and_leaves_nothing(tmp_path: Path) -> None:
    async with running_backend(tmp_path, upload_silence_s=0.2) as backend:
        port = int(backend.url.rpartition(":")[2])
        head = f"POST /v1/attachments HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {backend.ana.token}"
        async with await anyio.connect_tcp("127.0.0.1", port) as wire:
            await wire.send(f"{head}\r\nContent-Length: 100\r\n\r\nonly a part".encode())
            said = b""
            with anyio.fail_after(10), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    said += await wire.receive()
        assert b" 400 " in said.split(b"\r\n")[0]
        assert b"did not arrive" in said
        assert files(tmp_path) == []
        assert not list((tmp_path / "backend.db.attachments" / "drafts").iterdir())


async def test_a_disk_that_is_full_keeps_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with running_backend(tmp_path) as backend, backend.client() as client:
        monkeypatch.setattr(Draft, "write", full)
        answer = await client.post("/v1/attachments", content=b"x")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        monkeypatch.undo()
        await upload(client)


async def test_only_so_many_uploads_of_one_person_go_on_at_once(tmp_path: Path) -> None:
    go_on = anyio.Event()
    first: list[int] = []

    async def slow() -> AsyncGenerator[bytes]:
        yield b"x"
        await go_on.wait()

    async with running_backend(tmp_path, uploads_at_once=1) as backend:
        async with backend.client() as client, anyio.create_task_group() as tasks:

            async def begin() -> None:
                answer = await client.post("/v1/attachments", content=slow())
                first.append(answer.status_code)

            tasks.start_soon(begin)
            with anyio.fail_after(10):
                while not list(tmp_path.glob("*.attachments/drafts/*")):
                    await anyio.lowlevel.checkpoint()
            second = await client.post("/v1/attachments", content=b"y")
            assert second.status_code == 429
            go_on.set()
        assert first == [201]


async def test_an_upload_sent_again_under_its_key_is_one_file(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        key = {"Idempotency-Key": "k1"}
        first = await client.post("/v1/attachments", content=PNG, headers=key)
        again = await client.post("/v1/attachments", content=PNG, headers=key)
        other = await client.post("/v1/attachments", content=b"other", headers=key)
        assert first.json() == again.json()
        assert again.headers["idempotency-replayed"] == "true"
        assert other.json()["code"] == "idempotency_mismatch"


async def test_the_same_bytes_lie_on_the_disk_once(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        first, second = await upload(client), await upload(client, name="copy.png")
        assert first["id"] != second["id"]
        assert len(files(tmp_path)) == 1
        await client.delete(f"/v1/attachments/{first['id']}")
        await _age(backend, tmp_path)
        await backend.world.intake.tidy()
        assert (await client.get(f"/v1/attachments/{second['id']}")).status_code == 404
        assert files(tmp_path) == []


async def test_a_file_that_was_sent_is_removed_and_its_message_says_so(tmp_path: Path) -> None:
    limits = {"attachments_of_user_bytes": len(PNG) + 10}
    async with running_backend(tmp_path, **limits) as backend, backend.client() as client:
        made, note = await upload(client), await upload(client, b"stays", "a.txt")
        path = f"/v1/attachments/{made['id']}"
        sent = (await send(backend, client, made["id"], note["id"])).json()
        full = await client.post("/v1/attachments", content=PNG)
        assert full.json()["code"] == "storage_full"
        ben = await backend.person("ben")
        async with backend.client(ben) as bens:
            assert (await bens.delete(path)).status_code == 404
        assert len(files(tmp_path)) == 2
        assert (await client.delete(path)).status_code == 204
        assert [one.read_bytes() for one in files(tmp_path)] == [b"stays"]
        gone = await client.get(path)
        assert (gone.status_code, gone.json()["code"]) == (410, "gone")
        shown = (await client.get(f"/v1/messages/{sent['id']}")).json()["attachments"]
        assert [one["removed_at"] is not None for one in shown] == [True, False]
        assert shown[0]["name"] == "shot.png"
        assert (await client.delete(path)).status_code == 204
        again = (await client.get(f"/v1/messages/{sent['id']}")).json()["attachments"]
        assert again == shown, "once is enough"
        events = await backend.world.database.read(
            lambda c: c.execute("SELECT type FROM events ORDER BY id DESC LIMIT 1").fetchone()
        )
        assert events[0] == "message.updated"
        await upload(client)  # there is room again


async def test_bytes_that_another_file_has_as_well_stay_for_that_one(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        first, second = await upload(client), await upload(client, name="copy.png")
        await send(backend, client, first["id"])
        await client.delete(f"/v1/attachments/{first['id']}")
        assert (await client.get(f"/v1/attachments/{second['id']}")).content == PNG
        # One that is just coming, and has not got its row yet, is told to come again.
        draft = backend.world.intake.blobs.draft()
        draft.write(b"the same")
        content = draft.keep()
        await backend.world.intake.forget(content.sha256)
        brought = Brought(new_attachment_id(), backend.ana.user_id, "x")
        with pytest.raises(ApiError, match="it was not kept"):
            await backend.world.database.write(
                lambda c: backend.world.intake.insert(c, brought, content)
            )


async def test_a_machine_is_told_of_what_was_removed_before_it_came_and_before_it_was_fetched(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        early, late = await upload(client), await upload(client, b"second", "b.txt")
        await send(backend, client, early["id"], late["id"])
        await client.delete(f"/v1/attachments/{early['id']}")
        host_id = backend.ana.host.id
        await backend.world.database.write(lambda c: sending.lease(c, ReadyHost(host_id), 32))
        rows = await backend.world.database.read(
            lambda c: c.execute("SELECT frame FROM outbox WHERE type = 'deliver'").fetchall()
        )
        [frame] = [decode(row[0]) for row in rows]
        assert isinstance(frame, Deliver)
        removed = [one.removed_at is not None for one in frame.message.attachments or ()]
        assert removed == [True, False]
        await client.delete(f"/v1/attachments/{late['id']}")
        async with as_machine(backend) as machine:
            answer = await machine.get(f"/v1/daemon/attachments/{late['id']}")
        assert (answer.status_code, answer.json()["code"]) == (410, "gone")


async def _age(backend: Backend, tmp_path: Path) -> None:
    """Two days pass for all that was uploaded so far."""
    old = clock.now_us() - 2 * OLD
    await backend.world.database.write(
        lambda c: c.execute("UPDATE attachments SET created_us = ?", (old,))
    )
    for path in files(tmp_path):
        os.utime(path, (old / 1e6, old / 1e6))


async def test_what_was_never_sent_is_removed_and_what_was_sent_stays(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        sent, unsent = await upload(client), await upload(client, b"never mind", "x.txt")
        await send(backend, client, sent["id"])
        async with as_machine(backend) as machine:
            brought = new_attachment_id()
            params = {"agent_id": backend.ana.agent.id, "name": "late.png"}
            path = f"/v1/daemon/attachments/{brought}"
            assert (await machine.put(path, params=params, content=PNG)).status_code == 200
        await _age(backend, tmp_path)
        (tmp_path / "backend.db.attachments" / "drafts" / "cut off").write_bytes(b"half")
        await backend.world.intake.tidy()
        # Its machine may be away, and bring the message when it is back.
        assert (await client.get(f"/v1/attachments/{brought}")).status_code == 200
        assert (await client.get(f"/v1/attachments/{unsent['id']}")).status_code == 404
        assert (await client.get(f"/v1/attachments/{sent['id']}")).content == PNG
        assert len(files(tmp_path)) == 1


async def test_content_that_came_a_moment_ago_is_not_taken_for_garbage(tmp_path: Path) -> None:
    store = blobs.Blobs(tmp_path / "x.attachments")
    draft = store.draft()
    draft.write(b"its row is being written")
    content = draft.keep()
    store.remove([content.sha256])
    assert store.place_of(content.sha256).exists()
    os.utime(store.place_of(content.sha256), (0, 0))
    # The same content is brought again: its time begins anew.
    draft = store.draft()
    draft.write(b"its row is being written")
    store_again = draft.keep()
    store.remove([store_again.sha256])
    assert store.digests() == [content.sha256]


async def test_bytes_that_are_gone_from_the_disk_are_told_as_such(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = await upload(client)
        [path] = files(tmp_path)
        path.write_bytes(b"cut short")
        answer = await client.get(f"/v1/attachments/{made['id']}")
        assert answer.status_code == 404
        assert "not on the backend's disk" in answer.json()["detail"]


# --- machines -----------------------------------------------------------------------------


async def test_a_machine_gets_the_files_of_its_own_deliveries_only(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        ben = await backend.person("ben")
        made, kept = await upload(client), await upload(client, b"not sent")
        await send(backend, client, made["id"])
        host_id = backend.ana.host.id
        await backend.world.database.write(lambda c: sending.lease(c, ReadyHost(host_id), 32))
        rows = await backend.world.database.read(
            lambda c: c.execute("SELECT frame FROM outbox WHERE type = 'deliver'").fetchall()
        )
        [frame] = [decode(row[0]) for row in rows]
        assert isinstance(frame, Deliver)
        assert [one.model_dump() for one in frame.message.attachments or ()] == [made]
        async with as_machine(backend) as machine, as_machine(backend, ben) as bens:
            got = await machine.get(f"/v1/daemon/attachments/{made['id']}")
            assert got.content == PNG
            assert (await machine.get(f"/v1/daemon/attachments/{kept['id']}")).status_code == 404
            assert (await bens.get(f"/v1/daemon/attachments/{made['id']}")).status_code == 404


async def test_a_machine_brings_a_file_before_the_message_that_has_it(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        attachment_id = new_attachment_id()
        path = f"/v1/daemon/attachments/{attachment_id}"
        params = {"agent_id": backend.ana.agent.id, "name": "result.png"}
        ben = await backend.person("ben")
        async with as_machine(backend) as machine, as_machine(backend, ben) as bens:
            assert (await bens.put(path, params=params, content=PNG)).status_code == 404
            brought = await machine.put(path, params=params, content=PNG)
            assert brought.status_code == 200, brought.text
            assert (await machine.put(path, params=params, content=PNG)).json() == brought.json()
            assert (await machine.put(path, params=params, content=b"x")).status_code == 409
            bad = await machine.put("/v1/daemon/attachments/x", params=params, content=PNG)
            assert bad.status_code == 422
        message = await backend.post("draw it")
        run = Run(message)
        files = [brought.json(), brought.json() | {"id": new_attachment_id(), "name": "lost.png"}]
        reply = run.send("here", attachments=files)
        await _report(backend, run.started(), reply)
        got = (await client.get(f"/v1/messages/{reply.message_id}")).json()
        assert [one["id"] for one in got["attachments"]] == [attachment_id]
        assert got["text"] == "here\n\n[lost.png did not arrive here.]"
        assert (await client.get(f"/v1/attachments/{attachment_id}")).content == PNG
        # Nobody else's message can have it.
        assert (await send(backend, client, attachment_id)).status_code == 409
        thief = run.send("mine", attachments=[brought.json()])
        await _report(backend, thief)
        stolen = (await client.get(f"/v1/messages/{thief.message_id}")).json()
        assert stolen["attachments"] == []
        # Its owner removes it; that its machine brings it once more does not undo that.
        assert (await client.delete(f"/v1/attachments/{attachment_id}")).status_code == 204
        async with as_machine(backend) as machine:
            assert (await machine.put(path, params=params, content=PNG)).status_code == 200
        assert (await client.get(f"/v1/attachments/{attachment_id}")).status_code == 410
        unsent = new_attachment_id()
        async with as_machine(backend) as machine:
            await machine.put(f"/v1/daemon/attachments/{unsent}", params=params, content=PNG)
        early = await client.delete(f"/v1/attachments/{unsent}")
        assert (early.status_code, early.json()["code"]) == (409, "conflict")


async def _report(backend: Backend, *frames: Any) -> None:
    host = backend.ana.host
    machine = Machine(host.id, backend.ana.user_id, host.name)
    known = await backend.world.database.read(
        lambda c: c.execute("SELECT accepted FROM links").fetchone()
    )
    for seq, frame in enumerate(frames, (known[0] if known else 0) + 1):
        frame.seq = seq
    applied = await backend.world.service.apply(machine, list(frames))
    assert applied.error is None
