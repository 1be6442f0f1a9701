"""What a body may set of the loop, of signals and of Python, of which its process has one."""

import asyncio
import contextlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor


def refuse(*args, **kwargs):
    raise RuntimeError("a body's own problem")


def raising_task_factory(loop):
    loop.set_task_factory(refuse)
    assert loop.get_task_factory() is refuse


def lazy_task_factory(loop):
    loop.set_task_factory(lambda loop, coro, **kwargs: None)


def eager_task_factory(loop):
    if hasattr(asyncio, "eager_task_factory"):
        loop.set_task_factory(asyncio.eager_task_factory)


def closed_executor(loop):
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)


async def shut_default_executor(loop):
    await loop.shutdown_default_executor()


def raising_exception_handler(loop):
    loop.set_exception_handler(refuse)
    loop.call_soon(refuse)


def stopping_exception_handler(loop):
    loop.set_exception_handler(lambda loop, context: loop.stop())


def loop_signal_handler(loop):
    loop.add_signal_handler(signal.SIGTERM, refuse)
    loop.remove_signal_handler(signal.SIGTERM)


def loop_signal_handler_that_stays(loop):
    loop.add_signal_handler(signal.SIGTERM, os._exit, 7)


def default_signals(loop):
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def exiting_signal_handler(loop):
    signal.signal(signal.SIGTERM, lambda *args: os._exit(7))


def no_wakeup_fd(loop):
    signal.set_wakeup_fd(-1)


def debug(loop):
    loop.set_debug(True)
    loop.slow_callback_duration = 1e-6


def stop(loop):
    loop.stop()


def close(loop):
    with contextlib.suppress(RuntimeError):
        loop.close()


def no_event_loop(loop):
    asyncio.set_event_loop(None)


def other_policy(loop):
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())


def switch_interval(loop):
    sys.setswitchinterval(1e-4)


SETTERS = {
    function.__name__: function
    for function in (
        raising_task_factory,
        lazy_task_factory,
        eager_task_factory,
        closed_executor,
        shut_default_executor,
        raising_exception_handler,
        stopping_exception_handler,
        loop_signal_handler,
        loop_signal_handler_that_stays,
        default_signals,
        exiting_signal_handler,
        no_wakeup_fd,
        debug,
        stop,
        close,
        no_event_loop,
        other_policy,
        switch_interval,
    )
}
