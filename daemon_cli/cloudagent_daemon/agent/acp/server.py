"""What an editor may ask of the built-in agent, and the sessions that it has opened.

Methods of version 1: `initialize`, `authenticate`, `session/new`, `session/load`, `session/resume`,
`session/prompt`, `session/cancel`. Several sessions work side by side.
"""

import os
import sys
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, cast

import anyio

from cloudagent_daemon.agent import config
from cloudagent_daemon.agent.acp.conversation import Conversation
from cloudagent_daemon.agent.acp.peer import INTERNAL, INVALID_PARAMS, Json, Peer, RefusedError
from cloudagent_daemon.agent.errors import AgentError
from cloudagent_daemon.agent.history import Picture
from cloudagent_daemon.agent.mcp import Server
from cloudagent_daemon.agent.pictures import (
    KINDS,
    MOST_PICTURES,
    PICTURE_BYTES,
    PICTURES_BYTES,
    size_of,
)
from cloudagent_daemon.agent.session import open_session

VERSION: Final = 1
#: Codes of the protocol's own.
AUTH_REQUIRED: Final = -32000
NOT_FOUND: Final = -32002
#: What a reason would be as a status of the model's service: how editors and drivers tell them apart.
_STATUSES: Final = {"rate_limit": 429, "overloaded": 529, "server_error": 500, "billing": 402}


class AcpServer:
    """The far end of one editor.

    Args:
        sessions_dir: where histories are kept.
        version: of the program, for the editor to show.
    """

    def __init__(
        self,
        peer: Peer,
        sessions_dir: Path,
        version: str,
        model: str | None = None,
        kind: config.ModelKind | None = None,
    ) -> None:
        self._peer = peer
        self._sessions_dir = sessions_dir
        self._version = version
        self._model = model
        self._kind: config.ModelKind | None = kind
        self._open: dict[str, Conversation] = {}

    async def serve(self) -> None:
        """Until the editor ends our input."""
        handlers = {
            "initialize": self.initialize,
            "authenticate": self.authenticate,
            "session/new": self.new,
            "session/load": self.load,
            "session/resume": self.resume,
            "session/prompt": self.prompt,
            "session/cancel": self.cancel,
        }
        try:
            await self._peer.serve(handlers)
        finally:
            with anyio.CancelScope(shield=True):
                for conversation in self._open.values():
                    await conversation.stack.aclose()

    async def initialize(self, params: Json) -> Json:
        # Whatever version is asked for: it is the editor that leaves if ours does not suit it.
        return {
            "protocolVersion": VERSION,
            "agentCapabilities": {
                "loadSession": True,
                "promptCapabilities": {"embeddedContext": True, "image": True},
                "sessionCapabilities": {"resume": {}},
            },
            "agentInfo": {"name": "cloudagent", "title": "cloudagent", "version": self._version},
            "authMethods": [],
        }

    async def authenticate(self, params: Json) -> Json:
        raise RefusedError(INVALID_PARAMS, config.NOT_CONFIGURED)

    async def new(self, params: Json) -> Json:
        conversation = await self._opened(params, str(uuid.uuid4()), resume=False)
        return {"sessionId": conversation.session.id}

    async def load(self, params: Json) -> Json:
        (await self._resumed(params)).replay()
        return {}

    async def resume(self, params: Json) -> Json:
        await self._resumed(params)
        return {}

    async def prompt(self, params: Json) -> Json:
        conversation = self._known(params)
        prompt, shown = _prompt(params)
        try:
            return await conversation.take(prompt, shown)
        except AgentError as error:
            raise _refused(error) from error

    async def cancel(self, params: Json) -> Json:
        self._known(params).cancel()
        return {}

    def _known(self, params: Json) -> Conversation:
        conversation = self._open.get(_text(params, "sessionId"))
        if conversation is None:
            raise RefusedError(NOT_FOUND, f"no session {params['sessionId']!r} is open here")
        return conversation

    async def _resumed(self, params: Json) -> Conversation:
        session_id = _text(params, "sessionId")
        if earlier := self._open.pop(session_id, None):
            earlier.cancel()
            await earlier.stack.aclose()
        return await self._opened(params, session_id, resume=True)

    async def _opened(self, params: Json, session_id: str, *, resume: bool) -> Conversation:
        folder, servers = _folder(params), _servers(params)
        stack = AsyncExitStack()
        try:
            self._sessions_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            session = stack.enter_context(
                open_session(self._sessions_dir, session_id, resume=resume)
            )
        except AgentError as error:
            raise _refused(error) from error
        except OSError as error:
            why = f"The session cannot be kept in {self._sessions_dir}: {error.strerror}"
            raise RefusedError(INTERNAL, why) from error
        conversation = Conversation(session, folder, self._peer, self._model, self._kind, stack)
        try:
            await conversation.connect(servers)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            raise
        self._open[session_id] = conversation
        return conversation


