"""The real coding agents that tests drive, from npm, with a scripted model on loopback."""

from pathlib import Path

from fakes.model import StubModel

CLIS = Path(__file__).parent / "clis" / "node_modules" / ".bin"


def real_claude() -> Path:
    """The real `claude`; `tests/needs.sh` installs it."""
    path = CLIS / "claude"
    assert path.exists(), "run  sh tests/needs.sh  to install the real claude"
    return path


def claude_environment(model: StubModel, **extra: str) -> dict[str, str]:
    """What a daemon's environment must hold for `claude` to run offline against `model`."""
    return {
        "PATH": f"{real_claude().parent}:/usr/local/bin:/usr/bin:/bin",
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": "dummy",
        "IS_SANDBOX": "1",
        **extra,
    }
