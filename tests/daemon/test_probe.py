"""Asking a program for its version, whatever the program does instead."""

import psutil

from cloudagent_daemon.drivers.probe import probe
from cloudagent_daemon.process import CHUNK_BYTES

ENV = {"PATH": "/usr/bin:/bin"}


async def test_what_it_prints_is_told() -> None:
    assert await probe(["/bin/sh", "-c", "echo 1.2.3"], ENV) == ("1.2.3", None)


async def test_a_program_that_prints_for_ever_fills_no_memory_and_is_ended() -> None:
    before = psutil.Process().memory_info().rss
    output, problem = await probe(["/usr/bin/yes"], ENV, timeout_s=1)
    assert "did not answer" in (problem or "")
    assert not output
    assert psutil.Process().memory_info().rss - before < 50_000_000


async def test_of_much_output_the_beginning_is_kept() -> None:
    output, problem = await probe(["/bin/sh", "-c", "yes | head -c 5000000"], ENV)
    assert (len(output), problem) == (CHUNK_BYTES - 1, None)  # less the line's end


async def test_what_it_leaves_running_holds_nothing_up() -> None:
    output, problem = await probe(["/bin/sh", "-c", "sleep 60 & echo 1.2.3"], ENV, timeout_s=8)
    assert (output, problem) == ("1.2.3", None)
