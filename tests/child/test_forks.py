"""celery_asyncpool/child/forks.py: a signal to a child that has just been forked is not lost."""

import os
import signal

import pytest

from celery_asyncpool.child.forks import LEFT_TO_PARENT, allow_forks


def _ignore(signum, frame):
    """As in a worker process."""


def _kill_myself():
    os.kill(os.getpid(), signal.SIGTERM)


def _fork_as_a_worker_process():
    """Exit code of a child to which SIGTERM comes before it has done anything."""
    for signum in LEFT_TO_PARENT:
        signal.signal(signum, _ignore)
    os.register_at_fork(after_in_child=_kill_myself)
    allow_forks()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _is_blocked(signum):
    return signum in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture
def in_fork():
    """Call a function in a forked child; return its value, a small number."""

    def call(function):
        pid = os.fork()
        if pid == 0:
            value = 255
            try:
                value = function() % 256
            finally:
                os._exit(value)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return call


def test_signal_before_the_first_step(in_fork):
    """`Process.terminate()` right after `start()` ends the child."""
    assert in_fork(_fork_as_a_worker_process) == -signal.SIGTERM % 256


def test_signals_are_not_blocked(in_fork):
    """Neither in the child nor in the process that has forked it."""

    def blocked_signals():
        allow_forks()
        pid = os.fork()
        if pid == 0:
            os._exit(sum(map(_is_blocked, LEFT_TO_PARENT)))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code + sum(map(_is_blocked, LEFT_TO_PARENT))

    assert in_fork(blocked_signals) == 0
