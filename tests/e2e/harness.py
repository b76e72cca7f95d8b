"""Real backend and daemon processes for end-to-end tests, on loopback, each with a home of its own.

Everything is an installed command in a process of its own, and ended by pid. Nothing here sleeps:
a test waits for an event of the backend's log, or for a line of a process's output.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import httpx2
from websockets.sync.client import ClientConnection, connect

from e2e.forks import forked, forked_run

BIN = Path(sys.executable).parent
DEADLINE_S = 30.0
Json = dict[str, Any]


class Started(Protocol):
    """A child of its own session, with its standard output and error in one stream."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> IO[str] | None: ...
    @property
    def stdout(self) -> IO[str] | None: ...
    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


#: Starts argv with an environment in a folder: as a person does, or as forks.py does (the default
#: here: of the seconds that a start takes, most are imports).
Start: TypeAlias = Callable[[list[str], dict[str, str], Path], Started]


def executed(argv: list[str], env: dict[str, str], cwd: Path) -> Started:
    """Starts a command as a person does."""
    return subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


class Process:
    """A child whose output is read line by line; ended by pid when the test is over."""

    def __init__(
        self,
        argv: list[str],
        *,
        env: dict[str, str],
        cwd: Path,
        stdin: str = "",
        start: Start = executed,
    ) -> None:
        self.lines: list[str] = []
        self._incoming: queue.Queue[str | None] = queue.Queue()
        self.popen = start(argv, env, cwd)
        assert self.popen.stdin
        self.popen.stdin.write(stdin)
        self.popen.stdin.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout:
            for line in self.popen.stdout:
                self._incoming.put(line.rstrip("\n"))
        self._incoming.put(None)

    def wait_for_line(self, wanted: str, deadline_s: float = DEADLINE_S) -> str:
        """The first line that contains `wanted`, from here on."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                line = self._incoming.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"no {wanted!r} within {deadline_s} s in\n{self.output}"
                ) from None
            if line is None:
                raise AssertionError(
                    f"exited {self.popen.wait()} before {wanted!r}:\n{self.output}"
                )
            self.lines.append(line)
            if wanted in line:
                return line

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        return self.popen.wait(deadline_s)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that is not heard."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                raise AssertionError(f"ignored SIGTERM:\n{self.output}") from None
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        self.popen.kill()
        self.popen.wait()


class Follower:
    """A person's event log over the WebSocket, read from where it was opened."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.seen: list[Json] = []
        self.until(lambda event: event["type"] in {"ping", "resync"})

    def until(self, wanted: Callable[[Json], bool], deadline_s: float = DEADLINE_S) -> Json:
        """The next event that is wanted; earlier ones are kept in `seen`."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                event = json.loads(self._socket.recv(timeout=max(0.01, end - time.monotonic())))
            except TimeoutError:
                types = [(e["type"], e["data"].get("state")) for e in self.seen[-30:]]
                raise AssertionError(f"not within {deadline_s} s; last seen: {types}") from None
            self.seen.append(event)
            if wanted(event):
                return event

    def reply(self, conversation_id: str, deadline_s: float = DEADLINE_S) -> Json:
        """The next message of an agent in this conversation."""
        return self.until(
            lambda event: (
                event["type"] == "message.created"
                and event["data"]["conversation_id"] == conversation_id
                and event["data"]["author"]["type"] == "agent"
            ),
            deadline_s,
        )["data"]

    def delivery(self, message_id: str, *states: str, deadline_s: float = DEADLINE_S) -> Json:
        """The trace of the message's delivery once it is in one of these states."""
        return self.until(
            lambda event: (
                event["type"] == "delivery.updated"
                and event["data"]["message_id"] == message_id
                and event["data"]["state"] in states
            ),
            deadline_s,
        )["data"]


