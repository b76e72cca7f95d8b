"""The programs that speak the Agent Client Protocol by themselves, as they were seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloudagent_daemon.drivers.base import SERVER

#: Keys of model services that several of them read.
_KEYS: Final = ("OPENAI_*", "ANTHROPIC_*", "GEMINI_*", "GOOGLE_*", "AWS_*", "OPENROUTER_API_KEY")


@dataclass(frozen=True)
class Program:
    """What differs from one program to the next."""

    #: The driver's name, and the program's for people.
    driver: str
    title: str
    #: What to start, and with which words.
    name: str
    arguments: tuple[str, ...]
    #: What npm calls it, and how one logs in.
    package: str
    login: str
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    inherits: tuple[str, ...] = ()
    #: Variables of which one is enough, and files below HOME that a login leaves.
    keys: tuple[str, ...] = ()
    credentials: tuple[str, ...] = ()
    #: The flag that chooses a model, of one that does not take it through the protocol.
    model_flag: str | None = None
    resumes: bool = True
    #: Names of tools that it leaves out, whoever's they are.
    reserves: frozenset[str] = frozenset()


OPENCODE: Final = Program(
    driver="opencode",
    title="opencode",
    name="opencode",
    arguments=("acp",),
    package="opencode-ai",
    login="opencode auth login",
    env={"OPENCODE_DISABLE_AUTOUPDATE": "true"},
    inherits=("OPENCODE_*", *_KEYS),
    keys=("OPENCODE_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY"),
    credentials=(".local/share/opencode/auth.json",),
)
QWEN: Final = Program(
    driver="qwen",
    title="Qwen Code",
    name="qwen",
    # What it asks for a tool of a server's has no name of the tool (0.15.10: its arguments instead).
    arguments=("--acp", "--allowed-tools", f"mcp__{SERVER}"),
    package="@qwen-code/qwen-code",
    login="qwen",
    # As gemini, whose code it began with.
    env={"QWEN_CODE_NO_RELAUNCH": "true"},
    inherits=("QWEN_*", "DASHSCOPE_*", *_KEYS),
    keys=("OPENAI_API_KEY", "DASHSCOPE_API_KEY"),
    credentials=(".qwen/oauth_creds.json",),
)
GEMINI: Final = Program(
    driver="gemini",
    title="Gemini CLI",
    name="gemini",
    arguments=("--acp",),
    package="@google/gemini-cli",
    login="gemini",
    # It starts itself again otherwise: another second, and another process.
    env={"GEMINI_CLI_NO_RELAUNCH": "true"},
    inherits=_KEYS,
    keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    credentials=(".gemini/oauth_creds.json",),
    model_flag="-m",
    # Its session/load erases the session that it is asked to load
    # (google-gemini/gemini-cli#28775, seen with 0.61.0): the history is handed to a new one.
    resumes=False,
    # It has a tool of that name, which needs its screen, and over ACP excludes whatever is called so.
    reserves=frozenset({"ask_user"}),
)
PROGRAMS: Final = (OPENCODE, GEMINI, QWEN)
