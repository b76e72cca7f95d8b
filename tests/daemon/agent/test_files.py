"""The file tools, and what paths try on them."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudagent_daemon.agent.errors import ToolError
from cloudagent_daemon.agent.tools import beneath
from cloudagent_daemon.agent.tools.beneath import Folder, RefusedError
from cloudagent_daemon.agent.tools.files import FileTools, list_files, read_lines

SECRET = "the secret outside"


@pytest.fixture(params=["openat2", "walk"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with a secret beside it; once with the kernel's help and once without."""
    (tmp_path / "secret.txt").write_text(SECRET)
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("alpha\nbeta\ngamma\n")
    (root / "sub" / "b.py").write_text("def beta(): ...\n")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "walk":  # as on a Mac, and on a Linux before 5.6
            patch.setattr(beneath.sys, "platform", "other")
        yield root


def read(root: Path, path: str) -> str:
    with Folder(root) as folder:
        return read_lines(folder, path)


def test_a_file_is_read_with_numbered_lines(root: Path) -> None:
    assert read(root, "a.txt") == "1\talpha\n2\tbeta\n3\tgamma"
    assert read(root, "./sub/b.py") == "1\tdef beta(): ..."
    assert read(root, str(root / "a.txt")).startswith("1\talpha")


def test_a_part_of_a_file_says_that_it_is_one(root: Path) -> None:
    with Folder(root) as folder:
        part = read_lines(folder, "a.txt", offset=2, limit=1)
        assert part == "2\tbeta\n[lines 2 to 2 of 3]"
        assert "3 lines" in read_lines(folder, "a.txt", offset=9)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "../root/../secret.txt",
        "a.txt\0.png",
        "/proc/self/root/etc/passwd",
        "/dev/zero",
        "x/" * 5000,
        "missing.txt",
        "sub",
        "link",
        "linked_folder/secret.txt",
        "magic/etc/passwd",
        "up/secret.txt",
        "pipe",
        "sock",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(root: Path, path: str) -> None:
    (root / "link").symlink_to(root.parent / "secret.txt")
    (root / "linked_folder").symlink_to(root.parent)
    (root / "magic").symlink_to("/proc/self/root")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(root)  # a socket's path is short
        unix.bind("sock")
        os.chdir(here)
    with pytest.raises((RefusedError, OSError)):
        read(root, path)


def test_a_rename_under_way_never_leaks_what_lies_outside(root: Path) -> None:
    """H7: a folder on the path is swapped for a link to the outside, again and again."""
    (root / "sub" / "secret.txt").write_text("inside")
    (root / "evil").symlink_to(root.parent)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            Path(root / "sub").rename(root / "kept")
            Path(root / "evil").rename(root / "sub")
            Path(root / "sub").rename(root / "evil")
            Path(root / "kept").rename(root / "sub")

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[str] = set()
    refused = 0
    try:
        with Folder(root) as folder:
            for _ in range(20_000):
                try:
                    seen.add(read_lines(folder, "sub/secret.txt"))
                except RefusedError:
                    refused += 1
    finally:
        stop.set()
        swapper.join()
    assert seen == {"1\tinside"}
    assert refused  # the race did happen


RENAMES = """
import os, sys
folder = sys.argv[1]
print("ready", flush=True)
while True:
    os.rename(f"{folder}/one", f"{folder}/two")
    os.rename(f"{folder}/two", f"{folder}/one")
"""