def _refused(error: AgentError) -> RefusedError:
    match error.reason:
        case "authentication":
            return RefusedError(AUTH_REQUIRED, str(error))
        case "session_lost":
            return RefusedError(NOT_FOUND, str(error))
        case reason:
            status = _STATUSES.get(reason)
            data: Json = {"reason": reason, **({"statusCode": status} if status else {})}
            return RefusedError(INTERNAL, str(error), **data)


def _text(params: Json, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise RefusedError(INVALID_PARAMS, f"`{name}` must be a text, not {value!r}")
    return value


def _folder(params: Json) -> Path:
    folder = Path(_text(params, "cwd"))
    if not folder.is_absolute() or not folder.is_dir():
        raise RefusedError(
            INVALID_PARAMS, f"`cwd` must be the path of a folder, not {str(folder)!r}"
        )
    return folder


def _servers(params: Json) -> list[Server]:
    given: list[Json] = params.get("mcpServers") or []
    try:
        return [_server(one) for one in given]
    except (KeyError, TypeError, AttributeError) as error:
        why = "each of `mcpServers` must be a program: `name`, `command`, `args`, `env`"
        raise RefusedError(INVALID_PARAMS, why) from error


def _server(given: Json) -> Server:
    words: list[Any] = given.get("args") or []
    pairs: list[Json] = given.get("env") or []
    env = {str(pair["name"]): str(pair["value"]) for pair in pairs}
    return Server(str(given["name"]), (str(given["command"]), *map(str, words)), env)


def _prompt(params: Json) -> tuple[str, tuple[Picture, ...]]:
    """The blocks as one text, and their pictures; a file that is named is one that the agent can read."""
    blocks = params.get("prompt")
    if not isinstance(blocks, list) or not blocks:
        raise RefusedError(INVALID_PARAMS, "`prompt` must be a list of content blocks")
    given = cast("list[Any]", blocks)
    shown = tuple(filter(None, map(_picture, given)))
    if len(shown) > MOST_PICTURES or sum(map(size_of, shown)) > PICTURES_BYTES:
        said = f"at most {MOST_PICTURES} pictures and {PICTURES_BYTES:,} bytes of them in a prompt"
        raise RefusedError(INVALID_PARAMS, said)
    return "\n\n".join(map(_block, given)), shown


def _picture(block: Any) -> Picture | None:
    """Raises RefusedError: it is one that no model can be shown."""
    match block:
        case {"type": "image", "mimeType": str(kind), "data": str(data)}:
            picture = Picture(None, kind, data)
            if kind not in KINDS:
                said = f"a picture of the kind {kind!r} is not understood; {', '.join(sorted(KINDS))} are"
                raise RefusedError(INVALID_PARAMS, said)
            if not data or size_of(picture) > PICTURE_BYTES:
                said = (
                    f"a picture has {size_of(picture):,} bytes; 1 to {PICTURE_BYTES:,} can be shown"
                )
                raise RefusedError(INVALID_PARAMS, said)
            return picture
        case _:
            return None


def _block(block: Any) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image", "mimeType": str(kind), "data": str()}:
            return f"[A picture, {kind}]"
        case {"type": "resource_link", "uri": str(uri)}:
            return f"[{block.get('name') or 'a file'}]({uri})"
        case {"type": "resource", "resource": {"uri": str(uri), "text": str(text)}}:
            return f"{uri}:\n```\n{text}\n```"
        case {"type": str(kind)}:
            raise RefusedError(INVALID_PARAMS, f"content of the type {kind!r} is not understood")
        case _:
            raise RefusedError(INVALID_PARAMS, "a content block without a type")


def run(sessions_dir: Path, version: str, model: str | None, kind: config.ModelKind | None) -> int:
    """Serves an editor on standard input and output; the exit code."""
    try:
        anyio.run(AcpServer(Peer(), sessions_dir, version, model, kind).serve)
    except* BrokenPipeError:
        # The editor is gone. What was said is on the disk; nothing more can be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
