"""A program of its own: what changed in a git work tree between two moments, without touching it.

    python -I -S differ.py before|after|same FOLDER      (a JSON object on standard input, one on standard output)

FOLDER is private to one run. `before` makes a repository of our own in it: its configuration is ours, its
index a copy of the other one's, its objects apart from the other one's. So git reads no configuration of
a stranger's with which it could be made to run something (hooks, filters, fsmonitor, external diffs), and
writes nothing where it was not asked to: not even the times of objects, which it would renew if it could
see that they exist. Only to print the difference are the other one's objects read (docs/decisions/0027).

The index is what was there before; what differs from it afterwards is what has changed. What git ignores
is not looked at. Input: `git_dir`, `common_dir`, `root`, and for tests `max_…`. Output: `{"problem": …}`,
or of `after` `{"files": […], "more": n, …}` as `Diff` in cloudagent_protocol/diffs.py, not yet cut to size.

`same` is another question, about a work tree that might be removed: whether it holds anything that its `base`
does not, committed, staged or not. Output: `{"work": null}`, or what there is.

Standard library only, and little of it: it starts with each run.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import sys

TYPE_CHECKING = False  # as in `typing`
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Json: TypeAlias = dict[str, Any]
    #: Mode and object of each path.
    Entries: TypeAlias = dict[bytes, tuple[bytes, bytes]]

#: A larger file is named, and not looked into.
MAX_FILE_BYTES = 5_000_000
#: Of all that differs from the index before a run; more, and there is no diff.
MAX_BYTES = 200_000_000
MAX_PATHS = 10_000
MAX_INDEX_BYTES = 64_000_000
#: Files of which more than their number is told.
MAX_FILES = 300
#: Of one file's difference, and of all: what is sent in the end is less (runs/diffs.py).
MAX_PATCH_BYTES = 200_000
MAX_PATCHES_BYTES = 1_000_000
#: What git may print or write at once.
MAX_OUTPUT_BYTES = 256_000_000
#: Settings that say how files are to be read; none of them names a program.
HEEDED = (
    "core.autocrlf",
    "core.eol",
    "core.excludesfile",
    "core.filemode",
    "core.ignorecase",
    "core.precomposeunicode",
    "core.symlinks",
    "extensions.objectformat",
)
OURS = """
    bare = false
    hooksPath = /dev/null
    fsmonitor = false
    untrackedCache = false
    splitIndex = false
    quotePath = false
    safecrlf = false
    compression = 0
    looseCompression = 0
    fsync = none
