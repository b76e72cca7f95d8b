"""The two ways of sending a message, past the framework and through it, cannot be told apart."""

from pathlib import Path
from typing import Any

import pytest

from fakes.server import Backend, running_backend

#: The framework's own way is taken by all that is not quite plain.
EXPRESS, FRAMEWORK = "application/json", "application/json; charset=utf-8"
SENT_BEFORE = {"Idempotency-Key": "once"}


async def send(
    backend: Backend, content_type: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, Any, Any]:
    """Status, what the answer says but for what differs each time, and the header of a replay."""
    async with backend.client() as client:
        sent = {"Content-Type": content_type} | headers
        answer = await client.post(path, content=body, headers=sent)
    said = answer.json()
    told = {name: value for name, value in said.items() if name in {"code", "detail", "next"}}
    shape = told or [*sorted(said), answer.headers["content-type"]]
    return answer.status_code, shape, answer.headers.get("Idempotency-Replayed")


@pytest.mark.parametrize(
    ("to", "body", "headers", "status"),
    [
        ("agent", b'{"text": "fix it"}', {}, 201),
        ("conversation", b'{"text": "and that"}', {}, 201),
        ("agent", b'{"text": "fix it"}', SENT_BEFORE, 201),
        ("agent", b'{"text": "another"}', SENT_BEFORE, 422),
        ("agent", b'{"text": "fix it"}', {"Idempotency-Key": ""}, 422),
        ("agent", b'{"text": "fix it"}', {"Idempotency-Key": "x" * 256}, 422),
        ("agent", b'{"text": "fix it"}', {"Authorization": "Bearer nobody"}, 401),
        ("agent", b'{"text": "fix it"}', {"Authorization": "Bearer sk_machine_x"}, 403),
        ("agent", b'{"text": "fix it", "conversation_id": "conv_0"}', {}, 404),
        ("nobody", b'{"text": "fix it"}', {}, 404),
        ("agent", b'{"text": ""}', {}, 422),
        ("agent", b'{"text": "a", "txet": "b"}', {}, 422),
        ("agent", b'{"text": "\\ud800"}', {}, 422),
        ("agent", b"{", {}, 400),
    ],
)
async def test_both_ways_answer_alike(
    tmp_path: Path, to: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    async with running_backend(tmp_path) as backend:
        first = await backend.post("before")
        path = {
            "agent": f"/v1/agents/{backend.ana.agent.id}/messages",
            "conversation": f"/v1/conversations/{first.conversation_id}/messages",
            "nobody": "/v1/agents/agent_0/messages",
        }[to]
        if headers is SENT_BEFORE:
            await send(backend, FRAMEWORK, path, b'{"text": "fix it"}', headers)
        past = await send(backend, EXPRESS, path, body, headers)
        assert past == await send(backend, FRAMEWORK, path, body, headers)
        assert past[0] == status
