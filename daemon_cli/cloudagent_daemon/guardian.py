"""Starts one program and outlives the daemon for as long as it takes to end all that came of it.

    python -I -S guardian.py CONTROL MARK LC_CTYPE ARGV...

CONTROL is an inherited socket. The guardian writes one line, `pid N` or `errno N`, and later
`exit N` (negative for a signal). It waits there: a byte means that the daemon has cleaned up, an
end of file that the daemon is dead. Then it kills until nothing is left, and ends.

On Linux it is a subreaper (prctl(2)): whatever its child started stays below it, in a session of
its own, orphaned, without the environment's mark, or not. Elsewhere `sweep` looks as well as it can.

Standard library only, and little of it, for every run waits for its start: hence `_signal`,
`_thread` and `_ctypes`, whose wrappers take longer to import than all the rest here.
"""

import _thread
import os
import sys
import time

TYPE_CHECKING = False  # as in `typing`, which takes as long to import as the rest
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

#: Between two rounds of killing.
PAUSE_S = 0.002
#: Not for the guardian: whoever sends these to everything means the daemon, which cleans up.
UNHEARD = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGQUIT, _signal.SIGTSTP)
#: Python ignores these; a program that it starts should not.
PYTHONS = (_signal.SIGPIPE, _signal.SIGXFSZ)


def main() -> None:
    control, mark, lc_ctype, argv = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    os.set_inheritable(control, False)
    for number in UNHEARD:
        _signal.signal(number, _signal.SIG_IGN)
    adopts = _adopts_orphans()
    env = os.environb | {b"CLOUDAGENT_LAUNCH_ID": mark.encode()}
    # Python may have set this one for itself (PEP 538).
    env.pop(b"LC_CTYPE", None)
    if lc_ctype:
        env[b"LC_CTYPE"] = os.fsencode(lc_ctype)
    began = time.time()
    try:
        pid = os.posix_spawnp(argv[0], argv, env, setsid=True, setsigdef=[*UNHEARD, *PYTHONS])
    except OSError as error:
        _say(control, b"errno %d\n" % (error.errno or 0))
        return
    _let_go_of_the_streams()
    _say(control, b"pid %d\n" % pid)
    gone = _thread.allocate_lock()
    gone.acquire()
    _thread.start_new_thread(_reap, (control, pid, gone))
    cleaned_up = _until_told(control)
    if not adopts and not cleaned_up:
        sweep = [sys.executable, "-P", "-m", "cloudagent_daemon.sweep"]
        os.execv(sys.executable, [*sweep, str(pid), repr(began), mark])  # noqa: S606 (no shell wanted)
    while not gone.acquire(timeout=PAUSE_S):
        if adopts:
            _kill_descendants()
    os._exit(0)  # the daemon waits: no time for the interpreter's own tidying


def _adopts_orphans() -> bool:
    """Makes this process the new parent of every orphan below it; False where there is no way."""
    if sys.platform != "linux":
        return False
    try:
        import _ctypes

        itself = _ctypes.dlopen(None, os.RTLD_NOW)  # pyright: ignore[reportArgumentType] (typeshed lacks None)
        prctl = _ctypes.dlsym(itself, "prctl")
        pr_set_child_subreaper = 36
        done = _ctypes.call_function(prctl, (pr_set_child_subreaper, 1, 0, 0, 0)) == 0
    except (ImportError, OSError):
        return False
    # Not in every kernel (CONFIG_PROC_CHILDREN); without it we could not name the adopted.
    return done and os.path.exists("/proc/thread-self/children")  # noqa: PTH110 (pathlib takes 8 ms to import)


def _let_go_of_the_streams() -> None:
    """The pipes end with those who use them."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def _until_told(control: int) -> bool:
    """Whether the daemon has ended the tree itself; False if it died."""
    try:
        return os.read(control, 1) != b""
    except OSError:
        return False


def _reap(control: int, started: int, gone: "_thread.LockType") -> None:
    """Until there are no children; with orphans adopted, that means no descendants either."""
    try:
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == started:
                _say(control, b"exit %d\n" % os.waitstatus_to_exitcode(status))
    except ChildProcessError:
        gone.release()


def _say(control: int, line: bytes) -> None:
    try:
        os.write(control, line)
    except OSError:
        return  # the daemon is dead


def _kill_descendants() -> None:
    """Stops each as it is found, for what is stopped bears no children; then kills."""
    found = _children(os.getpid())
    for pid in found:  # grows
        _send(pid, _signal.SIGSTOP)
        found += _children(pid)
    for pid in found:
        _send(pid, _signal.SIGKILL)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 (as above)
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 (as above)
                children += map(int, file.read().split())
    except OSError:
        pass  # gone
    return children


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # gone, or another user's


if __name__ == "__main__":
    main()
