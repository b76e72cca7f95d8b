"""One request until it is answered: pages, retries, errors. Both clients keep every sentence."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

import cloudagent
from client import bodies
from client.server import DROP, Answer, Server, page, problem
from cloudagent import exchange
from cloudagent_protocol.resources import AgentMessageCreate, HostMachineCreate

HELLO = AgentMessageCreate(text="hello")
POST = ("POST", "/v1/agents/agent_1/messages")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter may well be nothing; here it always is."""
    monkeypatch.setattr(exchange, "jitter", lambda attempt, base_s=0.5, cap_s=8.0: 0.0)


def test_lists_fetch_the_next_page_with_the_cursor_of_the_one_before(
    ca: Any, server: Server
) -> None:
    server.on(
        "GET",
        "/v1/agents",
        page(bodies.agent("a", "agent_a"), next_cursor="c 1"),
        page(bodies.agent("b", "agent_b")),
    )
    assert [agent.name for agent in ca.agents.list()] == ["a", "b"]
    first, second = server.sent("GET", "/v1/agents")
    assert first.query == "limit=100"
    assert second.query in {"limit=100&after=c+1", "limit=100&after=c%201"}


def test_only_the_connected_machine_of_a_job_is_found_by_its_name(ca: Any, server: Server) -> None:
    own, gone = bodies.host("mbp"), bodies.host("ci", "host_2", parent_id="host_1", state="offline")
    here = bodies.host("ci", "host_3", parent_id="host_1")
    server.on("GET", "/v1/host-machines", page(own, gone, here))
    assert ca.hosts.job("ci").id == "host_3"
    assert ca.hosts.job("host_3").name == "ci"
    assert ca.hosts.job("host_2") is None
    assert ca.hosts.job("mbp") is None


def test_the_token_goes_with_each_request_and_shows_nowhere_else(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/host-machines/host_1", Answer(body=bodies.host()))
    assert ca.hosts.get("host_1").state == "online"
    assert server.requests[0].headers["Authorization"] == "Bearer cat_test"
    assert "cat_test" not in repr(ca.settings)


def test_a_post_that_got_no_answer_is_sent_again_with_the_same_key(ca: Any, server: Server) -> None:
    server.on(*POST, DROP, Answer(503), Answer(201, bodies.message("hello")))
    assert ca.messages.create("agent_1", HELLO).id == "msg_1"
    assert ca.messages.create("agent_1", HELLO).id == "msg_1"
    keys = [request.headers["Idempotency-Key"] for request in server.sent(*POST)]
    assert len(keys) == 4
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]


def test_the_callers_own_idempotency_key_is_used(ca: Any, server: Server) -> None:
    server.on(*POST, Answer(201, bodies.message("hello")))
    ca.messages.create("agent_1", HELLO, idempotency_key="mine")
    assert server.requests[0].headers["Idempotency-Key"] == "mine"


def test_only_fields_that_were_set_travel(ca: Any, server: Server) -> None:
    answer = bodies.host() | {"raw_key": "sk_machine_x"}
    server.on("POST", "/v1/host-machines", Answer(201, answer))
    ca.hosts.create(HostMachineCreate(name="mbp"))
    assert server.requests[0].body == {"name": "mbp"}


def test_a_queued_message_is_changed_and_moved(ca: Any, server: Server) -> None:
    server.on("PATCH", "/v1/messages/msg_1", Answer(200, bodies.message("better")))
    server.on("POST", "/v1/messages/msg_1/move", Answer(200, bodies.message("better")))
    assert ca.messages.edit("msg_1", "better").text == "better"
    ca.messages.move("msg_1", before="msg_2")
    ca.messages.move("msg_1")
    assert [sent.body for sent in server.sent("PATCH", "/v1/messages/msg_1")] == [
        {"text": "better"}
    ]
    moves = server.sent("POST", "/v1/messages/msg_1/move")
    assert [sent.body for sent in moves] == [{"before": "msg_2"}, {"before": None}]
    server.on("PATCH", "/v1/messages/msg_1", problem(409, "conflict", "it was sent already"))
    with pytest.raises(cloudagent.ConflictError):
        ca.messages.edit("msg_1", "too late")


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for(ca: Any, server: Server, as_date: bool) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    wanted = format_datetime(at, usegmt=True) if as_date else "1"
    busy = problem(429, "rate_limited", "slow down", Retry_After=wanted)
    server.on(*POST, busy, Answer(201, bodies.message("hello")))
    begun = time.monotonic()
    ca.messages.create("agent_1", HELLO)
    assert 0.9 <= time.monotonic() - begun < 5


