"""What the running daemon tries when it is asked to check itself, from where it lives.

What a terminal can do says little about a service: another PATH, another environment, no keychain.
"""

import shutil
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon.bridge.server import Bridge, Session
from cloudagent_daemon.bridge.tools import Toolbox, ToolError
from cloudagent_daemon.leash import Mask
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import Child, SpawnError, spawn

#: Coding agents wait about two seconds for their tools.
TOOLS_S: Final = 10.0
ROUND_TRIP_S: Final = 10.0
_INITIALIZE: Final = (
    b'{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": '
    b'"2025-06-18", "capabilities": {}, "clientInfo": {"name": "check", "version": "1"}}}\n'
)


class _Nobody:
    """The desk of a run that is none: tools start, and there is nothing for them to do."""

    memory = Path("/dev/null")

    async def send(self, *_: object, **__: object) -> NoReturn:
        raise ToolError("This is only a check.")

    async def attach(self, path: str) -> NoReturn:
        raise ToolError("This is only a check.")

    async def list_messages(self, *_: object, **__: object) -> NoReturn:
        raise ToolError("This is only a check.")

    async def list_agents(self) -> NoReturn:
        raise ToolError("This is only a check.")

    async def ask_user(self, *_: object, **__: object) -> NoReturn:
        raise ToolError("This is only a check.")

    async def message_agent(self, *_: object, **__: object) -> NoReturn:
        raise ToolError("This is only a check.")

    def stay_silent(self, reason: str) -> None: ...


async def tools_start(
    bridge: Bridge, masks: Masks, runtime_dir: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Starts an agent's tools as a coding agent would: `{"ms", "problem"}`, to the first answer."""
    folder = Path(await run_sync(lambda: tempfile.mkdtemp(prefix="check-", dir=runtime_dir)))
    try:
        async with bridge.session(Toolbox(_Nobody()), folder) as session:
            mask = await masks.of_run(folder, session.socket_path)
            began = time.perf_counter()
            with anyio.fail_after(TOOLS_S):
                answer = await _initialize(session, environment, mask)
            taken_s = time.perf_counter() - began
    except TimeoutError:
        return _result(None, f"no answer within {TOOLS_S:g} s")
    except (SpawnError, UnmaskedError) as error:
        return _result(None, str(error))
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
    if b'"result"' not in answer:
        return _result(None, f"answered {answer[:200].decode('utf-8', 'replace') or 'nothing'}")
    return _result(taken_s, None)


async def round_trip(
    say: Callable[[], Awaitable[object]], timeout_s: float = ROUND_TRIP_S
) -> dict[str, Any]:
    """How long `say` takes, which returns when the backend has kept what was said."""
    began = time.perf_counter()
    with anyio.move_on_after(timeout_s) as scope:
        await say()
    if scope.cancelled_caught:
        return _result(None, f"the backend did not acknowledge within {timeout_s:g} s")
    return _result(time.perf_counter() - began, None)


def failed(problem: str) -> dict[str, Any]:
    """What is answered when there was nothing to try."""
    return _result(None, problem)


async def _initialize(session: Session, environment: Mapping[str, str], mask: Mask) -> bytes:
    names = ("HOME", "PATH", "LANG", "TMPDIR")
    env = {name: environment[name] for name in names if name in environment}
    launch_id = uuid.uuid4().hex
    async with spawn(
        session.command, env=env, cwd=Path("/"), launch_id=launch_id, mask=mask
    ) as child:
        session.admit(child.pid)
        answer = b""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child.feed, _INITIALIZE)
            answer = await _first_line(child)
            tasks.cancel_scope.cancel()
    return answer


async def _first_line(child: Child) -> bytes:
    line = b""
    while b"\n" not in line and (data := await child.read_stdout()):
        line += data
    return line


def _result(seconds: float | None, problem: str | None) -> dict[str, Any]:
    return {"ms": None if seconds is None else round(seconds * 1_000, 1), "problem": problem}
