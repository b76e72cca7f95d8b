"""How frames travel: a connection to the backend that carries JSON texts both ways, or a reason why not."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cloudagent_protocol.errors import CloseCode


class LinkError(Exception):
    """The link is not there; `str()` says why, for a person to read.

    LinkError
    ├── UnreachableError    no connection could be made
    ├── KeyRejectedError    the backend does not know this key
    ├── LinkClosedError     there was a connection
    └── NotConnectedError   a question could not be put
    """


class UnreachableError(LinkError):
    """No connection could be made: name, network, TLS, or an answer that is no backend's.

    `offline` where the attempt did not leave this machine, so that the backend had no part in it.
    """

    def __init__(
        self, why: str, retry_after_s: float | None = None, *, offline: bool = False
    ) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
        self.offline = offline


class KeyRejectedError(LinkError):
    """401 or 403 instead of a connection; `revoked` where the key was good once."""

    def __init__(self, why: str, *, revoked: bool = False) -> None:
        super().__init__(why)
        self.revoked = revoked


class LinkClosedError(LinkError):
    """The connection has ended, by whichever side."""

    def __init__(self, code: int, reason: str = "") -> None:
        try:
            name = CloseCode(code).name.lower().replace("_", " ")
        except ValueError:
            name = "closed"
        super().__init__(f"{name} ({code}){': ' if reason else ''}{reason}")
        self.code, self.reason = code, reason


class NotConnectedError(LinkError):
    """There is no link at the moment, or the answer did not come in time."""


class FrameStream(Protocol):
    """One connection. Sending is safe from several tasks; receiving is for one."""

    @property
    def heard_at(self) -> float:
        """When the last bytes came in, monotonic seconds: a large frame takes its time on a slow line."""
        ...

    async def send(self, text: str) -> None:
        """Returns when the text is handed to the network, which may be full.

        Raises:
            LinkClosedError: it has ended.
        """
        ...

    async def receive(self) -> str:
        """The next text.

        Raises:
            LinkClosedError: it has ended.
            ProtocolError: a binary or oversize message came.
        """
        ...

    async def close(self, code: int, reason: str) -> None:
        """Ends the connection; returns within about 2 s in any case."""
        ...


class Transport(Protocol):
    """Makes connections to one backend."""

    def connect(self) -> AbstractAsyncContextManager[FrameStream]:
        """A connection, which is closed at the end of the context.

        Raises:
            UnreachableError: there is none.
            KeyRejectedError: the backend refuses the key.
        """
        ...
