"""celery_asyncpool/child/watchdog.py: a blocked loop is seen, an idle one is left alone."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvloop

from celery_asyncpool.child.watchdog import Watchdog

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

#: Seconds of a blocked loop that are worth a warning, and of one that is blocked.
#: To wait for a CPU on a busy machine takes less.
PATIENCE, BLOCK = 0.5, 1.5


@pytest.fixture(params=LOOPS)
def runner(request) -> Iterator[asyncio.Runner]:
    """Both event loops, one after the other."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


class CountingLoop:
    """The watchdog's view of a loop: counts how often it is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.woken = 0

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> Any:
        self.woken += 1
        return self.loop.call_soon_threadsafe(callback, *args)


class Watch:
    """A watchdog over the running loop, and what it has looked at and reported."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.loop = CountingLoop(runner.get_loop())
        self.is_busy = False
        self.looks = 0
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)
        self.watchdog = Watchdog(
            self.loop,
            PATIENCE,
            is_busy=self._look,
            who=lambda: (7, "task proj.block[1f3c]"),
            report_fd=self.write_fd,
            idle_file=asyncio.runners.__file__,
        )

    def _look(self) -> bool:
        self.looks += 1
        return self.is_busy

    def start_job(self) -> None:
        self.is_busy = True
        self.watchdog.wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition*; by timers, since nothing wakes the loop for it."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_looks(self, count: int) -> None:
        """Wait, with nothing to do for the loop, until it has been looked at *count* times."""
        last = self.looks + count
        seen = asyncio.Event()

        def look() -> bool:
            self.looks += 1
            if self.looks == last:
                self.loop.loop.call_soon_threadsafe(seen.set)
            return self.is_busy

        self.watchdog._is_busy = look
        async with asyncio.timeout(60):
            await seen.wait()

    def reported(self) -> list[str]:
        try:
            return os.read(self.read_fd, 10_000).decode().splitlines()
        except BlockingIOError:
            return []


@contextmanager
def watching(runner: asyncio.Runner) -> Iterator[Watch]:
    watch = Watch(runner)
    watch.watchdog.start()
    try:
        yield watch
    finally:
        watch.is_busy = False
        watch.watchdog.stop()
        # On a loop that turns, as in a process that closes.
        runner.run(watch.until(lambda: not watch.watchdog._thread.is_alive()))
        os.close(watch.read_fd)
        os.close(watch.write_fd)


def block_the_loop() -> None:
    time.sleep(BLOCK)  # blocks on purpose


def hold_the_lock() -> None:
    count, seconds = 10_000_000, 0.0
    while seconds < 3 * PATIENCE:
        start = time.monotonic()
        sum(range(count))  # one call into C
        seconds = time.monotonic() - start
        count *= 2


def test_blocked_loop(runner, caplog):
    """One warning with the task and the line that blocks, one line when the loop is free."""
    caplog.set_level(logging.INFO)

    async def main(watch: Watch) -> None:
        watch.start_job()
        asyncio.get_running_loop().call_soon(block_the_loop)
        await watch.until(lambda: watch.watchdog.blocks == 1)
        await watch.until_looks(3)

    with watching(runner) as watch:
        runner.run(main(watch))
        reported = watch.reported()

    blocked, free = caplog.records
    assert blocked.levelno == free.levelno == logging.WARNING
    assert "by task proj.block[1f3c]; all tasks of this process wait" in blocked.getMessage()
    assert "in block_the_loop\n" in blocked.getMessage()
    assert "time.sleep(BLOCK)  # blocks on purpose" in blocked.getMessage()
    assert free.getMessage().startswith("the event loop is free again after ")
    assert free.getMessage().endswith("s, blocked by task proj.block[1f3c]")
    assert reported == ["blocked by job 7", "free"]
    counters = watch.watchdog.counters()
    assert counters["blocks"] == 1
    assert PATIENCE <= counters["blocked_seconds"] <= BLOCK + 30


