"""Names and kinds of files: what somebody says of a file is never taken over."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cloudagent_protocol.attachments import (
    MAX_ATTACHMENTS,
    MEDIA_TYPES,
    file_name,
    media_type_of,
    size_text,
)
from cloudagent_protocol.resources import AgentMessageCreate, MessageCreate

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 20


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("photo.jpg", "photo.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ana\\report.pdf", "report.pdf"),
        ("folder/", "folder"),
        ("..", "file"),
        ("", "file"),
        (".ssh", "ssh"),
        ("-rf", "_-rf"),
        ("a\r\nX-Evil: 1.png", "aX-Evil_ 1.png"),
        ("exe\u202egnp.sh", "exegnp.sh"),
        ("two\u2028lines.txt", "two lines.txt"),
        ('say "hi" <now>?.txt', "say _hi_ _now__.txt"),
        ("Cafe\u0301.png", "Café.png"),
        ("half \ud800.png", "half .png"),
        ("x" * 300 + ".jpeg", "x" * 115 + ".jpeg"),
        ("x." + "y" * 300, "x." + "y" * 118),
        ("é" * 100, "é" * 60),
    ],
)
def test_a_name_is_made_safe_and_stays_recognisable(said: str, name: str) -> None:
    assert file_name(said) == name


@given(st.text(max_size=300))
def test_whatever_is_said_a_name_is_one_visible_part_of_a_path(said: str) -> None:
    name = file_name(said)
    assert 0 < len(name.encode()) <= 121
    assert not set(name) & set('/\\\0<>:"|?*`\n\r')
    assert not name.startswith((".", "-", " "))
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in name)
    assert file_name(name) == name


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0\x00", "image/jpeg"),
        (b"GIF89a\x01", "image/gif"),
        (b"GIF87a\x01", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "application/octet-stream"),
        (b"\x00\x00\x00\x18ftypheic", "image/heic"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"PK\x03\x04\x14", "application/zip"),
        (b"\x1f\x8b\x08\x00", "application/gzip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "text/plain"),
        (b"<!doctype html><script>alert(1)</script>", "text/plain"),
        ("größe\tja\r\n".encode(), "text/plain"),
        (("ä" * 10).encode()[:-1], "text/plain"),
        (b"\xc3(", "application/octet-stream"),
        (b"\xc3\x28 and more", "application/octet-stream"),
        (b"\x7fELF\x02\x01\x01\x00", "application/octet-stream"),
        (b"nul \x00 inside", "application/octet-stream"),
        (b"", "text/plain"),
    ],
)
def test_a_file_is_what_its_first_bytes_say(head: bytes, media_type: str) -> None:
    assert media_type_of(head) == media_type


@given(st.binary(max_size=64))
def test_no_bytes_are_called_anything_that_a_browser_runs(head: bytes) -> None:
    assert media_type_of(head) in MEDIA_TYPES
    assert not any(word in media_type_of(head) for word in ("svg", "html", "script", "xml"))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1 kB"),
        (3_240_000, "3.24 MB"),
        (999_600, "1 MB"),
        (26_214_400, "26.2 MB"),
        (5_368_709_120, "5.37 GB"),
    ],
)
def test_a_size_is_told_in_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("body", [AgentMessageCreate, MessageCreate])
def test_a_message_says_something_in_words_or_files(
    body: type[AgentMessageCreate] | type[MessageCreate],
) -> None:
    assert body.model_validate({"attachments": ["att_1"]}).text == ""
    assert body.model_validate({"text": "x"}).attachments == []
    for bad in ({}, {"text": " \n"}, {"text": "", "attachments": []}, {"text": "a\x00b"}):
        with pytest.raises(ValidationError):
            body.model_validate(bad)
    many = [f"att_{number}" for number in range(MAX_ATTACHMENTS + 1)]
    with pytest.raises(ValidationError):
        body.model_validate({"text": "x", "attachments": many})
