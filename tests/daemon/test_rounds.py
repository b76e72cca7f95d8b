"""Looks that share a thread and its wake-ups: who waits is woken by its own news, and by nothing else."""

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from cloudagent_daemon.rounds import Rounds


@asynccontextmanager
async def running() -> AsyncGenerator[Rounds]:
    rounds = Rounds(0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rounds.run)
        with anyio.fail_after(10):
            yield rounds
        tasks.cancel_scope.cancel()


async def test_all_look_in_one_thread_and_each_is_woken_by_its_own_news() -> None:
    threads, woken, news = set[int](), list[str](), {"disk": 3, "lock": 1}

    async with running() as rounds, anyio.create_task_group() as waiting:

        async def watch(name: str) -> None:
            def changed() -> bool:
                threads.add(threading.get_ident())
                news[name] -= 1
                return news[name] <= 0

            await rounds.until(changed)
            woken.append(name)

        for name in news:
            waiting.start_soon(watch, name)
    assert woken == ["lock", "disk"]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_look_that_fails_is_its_owners_and_the_rounds_go_on() -> None:
    async with running() as rounds:
        with pytest.raises(ZeroDivisionError):
            await rounds.until(lambda: bool(1 // 0))
        await rounds.until(lambda: True)


async def test_who_waits_no_more_is_not_asked_again() -> None:
    asked = 0

    def changed() -> bool:
        nonlocal asked
        asked += 1
        return False

    async with running() as rounds:
        with anyio.move_on_after(0):
            await rounds.until(changed)
        await rounds.until(lambda: True)
    assert asked == 0


async def test_the_end_waits_for_no_look_that_blocks() -> None:
    blocked, free = threading.Event(), threading.Event()

    def changed() -> bool:
        blocked.set()
        return free.wait(10)

    async with running() as rounds, anyio.create_task_group() as waiting:
        waiting.start_soon(rounds.until, changed)
        await anyio.to_thread.run_sync(blocked.wait, 10)
        waiting.cancel_scope.cancel()
    assert not free.is_set()
    free.set()
