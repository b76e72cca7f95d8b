"""Files of messages in the browser: seen, saved, sent."""

import struct
import zlib

import pytest
from playwright.sync_api import expect

from cloudagent_protocol.content import Attachment
from e2e.page.conftest import NARROW, WIDE, Visitor
from e2e.page.scripted_backend import ScriptedBackend
from e2e.page.test_accessibility import check

LONG = "what the machine wrote on the day when the basket was wrong " * 2 + ".log"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def picture(width: int, height: int) -> bytes:
    """A PNG, a slope of one colour into another."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (60 + x % 180, 90, 40 + y % 200))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def some_files(backend: ScriptedBackend) -> list[Attachment]:
    named = {"basket.png": picture(320, 200), LONG: b"boom\n" * 900, "drawing.svg": SVG}
    return [backend.add_file(name, content) for name, content in named.items()]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_message_shows_its_files_and_only_pictures_as_pictures(
    visitor: Visitor, backend: ScriptedBackend, size: tuple[int, int]
) -> None:
    conversation = backend.add_conversation(
        backend.add_agent("shop", backend.add_host("mbp")), None
    )
    files = some_files(backend)
    work = backend.work(backend.say(conversation, "", files=files))
    work.reply("As a picture:", attachments=[backend.add_file("after.png", picture(90, 200))])
    work.finish()
    page = visitor.window(size, dark=size == NARROW)
    own = page.locator(".message.own")
    expect(own.get_by_role("img")).to_have_count(1)
    shown = own.get_by_role("img", name="Open basket.png")
    page.wait_for_function("image => image.naturalWidth === 320", arg=shown.element_handle())
    expect(page.get_by_role("img", name="Open after.png")).to_be_visible()
    expect(own.get_by_text("4.5 kB")).to_be_visible()
    expect(own.locator(".file-row").nth(1)).to_have_attribute("title", files[1].name)
    with page.expect_download() as saving:
        own.get_by_role("link", name="Save drawing.svg").click()
    assert saving.value.suggested_filename == "drawing.svg"
    assert saving.value.path().read_bytes() == SVG
    assert page.evaluate("() => document.documentElement.scrollWidth") == size[0]
    assert check(page, "files") == []
