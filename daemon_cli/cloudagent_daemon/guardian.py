"""Starts one program and outlives the daemon for as long as it takes to end all that came of it.

    python -I -S guardian.py CONTROL MARK LC_CTYPE HIDDEN KEPT PATH... ARGV...

CONTROL is an inherited socket. The guardian writes one line, `pid N`, `errno N` or `unmasked N`, and
later `exit N` (negative for a signal). It waits there: a byte means that the daemon has cleaned up,
an end of file that the daemon is dead. Then it kills until nothing is left, and ends.

HIDDEN and KEPT are the numbers of paths that follow: what the program must not see, and what of it
remains. They are masked in a mount namespace of its own; if that fails, nothing is started.

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
    control, mark, lc_ctype = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    hidden, kept, argv = _paths_and_argv(sys.argv[4:])
    os.set_inheritable(control, False)
    for number in UNHEARD:
        _signal.signal(number, _signal.SIG_IGN)
    adopts = _adopts_orphans()
    env = os.environb | {b"CLOUDAGENT_LAUNCH_ID": mark.encode()}
    # Python may have set this one for itself (PEP 538).
    env.pop(b"LC_CTYPE", None)
    if lc_ctype:
        env[b"LC_CTYPE"] = os.fsencode(lc_ctype)
    if hidden and (step := _mask(hidden, kept)):
        _say(control, b"unmasked %d\n" % step)
        return
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
        pr_set_child_subreaper = 36
        done = _libc("prctl", pr_set_child_subreaper, 1, 0, 0, 0)
    except (ImportError, OSError):
        return False
    # Not in every kernel (CONFIG_PROC_CHILDREN); without it we could not name the adopted.
    return done and os.path.exists("/proc/thread-self/children")  # noqa: PTH110 (pathlib takes 8 ms to import)


def _libc(function: str, *arguments: "int | bytes | None") -> bool:
    """Whether a function of the C library returned 0."""
    import _ctypes

    itself = _ctypes.dlopen(None, os.RTLD_NOW)  # pyright: ignore[reportArgumentType] (typeshed lacks None)
    return _ctypes.call_function(_ctypes.dlsym(itself, function), arguments) == 0


def _paths_and_argv(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    hidden, kept = int(words[0]), int(words[1])
    paths, argv = words[2 : 2 + hidden + kept], words[2 + hidden + kept :]
    return paths[:hidden], paths[hidden:], argv


def _mask(hidden: list[str], kept: list[str]) -> int:
    """Takes these paths out of sight, for this process and all that comes of it.

    Returns 0, or the step that failed: 1 namespaces, 2 mounts, 3 its own folder is hidden.

    Twice into a new namespace: mounts that come from a more privileged one are locked
    (mount_namespaces(7)), so that not even a program that is root in here uncovers what is hidden.
    """
    here = os.getcwd()  # noqa: PTH109 (as above)
    if not _enter_namespaces():
        return 1
    # Handles of this namespace's mounts: one of before could not be mounted again.
    shared = [(os.open(path, os.O_PATH), path) for path in kept if os.path.exists(path)]  # noqa: PTH110 (as above)
    try:
        covered = _cover(hidden, shared)
    except OSError:
        covered = False
    for handle, _ in shared:  # they lead out of the mask
        os.close(handle)
    if not covered:
        return 2
    try:
        # As it is, the working directory is one of before: `..` would lead out of the mask.
        os.chdir(here)
    except OSError:
        return 3
    return 0 if _enter_namespaces() else 1


def _enter_namespaces() -> bool:
    """A user namespace with the same users, and a mount namespace of its own (user_namespaces(7))."""
    new_user, new_mounts = 0x1000_0000, 0x0002_0000
    users = _same(os.geteuid(), "/proc/self/uid_map")
    groups = _same(os.getegid(), "/proc/self/gid_map")
    if os.geteuid() != 0:
        entered = _libc("unshare", new_user | new_mounts)
        return entered and _write_maps(os.getpid(), users, groups)
    # All users may be mapped only from outside: by a child that stays there.
    begin, told = os.pipe()
    outside = os.fork()
    if outside == 0:
        os.close(told)
        entered = os.read(begin, 1) != b""
        os._exit(not (entered and _write_maps(os.getppid(), users, groups)))
    entered = _libc("unshare", new_user | new_mounts)
    if entered:
        os.write(told, b".")
    os.close(told)
    os.close(begin)
    return os.waitpid(outside, 0)[1] == 0


def _write_maps(pid: int, users: bytes, groups: bytes) -> bool:
    try:
        if os.geteuid() != 0:
            _write(f"/proc/{pid}/setgroups", b"deny")
        _write(f"/proc/{pid}/uid_map", users)
        _write(f"/proc/{pid}/gid_map", groups)
    except OSError:
        return False
    return True


def _same(itself: int, table: str) -> bytes:
    """A map of each number to itself: of all for root, of the own one for others, who may no more."""
    if os.geteuid() != 0:
        return b"%d %d 1" % (itself, itself)
    with open(table, "rb") as file:  # noqa: PTH123 (as above)
        ranges = [line.split() for line in file]
    return b"".join(b"%b %b %b\n" % (first, first, count) for first, _, count in ranges)


def _write(path: str, text: bytes) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text)
    finally:
        os.close(handle)


def _cover(hidden: list[str], shared: "list[tuple[int, str]]") -> bool:
    """Empty read-only folders over the hidden ones, and in them what is kept."""
    read_only, no_suid, no_dev, remount = 1, 2, 4, 32
    bind, recursive, slave = 0x1000, 0x4000, 0x8_0000
    if not _libc("mount", None, b"/", None, recursive | slave, None):
        return False
    folders = [path for path in hidden if os.path.isdir(path)]  # noqa: PTH112 (as above)
    files = [path for path in hidden if os.path.isfile(path)]  # noqa: PTH113 (as above)
    for path in folders:
        if not _libc(
            "mount", b"tmpfs", os.fsencode(path), b"tmpfs", no_suid | no_dev, b"mode=0700"
        ):
            return False
    for path in files:
        if not _libc("mount", b"/dev/null", os.fsencode(path), None, bind, None):
            return False
    for handle, path in shared:
        _make_place(handle, path)
        source = b"/proc/self/fd/%d" % handle
        if not _libc("mount", source, os.fsencode(path), None, bind | recursive, None):
            return False
    flags = remount | bind | read_only | no_suid | no_dev
    return all(_libc("mount", None, os.fsencode(path), None, flags, None) for path in folders)


def _make_place(handle: int, path: str) -> None:
    """Something of the same kind to mount on, where the mask took it away."""
    folder = os.stat(handle).st_mode & 0o170000 == 0o040000
    os.makedirs(path if folder else os.path.dirname(path), 0o700, exist_ok=True)  # noqa: PTH103, PTH120 (as above)
    if not folder and not os.path.exists(path):  # noqa: PTH110 (as above)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


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
