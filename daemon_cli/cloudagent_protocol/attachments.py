"""What may be said of a file that goes with a message: its name, its kind, its limits. Pure.

Both ends rebuild names and look at the first bytes themselves: what a browser, a machine or a server
says of a file is never taken over. (docs/decisions/0023)
"""

import re
import unicodedata
from typing import Final

#: Files of one message (security.md SSRF-4).
MAX_ATTACHMENTS: Final = 20
#: Bytes of one file, unless the operator says otherwise.
MAX_ATTACHMENT_BYTES: Final = 25 * 1_048_576
#: How many of the first bytes `media_type_of` looks at.
SNIFFED_BYTES: Final = 4_096
#: What a page may show as a picture. Everything else is only ever saved: SVG and HTML are programs.
PICTURES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
TEXT: Final = "text/plain"
UNKNOWN: Final = "application/octet-stream"
#: All that a file is ever called here.
MEDIA_TYPES: Final = PICTURES | {
    "image/heic",
    "application/pdf",
    "application/zip",
    "application/gzip",
    TEXT,
    UNKNOWN,
}

_MAX_NAME_BYTES: Final = 120
_MAX_SUFFIX_BYTES: Final = 20
#: Control, format (bidi, zero width), surrogate, private and unassigned characters.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_SPECIAL: Final = re.compile(r'[<>:"|?*`]')
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
)


def file_name(said: str) -> str:
    """A name that is safe in a folder, in a header and in a prompt: one part, visible, no option.

    At most 120 bytes of UTF-8; the end after the last dot is kept. Never empty, never hidden.
    """
    last = said.replace("\\", "/").rstrip("/").rpartition("/")[2]
    seen = "".join(
        " " if (kind := unicodedata.category(c)) in {"Zl", "Zp"} else "" if kind in _UNSEEN else c
        for c in unicodedata.normalize("NFC", last)
    )
    name = _SPECIAL.sub("_", " ".join(seen.split())).strip(" .")
    if name.startswith("-"):
        name = f"_{name}"
    return _shortened(name) or "file"


def _shortened(name: str) -> str:
    if len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    end = f"{dot}{suffix}"
    if not dot or len(end.encode()) > _MAX_SUFFIX_BYTES:
        stem, end = name, ""
    room = _MAX_NAME_BYTES - len(end.encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip(" .") + end


def media_type_of(head: bytes) -> str:
    """What a file is, by its first `SNIFFED_BYTES`: one of `MEDIA_TYPES`."""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp" and head[8:12] in {b"heic", b"heix", b"mif1", b"msf1"}:
        return "image/heic"
    return TEXT if _is_text(head) else UNKNOWN


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters; the last character may be cut off."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode()
    return not any(c < " " and c not in "\t\n\r\f\x1b" for c in text)


def size_text(size_bytes: int) -> str:
    """For a person: `3.2 MB`."""
    if size_bytes < 1_000:
        return f"{size_bytes} bytes"
    for unit, factor in (("kB", 1_000), ("MB", 1_000_000)):
        if size_bytes < factor * 999.5:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes / 1_000_000_000:.3g} GB"
