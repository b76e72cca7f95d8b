"""Which files an agent may send: those in its own folders, and nothing that leads out of them."""

import json
import os
import socket
from pathlib import Path

import pytest

from cloudagent_daemon.link.copies import Copies
from cloudagent_daemon.runs.picking import (
    Baggage,
    Reach,
    UnpickedError,
    copies_of,
    reach_of,
    secret_in,
)
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.attachments import MAX_ATTACHMENT_BYTES
from fakes.runs import World, a_world

ADDRESSES = [
    json.loads(line)
    for line in (Path(__file__).parent / "addresses.jsonl").read_text().splitlines()
]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the agent works."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "chart.png").write_bytes(PNG)
    (tmp_path / "outside.txt").write_text("not yours")
    return work


def baggage(place: Path, **reach: object) -> Baggage:
    copies = Copies(place.parent / "outgoing")
    wanted = Reach(**({"cwd": place, "roots": [place]} | reach))  # pyright: ignore[reportArgumentType]
    return Baggage(lambda: wanted, copies)


def refusal(place: Path, path: str, **reach: object) -> str:
    with pytest.raises(UnpickedError) as refused:
        baggage(place, **reach).pick(path)
    assert list((place.parent / "outgoing").glob("*")) == []
    return str(refused.value)


def test_a_file_is_copied_as_it_is_and_told_by_what_it_holds(place: Path) -> None:
    ours = baggage(place)
    for said in ("chart.png", str(place / "chart.png"), f"../{place.name}/./chart.png"):
        kept = ours.pick(said)
        assert (kept.name, kept.media_type, kept.size_bytes) == ("chart.png", "image/png", 58)
        copy = ours.copies.path(kept.id)
        assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (PNG, 0o600)
        ours.drop([kept])
        assert not copy.exists()
    (place / "page.png").write_text("<html>")
    assert ours.pick("page.png").media_type == "text/plain"


def test_what_lies_outside_is_refused_however_it_is_spelled(place: Path) -> None:
    other = place.parent / "work-of-others"
    other.mkdir()
    (other / "a.txt").write_text("a")
    for path in ("../outside.txt", str(place.parent / "outside.txt"), "/etc/hostname", ".", "",
                 str(other / "a.txt"), "a/../../outside.txt", "~/x", "a\0b"):  # fmt: skip
        said = refusal(place, path)
        assert any(words in said for words in ("no file in your folders", "NUL", "no such file"))


def test_no_link_is_followed_and_none_leads_out(place: Path) -> None:
    (place / "file").symlink_to(place.parent / "outside.txt")
    (place / "folder").symlink_to(place.parent)
    (place / "here").symlink_to("chart.png")
    for path in ("file", "folder/outside.txt", "here"):
        assert "link" in refusal(place, path)
    os.link(place.parent / "outside.txt", place / "hard")
    assert "more than one name" in refusal(place, "hard")


def test_only_a_regular_file_is_sent_and_nothing_waits_for_a_pipe(place: Path) -> None:
    os.mkfifo(place / "pipe")
    (place / "folder").mkdir()
    (place / "empty").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
        assert "regular file" in refusal(place, "socket")
    assert "regular file" in refusal(place, "pipe")
    assert "pack it first" in refusal(place, "folder")
    assert "it is empty" in refusal(place, "empty")
    with (place / "large").open("wb") as file:
        file.truncate(MAX_ATTACHMENT_BYTES + 1)
    assert "larger than 26.2 MB" in refusal(place, "large")
    assert "no such file" in refusal(place, "none.txt")


def test_no_more_waits_than_there_is_room_for(place: Path) -> None:
    ours = Baggage(lambda: Reach(place, [place]), Copies(place.parent / "outgoing", most_bytes=50))
    ours.pick("chart.png")
    with pytest.raises(UnpickedError, match="50 bytes of files wait for the backend"):
        ours.pick("chart.png")


@pytest.mark.parametrize(
    "path",
    [".env", "app/.env.production", "prod.env", ".ssh/config", "id_ed25519", "deep/ID_RSA", "tls.key",
     "cert.pem", ".aws/x", "home/.config/gcloud/y.json", ".netrc", "credentials.json", ".bash_history",
     ".cloudagent/daemon/config.json", ".claude/settings.json"],
)  # fmt: skip
def test_what_is_named_as_a_secret_is_refused(place: Path, path: str) -> None:
    file = place / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("hush")
    assert "keys and logins" in refusal(place, path)


@pytest.mark.parametrize("path", [".env.example", "id_ed25519.pub", "environment.md", "a.keynote"])
def test_what_only_looks_like_one_is_not(path: str) -> None:
    assert secret_in([path]) is None


def test_a_private_key_is_refused_under_any_name(place: Path) -> None:
    kind = "PRIVATE"  # in one piece it would be one, to whoever looks for keys in this repository
    (place / "notes.txt").write_text(f"-----BEGIN OPENSSH {kind} KEY-----\nb3Blbn")
    assert "holds a private key" in refusal(place, "notes.txt")


def test_a_shared_folder_gives_only_files_of_this_user(place: Path) -> None:
    ours = baggage(place, shared=[place])
    assert ours.pick("chart.png").size_bytes == 58
    if os.geteuid() == 0:
        os.chown(place / "chart.png", 12_345, -1)
        assert "belongs to another user" in refusal_of(ours)


def refusal_of(ours: Baggage) -> str:
    with pytest.raises(UnpickedError) as refused:
        ours.pick("chart.png")
    return str(refused.value)


@pytest.mark.parametrize("row", ADDRESSES, ids=[row["id"] for row in ADDRESSES])
def test_no_address_is_fetched_whatever_it_names(place: Path, row: dict[str, str]) -> None:
    assert "nothing is fetched from addresses" in refusal(place, row["url"])


async def test_of_our_own_folders_an_agent_reaches_only_its_own(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        space, ours = spaced(world, cwd=str(tmp_path))
        (tmp_path / "mine.txt").write_text("fine")
        assert ours.pick("mine.txt").name == "mine.txt"
        (space.folder / "made.txt").write_text("fine")
        assert ours.pick(str(space.folder / "made.txt")).name == "made.txt"
        others = world.settings.agents_dir / "agent_other"
        others.mkdir()
        for path in (others / "MEMORY.md", world.settings.runtime_dir / "x", space.meta / "x.json"):
            path.write_text("hidden")
            with pytest.raises(UnpickedError, match=r"cloudagent's own"):
                ours.pick(str(path))
        # Not even where somebody has it work there.
        _, inside = spaced(world, cwd=str(others))
        with pytest.raises(UnpickedError, match="no file in your folders"):
            inside.pick("MEMORY.md")


def spaced(world: World, **agent: str) -> tuple[Workspace, Baggage]:
    space = Workspace(world.settings.agents_dir, world.agent.model_copy(update=agent))
    space.prepare()
    reach = reach_of(world.settings, space)
    assert Path("/tmp") in reach.shared
    # The tests' own folder lies in the temporary one.
    reach = Reach(reach.cwd, [r for r in reach.roots if r not in reach.shared], (), reach.hidden)
    return space, Baggage(lambda: reach, copies_of(world.settings))
