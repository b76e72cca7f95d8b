"""The daemon as a process: its signals, its lock, its terminal, its memory, and the file for `status`."""

import ctypes
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon import crash, lock, status
from cloudagent_daemon.config import Settings
from cloudagent_daemon.daemon import STATUS_S, Daemon
from cloudagent_daemon.ending import Ending
from cloudagent_daemon.link.spool import open_spool
from cloudagent_daemon.link.way import way_of
from cloudagent_daemon.paths import Paths, old_state_file, spool_file
from cloudagent_daemon.rounds import Rounds
from cloudagent_daemon.runs.once import OneMessage
from cloudagent_daemon.tunnel import Tunnel, tunnel_of
from cloudagent_daemon.waits import any_of

logger = logging.getLogger(__name__)

TAKEN_OVER: Final = 6
HUNG_UP: Final = 129


async def run(settings: Settings, say: Callable[[str], None], held: lock.Held | None = None) -> int:
    """Lives until a signal; returns the exit code.

    Raises:
        ConfigError: the way to the server cannot be used.
        NewerSpoolError, SpoolError: the spool cannot be opened.
    """
    ending = Ending()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await live(settings, say, ending, held=held, signals=signals)
    return ending.code


async def live(
    settings: Settings,
    say: Callable[[str], None],
    ending: Ending,
    job: OneMessage | None = None,
    *,
    tunnel: Tunnel | None = None,
    held: lock.Held | None = None,
    signals: AsyncIterator[signal.Signals] | None = None,
) -> None:
    """Until `ending` is requested, by whoever hears of signals, or by the daemon itself.

    Args:
        settings: of this life.
        say: takes a line for the person at the terminal.
        ending: how it ends, and when.
        job: of a daemon that lives for one message.
        tunnel: of a job, which runs it itself; else one is opened where the settings say so.
        held: the profile's lock.
        signals: to be heeded here.

    Raises:
        ConfigError: the way to the server cannot be used.
        NewerSpoolError, SpoolError: the spool cannot be opened.
    """
    crash.arm(settings.crash_at)
    hide_memory()
    give_back_memory()
    state_dir = settings.state_dir
    spool_path = spool_file(state_dir) if state_dir else None
    old_state = old_state_file(state_dir) if state_dir else None
    own_tunnel = None if tunnel else await run_sync(tunnel_of, settings)
    way = way_of(settings)
    try:
        async with (
            open_spool(spool_path, old_state, settings.host_id) as spool,
            anyio.create_task_group() as tasks,
        ):
            daemon = Daemon(settings, way, spool, say, job, tunnel or own_tunnel)
            # In this group, not around it: what cannot be opened is raised as it is, in no group.
            if signals is not None:
                tasks.start_soon(ending.obey, signals)
            if own_tunnel:
                tasks.start_soon(own_tunnel.run)
            if settings.home and held is not None:
                paths = Paths(settings.home, settings.profile)
                tasks.start_soon(_publish, daemon, paths)
                tasks.start_soon(guard_lock, held, ending, daemon.rounds)
                tasks.start_soon(_heed_hangups, daemon, ending)
            await daemon.run(ending)
            tasks.cancel_scope.cancel()
    finally:
        ending.over()


async def _heed_hangups(daemon: Daemon, ending: Ending) -> None:
    """SIGHUP: look into the configuration again; but the loss of the terminal is an end, as ever."""
    had_terminal = await run_sync(_has_terminal)
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            if had_terminal and not await run_sync(_has_terminal):
                _leave_terminal()
                ending.request(HUNG_UP)
            else:
                await daemon.reconnecting.reload()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _leave_terminal() -> None:
    """What is written to a terminal that is gone fails; the rest of this life says nothing there."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        if not _is_file(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


async def _publish(daemon: Daemon, paths: Paths) -> None:
    """Keeps the file that `status` reads; it goes when the daemon goes."""
    try:
        while True:
            changes = daemon.about.changes()
            try:
                await run_sync(status.write, paths.status, daemon.about.report())
            except OSError as error:  # no reason to stop: what it says is also in the log
                logger.error("no status: %s", error, extra={"action": "status"})  # noqa: TRY400 - the trace tells nothing more
            await any_of(changes)
            # Not at once: the first to change is what brings a message, and its agent waits for that.
            await anyio.sleep(STATUS_S)
    finally:
        paths.status.unlink(missing_ok=True)


async def guard_lock(held: lock.Held, ending: Ending, rounds: Rounds) -> None:
    """Somebody may delete the lock file: a second daemon could then start beside this one.

    It is taken anew. If another daemon was quicker, that one has the profile, and its memory on the
    disk: this one ends without a drain.
    """
    while True:
        await rounds.until(lambda: not held.is_whole())
        try:
            if not await run_sync(held.take_anew):
                break
        except OSError as error:
            logger.error("no lock: %s", error, extra={"action": "lock_anew"})  # noqa: TRY400 - the trace tells nothing more
            continue
        logger.warning(
            "%s was deleted; it is there again", held.file, extra={"action": "lock_anew"}
        )
    logger.error("another daemon has taken %s", held.file, extra={"action": "lock_lost"})
    ending.request(TAKEN_OVER)
    ending.request(TAKEN_OVER)


def hide_memory() -> None:
    """Keeps other programs of the same user from reading the key out of this process.

    PR_SET_DUMPABLE (prctl(2)) closes /proc/PID/{environ,mem,fd} and ptrace; an exec, as for every
    child, sets it back.
    """
    if sys.platform == "linux":
        pr_set_dumpable = 4
        ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)


def give_back_memory() -> None:
    """Has large blocks go back to the system when they are freed.

    By itself glibc keeps them for later once one of their size was freed (mallopt(3), the dynamic
    M_MMAP_THRESHOLD): an agent that prints tool results of 8 MB on a line then costs 46 MiB instead
    of 23.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        m_mmap_threshold = -3
        mallopt(m_mmap_threshold, 1_048_576)
