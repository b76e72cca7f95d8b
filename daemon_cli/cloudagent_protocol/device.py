"""Login of a machine by a code that a person approves in the page: the device flow of RFC 8628.

The fields are those of the RFC; bodies are JSON, as everywhere in this API. The RFC's errors are
members of `ErrorCode`, and stand in a problem's `code` and `error`.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from cloudagent_protocol.ids import HostId
from cloudagent_protocol.resources import Body, Name, Resource

GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
CLIENT: Final = "cloudagent-daemon"
#: RFC 8628 §6.1: no vowels, so that no code is a word; 20^8 are 34.5 bits.
CODE_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
CODE_LENGTH: Final = 8
#: By how much a device that polls too fast has to slow down (RFC 8628 §3.5).
SLOW_DOWN_S: Final = 5

#: What a machine says of itself is shown to a person who decides: nothing but plain characters.
Said = Annotated[str, StringConstraints(max_length=255, pattern=r"^[\x20-\x7e]*$")]
#: As a person types it.
Typed = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class DeviceCodeRequest(Body):
    client_id: Said = CLIENT
    hostname: Said = ""
    os: Said = ""
    daemon_version: Said = ""


class DeviceCode(Resource):
    """What a machine needs to wait for its approval; the RFC's names (§3.2)."""

    device_code: str = Field(repr=False)
    #: In two groups, `WDJB-MJHT`.
    user_code: str
    verification_uri: str
    #: With the code in it, for a QR code.
    verification_uri_complete: str
    expires_in: int
    interval: int


class DeviceTokenRequest(Body):
    grant_type: Literal["urn:ietf:params:oauth:grant-type:device_code"]
    device_code: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(repr=False)
    client_id: Said = CLIENT


class DeviceToken(Resource):
    """The machine key, which is in this answer and never again."""

    access_token: str = Field(repr=False)
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - RFC 6749's word
    host_id: HostId
    host_name: str
    #: Who approved, by email address.
    approved_by: str
    #: Whether the machine was known before, and its older key is now void.
    known_before: bool = False


class DeviceState(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"


class KnownHost(Resource):
    id: HostId
    name: str


class DeviceLogin(Resource):
    """Who asks to be let in, from where: what a person sees before they decide."""

    user_code: str
    state: DeviceState
    #: As the machine itself says; nobody has checked it.
    hostname: str
    os: str
    daemon_version: str
    #: Where the request came from, and where the person is.
    address: str
    your_address: str
    requested_at: AwareDatetime
    expires_at: AwareDatetime
    #: The suggested name.
    name: str
    #: Your machine that asks for a new key; it has shown its older one. Null: a new machine.
    host: KnownHost | None = None


class DeviceQuestion(Body):
    user_code: Typed


class DeviceAnswer(Body):
    user_code: Typed
    decision: Literal["approve", "deny"] = "approve"
    #: What the machine shall be called, if not as suggested.
    name: Name | None = None


def shown(code: str) -> str:
    """`WDJBMJHT` as `WDJB-MJHT`."""
    half = CODE_LENGTH // 2
    return f"{code[:half]}-{code[half:]}"


def normalised(typed: str) -> str | None:
    """A code as it was made, however it was typed; None if it cannot be one (RFC 8628 §6.1)."""
    code = "".join(letter for letter in typed.upper() if letter not in " -\u2010\u2013\u2014\t")
    fits = len(code) == CODE_LENGTH and all(letter in CODE_LETTERS for letter in code)
    return code if fits else None
