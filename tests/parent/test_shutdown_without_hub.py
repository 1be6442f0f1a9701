"""celery_asyncpool/parent/shutdown.py: it ends, whatever has become of the hub."""

import threading

import pytest
from test_supervisor import FakeSpawner

from celery_asyncpool.parent.hub import HubThread
from celery_asyncpool.parent.shutdown import ColdSignals, Shutdown
from celery_asyncpool.parent.supervisor import Supervisor


class Spawner(FakeSpawner):
    """Gives processes that go when they are told to, or killed."""

    def spawn(self, now, close_fds, index):
        process = super().spawn(now, close_fds, index)
        fake, _ = self.children[-1]

        def go():
            fake.exitcode = 0

        shut = process.pipe.shut
        process.pipe = _Pipe(process.pipe, lambda: (shut(), go()))
        process.kill = go
        return process


class _Pipe:
    def __init__(self, pipe, shut):
        self._pipe, self.shut = pipe, shut

    def __getattr__(self, name):
        return getattr(self._pipe, name)


@pytest.mark.parametrize("cold", [False, True])
def test_hub_thread_has_died(cold):
    """Where there is no hub of Celery's, the shutdown goes on without the dead thread."""
    crashed = threading.Event()
    supervisor = Supervisor(
        Spawner(),
        2,
        1,
        max_crashes=3,
        drain_timeout=9.0,
        cancel_grace=1.0,
        on_slot_free=lambda: None,
        on_give_up=lambda: None,
    )
    thread = HubThread(on_crash=lambda exc: crashed.set())
    thread.call(supervisor.attach, thread.hub)
    thread.call(supervisor.maintain)
    thread.start()

    def bug():
        raise AssertionError("a bug")

    thread.call(bug)
    assert crashed.wait(30)
    end = Shutdown(supervisor, None, thread, None, ColdSignals())
    runner = threading.Thread(target=end.run, args=(cold,), daemon=True)
    runner.start()
    runner.join(30)

    assert not runner.is_alive()
    assert supervisor.processes == []
