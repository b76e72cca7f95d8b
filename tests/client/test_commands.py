"""The `cloudagent` command as a process: what is on stdout, on stderr, and the exit code."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client import bodies
from client.bodies import begin_turn, end_turn, serve_agent
from client.server import Answer, Json, Server, page, problem
from cloudagent.cli import words
from e2e.forks import forked_bytes

CLOUDAGENT = str(Path(sys.executable).with_name("cloudagent"))


def environment(home: Path, server: Server | None, **extra: str) -> dict[str, str]:
    known = {"CLOUDAGENT_URL": server.url, "CLOUDAGENT_TOKEN": "cat_test"} if server else {}
    base = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONWARNINGS": "error"}
    return base | {"CLOUDAGENT_HOME": str(home), "TZ": "UTC"} | known | extra


def run(
    home: Path,
    server: Server | None,
    *args: str,
    stdin: bytes = b"",
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    home.mkdir(exist_ok=True)
    env = environment(home, server, **(env or {}))
    return forked_bytes([CLOUDAGENT, *args], env, Path.cwd(), stdin=stdin)


def three_lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The error of a command, which has three lines and nothing on stdout."""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 3, done.stderr.decode()
    heads = ("error: ", "  why:  ", "  next: ")
    assert [line.startswith(head) for line, head in zip(lines, heads, strict=True)] == [True] * 3
    assert done.stdout == b""
    return [line.removeprefix(head) for line, head in zip(lines, heads, strict=True)]


def said(text: str) -> Any:
    return lambda server: server.publish("message.created", bodies.reply(text))


def test_send_prints_the_id_of_the_stored_message(own_home: Path, server: Server) -> None:
    serve_agent(server)
    done = run(own_home, server, "send", "shop", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"msg_1\n", b"")


def test_send_json_prints_the_stored_message(own_home: Path, server: Server) -> None:
    serve_agent(server)
    done = run(own_home, server, "send", "shop", "hello", "--json")
    message = json.loads(done.stdout)
    assert (message["schema"], message["id"]) == ("cloudagent.message/1", "msg_1")
    assert message["deliveries"][0]["state"] == "queued"


def test_send_to_a_jobs_machine_waits_until_it_is_there(own_home: Path, server: Server) -> None:
    serve_agent(server)
    own = bodies.host("ci")
    gone = bodies.host("runner-7", "host_7", parent_id="host_1", state="offline")
    job = bodies.host("runner-7", "host_8", parent_id="host_1")
    server.on("GET", "/v1/host-machines", page(own, gone), page(own, gone, job))
    done = run(own_home, server, "send", "shop", "hello", "--host", "runner-7")
    assert (done.returncode, done.stdout) == (0, b"msg_1\n")
    [request] = server.sent("POST", "/v1/agents/agent_1/messages")
    assert request.body == {"text": "hello", "host_machine_id": "host_8"}


def test_send_to_one_of_two_jobs_on_a_machine_asks_for_the_id(
    own_home: Path, server: Server
) -> None:
    serve_agent(server)
    jobs = [bodies.host("runner-7", f"host_{n}", parent_id="host_1") for n in (7, 8)]
    server.on("GET", "/v1/host-machines", page(*jobs))
    what, why, _ = three_lines(run(own_home, server, "send", "shop", "x", "--host", "runner-7"))
    assert "2 jobs" in what
    assert why == "host_7, host_8"
    assert run(own_home, server, "send", "shop", "x", "--host", "host_8").returncode == 0


def test_send_reads_the_text_from_standard_input(own_home: Path, server: Server) -> None:
    serve_agent(server)
    run(own_home, server, "send", "shop", "-", stdin="zwei\nZeilen ü".encode())
    [request] = server.sent("POST", "/v1/agents/agent_1/messages")
    assert request.body["text"] == "zwei\nZeilen ü"


