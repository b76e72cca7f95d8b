"""Which models coding agents offer: each is asked in its own way, without a turn.

It costs a start of the program (claude 1 s of CPU, codex 0.2 s, opencode 5 s, gemini and qwen 2 s), so that it
is asked once in a daemon's life, and anew when a person has it look again.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import anyio.to_thread

from cloudagent_daemon.drivers import acp, claude_code, codex
from cloudagent_daemon.drivers.acp_programs import GEMINI, OPENCODE, QWEN, Program
from cloudagent_daemon.drivers.base import SERVER
from cloudagent_daemon.drivers.codex_program import native
from cloudagent_daemon.drivers.probe import ask, probe
from cloudagent_daemon.drivers.values import Json, as_object, as_objects, as_text
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.resources import MAX_MODELS, Runtime

_Way: TypeAlias = Callable[[str, Mapping[str, str], Mask], Awaitable[list[str] | None]]
#: Which program: its driver, where it is, its version.
_Program: TypeAlias = tuple[str, str | None, str | None]

#: On a busy machine; nobody waits for it.
_PATIENCE_S: Final = 60.0
#: Neither hooks nor tool servers of the person's are started for a question.
_CLAUDE: Final = (
    "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
    "--strict-mcp-config", "--settings", '{"disableAllHooks":true}',
)  # fmt: skip
#: Gemini's flags, and those of qwen, which began with its code: none of the person's tool servers.
_ALONE: Final = ("--allowed-mcp-server-names", SERVER, "--extensions", "none")


class Models:
    """What programs offered, for as long as they are the same programs."""

    def __init__(self) -> None:
        self._offered: dict[_Program, list[str] | None] = {}

    def added(self, runtimes: Iterable[Runtime]) -> list[Runtime]:
        """The runtimes with what is known of their models."""
        return [
            one.model_copy(update={"models": self._offered.get(_program(one))}) for one in runtimes
        ]

    async def ask(
        self, runtimes: Sequence[Runtime], environment: Mapping[str, str], mask: Mask = NO_MASK
    ) -> None:
        """Asks each that can be used, one after the other: the machine has other things to do."""
        for one in runtimes:
            way = _WAYS.get(one.name)
            if way is not None and one.path is not None and not one.problem:
                names = await way(one.path, environment, mask)
                self._offered[_program(one)] = _kept(names) if names else None


def _program(runtime: Runtime) -> _Program:
    return runtime.name, runtime.path, runtime.version


def _kept(names: Iterable[str]) -> list[str]:
    """Each once, as far as they can be sent."""
    return [name for name in dict.fromkeys(names) if 0 < len(name) <= 100][:MAX_MODELS]


async def _of_claude(path: str, environment: Mapping[str, str], mask: Mask) -> list[str] | None:
    words = {
        "type": "control_request",
        "request_id": "models",
        "request": {"subtype": "initialize", "hooks": None},
    }

    def understand(said: Json) -> list[str] | None:
        if said.get("type") != "control_response":
            return None
        response = as_object(as_object(said.get("response")).get("response"))
        return [as_text(one.get("value")) for one in as_objects(response.get("models"))]

    return await ask(
        [path, *_CLAUDE],
        environment,
        _line(words),
        understand,
        inherits=claude_code.INHERITS,
        timeout_s=_PATIENCE_S,
        mask=mask,
    )


async def _of_codex(path: str, environment: Mapping[str, str], mask: Mask) -> list[str] | None:
    client = {"clientInfo": {"name": "cloudagent", "version": "1"}}
    words = _line({"id": 1, "method": "initialize", "params": client})
    words += _line({"method": "initialized"}) + _line(
        {"id": 2, "method": "model/list", "params": {}}
    )

    def understand(said: Json) -> list[str] | None:
        if said.get("id") != 2:
            return None
        offered = as_objects(as_object(said.get("result")).get("data"))
        return [as_text(one.get("model")) for one in offered]

    program = await anyio.to_thread.run_sync(native, path)
    return await ask(
        [program, "app-server"],
        environment,
        words,
        understand,
        inherits=codex.INHERITS,
        timeout_s=_PATIENCE_S,
        mask=mask,
    )


async def _of_opencode(path: str, environment: Mapping[str, str], mask: Mask) -> list[str] | None:
    printed, problem = await probe(
        [path, "models"],
        {**environment, **OPENCODE.env},
        inherits=OPENCODE.inherits,
        timeout_s=_PATIENCE_S,
        mask=mask,
    )
    # One a line: provider/model.
    return None if problem else [line for line in printed.split() if "/" in line]


async def _in_a_session(
    path: str, environment: Mapping[str, str], mask: Mask, program: Program, *, named: bool
) -> list[str] | None:
    """Of a program that tells them only when a session is opened: it is, and nothing is said in it.

    `named`: by their names, where their ids are no words for people.
    """
    nothing = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
    hello = {"protocolVersion": acp.VERSION, "clientCapabilities": nothing}
    words = _line({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello})
    place: Json = {"cwd": "/", "mcpServers": []}
    words += _line({"jsonrpc": "2.0", "id": 2, "method": "session/new", "params": place})

    def understand(said: Json) -> list[str] | None:
        if said.get("id") != 2 or "method" in said:
            return None
        # Whoever is not logged in is refused; then there are none.
        offered = acp.offers(as_object(said.get("result")), "model")
        return [names[-1] if named and names[-1] else names[0] for names, _ in offered]

    return await ask(
        [path, *program.arguments, *_ALONE],
        {**environment, **program.env},
        words,
        understand,
        inherits=(*program.inherits, *program.env),
        timeout_s=_PATIENCE_S,
        mask=mask,
    )


_WAYS: Final[dict[str, _Way]] = {
    "claude_code": _of_claude,
    "codex": _of_codex,
    "opencode": _of_opencode,
    "gemini": partial(_in_a_session, program=GEMINI, named=False),
    "qwen": partial(_in_a_session, program=QWEN, named=True),
}


def _line(words: Json) -> bytes:
    return json.dumps(words).encode() + b"\n"
