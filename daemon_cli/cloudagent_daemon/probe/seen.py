"""What was seen of the way to a backend. Values only; a field that is None was not looked at."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Name:
    """What a name resolves to."""

    host: str
    addresses: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Tcp:
    """A connection to the first machine on the way."""

    peer: str
    ms: float = 0.0
    error: str = ""
    #: Whether nothing came back at all, neither yes nor no.
    silent: bool = False


@dataclass(frozen=True)
class Proxied:
    """What a proxy said to CONNECT."""

    #: Without user and password.
    proxy: str
    status: int = 0
    reason: str = ""
    error: str = ""


@dataclass(frozen=True)
class Tls:
    version: str = ""
    #: Of the certificate that was presented, good or not; empty where it could not be read.
    subject: str = ""
    issuer: str = ""
    good_until: str = ""
    #: OpenSSL's number for what is wrong with it (x509_vfy.h); 0 where nothing is.
    verify_code: int = 0
    error: str = ""
    #: Whether it was looked at, and would have been taken however bad.
    unchecked: bool = False


@dataclass(frozen=True)
class Answer:
    """What was answered to a request."""

    status: int = 0
    reason: str = ""
    kind: str = ""
    location: str = ""
    #: The body, if it is a JSON object.
    #: The header, which tells the clock at the other end.
    date: str = ""
    body: dict[str, object] = field(default_factory=dict[str, object])
    error: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether a backend has answered, and not something in between."""
        return not self.error and "json" in self.kind


@dataclass(frozen=True)
class Upgrade:
    """Whether a WebSocket opens. One that is refused for its key has come all the way."""

    opened: bool = False
    key_refused: bool = False
    error: str = ""


@dataclass(frozen=True)
class Seen:
    server_url: str
    #: Why there is no way to try; empty if there is.
    no_way: str = ""
    no_way_next: str = ""
    name: Name | None = None
    tcp: Tcp | None = None
    proxied: Proxied | None = None
    tls: Tls | None = None
    http: Answer | None = None
    upgrade: Upgrade | None = None
    #: The answer to the machine key; None without one.
    key: Answer | None = None
    round_trips_ms: tuple[float, ...] = ()
