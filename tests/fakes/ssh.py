"""A program called `ssh`, for tunnels: it forwards a Unix socket to a port, and does what it is told.

`install` puts it into a folder; what it does is read from a file there at each start: a line with the
error that it ends with, or nothing, and then it forwards. Each start is noted, with its arguments.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, socket, sys, threading
folder = {folder!r}
argv = sys.argv[1:]
with open(os.path.join(folder, "starts"), "a") as file:
    file.write(json.dumps({{"argv": argv, "pid": os.getpid()}}) + "\\n")
with open(os.path.join(folder, "error")) as file:
    error = file.read()
if error:
    sys.exit(print(error, file=sys.stderr) or 255)
near, host, port = argv[argv.index("-L") + 1].rsplit(":", 2)
old = os.umask(0o177)
listener = socket.socket(socket.AF_UNIX)
listener.bind(near)
os.umask(old)
listener.listen()

def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for sock in (one, other):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

while True:
    here, _ = listener.accept()
    try:
        there = socket.create_connection((host.strip("[]"), int(port)))
    except OSError:
        print("channel 2: open failed: connect failed", file=sys.stderr, flush=True)
        here.close()
        continue
    for pair in ((here, there), (there, here)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""


@dataclass
class FakeSsh:
    folder: Path

    @property
    def path(self) -> str:
        """For PATH: this ssh before any other."""
        return f"{self.folder}:/usr/bin:/bin"

    @property
    def starts(self) -> list[tuple[Sequence[str], int]]:
        """The arguments and the process of each start."""
        file = self.folder / "starts"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(one["argv"], one["pid"]) for one in map(json.loads, lines)]

    def fail(self, error: str = "") -> None:
        """Ends with this error from the next start on; with nothing it works."""
        draft = self.folder / "error.new"
        draft.write_text(error)
        draft.replace(self.folder / "error")

    def kill(self) -> None:
        """Kills the one that was started last."""
        os.kill(self.starts[-1][1], 9)


def install(folder: Path) -> FakeSsh:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ssh"
    program.write_text(_SCRIPT.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    fake = FakeSsh(folder)
    fake.fail("")
    return fake
