"""Cuts the bytes of a WebSocket connection into messages, keeping the bytes as they came.

RFC 6455 §5.2 and §5.4: a message is one frame or several (the last has FIN), control frames may come
in between, a client's payload is masked. A connection begins with an HTTP head; one that does not
become a WebSocket stays plain bytes.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, cast

TEXT: Final = 0x1
_CONTROL: Final = 0x8
_HEAD_END: Final = b"\r\n\r\n"


@dataclass(frozen=True)
class Message:
    """One message, or one control frame.

    `raw` is what was on the wire, `payload` the unmasked content.
    """

    raw: bytes
    opcode: int
    payload: bytes

    @property
    def frame(self) -> dict[str, Any]:
        """The JSON object of a text message; empty for anything else."""
        if self.opcode != TEXT:
            return {}
        try:
            found: Any = json.loads(self.payload)
        except ValueError:
            return {}
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

    @property
    def seq(self) -> int | None:
        """The number of a numbered frame of the link; an ack's number is not its own."""
        frame = self.frame
        seq = frame.get("seq")
        return seq if isinstance(seq, int) and frame.get("type") != "ack" else None


class Splitter:
    """The bytes of one direction; hands out plain bytes until the WebSocket begins, then messages."""

    def __init__(self) -> None:
        self._buffer = b""
        self._state = "head"
        self._raw = b""
        self._payload = b""
        self._opcode: int | None = None

    def feed(self, data: bytes) -> list[bytes | Message]:
        """All that is whole now; the rest is kept for the next call."""
        self._buffer += data
        out: list[bytes | Message] = []
        if self._state == "head":
            head, end, rest = self._buffer.partition(_HEAD_END)
            if not end:
                return out
            out.append(head + end)
            self._buffer = rest
            self._state = "frames" if b"upgrade: websocket" in head.lower() else "plain"
        if self._state == "plain":
            out += [self._buffer] if self._buffer else []
            self._buffer = b""
            return out
        while (message := self._next()) is not None:
            out += message
        return out

    def rest(self) -> bytes:
        """What came before the end without ever becoming whole."""
        rest, self._buffer, self._raw = self._raw + self._buffer, b"", b""
        return rest

    def _next(self) -> list[Message] | None:
        """A frame's worth of progress; None: the buffer holds no whole frame."""
        size = _frame_size(self._buffer)
        if size is None or len(self._buffer) < size:
            return None
        raw, self._buffer = self._buffer[:size], self._buffer[size:]
        opcode, fin = raw[0] & 0x0F, bool(raw[0] & 0x80)
        payload = _payload(raw)
        if opcode >= _CONTROL:
            return [Message(raw, opcode, payload)]
        if self._opcode is None:
            self._opcode = opcode
        self._raw += raw
        self._payload += payload
        if not fin:
            return []
        message = Message(self._raw, self._opcode, self._payload)
        self._raw, self._payload, self._opcode = b"", b"", None
        return [message]


def _frame_size(data: bytes) -> int | None:
    """Bytes of the frame at the start of `data`; None if its header is not whole."""
    if len(data) < 2:
        return None
    length, extended = data[1] & 0x7F, 0
    if length >= 126:
        extended = 2 if length == 126 else 8
        if len(data) < 2 + extended:
            return None
        length = int.from_bytes(data[2 : 2 + extended], "big")
    mask = 4 if data[1] & 0x80 else 0
    return 2 + extended + mask + length


def _payload(raw: bytes) -> bytes:
    start = 2 + {126: 2, 127: 8}.get(raw[1] & 0x7F, 0)
    if not raw[1] & 0x80:
        return raw[start:]
    mask, body = raw[start : start + 4], raw[start + 4 :]
    # One big number instead of a loop: a frame may have a megabyte.
    key = (mask * (len(body) // 4 + 1))[: len(body)]
    return (int.from_bytes(body, "big") ^ int.from_bytes(key, "big")).to_bytes(len(body), "big")
