"""Programs to try a driver on, each with the orders that it takes.

The far end is a fake program, or a program with a scripted model; `tests/e2e/real_kits.py` has the real ones.
"""

import json
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from cloudagent_protocol.events import Reason
from fakes.model import StubModel
from fakes.runs import World, a_world

FAKES: Final = Path(__file__).parent.parent / "fakes"
Worlds: TypeAlias = Callable[..., AbstractAsyncContextManager[World]]


def _call(tool: str, given: dict[str, Any]) -> str:
    return f"@@call {tool} {json.dumps(given)}"


def _did(world: World, command: str) -> bool:
    return f"did {command}" in world.effects()


def _setsid(_: Path) -> str:
    return "@@setsid"


@dataclass(frozen=True)
class Kit:
    """A driver with a program to drive."""

    name: str
    world: Worlds
    #: The orders of the program: `text`, `status` and so on are filled in.
    reply: Callable[[str], str] = "@@reply {}".format
    hang: str = "@@hang"
    error: Callable[[int], str] = "@@error {}".format
    #: Has it refused until then (Unix seconds); none: it does not tell the time.
    limit: Callable[[int], str] | None = None
    #: Calls one of our tools.
    call: Callable[[str, dict[str, Any]], str] = _call
    #: Runs a command by its own tool, for which it asks leave; none: it has no such.
    act: Callable[[str], str] | None = None
    #: Whether it has run it.
    acted: Callable[[World, str], bool] = _did
    #: Leaves a child of its own behind, and its pid in the file of effects; none: it cannot.
    child: Callable[[Path], str] | None = _setsid
    #: What it was refused does not end its turn.
    goes_on: bool = True
    #: How it ends when its turn is stopped: one that is asked to stop, and not signalled, leaves by itself.
    stopped: int | None = None
    #: A silence that is no hang while it starts.
    patience_s: float = 1.5
    #: How it ends when a status of its model's is not passed on.
    reasons: dict[int, Reason] = field(default_factory=dict[int, Reason])
    tells_input: bool = True
    #: It loads no sessions: the history is handed to a new one.
    resumes: bool = True
    #: Its process stays for the next message; a message can be put into its turn.
    warm: bool = False
    steers: bool = False
    #: A picture that comes with a message is shown to its model.
    sees: bool = True
    #: Is at work until a message is put in, or for long enough.
    hold: str = "@@pause"


def fake(name: str, driver: str, script: str, **kit: Any) -> Kit:
    """A kit with a fake program."""

    @asynccontextmanager
    async def world(home: Path, **limits: Any) -> AsyncGenerator[World]:
        async with a_world(home, **limits) as made:
            command = [sys.executable, str(FAKES / script)]
            made.agent = made.agent.model_copy(update={"driver": driver, "command": command})
            yield made

    return Kit(name, world, **kit)


def scripted(name: str, driver: str, environment: Callable[[StubModel], dict[str, str]],
             prepare: Callable[[Path, StubModel], None] = lambda _home, _model: None,
             agent: dict[str, Any] | None = None, deadline_s: float = 30.0, inherits: bool = True,
             **kit: Any) -> Kit:  # fmt: skip
    """A kit with a program of its own model: the model is scripted.

    Args:
        inherits: the driver hands the machine's variables on; else the agent brings them.
    """

    @asynccontextmanager
    async def world(home: Path, **limits: Any) -> AsyncGenerator[World]:
        with StubModel() as model:
            prepare(home, model)
            async with a_world(home, env=environment(model), **limits) as made:
                env = {} if inherits else environment(model)
                update = {"driver": driver, "command": None, "env": env, **(agent or {})}
                made.agent = made.agent.model_copy(update=update)
                made.deadline_s = deadline_s
                yield made

    orders: dict[str, Any] = {"reply": _call_send, "hang": "@@sleep 100", "child": None}
    return Kit(name, world, **{**orders, **kit})


def _call_send(text: str) -> str:
    return _call("send_message", {"text": text})


CLAUDE_ERRORS: Final = {401: "authentication_failed", 429: "rate_limit", 529: "overloaded"}
FAKE_CLAUDE: Final = fake(
    "claude_code", "claude_code", "agent_cli.py", warm=True, steers=True,
    error=lambda status: f"@@error {status} {CLAUDE_ERRORS[status]}",
    act=lambda command: f"@@goes_on\n@@may Bash {json.dumps({'command': command})}",
    limit="@@limit {}\n@@error 429 rate_limit".format,
)  # fmt: skip
FAKE_CODEX: Final = fake("codex", "codex", "codex_app_server.py", steers=True, stopped=0,
    limit="@@limit {}\n@@error 429".format, act="@@ask command {}".format,
)  # fmt: skip
FAKE_ACP: Final = fake("acp", "acp", "acp_agent.py", stopped=0, act="@@ask execute {}".format)
BUILTIN: Final = scripted(
    "builtin", "builtin",
    lambda model: {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "k"},
    agent={"model": "stub-model"},
    # Its own wait for a model that only sleeps is a request's, which has begun to answer.
    patience_s=3.0,
    limit=lambda until: f"@@error 429 99 {until - time.time():.0f}",
)  # fmt: skip

#: Our own, driven as an editor drives it.
BUILTIN_ACP: Final = scripted(
    "builtin, over acp", "acp",
    lambda model: {
        "OPENAI_BASE_URL": f"{model.url}/v1",
        "OPENAI_API_KEY": "k",
        "CLOUDAGENT_BUILTIN_MODEL": "stub-model",
    },
    agent={"command": [str(Path(sys.executable).parent / "cloudagent-daemon"), "acp"]},
    inherits=False,
    stopped=0,
    patience_s=3.0,
)  # fmt: skip