def test_renames_beside_it_do_not_refuse_a_path_that_stays_inside(tmp_path: Path) -> None:
    """The kernel says EAGAIN where something was renamed while it went through `..` (openat2(2))."""
    (tmp_path / "one").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_text("x")
    argv = [sys.executable, "-I", "-S", "-c", RENAMES, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as renames:
        try:
            assert renames.stdout
            renames.stdout.readline()
            with Folder(tmp_path) as folder:
                for _ in range(3_000):
                    os.close(folder.open("sub/../sub/../sub/../file"))
        finally:
            renames.kill()


def test_binary_files_are_refused_and_odd_text_is_shown_as_it_can_be(root: Path) -> None:
    (root / "bin").write_bytes(b"\x7fELF\0\0")
    with pytest.raises(RefusedError):
        read(root, "bin")
    (root / "latin").write_bytes(b"caf\xe9")
    assert read(root, "latin") == "1\tcaf\ufffd"


def test_folders_are_listed_and_the_big_ones_not_gone_into(root: Path) -> None:
    (root / "node_modules" / "x").mkdir(parents=True)
    (root / "out").symlink_to("/etc")
    with Folder(root) as folder:
        assert list_files(folder) == "a.txt\nnode_modules/\nout\nsub/"
        assert list_files(folder, recursive=True) == "a.txt\nnode_modules/\nout\nsub/\nsub/b.py"
        assert list_files(folder, "sub") == "sub/b.py"
        with pytest.raises(RefusedError):
            list_files(folder, "a.txt")


async def test_a_folder_nested_deeper_than_the_stack_is_listed_and_searched(
    tmp_path: Path,
) -> None:
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1_500):
            Path("d").mkdir()
            os.chdir("d")
    finally:
        os.chdir(here)
    tools = FileTools(tmp_path)
    try:
        listed = await tools.call("list_files", {"recursive": True})
        assert "more than 1000 entries" in listed
        assert await tools.call("search_files", {"pattern": "x"}) == "Nothing found."
    finally:
        # Here, as pytest's own removal goes by recursion.
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_long_list_is_cut_and_says_so(tmp_path: Path) -> None:
    for number in range(1_001):
        (tmp_path / f"{number:04}").touch()
    with Folder(tmp_path) as folder:
        lines = list_files(folder).splitlines()
    assert len(lines) == 1_001
    assert "more than" in lines[-1]


async def search(root: Path, **arguments: object) -> str:
    return await FileTools(root, search_s=20).call("search_files", arguments)


async def test_a_search_finds_texts_and_expressions(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("alpha (1)\nBETA\n")
    (tmp_path / "sub" / "b.txt").write_text("beta\n")
    (tmp_path / "bin").write_bytes(b"beta\0")
    assert await search(tmp_path, pattern="(1)") == "a.txt:1: alpha (1)"
    both = await search(tmp_path, pattern="^b.t", regex=True, ignore_case=True)
    assert both == "a.txt:2: BETA\nsub/b.txt:1: beta"
    assert await search(tmp_path, pattern="beta", path="sub/b.txt") == "sub/b.txt:1: beta"
    assert await search(tmp_path, pattern="nowhere") == "Nothing found."


async def test_a_search_does_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    assert await search(root, pattern="secret") == "Nothing found."
    for path in ("..", "up", "link", "/"):
        with pytest.raises(ToolError):
            await search(root, pattern="secret", path=path)


async def test_a_bad_expression_is_the_models_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="position"):
        await search(tmp_path, pattern="(", regex=True)


async def test_an_expression_that_runs_wild_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 60 + "!\n")
    tools = FileTools(tmp_path, search_s=1)
    with pytest.raises(ToolError, match="took over"):
        await tools.call("search_files", {"pattern": "(a+)+$", "regex": True})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_file", {}),
        ("read_file", {"path": 3}),
        ("read_file", {"path": ""}),
        ("read_file", {"path": "a", "offset": 0}),
        ("read_file", {"path": "a", "limit": True}),
        ("read_file", {"path": "a", "mode": "w"}),
        ("list_files", {"recursive": "yes"}),
        ("search_files", {"path": "."}),
    ],
)
async def test_arguments_that_do_not_fit_are_told_to_the_model(
    tmp_path: Path, name: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(ToolError):
        await FileTools(tmp_path).call(name, arguments)


async def test_files_of_messages_are_read_where_they_lie_and_nothing_beside_them(
    tmp_path: Path,
) -> None:
    folder, files = tmp_path / "workspace", tmp_path / "attachments"
    for place in (folder, files / "msg_1"):
        place.mkdir(parents=True)
    (files / "msg_1" / "notes.txt").write_text("what I saw")
    (tmp_path / "MEMORY.md").write_text("hush")
    tools = FileTools(folder, files=files)
    assert "what I saw" in await tools.call("read_file", {"path": f"{files}/msg_1/notes.txt"})
    for path in (
        f"{files}/../MEMORY.md",
        f"{tmp_path}/MEMORY.md",
        "../attachments/msg_1/notes.txt",
    ):
        with pytest.raises(ToolError):
            await tools.call("read_file", {"path": path})
    with pytest.raises(ToolError, match="outside"):
        await FileTools(folder).call("read_file", {"path": f"{files}/msg_1/notes.txt"})