def test_send_wait_prints_nothing_but_the_last_reply(own_home: Path, server: Server) -> None:
    serve_agent(server, begin_turn, said("all done ✓"), end_turn)
    done = run(own_home, server, "send", "shop", "hello", "--wait")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "all done ✓\n", b"")


def test_send_wait_json_prints_the_agents_message_and_how_it_ended(
    own_home: Path, server: Server
) -> None:
    serve_agent(server, begin_turn, said("done"), end_turn)
    done = run(own_home, server, "send", "shop", "hello", "--wait", "--json")
    reply = json.loads(done.stdout)
    assert reply["schema"] == "cloudagent.reply/1"
    assert (reply["text"], reply["author"]["type"]) == ("done", "agent")
    assert (reply["outcome"], reply["sent"]) == ("replied", "msg_1")


def test_the_mode_of_a_message_is_the_servers_to_obey(own_home: Path, server: Server) -> None:
    serve_agent(server)
    path = "/v1/agents/agent_1/messages"
    assert run(own_home, server, "send", "shop", "stop", "--mode", "interrupt").returncode == 0
    assert run(own_home, server, "send", "shop", "go on").returncode == 0
    sent = [request.body for request in server.sent("POST", path)]
    assert sent == [{"text": "stop", "mode": "interrupt"}, {"text": "go on"}]
    assert run(own_home, server, "send", "shop", "x", "--mode", "loudly").returncode == 2


def test_a_message_may_want_a_model_and_a_permission_mode(own_home: Path, server: Server) -> None:
    serve_agent(server)
    path = "/v1/agents/agent_1/messages"
    wish = ("--model", "haiku", "--permission-mode", "plan")
    assert run(own_home, server, "send", "shop", "look", *wish).returncode == 0
    [sent] = [request.body for request in server.sent("POST", path)]
    assert sent == {"text": "look", "model": "haiku", "permission_mode": "plan"}


def test_a_message_is_tried_again_by_a_command(own_home: Path, server: Server) -> None:
    again = bodies.delivery("queued") | {"id": "dlv_2", "retry_of": "dlv_1"}
    over = bodies.delivery("failed", outcome="failed", reason="crashed")
    answer = {"message_id": "msg_1", "deliveries": [over, again]}
    server.on("POST", "/v1/messages/msg_1/retry", Answer(201, answer))
    done = run(own_home, server, "retry", "msg_1")
    assert (done.returncode, done.stdout) == (0, b"dlv_2\n")
    assert "cloudagent trace msg_1" in done.stderr.decode()


def test_a_message_that_a_limit_cut_off_goes_on_by_a_command(
    own_home: Path, server: Server
) -> None:
    until = "2126-11-27T14:05:00Z"
    again = bodies.delivery("queued", "stored", reason="rate_limit", waits_until=until)
    again |= {"id": "dlv_2", "retry_of": "dlv_1"}
    over = bodies.delivery("failed", outcome="failed", reason="rate_limit")
    trace = {"message_id": "msg_1", "deliveries": [over, again]}
    server.on("GET", "/v1/messages/msg_1/trace", Answer(200, trace))
    server.on("GET", "/v1/agents", Answer(200, {"data": [], "next_cursor": None}))
    said = run(own_home, server, "trace", "msg_1").stdout.decode()
    assert "rate limit, over 2126-11-27" in said
    assert "(cloudagent continue msg_1)" in said
    server.on("POST", "/v1/messages/msg_1/continue", Answer(200, trace))
    done = run(own_home, server, "continue", "msg_1")
    assert (done.returncode, done.stdout) == (0, b"dlv_2\n")
    assert "resumes 2126-11-27" in done.stderr.decode()


def test_a_silent_agent_is_no_failure(own_home: Path, server: Server) -> None:
    serve_agent(server, begin_turn, lambda s: end_turn(s, "silent", detail="nothing to add"))
    done = run(own_home, server, "send", "shop", "hello", "--wait")
    assert (done.returncode, done.stdout) == (0, b"")
    assert "nothing to add" in done.stderr.decode()


