"""Keys and tokens: how they look, and the hash that is all we keep of them.

`sk_machine_` or `cat_`, 40 random base62 characters (238 bits), and 6 that are the CRC32 of those:
a mistyped key is told apart without asking the database. SHA-256 is enough for input this random.
"""

import hashlib
import secrets
import zlib
from typing import Final

MACHINE: Final = "sk_machine_"
PERSONAL: Final = "cat_"
RENEWAL: Final = "crt_"

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM: Final = 40
_CHECK: Final = 6


def new_key(prefix: str) -> str:
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return f"{prefix}{body}{_checksum(body)}"


def well_formed(prefix: str, key: str) -> bool:
    """Whether the key could be one of ours: prefix, length, alphabet and checksum fit."""
    body = key.removeprefix(prefix)
    if not key.startswith(prefix) or len(body) != _RANDOM + _CHECK or not body.isascii():
        return False
    return _checksum(body[:_RANDOM]) == body[_RANDOM:]


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def new_secret() -> str:
    """256 random bits for cookies and one-time links."""
    return secrets.token_urlsafe(32)


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits: list[str] = []
    for _ in range(_CHECK):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