def test_loop_blocked_twice(runner, caplog):
    """Each time the loop is blocked counts, and adds its seconds."""

    async def main(watch: Watch) -> None:
        watch.start_job()
        for count in (1, 2):
            asyncio.get_running_loop().call_soon(block_the_loop)
            await watch.until(lambda count=count: watch.watchdog.blocks == count)

    with watching(runner) as watch:
        runner.run(main(watch))
        reported = watch.reported()

    assert len(caplog.records) == 4
    assert reported == ["blocked by job 7", "free"] * 2
    assert watch.watchdog.counters()["blocked_seconds"] >= 2 * PATIENCE


def test_busy_loop_that_turns(runner, caplog):
    """A loop that is always at work but turns is not blocked."""

    async def main(watch: Watch) -> None:
        watch.start_job()
        async with asyncio.timeout(60):
            while watch.looks < 6:  # noqa: ASYNC110
                await asyncio.sleep(0)

    with watching(runner) as watch:
        runner.run(main(watch))

    assert caplog.records == []
    assert watch.watchdog.counters() == {"blocks": 0, "blocked_seconds": 0.0}


def test_idle_loop_is_never_woken(runner, caplog):
    """While jobs wait for their I/O the loop stays in its poll."""

    async def main(watch: Watch) -> None:
        watch.start_job()
        await watch.until_looks(6)

    with watching(runner) as watch:
        runner.run(main(watch))

    assert watch.loop.woken == 0
    # A virtual machine that stands still for a moment looks like a lock that is held.
    told = [record.getMessage() for record in caplog.records]
    assert [message for message in told if "interpreter's lock" not in message] == []


def test_waiting_for_a_cpu_is_nobodys_call(runner, caplog):
    """When a watchdog is late since the machine is too busy, it says nothing of it."""
    watchdog = Watch(runner).watchdog
    watchdog._watch_turn = lambda: None

    watchdog._starved = iter([0, 100]).__next__
    watchdog._look()
    assert caplog.records == []

    watchdog._starved = iter([100, 0]).__next__
    watchdog._look()
    [told] = caplog.records
    assert "held the interpreter's lock" in told.getMessage()


def test_without_jobs_there_is_nothing_to_watch(runner):
    """The thread sleeps until a job starts, and again when there is none any more."""

    async def main(watch: Watch) -> None:
        assert watch.looks == 0
        watch.watchdog.wake()
        await watch.until(lambda: watch.looks == 2)  # it asks again when it has lain down
        await watch.until(lambda: not watch.watchdog._work.is_set())

    with watching(runner) as watch:
        runner.run(main(watch))

    assert watch.loop.woken == 0


def test_call_that_holds_the_lock(runner, caplog):
    """A call that stops the watchdog, too, is told of afterwards."""

    async def main(watch: Watch) -> None:
        watch.start_job()
        await watch.until_looks(2)
        async with asyncio.timeout(60):
            # It goes unseen if it begins just when the watchdog has not begun to wait.
            while not watch.watchdog.blocks:
                asyncio.get_running_loop().call_later(PATIENCE / 8, hold_the_lock)
                await asyncio.sleep(PATIENCE / 4)

    with watching(runner) as watch:
        runner.run(main(watch))

    messages = [record.getMessage() for record in caplog.records]
    assert any(message.startswith("the event loop is free again after") for message in messages)


@pytest.mark.parametrize("fault", ["nobody reads", "nobody is there"])
def test_report_that_nobody_takes(runner, caplog, fault):
    """A parent that does not listen keeps the watchdog from nothing."""

    async def main(watch: Watch) -> None:
        watch.start_job()
        asyncio.get_running_loop().call_soon(block_the_loop)
        await watch.until(lambda: watch.watchdog.blocks == 1)

    with watching(runner) as watch:
        if fault == "nobody is there":
            os.close(watch.read_fd)
            watch.read_fd = os.open(os.devnull, os.O_RDONLY)
        else:
            fill(watch.write_fd)
        runner.run(main(watch))

    assert len(caplog.records) == 2


def test_loop_that_is_closed(runner):
    """A process that ends has no loop to ask any more."""
    with watching(runner) as watch:
        asked = threading.Event()

        def closed(callback: Callable[..., Any]) -> None:
            asked.set()
            raise RuntimeError("Event loop is closed")

        watch.loop.call_soon_threadsafe = closed
        watch.start_job()

        assert asked.wait(60)


def fill(fd: int) -> None:
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        pass
