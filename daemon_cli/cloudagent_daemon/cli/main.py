"""The `cloudagent-daemon` command. A key in argv leaves it first, before any import takes time."""

import os
import sys

_OPTION = "--api-key"
#: Where the key goes: a descriptor that is read once.
FDS = "/dev/fd/"
#: Longer ones are no keys, and would not fit the pipe.
_MAX_CHARS = 4_096
_WINDOWS = """\
error: cloudagent-daemon does not run on Windows itself
  why:  it needs Unix sockets, signals and process groups
  next: wsl --install   (then install and start it inside of WSL2)"""


def main() -> int:
    """Runs the command in argv; returns its exit code."""
    if sys.platform == "win32":
        sys.exit(_WINDOWS)
    leave_argv()
    from cloudagent_daemon.cli import dispatch

    return dispatch.run()


def leave_argv() -> None:
    """Starts this program anew with the key in a pipe, if it stands in argv.

    Whoever lists processes sees argv, for as long as a process lives.
    """
    words = sys.argv[1:]
    found = _find(words)
    if found is None or not sys.executable:
        return
    first, last, key = found
    if len(key) > _MAX_CHARS:
        return
    reading, writing = os.pipe()
    os.write(writing, key.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    words[first:last] = [f"{_OPTION}-file", f"{FDS}{reading}"]
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    os.execv(sys.executable, [sys.executable, *before, *words])  # noqa: S606 - ourselves, no shell


def _find(words: list[str]) -> tuple[int, int, str] | None:
    """Where a key stands in `words`: from, to, and the key."""
    for index, word in enumerate(words):
        if word == "--":
            return None
        if word == _OPTION and index + 1 < len(words):
            return index, index + 2, words[index + 1]
        if word.startswith(f"{_OPTION}="):
            return index, index + 1, word.removeprefix(f"{_OPTION}=")
    return None
