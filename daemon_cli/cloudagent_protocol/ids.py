"""Ids: a prefix that says what a thing is, and a ULID that says when it was made.

A ULID (https://github.com/ulid/spec) is 48 bits of Unix milliseconds and 80 random bits in
Crockford's base 32: ids made later sort later, which keeps indexes dense.
"""

import os
import time
from typing import Final, NewType

UserId = NewType("UserId", str)
TokenId = NewType("TokenId", str)
HostId = NewType("HostId", str)
AgentId = NewType("AgentId", str)
ConversationId = NewType("ConversationId", str)
MessageId = NewType("MessageId", str)
DeliveryId = NewType("DeliveryId", str)
RunId = NewType("RunId", str)

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: All two letters that ten bits can be: half as many steps for each id.
_PAIRS: Final = tuple(high + low for high in _CROCKFORD for low in _CROCKFORD)
_SHIFTS: Final = tuple(range(120, -1, -10))


def _ulid() -> str:
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def new_user_id() -> UserId:
    return UserId(f"usr_{_ulid()}")


def new_token_id() -> TokenId:
    return TokenId(f"tok_{_ulid()}")


def new_host_id() -> HostId:
    return HostId(f"host_{_ulid()}")


def new_agent_id() -> AgentId:
    return AgentId(f"agent_{_ulid()}")


def new_conversation_id() -> ConversationId:
    return ConversationId(f"conv_{_ulid()}")


def new_message_id() -> MessageId:
    return MessageId(f"msg_{_ulid()}")


def new_delivery_id() -> DeliveryId:
    return DeliveryId(f"dlv_{_ulid()}")


def new_run_id() -> RunId:
    return RunId(f"run_{_ulid()}")


def new_epoch() -> str:
    """A name for one history of a host's link; only equality matters."""
    return f"ep_{_ulid()}"
