"""Files of messages in the browser: seen, saved, sent."""

import struct
import zlib

import pytest
from playwright.sync_api import FilePayload, Page, expect

from cloudagent_protocol.content import Attachment
from e2e.page.conftest import NARROW, WIDE, Visitor
from e2e.page.scripted_backend import MOST_BYTES, ScriptedBackend
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

    # What should not have been sent is removed, when a person has said so twice; its place says so.
    remove = own.get_by_role("button", name="Remove basket.png from the server")
    remove.click()
    page.get_by_role("button", name="Keep it").click()
    expect(shown).to_be_visible()
    remove.click()
    page.get_by_role("dialog", name="Remove basket.png?").get_by_role(
        "button", name="Remove it"
    ).click()
    expect(own.locator(".file.gone")).to_have_text("basket.pngremoved")
    expect(own.get_by_role("img")).to_have_count(0)
    assert check(page, "a removed file") == []


def drop(page: Page, name: str, text: str) -> None:
    """Drag a file from elsewhere onto the page, and let it go."""
    page.evaluate(
        """([name, text]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([text], name));
            for (const kind of ["dragover", "drop"])
                document.querySelector("#root").dispatchEvent(
                    new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        [name, text],
    )


def paste(page: Page, name: str, content: bytes) -> None:
    page.evaluate(
        """([name, bytes]) => {
            const clipboardData = new DataTransfer();
            const file = new File([new Uint8Array(bytes)], name, {type: "image/png"});
            clipboardData.items.add(file);
            document.activeElement.dispatchEvent(
                new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
        }""",
        [name, list(content)],
    )


def test_files_are_chosen_dropped_and_pasted_sent_once_and_seen(
    visitor: Visitor, backend: ScriptedBackend
) -> None:
    backend.add_conversation(backend.add_agent("shop", backend.add_host("mbp")))
    page = visitor.window(NARROW)
    box = page.get_by_role("textbox", name="Message shop")
    send = page.get_by_role("button", name="Send", exact=True)
    chosen = page.get_by_role("list", name="Files to send").get_by_role("listitem")
    box.fill("Look at these")
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Add files").click()
    big: FilePayload = {"name": "huge.bin", "mimeType": "", "buffer": bytes(MOST_BYTES + 1)}
    choosing.value.set_files([big, {"name": "a.txt", "mimeType": "", "buffer": b"kept"}])
    expect(page.get_by_role("alert")).to_contain_text("It has 1 MB: more than this server takes.")
    expect(send).to_be_disabled()
    box.press("Enter")
    expect(page.get_by_text("A file is not there").first).to_be_visible()
    page.get_by_role("button", name="Take out huge.bin").click()
    expect(chosen).to_have_count(1)
    page.reload()  # what is there stays with the draft
    expect(chosen.get_by_text("a.txt")).to_be_visible()

    backend.down = True
    drop(page, "b.log", "boom")
    expect(page.get_by_role("alert")).to_contain_text("The connection was lost")
    assert check(page, "files to send") == []
    backend.down = False
    page.get_by_role("button", name="Try again: b.log").click()
    box.focus()
    paste(page, "c.png", picture(40, 40))
    expect(chosen).to_have_count(3)
    expect(send).to_be_enabled()
    assert page.evaluate("() => document.documentElement.scrollWidth") == NARROW[0]

    backend.lose_answers = 1
    box.press("Enter")
    own = page.locator(".message.own")
    expect(own.locator(".file-name")).to_have_text(["a.txt", "b.log", "c.png"])
    expect(page.locator(".pending")).to_have_count(0)
    expect(own).to_have_count(1)
    expect(chosen).to_have_count(0)
    expect(own.get_by_role("img", name="Open c.png")).to_be_visible()
    [message] = backend.messages.values()
    assert [backend.files[file.id][1] for file in message.attachments][:2] == [b"kept", b"boom"]

    drop(page, "alone.txt", "no words")
    expect(send).to_be_enabled()
    send.click()
    expect(own.last.locator(".file-name")).to_have_text(["alone.txt"])
    page.reload()
    expect(own).to_have_count(2)
    expect(chosen).to_have_count(0)
