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
ApprovalId = NewType("ApprovalId", str)
AttachmentId = NewType("AttachmentId", str)

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: All two letters that ten bits can be: half as many steps for each id.
_PAIRS: Final = tuple(high + low for high in _CROCKFORD for low in _CROCKFORD)
_SHIFTS: Final = tuple(range(120, -1, -10))


#: Random parts of the next ids. To ask the system for each one apart was a tenth of the event loop's
#: time for a message: every call gives the interpreter to another thread.
_randoms: Final[list[int]] = []
_AT_ONCE: Final = 256
os.register_at_fork(after_in_child=_randoms.clear)


def _ulid() -> str:
    while True:
        try:
            number = (time.time_ns() // 1_000_000) << 80 | _randoms.pop()
        except IndexError:  # an empty pool; `pop` and `extend` are each one step for other threads
            data = os.urandom(10 * _AT_ONCE)
            _randoms.extend(int.from_bytes(data[at : at + 10]) for at in range(0, len(data), 10))
        else:
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


def new_approval_id() -> ApprovalId:
    return ApprovalId(f"apr_{_ulid()}")


def new_attachment_id() -> AttachmentId:
    return AttachmentId(f"att_{_ulid()}")


def new_epoch() -> str:
    """A name for one history of a host's link; only equality matters."""
    return f"ep_{_ulid()}"


def new_request_id() -> str:
    """Names one request to the backend, in its answer and in the log."""
    return f"req_{_ulid()}"