def test_a_failed_run_exits_1_and_says_why(own_home: Path, server: Server) -> None:
    failed = {"reason": "authentication", "detail": "log in with `claude /login`"}
    serve_agent(server, begin_turn, lambda s: end_turn(s, "failed", **failed))
    done = run(own_home, server, "send", "shop", "hello", "--wait")
    what, why, after = three_lines(done)
    assert done.returncode == 1
    assert "failed" in what
    assert why == "authentication: log in with `claude /login`"
    assert after == "cloudagent trace msg_1"


def test_the_timeout_of_send_is_kept(own_home: Path, server: Server) -> None:
    serve_agent(server, begin_turn)
    done = run(own_home, server, "send", "shop", "hello", "--timeout", "0.3")
    assert done.returncode == 1
    assert three_lines(done)[1] == "no answer within 0.3 s"


def test_ctrl_c_while_waiting_exits_130_and_says_that_the_message_goes_on(
    own_home: Path, server: Server
) -> None:
    own_home.mkdir()
    following = threading.Event()
    serve_agent(server, begin_turn)
    server.on_stream = lambda request: following.set() if "Last-Event-ID" in request.headers else 0
    process = subprocess.Popen(
        [CLOUDAGENT, "send", "shop", "hello", "--wait"],
        env=environment(own_home, server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert following.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert "cloudagent trace msg_1" in err.decode()
    assert "Traceback" not in err.decode()


def test_progress_is_shown_to_a_person_only(own_home: Path, server: Server) -> None:
    own_home.mkdir()
    serve_agent(server, begin_turn, said("done"), end_turn)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [CLOUDAGENT, "send", "shop", "hello", "--wait"],
        env=environment(own_home, server, NO_COLOR="1", TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    out, _ = process.communicate(timeout=60)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert out == b"done\n"
    assert "· on mbp" in shown
    assert "\x1b" not in shown


def test_an_unknown_agent_is_answered_in_three_lines(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent(), bodies.agent("docs", "agent_2")))
    done = run(own_home, server, "send", "shpo", "hello")
    assert done.returncode == 1
    assert three_lines(done) == [
        "there is no agent “shpo”",
        "there are: shop, docs",
        "cloudagent agents",
    ]


def test_what_a_name_holds_cannot_steer_the_terminal(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent("\x1b]0;owned\x07shop")))
    done = run(own_home, server, "send", "x", "hello")
    assert b"\x1b" not in done.stderr
    assert b"\x07" not in done.stderr


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(401, "unauthorized", "the token is not known"), 4),
        (problem(409, "conflict", "in the way"), 6),
        (problem(500, "internal", "broken"), 1),
        (Answer(200, b"<html>"), 5),
    ],
)
def test_exit_codes_follow_the_kind_of_error(
    own_home: Path, server: Server, answer: Answer, code: int
) -> None:
    server.on("GET", "/v1/agents", answer)
    done = run(own_home, server, "agents", "--json")
    assert done.returncode == code
    three_lines(done)


def test_an_unreachable_server_exits_5(own_home: Path) -> None:
    nowhere = {"CLOUDAGENT_URL": "http://127.0.0.1:9", "CLOUDAGENT_TOKEN": "cat_x"}
    done = run(own_home, None, "agents", env=nowhere)
    assert done.returncode == 5
    assert three_lines(done)[0] == "cannot reach http://127.0.0.1:9"


def test_without_a_server_it_exits_4_and_names_up(own_home: Path) -> None:
    done = run(own_home, None, "agents")
    assert done.returncode == 4
    assert three_lines(done)[2] == "cloudagent up"


def test_debug_shows_where_an_error_comes_from(own_home: Path) -> None:
    done = run(own_home, None, "--debug", "agents")
    assert b"Traceback" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["send", "shop"],
        ["nonsense"],
        ["send", "shop", " "],
        ["up", "--port", "99999"],
        ["up", "--runtime", "nonsense"],
    ],
)
def test_wrong_usage_exits_2(own_home: Path, server: Server, args: list[str]) -> None:
    serve_agent(server)
    assert run(own_home, server, *args).returncode == 2