"""
TOO_LARGE = "too_large"


class NoDiffError(Exception):
    """There is none; `str()` says why: `too_large`, or in words."""


class Git:
    """The repository in `folder`, over the work tree that `asked` names."""

    def __init__(self, folder: str, asked: Json) -> None:
        self.folder = folder
        self.root: str = asked["root"]
        self.git_dir: str = asked["git_dir"]
        self.common_dir: str = asked["common_dir"]
        self.limits: Json = asked
        self.program = program()
        self.own = f"{folder}/repository"

    def limit(self, name: str) -> int:
        return int(self.limits.get(name.lower(), globals()[name]))

    def run(
        self,
        *words: str,
        feed: bytes = b"",
        index: str = "index",
        reads: bool = False,
        git_dir: str = "",
        fails: bool = False,
    ) -> bytes:
        """What it prints; with `reads` it sees the other one's objects.

        Raises:
            NoDiffError: it failed, unless it may.
        """
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/nonexistent"),
            "LC_ALL": "C",
            "GIT_DIR": git_dir or self.own,
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_PAGER": "cat",
        }
        if "XDG_CONFIG_HOME" in os.environ:
            env["XDG_CONFIG_HOME"] = os.environ["XDG_CONFIG_HOME"]
        if not git_dir:
            env |= {
                "GIT_WORK_TREE": self.root,
                "GIT_INDEX_FILE": f"{self.folder}/{index}",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_ATTR_NOSYSTEM": "1",
            }
        if reads:
            env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = quoted(f"{self.common_dir}/objects")
        streams = [f"{self.folder}/{name}" for name in ("in", "out", "err")]
        with open(streams[0], "wb") as file:
            file.write(feed)
        to_write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        pid = os.posix_spawn(
            self.program,
            ["git", "-C", self.root, *words],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, streams[0], os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, streams[1], to_write, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, streams[2], to_write, 0o600),
            ],
        )
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code and not fails:
            said = read(streams[2]).decode("utf-8", "replace").strip()[:300]
            raise NoDiffError(f"git {words[0]} failed: {said or f'exit {code}'}")
        return read(streams[1])

    def entries(self, index: str = "index") -> Entries:
        """All that is in the index; of what is not merged, nothing."""
        found: Entries = {}
        for line in self.run("ls-files", "-s", "-z", index=index).split(b"\0")[:-1]:
            about, _, path = line.partition(b"\t")
            mode, name, stage = about.split(b" ")
            if stage == b"0":
                found[path] = mode, name
        return found

    def differing(self) -> list[bytes]:
        """Paths that are not as in the index, or not in it."""
        printed = self.run("ls-files", "-m", "-d", "-o", "-z", "--exclude-standard", reads=True)
        paths = set(printed.split(b"\0")[:-1])
        if len(paths) > self.limit("MAX_PATHS"):
            raise NoDiffError(TOO_LARGE)
        return sorted(path for path in paths if not path.endswith(b"/"))

    def take_in(self, paths: list[bytes]) -> dict[bytes, list[int]]:
        """Brings the index to what is there; returns size and time of files that are too large."""
        large: dict[bytes, list[int]] = {}
        gone: list[bytes] = []
        taken: list[bytes] = []
        total = 0
        for path in paths:
            found = self.stat_of(path)
            if found is None:
                gone.append(path)
                continue
            if stat.S_ISREG(found.st_mode) and found.st_size > self.limit("MAX_FILE_BYTES"):
                large[path] = [found.st_size, found.st_mtime_ns]
            elif stat.S_IFMT(found.st_mode) in {stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR}:
                taken.append(path)
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
        if total > self.limit("MAX_BYTES"):
            raise NoDiffError(TOO_LARGE)
        # First what goes: a folder may stand where a file was.
        for words, chosen in ((("--force-remove",), gone), (("--add", "--replace"), taken)):
            if chosen:
                feed = b"".join(path + b"\0" for path in chosen)
                self.run("update-index", *words, "-z", "--stdin", feed=feed)
        return large

    def stat_of(self, path: bytes) -> os.stat_result | None:
        """Of what is there by this name itself, not by a link that a folder of it has become."""
        whole = os.fsencode(self.root)
        try:
            for part in path.split(b"/")[:-1]:
                whole += b"/" + part
                if os.path.islink(whole):
                    return None
            whole += b"/" + path.rpartition(b"/")[2]
            found = os.lstat(whole)
        except OSError:
            return None
        # A folder counts where it is a repository of its own.
        plain = stat.S_ISDIR(found.st_mode) and not os.path.lexists(whole + b"/.git")
        return None if plain else found

    def tree(self, index: str, entries: Entries) -> str:
        lines = [b"%s %s\t%s\0" % (mode, name, path) for path, (mode, name) in entries.items()]
        self.run("update-index", "-z", "--index-info", feed=b"".join(lines), index=index)
        return self.run("write-tree", "--missing-ok", index=index).decode().strip()


# --- before -----------------------------------------------------------------------------


def before(git: Git) -> Json:
    settings = heeded(git)
    set_up(git, settings)
    seed(git)
    large = git.take_in(git.differing())
    write(f"{git.folder}/large", dumped(large))
    return {}


def heeded(git: Git) -> dict[str, str]:
    """The settings under which the work tree was written; reading them runs nothing."""
    names = "|".join(name.replace(".", r"\.") for name in HEEDED)
    words = ("config", "-z", "--get-regexp", f"^({names})$")
    printed = git.run(*words, git_dir=git.git_dir, fails=True).decode("utf-8", "surrogateescape")
    pairs = (line.partition("\n") for line in printed.split("\0")[:-1])
    return {name.lower(): value for name, _, value in pairs}


def set_up(git: Git, settings: dict[str, str]) -> None:
    for folder in ("objects", "refs", "info"):
        os.makedirs(f"{git.own}/{folder}", 0o700)
    write(f"{git.own}/HEAD", b"ref: refs/heads/none\n")
    form = settings.pop("extensions.objectformat", "sha1")
    lines = ["[core]", f"    repositoryformatversion = {0 if form == 'sha1' else 1}", OURS]
    for name, value in settings.items():
        if name == "core.excludesfile" and value.startswith("~/"):
            value = f"{os.environ.get('HOME', '')}{value[1:]}"
        lines.append(f"    {name.partition('.')[2]} = {setting(value)}")
    if form != "sha1":
        lines += ["[extensions]", f"    objectFormat = {setting(form)}"]
    write(f"{git.own}/config", "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    try:
        excluded = read(f"{git.common_dir}/info/exclude", 1_000_000)
    except OSError:
        return
    write(f"{git.own}/info/exclude", excluded)


def seed(git: Git) -> None:
    """Copies the index with its time, by which git tells which of its entries may be out of date."""
    target = f"{git.folder}/index"
    if any(name.startswith("sharedindex.") for name in os.listdir(git.git_dir)):
        # It is in two files, and to read the other one would renew its time.
        head = git.run("rev-parse", "HEAD^{tree}", git_dir=git.git_dir).decode().strip()
        git.run("read-tree", head, reads=True)
        return
    try:
        with open(f"{git.git_dir}/index", "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_size > git.limit("MAX_INDEX_BYTES"):
                raise NoDiffError(TOO_LARGE)
            write(target, file.read())
    except FileNotFoundError:
        return  # nothing was ever added
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))


# --- same -------------------------------------------------------------------------------


def same(git: Git) -> Json:
    """What there is in a work tree that would be lost with it."""
    set_up(git, heeded(git))
    base = git.run("rev-parse", "--verify", f"{git.limits['base']}^{{tree}}", git_dir=git.git_dir)
    head = git.run("rev-parse", "--verify", "HEAD^{commit}", git_dir=git.git_dir)
    if head.decode().strip() != git.limits["base"]:
        return {"work": "it has commits of its own"}
    seed(git)
    if git.run("write-tree", "--missing-ok") != base:
        return {"work": "it has changes that are staged and not committed"}
    listed = git.run("ls-files", "-o", "-z", "--exclude-standard", reads=True)
    if listed:
        return {"work": "it has files that are not committed"}
    large = git.take_in(git.differing())
    if large or git.run("write-tree", "--missing-ok") != base:
        return {"work": "it has changes that are not committed"}
    return {"work": None}


# --- after ------------------------------------------------------------------------------


def after(git: Git) -> Json:
    were = loaded(read(f"{git.folder}/large"))
    paths = git.differing()
    old = chosen(git.entries(), paths) if paths else {}
    large = git.take_in(paths)
    new = chosen(git.entries(), paths) if paths else {}
    for path in list(old.keys() | new.keys()):
        if old.get(path) == new.get(path) or path in were or path in large:
            old.pop(path, None)
            new.pop(path, None)
    files = compared(git, old, new)
    for path in were.keys() | large.keys():
        if were.get(path) != large.get(path):
            files.append(unread(git, path, were.get(path), large.get(path)))
    files.sort(key=lambda file: file["path"])
    most = git.limit("MAX_FILES")
    return {
        "files": files[:most],
        "more": max(0, len(files) - most),
        "additions": sum(file["additions"] for file in files),
        "deletions": sum(file["deletions"] for file in files),
    }


def chosen(entries: Entries, paths: list[bytes]) -> Entries:
    return {path: entries[path] for path in paths if path in entries}


def compared(git: Git, old: Entries, new: Entries) -> list[Json]:
    if not old and not new:
        return []
    trees = git.tree("old", old), git.tree("new", new)
    words = ("diff-tree", "-r", "-M", "-l300", "--no-ext-diff", "--no-textconv", "--no-color")
    counts = git.run(*words, "-z", "--numstat", *trees, reads=True).split(b"\0")[:-1]
    files: list[Json] = []
    while counts:
        added, deleted, path = counts.pop(0).split(b"\t", 2)
        was = path
        if not path:  # renamed: the two names follow
            was, path = counts.pop(0), counts.pop(0)
        files.append(counted(added, deleted, was, path, old, new))
    printed = git.run(*words, "-p", "--full-index", *trees, reads=True)
    room = MAX_PATCHES_BYTES
    for file, patch in zip(files, patches(printed), strict=False):
        taken = whole_lines(patch, min(MAX_PATCH_BYTES, room))
        room -= len(taken)
        file["patch"] = taken.decode("utf-8", "replace")
        file["truncated"] = len(taken) < len(patch)
    return files


def counted(
    added: bytes, deleted: bytes, was: bytes, path: bytes, old: Entries, new: Entries
) -> Json:
    status = "added" if was not in old else "deleted" if path not in new else "modified"
    binary = added == b"-"
    return {
        "path": shown(path),
        "old_path": shown(was) if was != path else None,
        "status": "renamed" if was != path else status,
        "additions": 0 if binary else int(added),
        "deletions": 0 if binary else int(deleted),
        "binary": binary,
        "patch": "",
        "truncated": False,
    }


def unread(git: Git, path: bytes, was: list[int] | None, now: list[int] | None) -> Json:
    """A file that is or was too large to be looked into."""
    here = os.path.lexists(os.fsencode(git.root) + b"/" + path)
    known = was is not None or path in git.entries()
    return {
        "path": shown(path),
        "old_path": None,
        "status": "modified" if here and known else "added" if here else "deleted",
        "additions": 0,
        "deletions": 0,
        "binary": True,
        "patch": "",
        "truncated": False,
        "size_bytes": now[0] if now else None,
    }


def patches(printed: bytes) -> list[bytes]:
    """One for each file: within one, no line begins as they do."""
    if not printed:
        return []
    begun = printed.split(b"\ndiff --git ")
    return [begun[0] + b"\n" if len(begun) > 1 else begun[0]] + [
        b"diff --git " + one + (b"\n" if number < len(begun) - 1 else b"")
        for number, one in enumerate(begun[1:], 1)
    ]


def whole_lines(patch: bytes, room: int) -> bytes:
    return patch if len(patch) <= room else patch[: patch.rfind(b"\n", 0, max(room, 0)) + 1]


# --- files and words ---------------------------------------------------------------------


def program() -> str:
    """Where git is.

    Raises:
        NoDiffError: it is not there.
    """
    for folder in os.environ.get("PATH", os.defpath).split(":"):
        path = f"{folder}/git"
        if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            # Apple's own is a stand-in that opens a window to be installed by.
            tools = ("/Library/Developer/CommandLineTools", "/Applications/Xcode.app")
            stand_in = sys.platform == "darwin" and path == "/usr/bin/git"
            if not stand_in or any(map(os.path.exists, tools)):
                return path
    raise NoDiffError("git is not installed on this machine, or not on the daemon's PATH")


def quoted(path: str) -> str:
    """As git's lists of folders have it (gitenvironment: C-style quotes)."""
    if '"' not in path and ":" not in path:
        return path
    return '"{}"'.format(path.replace("\\", "\\\\").replace('"', '\\"'))


def setting(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def dumped(large: dict[bytes, list[int]]) -> bytes:
    return json.dumps({os.fsdecode(path): about for path, about in large.items()}).encode()


def loaded(text: bytes) -> dict[bytes, list[int]]:
    return {os.fsencode(path): about for path, about in json.loads(text).items()}


def read(path: str, most: int = MAX_OUTPUT_BYTES) -> bytes:
    with open(path, "rb") as file:
        return file.read(most)


def write(path: str, body: bytes) -> None:
    with open(path, "wb") as file:
        file.write(body)


def main() -> None:
    step, folder = sys.argv[1:]
    os.umask(0o077)
    os.nice(5)  # the agent comes first
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))
    asked = json.loads(sys.stdin.buffer.read())
    try:
        git = Git(folder, asked)
        said = {"before": before, "after": after, "same": same}[step](git)
    except NoDiffError as error:
        said = {"problem": str(error)}
    except OSError as error:
        said = {"problem": f"the folder could not be looked at: {error}"}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
