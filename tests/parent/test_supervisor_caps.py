"""celery_asyncpool/parent/supervisor.py: who waits for a cap has no slot of Celery's."""

import pytest
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from test_supervisor import FakeSpawner

from celery_asyncpool.core.caps import Caps
from celery_asyncpool.core.job import Callbacks, Job
from celery_asyncpool.core.protocol import Kind, dumps, encode, encode_time
from celery_asyncpool.parent.supervisor import Supervisor

SLOTS = 4
DONE = dumps((True, (False, "value", 0.1)))


class Worker:
    """A supervisor with one process, behind Celery's own semaphore."""

    def __init__(self, spawner):
        self.limit = SLOTS
        self.semaphore = LaxBoundedSemaphore(SLOTS)
        self.waiting = []
        self.ended = []
        self.accepted = set()
        self.supervisor = Supervisor(
            spawner,
            limit=SLOTS,
            max_processes=1,
            max_crashes=3,
            drain_timeout=9.0,
            cancel_grace=1.0,
            caps=Caps([("scrape", 2)]),
            on_slot_free=self.on_slot_free,
            on_waiting=self.waiting.append,
            on_give_up=lambda: None,
        )
        self.supervisor.maintain()
        self.child = spawner.children[0][1]
        self.say(encode(Kind.WORKER_UP))

    def on_slot_free(self):
        """As the pool does."""
        self.semaphore.release()

    def reset_semaphore(self):
        """As the pool does."""
        self.semaphore.value = SLOTS - self.supervisor.slots_taken

    def shrink(self, n):
        """As the pool does."""
        self.limit -= n
        self.supervisor.resize(self.limit)
        self.semaphore.shrink(n)

    def say(self, data):
        """Let the process say *data*."""
        self.child.send(data)
        self.supervisor.maintain()
        self.supervisor.on_tick()

    def receive(self, name, *job_ids):
        """Let messages arrive, as Celery's consumer does."""
        for job_id in job_ids:
            callbacks = Callbacks(
                success=lambda value, job_id=job_id: self.ended.append(job_id),
                error=lambda info, job_id=job_id: self.ended.append(job_id),
                terminate=self.supervisor.terminate,
            )
            job = Job(job_id, dumps(None), name=name, callbacks=callbacks)
            self.semaphore.acquire(self.supervisor.submit, job)
        self.supervisor.on_tick()

    def job(self, job_id):
        return next(job for job in self.supervisor.jobs.jobs() if job.id == job_id)

    def running(self):
        [process] = self.supervisor.processes
        return sorted(self.supervisor.jobs.held(process.pid).jobs)

    def accept(self, *job_ids):
        for job_id in job_ids:
            self.say(encode_time(Kind.ACK, job_id, 0.0))
            self.accepted.add(job_id)

    def end(self, *job_ids):
        for job_id in job_ids:
            if job_id not in self.accepted:
                self.accept(job_id)
            self.say(encode(Kind.READY, job_id, DONE))

    def slots(self):
        """What Celery thinks is free, and what is taken."""
        return self.semaphore.value, self.supervisor.slots_taken


@pytest.fixture
def spawner():
    spawner = FakeSpawner()
    yield spawner
    for _, theirs in spawner.children:
        theirs.close()


@pytest.fixture
def worker(spawner):
    worker = Worker(spawner)
    yield worker
    for process in worker.supervisor.processes:
        process.close()


def test_waiting_jobs_have_no_slot(worker):
    """A thousand capped messages that came first leave the other slots to the others."""
    worker.receive("scrape", *range(1, 1001))
    worker.receive("mail", 1001, 1002, 1003)

    assert worker.running() == [1, 2, 1001, 1002]
    assert worker.slots() == (0, SLOTS)
    assert worker.waiting[-1] == 998
    worker.end(1001, 1002)
    assert worker.running() == [1, 2, 1003]
    assert worker.slots() == (1, 3)


def test_slot_goes_on_with_the_cap(worker):
    """The next capped job takes the slot of the one that ends; at the end all are free."""
    worker.receive("scrape", 1, 2, 3)
    assert worker.slots() == (2, 2)

    worker.end(1)
    assert (worker.running(), worker.slots()) == ([2, 3], (2, 2))
    worker.end(2)
    assert worker.slots() == (3, 1)
    worker.end(3)

    assert worker.slots() == (SLOTS, 0)
    assert worker.waiting == [1, 0]
    assert worker.ended == [1, 2, 3]


def test_terminated_while_it_waits(worker):
    """It frees no slot, since it had none, and is told once."""
    worker.receive("scrape", 1, 2, 3, 4)

    waiting = worker.job(3)
    waiting.terminate(15)
    waiting.terminate(15)

    assert worker.slots() == (2, 2)
    worker.end(1)
    assert worker.running() == [2, 4]
    worker.end(2, 4)
    assert worker.ended == [3, 1, 2, 4]
    assert worker.slots() == (SLOTS, 0)


def test_process_dies(worker, spawner):
    """The next ones take the places of those that a dead process has lost."""
    worker.receive("scrape", 1, 2, 3, 4, 5)
    worker.accept(1)
    fake, theirs = spawner.children[0]
    [process] = worker.supervisor.processes

    theirs.close()
    fake.exitcode = -9
    worker.supervisor.on_exit(process)
    worker.child = spawner.children[1][1]
    worker.say(encode(Kind.WORKER_UP))

    assert worker.ended == [1]
    assert worker.running() == [2, 3]  # 2 was not accepted, and has kept its place
    worker.end(2, 3, 4, 5)
    assert worker.slots() == (SLOTS, 0)


def test_broker_is_lost(worker):
    """What waits is dropped; what runs keeps its place, and what comes again waits for it."""
    worker.receive("scrape", 1, 2, 3, 4)
    worker.accept(1, 2)

    worker.semaphore.clear()  # as Celery does first
    worker.supervisor.drop_queued(then=worker.reset_semaphore)
    assert len(worker.supervisor.jobs) == 2

    assert worker.waiting[-1] == 0
    assert worker.slots() == (2, 2)
    worker.receive("scrape", 5, 6)
    assert worker.running() == [1, 2]
    worker.end(1, 2, 5, 6)
    assert worker.slots() == (SLOTS, 0)
    assert worker.ended == [1, 2, 5, 6]


def test_warm_shutdown(worker):
    """What runs ends; what waits for its cap is left to the broker."""
    finished = []
    worker.receive("scrape", 1, 2, 3, 4)

    worker.supervisor.finish(lambda: finished.append(True))

    assert len(worker.supervisor.jobs) == 2
    worker.end(1, 2)
    assert len(worker.supervisor.jobs) == 0
    assert worker.ended == [1, 2]


def test_after_a_shrink(worker):
    """Places in a cap do not give back slots that are not there any more."""
    worker.receive("scrape", 1, 2, 3)
    worker.receive("mail", 4, 5)
    worker.shrink(2)

    worker.end(1, 2)
    assert worker.running() == [4, 5]  # 3 has its place, and waits for a slot
    assert worker.slots() == (0, 3)
    worker.end(4)
    assert worker.running() == [3, 5]
    worker.end(3, 5)

    assert worker.slots() == (2, 0)