def test_standard_input_that_is_no_text_exits_2(own_home: Path, server: Server) -> None:
    done = run(own_home, server, "send", "shop", "-", stdin=b"\xff\xfe\x00")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_the_saved_server_and_token_are_used(own_home: Path, server: Server) -> None:
    own_home.mkdir()
    saved = {"url": server.url, "token": "cat_saved"}
    (own_home / "client.json").write_text(json.dumps(saved), encoding="utf-8")
    server.on("GET", "/v1/agents", page(bodies.agent()))
    server.on("GET", "/v1/host-machines", page(bodies.host()))
    done = run(own_home, None, "agents")
    assert done.returncode == 0
    assert server.requests[0].headers["Authorization"] == "Bearer cat_saved"


def test_the_saved_token_goes_to_no_other_server(own_home: Path, server: Server) -> None:
    own_home.mkdir()
    saved = {"url": "https://agents.example.com", "token": "cat_saved"}
    (own_home / "client.json").write_text(json.dumps(saved), encoding="utf-8")
    done = run(own_home, None, "agents", env={"CLOUDAGENT_URL": server.url})
    assert done.returncode == 4
    assert not server.requests


def test_a_broken_client_file_is_named(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "client.json").write_text("{", encoding="utf-8")
    done = run(own_home, None, "agents")
    assert done.returncode == 78
    assert "client.json" in three_lines(done)[0]


def test_agents_are_a_table_or_an_object(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent(cwd="/src/shop")))
    server.on("GET", "/v1/host-machines", page(bodies.host()))
    head, row = run(own_home, server, "agents").stdout.decode().splitlines()
    assert head.split() == ["NAME", "STATUS", "DRIVER", "HOST", "FOLDER", "ID"]
    assert row.split() == ["shop", "idle", "claude_code", "mbp", "/src/shop", "agent_1"]
    shown = json.loads(run(own_home, server, "agents", "--json").stdout)
    assert shown["schema"] == "cloudagent.agents/1"
    assert shown["agents"][0]["name"] == "shop"


