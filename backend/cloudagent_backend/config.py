"""What can be set: defaults, then the environment, then flags. The only reader of the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cloudagent_protocol.attachments import MAX_ATTACHMENT_BYTES
from cloudagent_protocol.link import HEARTBEAT_S, LEASE_S, SILENCE_S

PREFIX: Final = "CLOUDAGENT_BACKEND_"
#: The same name as the daemon's: whose point it is, the point tells.
CRASH_VARIABLE: Final = "CLOUDAGENT_CRASH_AT"
#: What may be set for a limit at most.
_MOST: Final = 1_000_000
_MOST_TOKENS: Final = 10**12
_MB: Final = 1_048_576


class ConfigError(ValueError):
    """A setting has a value that cannot be used; the text names both."""


def _default_database_url(environment: Mapping[str, str]) -> str:
    home = Path(environment.get("CLOUDAGENT_HOME") or "~/.cloudagent").expanduser()
    return f"sqlite:///{home}/server/cloudagent.db"


@dataclass(frozen=True)
class Settings:
    database_url: str
    host: str = "127.0.0.1"
    port: int = 8700
    #: Where people reach the page, if not at `http://host:port`: `https://agents.example.com`.
    public_url: str | None = None
    #: Whether anyone who reaches the page may make an account.
    open_signup: bool = False

    # --- accounts ---
    access_token_s: int = 900
    #: A login ends after this time without use, and in any case after `login_absolute_s`.
    login_idle_s: int = 14 * 86_400
    login_absolute_s: int = 90 * 86_400
    one_time_link_s: int = 900
    failed_logins_per_minute: int = 5
    password_hashes_at_once: int = 2

    # --- machines that log in by a code (RFC 8628) ---
    device_code_s: int = 600
    #: How often a machine may ask whether it was approved.
    device_interval_s: int = 5
    #: Machines that may wait at once, from one address and in all.
    device_logins_per_address: int = 20
    device_logins: int = 1_000
    #: Wrong codes within an hour: with 34.5 bits in a code, nobody finds one.
    wrong_codes_of_user: int = 5
    wrong_codes_of_address: int = 20
    wrong_keys_per_minute: int = 60

    # --- limits of what comes in ---
    max_header_bytes: int = 16_384
    head_deadline_s: float = 10.0
    write_deadline_s: float = 15.0
    max_body_bytes: int = 1_048_576
    body_deadline_s: float = 30.0
    #: One file, and all the files of one person.
    attachment_bytes: int = MAX_ATTACHMENT_BYTES
    attachments_of_user_bytes: int = 5_120 * _MB
    #: The longest that a file's upload may take in all, and that nothing of it may come.
    upload_deadline_s: float = 900.0
    upload_silence_s: float = 30.0
    #: Uploads that one person may have under way.
    uploads_at_once: int = 8
    #: After this time a file that was uploaded and never sent is removed.
    unsent_s: int = 86_400
    #: Streams of events that one person may have open: pages, and programs that wait for answers.
    followers_per_user: int = 256
    #: How long open requests may go on after a stop was asked for.
    stop_grace_s: int = 2

    # --- the link and delivery ---
    heartbeat_s: float = HEARTBEAT_S
    silence_s: float = SILENCE_S
    #: A frame that is not acknowledged for so long on a link that lives is sent again.
    lease_s: float = LEASE_S
    hello_deadline_s: float = 10.0
    #: Deliveries that may be in flight at once, per host.
    window: int = 32
    #: Unfinished deliveries per host, above which new messages are refused.
    backlog_cap: int = 100_000
    #: Depth above which a message of an agent to another one is refused; 0: they may send none.
    hop_limit: int = 8
    #: Turns that agents may have in one chain before a person is asked, and with each `continue`.
    chain_turns: int = 30
    #: Likewise, what the runs of a chain may use; null: as much as they want.
    chain_tokens: int | None = None
    chain_cost_usd: float | None = None
    #: How often the dispatcher looks by itself, should a hint be lost.
    poll_s: float = 5.0
    #: Deltas of a run are put together over this time on their way to a follower.
    coalesce_s: float = 0.04
    #: How long the machine of a job may be away before it is taken for gone. A daemon that has lost
    #: its connection notices within `silence_s` and tries again within a minute.
    ephemeral_ttl_s: float = 180.0
    #: Ephemeral hosts that one machine key may have at once.
    ephemeral_hosts: int = 100
    ping_s: float = 15.0
    #: Events kept per user; asking for an older one is answered by `resync`.
    events_kept: int = 100_000

    #: Where to exit hard, for tests of recovery (crash.py).
    crash_at: str | None = None

    @property
    def secure(self) -> bool:
        """Whether the page is reached over https, by what the operator says."""
        return (self.public_url or "").startswith("https://")

    @property
    def public_origin(self) -> str | None:
        if self.public_url is None:
            return None
        url = urlsplit(self.public_url)
        return f"{url.scheme}://{url.netloc}".lower()


def load(environment: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """The settings in force; a flag that is None was not given.

    Raises:
        ConfigError: a value cannot be used.
    """
    found = os.environ if environment is None else environment
    settings = Settings(
        database_url=found.get(f"{PREFIX}DATABASE_URL") or _default_database_url(found)
    )
    changes: dict[str, Any] = {
        "host": found.get(f"{PREFIX}HOST"),
        "port": _port(found.get(f"{PREFIX}PORT")),
        "hop_limit": _count(found, "HOP_LIMIT", 0),
        "chain_turns": _count(found, "CHAIN_TURNS", 1),
        "chain_tokens": _count(found, "CHAIN_TOKENS", 1, _MOST_TOKENS),
        "chain_cost_usd": _price(found.get(f"{PREFIX}CHAIN_COST_USD")),
        "public_url": found.get(f"{PREFIX}PUBLIC_URL"),
        "open_signup": _flag(found.get(f"{PREFIX}OPEN_SIGNUP")),
        "backlog_cap": _count(found, "BACKLOG_CAP", 1),
        "attachment_bytes": _megabytes(found, "ATTACHMENT_MB"),
        "attachments_of_user_bytes": _megabytes(found, "ATTACHMENTS_OF_USER_MB"),
        "silence_s": (silence_s := _count(found, "SILENCE_S", 2)),
        "heartbeat_s": silence_s and silence_s * HEARTBEAT_S / SILENCE_S,
        "lease_s": _count(found, "LEASE_S", 1),
        "crash_at": found.get(CRASH_VARIABLE),
    }
    changes |= {name: value for name, value in flags.items() if value is not None}
    settings = replace(settings, **{n: v for n, v in changes.items() if v not in {None, ""}})
    _check_url(settings.public_url)
    return settings


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) > 65_535:
        raise ConfigError(f"{PREFIX}PORT is {text!r}; a port is a number up to 65535")
    return int(text)


def _count(found: Mapping[str, str], name: str, least: int, most: int = _MOST) -> int | None:
    text = found.get(f"{PREFIX}{name}")
    if not text:
        return None
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ConfigError(f"{PREFIX}{name} is {text!r}; use a number from {least} to {most}")
    return int(text)


def _price(text: str | None) -> float | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,6}(\.\d{1,4})?", text) or float(text) <= 0:
        raise ConfigError(f"{PREFIX}CHAIN_COST_USD is {text!r}; use dollars, such as 2.50")
    return float(text)


def _megabytes(found: Mapping[str, str], name: str) -> int | None:
    count = _count(found, name, 1)
    return count and count * _MB


def _flag(text: str | None) -> bool | None:
    if not text:
        return None
    if text not in {"0", "1"}:
        raise ConfigError(f"{PREFIX}OPEN_SIGNUP is {text!r}; use 1 or 0")
    return text == "1"


def _check_url(url: str | None) -> None:
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
        raise ConfigError(f"the public URL is {url!r}; it looks like https://agents.example.com")