def test_a_long_retry_after_is_told_instead_of_waited_for(ca: Any, server: Server) -> None:
    server.on(*POST, problem(429, "backlog_full", "the backlog is full", Retry_After="3600"))
    with pytest.raises(cloudagent.RateLimitedError) as caught:
        ca.messages.create("agent_1", HELLO)
    assert caught.value.retry_after_s == 3600
    assert len(server.requests) == 1


def test_a_conflict_with_its_own_first_try_is_waited_for(ca: Any, server: Server) -> None:
    running = problem(409, "conflict", "the first request still runs", Retry_After="0")
    server.on(*POST, running, Answer(201, bodies.message("hello")))
    assert ca.messages.create("agent_1", HELLO).id == "msg_1"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", cloudagent.InvalidRequestError),
        (401, "unauthorized", cloudagent.AuthenticationError),
        (403, "forbidden", cloudagent.PermissionDeniedError),
        (404, "not_found", cloudagent.NotFoundError),
        (409, "conflict", cloudagent.ConflictError),
        (413, "too_large", cloudagent.InvalidRequestError),
        (422, "idempotency_mismatch", cloudagent.InvalidRequestError),
        (418, "newer_than_us", cloudagent.APIError),
    ],
)
def test_a_refusal_becomes_its_own_error_at_once(
    ca: Any, server: Server, status: int, code: str, kind: type[cloudagent.APIError]
) -> None:
    server.on(*POST, problem(status, code, "no", next_step="do this"))
    with pytest.raises(cloudagent.APIError) as caught:
        ca.messages.create("agent_1", HELLO)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, code)
    assert (str(caught.value), caught.value.next_step) == ("no", "do this")
    assert len(server.requests) == 1


def test_a_failing_server_is_tried_max_retries_times_more(
    connect: Callable[..., Any], server: Server
) -> None:
    server.on("GET", "/v1/me", problem(500, "internal", "broken"))
    with pytest.raises(cloudagent.ServerError):
        connect(max_retries=2).me()
    assert len(server.requests) == 3


def test_an_unreachable_server_is_a_connection_that_failed(connect: Callable[..., Any]) -> None:
    client = connect(max_retries=1, timeout_s=5)
    client.settings.__dict__["url"] = "http://127.0.0.1:9"  # frozen, but shared with the transport
    with pytest.raises(cloudagent.ConnectionFailedError) as caught:
        client.me()
    assert "127.0.0.1:9" in str(caught.value)
    assert caught.value.why.startswith("ConnectError")


def test_an_error_page_of_a_proxy_still_becomes_a_typed_error(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/me", Answer(404, b"<html>not here</html>", {"Content-Type": "text/html"}))
    with pytest.raises(cloudagent.NotFoundError) as caught:
        ca.me()
    assert caught.value.code == "unknown"


@pytest.mark.parametrize("body", [b"<html>hi</html>", b'{"id": 1}', b"", b"\xff\xfe"])
def test_an_answer_of_another_program_is_called_so(ca: Any, server: Server, body: bytes) -> None:
    server.on("GET", "/v1/me", Answer(200, body))
    with pytest.raises(cloudagent.UnexpectedAnswerError):
        ca.me()


def test_a_redirect_is_not_followed_with_the_token(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/me", Answer(302, b"", {"Location": "http://127.0.0.1:9/"}))
    with pytest.raises(cloudagent.UnexpectedAnswerError):
        ca.me()


@pytest.mark.parametrize("odd", ["../tokens", "a/b", "..", "a?b#c", "", "ü"])
def test_an_odd_id_stays_one_part_of_the_path(ca: Any, server: Server, odd: str) -> None:
    with pytest.raises(cloudagent.NotFoundError):
        ca.messages.trace(odd)
    [request] = server.requests
    assert request.path.startswith("/v1/messages/")
    assert request.path.endswith("/trace")
    assert request.path.count("/") == 4
    assert request.query == ""


def test_agents_are_found_by_name_or_id(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent(), bodies.agent("docs", "agent_2")))
    assert ca.agents.get("docs").id == "agent_2"
    assert ca.agents.get("agent_1").name == "shop"
    assert ca.agents.get("Shop").id == "agent_1"


def test_an_unknown_agent_is_answered_with_those_that_exist(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent(), bodies.agent("docs", "agent_2")))
    with pytest.raises(cloudagent.NotFoundError) as caught:
        ca.agents.get("shpo")
    assert "shpo" in str(caught.value)
    assert caught.value.why == "there are: shop, docs"


def test_an_ambiguous_name_is_answered_with_the_ids(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent(), bodies.agent("shop", "agent_2")))
    with pytest.raises(cloudagent.AmbiguousNameError) as caught:
        ca.agents.get("shop")
    assert "agent_1" in caught.value.why
    assert "agent_2" in caught.value.why
