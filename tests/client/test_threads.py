"""A few threads make blocking calls, and go when there are none."""

import threading

import pytest

from celery_asyncpool.client.threads import CallThreads

PATIENCE = 60.0


@pytest.fixture
def gate():
    """Calls wait for it; opened at the end."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_value_and_error():
    """A call's value and its exception come back."""
    threads = CallThreads(1, "test", idle=0.01)

    assert threads.submit(lambda: 5).result(PATIENCE) == 5
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(PATIENCE)


def test_limit(gate):
    """No more threads than allowed; the calls beyond wait."""
    threads = CallThreads(2, "test", idle=0.01)
    barrier = threading.Barrier(3, timeout=PATIENCE)

    def hold():
        barrier.wait()
        gate.wait()

    for _ in range(2):
        threads.submit(hold)
    barrier.wait()
    more = [threads.submit(lambda n=n: n) for n in range(20)]

    assert repr(threads) == "<CallThreads test 20 calls wait, 2 threads>"
    gate.set()
    assert [future.result(PATIENCE) for future in more] == list(range(20))


def test_one_thread_keeps_order():
    """With one thread, calls are made in the order in which they came."""
    threads = CallThreads(1, "test", idle=0.01)
    order = []
    for future in [threads.submit(lambda n=n: order.append(n)) for n in range(50)]:
        future.result(PATIENCE)

    assert order == list(range(50))


def test_cancelled_call_is_not_made(gate):
    """A call that is cancelled before it begins is not made."""
    threads = CallThreads(1, "test", idle=0.01)
    began = threading.Event()
    made = []

    def hold():
        began.set()
        gate.wait()

    threads.submit(hold)
    assert began.wait(PATIENCE)
    cancelled = threads.submit(lambda: made.append("cancelled"))
    after = threads.submit(lambda: made.append("after"))
    assert cancelled.cancel()
    gate.set()
    after.result(PATIENCE)

    assert made == ["after"]


def test_idle_threads_end():
    """A thread without work ends; the next call gets a new one."""
    threads = CallThreads(1, "test", idle=0.01)

    first = threads.submit(threading.current_thread).result(PATIENCE)
    first.join(PATIENCE)
    assert not first.is_alive()
    assert threads.submit(threading.current_thread).result(PATIENCE) is not first