def test_hosts_are_a_table_or_an_object(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/host-machines", page(bodies.host(), bodies.host("nas", state="offline")))
    _, row, other = run(own_home, server, "hosts").stdout.decode().splitlines()
    assert row.split()[:3] == ["mbp", "online", "now"]
    assert "claude_code 2.1.137" in row
    assert other.split()[:3] == ["nas", "offline", "never"]
    shown = json.loads(run(own_home, server, "hosts", "--json").stdout)
    assert shown["hosts"][0]["runtimes"][0]["path"] == "/bin/claude"


def test_a_host_that_has_no_room_says_so(own_home: Path, server: Server) -> None:
    low = {"reason": "disk_low", "detail": "3 MB are free\x1b[2J"}
    server.on("GET", "/v1/host-machines", page(bodies.host(holds=[low])))
    done = run(own_home, server, "hosts")
    assert "! mbp: 3 MB are free\ufffd[2J" in done.stderr.decode()


def test_trace_tells_each_rung_in_words(own_home: Path, server: Server) -> None:
    rungs = [
        {"rung": "stored", "at": "2026-11-20T12:00:00Z", "actor": "backend"},
        {"rung": "received", "at": "2026-11-20T12:00:00.012Z", "actor": "mbp"},
        {"rung": "started", "at": "2026-11-20T12:00:03.012Z", "actor": "mbp", "detail": "pid 7"},
        {"rung": "newer_rung", "at": "2026-11-20T12:00:03.012Z", "actor": "mbp"},
        {"rung": "replied", "at": "2026-11-20T12:04:06.012Z", "actor": "shop"},
    ]
    delivery = bodies.delivery("done", outcome="replied") | {"rungs": rungs}
    trace = {"message_id": "msg_1", "deliveries": [delivery]}
    server.on("GET", "/v1/messages/msg_1/trace", Answer(body=trace))
    server.on("GET", "/v1/agents", page(bodies.agent()))
    assert run(own_home, server, "trace", "msg_1").stdout.decode().splitlines() == [
        "msg_1",
        "to shop: replied after 4 min 06 s",
        "  12:00:00                    stored by the server",
        "  12:00:00       12 ms later  on mbp",
        "  12:00:03       3.0 s later  agent started (pid 7)",
        "  12:00:03        0 ms later  newer_rung",
        "  12:04:06  4 min 03 s later  replied",
    ]
    shown = json.loads(run(own_home, server, "trace", "msg_1", "--json").stdout)
    assert shown["schema"] == "cloudagent.trace/1"
    assert shown["deliveries"][0]["rungs"][3]["rung"] == "newer_rung"


def test_trace_says_what_an_unfinished_message_waits_for(own_home: Path, server: Server) -> None:
    waiting = bodies.delivery("queued", "stored", reason="host_offline")
    trace = {"message_id": "msg_1", "deliveries": [waiting]}
    server.on("GET", "/v1/messages/msg_1/trace", Answer(body=trace))
    server.on("GET", "/v1/agents", page())
    last = run(own_home, server, "trace", "msg_1").stdout.decode().splitlines()[-1]
    assert "its machine is offline" in last


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"reason": "host_offline", "waits_on": "mbp", "waits_since": "2026-11-20T09:12:00Z"},
            "mbp is offline since 2026-11-20 09:12, will be delivered when it is back",
        ),
        (
            {"reason": "host_offline", "waits_on": "mbp"},
            "mbp has not connected yet, will be delivered when it does",
        ),
        (
            {"reason": "host_draining", "waits_on": "mbp", "waits_since": "2026-11-20T09:12:00Z"},
            "mbp is shutting down, will be delivered when it is back",
        ),
    ],
)
def test_trace_says_since_when_the_machine_of_a_queued_message_takes_nothing(
    own_home: Path, server: Server, fields: Json, said: str
) -> None:
    waiting = bodies.delivery("queued", "stored", **fields)
    trace = {"message_id": "msg_1", "deliveries": [waiting]}
    server.on("GET", "/v1/messages/msg_1/trace", Answer(body=trace))
    server.on("GET", "/v1/agents", page())
    last = run(own_home, server, "trace", "msg_1").stdout.decode().splitlines()[-1]
    assert said in last


def test_a_moment_is_told_by_its_time_today_and_with_its_date_otherwise() -> None:
    at = datetime(2026, 11, 20, 9, 12).astimezone()
    assert words.moment(at, at + timedelta(hours=3)) == "09:12"
    assert words.moment(at, at + timedelta(days=1)) == "2026-11-20 09:12"


def test_interrupt_stops_the_running_runs_of_the_agent_only(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent()))
    conversation = {"id": "conv_1", "agent_ids": ["agent_1"], "created_at": bodies.NOW}
    server.on("GET", "/v1/conversations", page(conversation))
    other = bodies.run() | {"id": "run_9", "agent_id": "agent_9"}
    over = bodies.run("finished", id="run_0")
    server.on("GET", "/v1/conversations/conv_1/runs", page(bodies.run(), other, over))
    server.on("POST", "/v1/runs/run_1/interrupt", Answer(202, bodies.run()))
    done = run(own_home, server, "interrupt", "shop")
    assert (done.returncode, done.stdout) == (0, b"run_1\n")
    assert [r.path for r in server.requests if r.method == "POST"] == ["/v1/runs/run_1/interrupt"]
    assert run(own_home, server, "interrupt", "shop", "--now").returncode == 0
    asked = [r.body for r in server.requests if r.method == "POST"]
    assert asked == [None, {"now": True}]
