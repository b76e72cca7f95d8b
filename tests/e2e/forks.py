"""Our two commands, started at a tenth of the price: forked from a process that has imported them.

Most of what a start costs is imports. For tests that start a backend or a daemon hundreds of times:

    process = Process([str(BIN / "cloudagent-daemon"), "start"], env=env, cwd=home, start=forked)

It is the same code in a process, session and environment of its own, and it ends as any interpreter
does: threads waited for, exit functions called, open things named, all written out.
`forked_run` waits for its end, and `forked_in` gives it a terminal. What only a new interpreter shows
(`PYTHON*` variables, a module that is missing) needs a real start: the default. As a program this file is the parent: `python forks.py SOCKET_FD`.
"""

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import warnings
from pathlib import Path
from typing import IO, Any, Final, NoReturn

#: Where a command's code begins (pyproject.toml, scripts).
MAINS: Final = {
    "cloudagent": "cloudagent.cli",
    "cloudagent-backend": "cloudagent_daemon.cli.backend",
    "cloudagent-daemon": "cloudagent_daemon.cli.main",
}
#: What they import when they run.
_IMPORTED: Final = (
    "cloudagent_backend.cli",
    "cloudagent.cli",
    "cloudagent.cli.send",
    "cloudagent_daemon.ci",
    "cloudagent_daemon.cli.dispatch",
    "cloudagent_daemon.cli.login",
    "cloudagent_daemon.bridge.rpc",
    "cloudagent_daemon.life",
)
_START_S: Final = 30.0
#: Python's exit code when nobody takes what it has still to write.
_NOT_WRITTEN: Final = 120


# --- for tests ------------------------------------------------------------------------


class Forked:
    """A started command; as much of `subprocess.Popen` as tests use."""

    def __init__(self, parent: "_Parent", pid: int) -> None:
        self._parent = parent
        self.pid = pid
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._parent.news:
            if not self._parent.news.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired(f"the forked process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forked(argv: list[str], env: dict[str, str], cwd: Path) -> Forked:
    """Starts one of our commands; its standard output and error come in one stream."""
    theirs_in, stdin = os.pipe()
    stdout, theirs_out = os.pipe()
    try:
        started = _parent().fork(argv, env, cwd, theirs_in, theirs_out, theirs_out)
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    started.stdin = os.fdopen(stdin, "w", encoding="utf-8")
    started.stdout = os.fdopen(stdout, encoding="utf-8")
    return started


def forked_run(
    argv: list[str], env: dict[str, str], cwd: Path, *, stdin: str = "", timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, with both of the command's streams kept apart.

    Raises:
        subprocess.TimeoutExpired: it had not ended by then; it is killed.
    """
    done = forked_bytes(argv, env, cwd, stdin=stdin.encode(), timeout_s=timeout_s)
    return subprocess.CompletedProcess(
        argv, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def forked_bytes(
    argv: list[str], env: dict[str, str], cwd: Path, *, stdin: bytes = b"", timeout_s: float = 60.0
) -> subprocess.CompletedProcess[bytes]:
    """`forked_run` of a command whose streams need not be text."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as complained,
    ):
        given.write(stdin)
        given.seek(0)
        started = _parent().fork(argv, env, cwd, given.fileno(), said.fileno(), complained.fileno())
        try:
            code = started.wait(timeout_s)
        except subprocess.TimeoutExpired:
            started.kill()
            raise
        said.seek(0)
        complained.seek(0)
        return subprocess.CompletedProcess(argv, code, said.read(), complained.read())


def forked_in(argv: list[str], env: dict[str, str], cwd: Path, terminal: int) -> Forked:
    """Starts one of our commands in a terminal, given by the end that is the command's."""
    return _parent().fork(argv, env, cwd, terminal, terminal, terminal)


class _Parent:
    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._started: list[Forked] = []
        #: By pid, which another process may have once this one is gone.
        self._running: dict[int, Forked] = {}
        self.news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(
        self, argv: list[str], env: dict[str, str], cwd: Path, stdin: int, stdout: int, stderr: int
    ) -> Forked:
        """The child gets duplicates of the three handles; the caller closes its own."""
        job = {"argv": argv, "env": env, "cwd": str(cwd)}
        handles = array.array("i", [stdin, stdout, stderr])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles.tobytes())]
        self._socket.sendmsg([json.dumps(job).encode() + b"\n"], control)
        with self.news:
            assert self.news.wait_for(lambda: bool(self._started), _START_S), "nothing was forked"
            return self._started.pop()

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait(_START_S)

    def _listen(self) -> None:
        for line in self._lines:
            word, *numbers = line.split()
            with self.news:
                if word == "started":
                    started = Forked(self, int(numbers[0]))
                    self._running[started.pid] = started
                    self._started.append(started)
                else:
                    self._running.pop(int(numbers[0])).returncode = int(numbers[1])
                self.news.notify_all()


_the_parent: _Parent | None = None


def _parent() -> _Parent:
    """One for each process that tests run in."""
    global _the_parent
    if _the_parent is None:
        _the_parent = _Parent()
        atexit.register(_the_parent.end)
    return _the_parent


# --- the parent -----------------------------------------------------------------------


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Forks for each job that comes; returns the job in the child, None at the end."""
    waking, woken = socket.socketpair()
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno())
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control, waking], [], [])
        if waking in ready:
            waking.recv(4_096)
            _reap(control, children)
        if control not in ready:
            continue
        data, control_data, _, _ = control.recvmsg(1_000_000, 1_000)
        if not data:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return None
        handles = array.array("i")
        handles.frombytes(control_data[0][2])
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (control, waking, woken):
                one.close()
            return {**json.loads(data), "handles": list(handles)}
        children.add(pid)
        for handle in handles:
            os.close(handle)
        control.sendall(f"started {pid}\n".encode())


def _reap(control: socket.socket, children: set[int]) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.remove(pid)
            control.sendall(f"exited {pid} {os.waitstatus_to_exitcode(status)}\n".encode())


def become(job: dict[str, Any]) -> int:
    """The command, from here on."""
    os.setsid()
    for standard, handle in enumerate(job["handles"]):
        os.dup2(handle, standard)
        os.close(handle)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Those that the parent has were made for what it was given: a file, perhaps, or nothing.
    # As long as the process lives, so no block closes them.
    line_or_block = 1 if os.isatty(1) else -1
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", line_or_block, "utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    if (wanted := job["env"].get("PYTHONWARNINGS")) in ("error", "default"):
        warnings.simplefilter(wanted)
    sys.argv = job["argv"]
    sys.orig_argv = [sys.executable, *sys.argv]
    module = importlib.import_module(MAINS[Path(sys.argv[0]).name])
    return module.main()


def main() -> int:
    control = socket.socket(fileno=int(sys.argv[1]))
    # Whoever runs the tests stops them by Ctrl-C; this one then ends with them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    job = serve(control)
    if job is None:
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = become(job)
    except SystemExit as end:
        code = end.code
    return leave(code)


def leave(code: str | int | None) -> NoReturn:
    """Ends as an interpreter does, but without taking down what the parent has imported.

    That changes nothing that anybody sees, yet copies most of the parent's memory to do it.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    # As multiprocessing ends its own forks: nobody else offers these two.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    gc.collect()  # what was left open says so now
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            code = _NOT_WRITTEN
    os._exit(code or 0)


if __name__ == "__main__":
    sys.exit(main())
