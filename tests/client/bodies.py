"""Bodies as the server shows them."""

from typing import Any

from client.server import NOW, Answer, Json, Request, Server, page


def agent(name: str = "shop", agent_id: str = "agent_1", **fields: Any) -> Json:
    body: Json = {
        "id": agent_id,
        "name": name,
        "driver": "claude_code",
        "mode": "default",
        "runtime": "local_daemon",
        "host_machine_id": "host_1",
        "status": "idle",
        "created_at": NOW,
    }
    return body | fields


def host(name: str = "mbp", host_id: str = "host_1", **fields: Any) -> Json:
    body: Json = {
        "id": host_id,
        "name": name,
        "hostname": name,
        "os": "linux",
        "daemon_version": "0.3.0",
        "state": "online",
        "runtimes": [{"name": "claude_code", "version": "2.1.137", "path": "/bin/claude"}],
        "key_last_four": "abcd",
        "created_at": NOW,
    }
    return body | fields


def message(text: str, message_id: str = "msg_1", **fields: Any) -> Json:
    body: Json = {
        "id": message_id,
        "conversation_id": "conv_1",
        "author": {"type": "user", "id": "usr_1", "name": "ana"},
        "text": text,
        "created_at": NOW,
        "deliveries": [{"id": "dlv_1", "agent_id": "agent_1", "seq": 1, "state": "queued"}],
    }
    return body | fields


def reply(text: str, message_id: str = "msg_2") -> Json:
    author = {"type": "agent", "id": "agent_1", "name": "shop"}
    fields = {"author": author, "deliveries": [], "in_reply_to": "msg_1", "run_id": "run_1"}
    return message(text, message_id, **fields)


def delivery(state: str, *rungs: str, **fields: Any) -> Json:
    body: Json = {
        "id": "dlv_1",
        "message_id": "msg_1",
        "conversation_id": "conv_1",
        "agent_id": "agent_1",
        "state": state,
        "rungs": [{"rung": rung, "at": NOW, "actor": "mbp"} for rung in rungs],
    }
    return body | fields


def run(state: str = "running", **fields: Any) -> Json:
    body: Json = {
        "id": "run_1",
        "agent_id": "agent_1",
        "conversation_id": "conv_1",
        "delivery_ids": ["dlv_1"],
        "driver": "claude_code",
        "state": state,
        "started_at": NOW,
    }
    return body | fields


def run_event(seq: int, kind: str, **fields: Any) -> Json:
    event = {"seq": seq, "type": kind, "at": NOW, **fields}
    ids = {"run_id": "run_1", "conversation_id": "conv_1", "agent_id": "agent_1"}
    return ids | {"event": event}


STARTED = {"driver": "claude_code", "launch_id": "l", "pid": 7}
USAGE = {"input_tokens": 11, "output_tokens": 7, "cost_usd": 0.5}


def begin_turn(server: Server) -> None:
    """What the log says up to the run's start."""
    server.publish("delivery.updated", delivery("queued", "stored"))
    server.publish("run.started", run())
    running = delivery("running", "stored", "sent", "received", "started", run_id="run_1")
    server.publish("delivery.updated", running)
    server.publish("run.event", run_event(1, "started", **STARTED))


def end_turn(server: Server, outcome: str = "replied", **fields: Any) -> None:
    """The finished run and its delivery, as the server's last transaction of a turn."""
    finished = run_event(9, "finished", outcome=outcome, **fields)
    server.publish("run.event", finished)
    state = "failed" if outcome == "failed" else "done"
    ended = run("finished", ended_at=NOW, outcome=outcome, usage=USAGE)
    server.publish("run.finished", ended)
    rungs = ("stored", "sent", "received", "started", outcome)
    reason = fields.get("reason")
    over = delivery(state, *rungs, run_id="run_1", outcome=outcome, reason=reason)
    server.publish("delivery.updated", over)


def serve_agent(server: Server, *turn: Any) -> None:
    """An agent “shop”; each message to it plays the given steps on the log."""

    def created(request: Request) -> Answer:
        server.publish("message.created", message(request.body["text"]))
        for step in turn:
            step(server)
        return Answer(201, message(request.body["text"]))

    server.on("GET", "/v1/agents", page(agent()))
    server.on("POST", "/v1/agents/agent_1/messages", created)
