"""How a machine waits for its approval (RFC 8628 §3.4 and §3.5): when to ask, and what answers mean.

No network and no clock: it is told what came and when, in monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

_SLOW_DOWN_S: Final = 5.0
#: Of a server that names no interval (§3.2), and the shortest and longest that are believed.
_INTERVAL_S: Final = 5.0
_MIN_INTERVAL_S: Final = 1.0
_MAX_INTERVAL_S: Final = 60.0
_MAX_LIFE_S: Final = 3_600.0


@dataclass(frozen=True)
class Codes:
    device_code: str = field(repr=False)
    user_code: str
    url: str
    #: With the code in it, for a QR code.
    url_with_code: str
    expires_in_s: float
    interval_s: float


@dataclass(frozen=True)
class Issued:
    machine_key: str = field(repr=False)
    host_id: str
    host_name: str
    approved_by: str
    known_before: bool


class Ended(StrEnum):
    """Why there will be no key."""

    DENIED = "denied"
    EXPIRED = "expired"
    #: The code is not known: used, or never made by this server.
    VOID = "void"
    STRANGE = "strange"


class NoCodesError(Exception):
    """The answer holds no codes; `str()` says what is wrong with it."""


def read_codes(body: Mapping[str, Any]) -> Codes:
    """The answer to the request for codes.

    Raises:
        NoCodesError: see there.
    """
    device, user, url = (body.get(k) for k in ("device_code", "user_code", "verification_uri"))
    texts = all(isinstance(text, str) and text for text in (device, user, url))
    if not texts or not str(url).startswith(("http://", "https://")):
        raise NoCodesError("it lacks device_code, user_code or verification_uri")
    complete = body.get("verification_uri_complete")
    return Codes(
        device_code=str(device),
        user_code=str(user),
        url=str(url),
        url_with_code=complete if isinstance(complete, str) and complete else str(url),
        expires_in_s=min(_MAX_LIFE_S, _number(body.get("expires_in"), _MAX_LIFE_S)),
        interval_s=max(
            _MIN_INTERVAL_S, min(_MAX_INTERVAL_S, _number(body.get("interval"), _INTERVAL_S))
        ),
    )


class DeviceFlow:
    """One wait for one approval."""

    def __init__(self, codes: Codes, now: float) -> None:
        self._interval_s = codes.interval_s
        self.expires_at = now + codes.expires_in_s
        self.next_at = now + self._interval_s

    def expired(self, now: float) -> bool:
        return now >= self.expires_at

    def unanswered(self, now: float) -> None:
        """The network failed: ask less often (§3.5), the approval may come all the same."""
        self._interval_s = min(_MAX_INTERVAL_S, self._interval_s * 2)
        self.next_at = now + self._interval_s

    def answered(
        self, status: int, body: Mapping[str, Any], now: float, retry_after_s: float | None = None
    ) -> Issued | Ended | None:
        """What an answer means; None: go on, at `next_at`."""
        if status == 200:
            return _issued(body)
        match body.get("error") or body.get("code"):
            case "authorization_pending":
                self.next_at = now + self._interval_s
            case "slow_down":
                self._interval_s = min(_MAX_INTERVAL_S, self._interval_s + _SLOW_DOWN_S)
                self.next_at = now + self._interval_s
            case "access_denied":
                return Ended.DENIED
            case "expired_token":
                return Ended.EXPIRED
            case "invalid_grant":
                return Ended.VOID
            case _ if status == 429 or status >= 500:
                self.unanswered(now)
                self.next_at = max(self.next_at, now + (retry_after_s or 0))
            case _:
                return Ended.STRANGE
        return None


def _issued(body: Mapping[str, Any]) -> Issued | Ended:
    texts = [body.get(k) for k in ("access_token", "host_id", "host_name", "approved_by")]
    if not all(isinstance(text, str) and text for text in texts):
        return Ended.STRANGE
    key, host_id, host_name, approved_by = map(str, texts)
    return Issued(key, host_id, host_name, approved_by, body.get("known_before") is True)


def _number(value: Any, default: float) -> float:
    """A number of seconds that makes sense, or the default."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return float(value) if good else default