@dataclass
class Backend:
    """A running backend with one user, and what a person would do with it."""

    process: Process
    url: str
    database: Path
    home: Path
    token: str = ""
    link_key: str = ""
    http: httpx2.Client = field(default_factory=httpx2.Client)
    start: Start = forked
    #: How many agents were made without a name.
    unnamed: int = 0

    def let_in(self, email: str = "ana@example.com") -> None:
        """Makes the account, a token and a one-time link, as `cloudagent up` does."""
        argv = [str(BIN / "cloudagent-backend"), "grant", "--email", email, "--json"]
        argv += ["--database-url", f"sqlite:///{self.database}"]
        grant = checked(forked_run(argv, clean_environment(self.home), self.home))
        granted = json.loads(grant.stdout)
        self.token, self.link_key = granted["access_token"], granted["link_key"]

    def start_again(self, **extra: str) -> None:
        """Another life on the same port, once the process is gone; `extra` as for the first."""
        assert self.process.popen.poll() is not None, "it is still there"
        port = int(self.url.rpartition(":")[2])
        self.process, _ = start_backend(self.home, port, self.start, **extra)

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        answer = self.http.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else {}

    def create_host(self, name: str = "mbp") -> tuple[str, str]:
        """A host machine: its id and its key."""
        made = self.call("POST", "/v1/host-machines", {"name": name})
        return made["id"], made["raw_key"]

    def create_agent(self, host_id: str, name: str = "", **fields: Any) -> str:
        """An agent: its id. Without a name it is `shop`, and later ones `shop-2` and so on."""
        self.unnamed += not name
        name = name or ("shop" if self.unnamed == 1 else f"shop-{self.unnamed}")
        body = {"name": name, "host_machine_id": host_id, **fields}
        return self.call("POST", "/v1/agents", body)["id"]

    def send(self, agent_id: str, text: str, conversation_id: str | None = None) -> Json:
        body: Json = {"text": text}
        if conversation_id:
            body["conversation_id"] = conversation_id
        return self.call("POST", f"/v1/agents/{agent_id}/messages", body)

    def rungs(self, message_id: str) -> list[str]:
        [delivery] = self.call("GET", f"/v1/messages/{message_id}/trace")["deliveries"]
        return [rung["rung"] for rung in delivery["rungs"]]

    def messages(self, conversation_id: str) -> list[Json]:
        return self.call("GET", f"/v1/conversations/{conversation_id}/messages")["data"]

    @contextlib.contextmanager
    def follow(self, after: int | None = None) -> Generator[Follower]:
        query = "" if after is None else f"?after={after}"
        with connect(
            self.url.replace("http://", "ws://", 1) + f"/v1/events/ws{query}",
            additional_headers={"Authorization": f"Bearer {self.token}"},
            # With a bound, what nobody reads any more would keep the close frame waiting for 10 s.
            max_queue=None,
        ) as socket:
            yield Follower(socket)


def clean_environment(home: Path, **extra: str) -> dict[str, str]:
    """What a login shell would give, with a home of the test's own."""
    return {
        "HOME": str(home),
        "CLOUDAGENT_HOME": str(home / ".cloudagent"),
        "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "error",
        **extra,
    }


def start_backend(home: Path, port: int, start: Start, **extra: str) -> tuple[Process, str]:
    """The process on its database below `home`, and where it listens."""
    argv = [str(BIN / "cloudagent-backend"), "serve", "--port", str(port)]
    argv += ["--database-url", f"sqlite:///{database_of(home)}"]
    process = Process(argv, env=clean_environment(home, **extra), cwd=home, start=start)
    try:
        return process, process.wait_for_line("Listening on ").rpartition(" ")[2]
    except BaseException:
        process.stop()
        raise


def database_of(home: Path) -> Path:
    return home / "server" / "cloudagent.db"


@contextlib.contextmanager
def running_backend(
    home: Path, *, port: int = 0, token: str = "", start: Start = forked, **extra: str
) -> Generator[Backend]:
    """A backend on a database below `home`, with a user and a token.

    Args:
        token: of a user that the database has already; without it one is made as `up` does.
        extra: for its environment.
    """
    home.mkdir(parents=True, exist_ok=True)
    process, url = start_backend(home, port, start, **extra)
    backend = Backend(process, url, database_of(home), home, token, start=start)
    try:
        if not token:
            backend.let_in()
        backend.http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {backend.token}"},
            timeout=DEADLINE_S,
        )
        with backend.http:
            yield backend
    finally:
        backend.process.stop()


@contextlib.contextmanager
def running_daemon(
    home: Path,
    server_url: str,
    key: str,
    *,
    wait_for: str = "Connected",
    **extra: str,
) -> Generator[Process]:
    """A daemon logged in under `home`; `extra` goes into its environment."""
    env = clean_environment(home, **extra)
    log_in(home, server_url, key, env)
    with started_daemon(home, env, wait_for=wait_for) as process:
        yield process


def log_in(home: Path, server_url: str, key: str, env: dict[str, str]) -> None:
    """With the machine key, unless somebody is logged in."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / ".cloudagent" / "daemon" / "config.json").exists():
        argv = [str(BIN / "cloudagent-daemon"), "login", "--server", server_url]
        checked(forked_run([*argv, "--api-key-file", "-"], env, home, stdin=key))


@contextlib.contextmanager
def started_daemon(
    home: Path, env: dict[str, str], *, wait_for: str = "Connected", start: Start = forked
) -> Generator[Process]:
    """A daemon of a home where somebody has logged in."""
    process = Process([str(BIN / "cloudagent-daemon"), "start"], env=env, cwd=home, start=start)
    try:
        if wait_for:
            process.wait_for_line(wait_for)
        yield process
    finally:
        process.stop()


def checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """What has ended well; what has not fails the test with its own words."""
    assert done.returncode == 0, f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def processes_with(marker: str) -> list[int]:
    """Processes that are alive and carry this text in their environment or argv."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if (
                marker.encode() in text
                and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(int(entry.name))
    return found
