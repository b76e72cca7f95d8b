"""What a child process gets of the daemon's environment: an allow-list (interface.md §5). Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

#: `*` at the end stands for any rest.
USUAL: Final = (
    "HOME", "LANG", "LC_*", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER", "XDG_*",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "CLOUDAGENT_DAEMON_PROFILE",
)  # fmt: skip
#: Never passed on, under whatever value.
FORBIDDEN: Final = frozenset({"CLOUDAGENT_API_KEY", "CLOUDAGENT_TOKEN"})


def child_environment(
    daemon: Mapping[str, str],
    *,
    inherits: Iterable[str],
    agent: Mapping[str, str],
    command: Mapping[str, str],
    secrets: Iterable[str],
) -> dict[str, str]:
    """The environment of a child.

    Args:
        daemon: the daemon's own environment.
        inherits: names that the driver's CLI reads, besides the usual ones.
        agent: what the agent's settings add; beats the daemon's.
        command: what the driver sets; beats everything.
        secrets: values that no variable may contain, such as the machine key.
    """
    patterns = (*USUAL, *inherits)
    inherited = {name: value for name, value in daemon.items() if _matches(name, patterns)}
    merged = {**inherited, **agent, **command}
    kept_back = [secret for secret in secrets if secret]
    return {
        name: value
        for name, value in merged.items()
        if name not in FORBIDDEN and not any(secret in value for secret in kept_back)
    }


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )
