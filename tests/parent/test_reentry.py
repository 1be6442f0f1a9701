"""Who comes back in: Celery while it is told, and a signal handler at any line.

The same story each time: two processes, jobs that end, a process that dies, a warm
shutdown. Somewhere in it somebody asks the supervisor for something, from within a
call of Celery's or between two lines of the pool's own code, as a handler does.
Whatever it is: each job has at most one outcome, each slot is given back once, no
frame is sent twice, and it ends.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from test_supervisor import FakeSpawner

import celery_asyncpool
from celery_asyncpool.core.job import Callbacks, Job, State
from celery_asyncpool.core.protocol import Framer, Kind, dumps, encode, encode_time
from celery_asyncpool.parent.supervisor import Supervisor

ROOT = Path(celery_asyncpool.__file__).parent

#: The code that handlers interrupt.
OURS = {
    str(ROOT / name)
    for name in (
        "core/dispatch.py",
        "core/jobs.py",
        "parent/fleet.py",
        "parent/reporter.py",
        "parent/supervisor.py",
        "parent/wires.py",
        "pipe.py",
    )
}

RESULT = dumps((True, (False, "value", 0.1)))

#: Above what any story takes.
MOST_TURNS = 200


class Spawner(FakeSpawner):
    """Gives processes that can be killed, and that answer."""

    def spawn(self, now, close_fds, index):
        process = super().spawn(now, close_fds, index)
        fake, theirs = self.children[-1]
        theirs.setblocking(False)
        fake.framer = Framer()
        fake.running = []
        process.kill = lambda: self.die(fake, -9)
        theirs.send(encode(Kind.WORKER_UP))
        return process

    @staticmethod
    def die(fake, exitcode):
        if fake.exitcode is None:
            fake.exitcode = exitcode

    def close(self):
        for _, theirs in self.children:
            theirs.close()


class Story:
    """A supervisor, its processes, and what Celery was told."""

    def __init__(self):
        self.spawner = Spawner()
        self.jobs = []
        self.told = Counter()
        self.sent = Counter()
        #: Celery's own, of the worker's slots.
        self.semaphore = LaxBoundedSemaphore(4)
        self.finished = 0
        self.is_stopping = False
        #: Called at each call of Celery's.
        self.interrupt = lambda: None
        self.supervisor = Supervisor(
            self.spawner,
            limit=4,
            max_processes=2,
            max_crashes=3,
            drain_timeout=9.0,
            cancel_grace=1.0,
            on_slot_free=self.on_slot_free,
            on_give_up=lambda: None,
        )

    def on_slot_free(self):
        self.semaphore.release()
        self.interrupt()

    def submit(self):
        """As the consumer does for a message, when it has a slot."""
        job_id = len(self.jobs) + 1
        callbacks = Callbacks(
            accept=lambda pid, when: self.interrupt(),
            success=lambda value: self.on_end(job_id),
            error=lambda info: self.on_end(job_id),
            revoked=self.is_revoked,
        )
        self.jobs.append(Job(job_id, dumps(None), callbacks=callbacks))
        self.semaphore.acquire(self.supervisor.submit, self.jobs[-1])

    def lose_broker(self):
        """As Celery does, and the pool."""
        self.semaphore.clear()
        self.supervisor.drop_queued(then=self.reset_semaphore)

    def reset_semaphore(self):
        taken = self.supervisor.slots_taken
        self.semaphore.value = max(self.semaphore.initial_value - taken, 0)

    def grow(self):
        """As the pool does."""
        self.supervisor.resize(self.semaphore.initial_value + 1)
        self.semaphore.initial_value += 1
        if self.supervisor.slots_taken < self.semaphore.initial_value:
            self.semaphore.release()

    def on_end(self, job_id):
        self.told[job_id] += 1
        self.interrupt()

    def is_revoked(self):
        self.interrupt()
        return False

    def finish(self):
        if not self.is_stopping:
            self.is_stopping = True
            self.supervisor.finish(self.on_finished)

    def on_finished(self):
        self.finished += 1

    # What happens anyway.

    def turn(self, ends=1):
        """One turn of the hub; each process accepts all, and *ends* of its jobs end."""
        self.supervisor.on_tick()
        for fake, theirs in self.spawner.children:
            if fake.exitcode is None:
                self.answer(fake, theirs, ends)
        for process in self.supervisor.processes:
            self.supervisor.on_readable(process)
            if process.exitcode() is not None:
                self.supervisor.on_exit(process)

    def answer(self, fake, theirs, ends):
        for message in self.read(fake, theirs):
            if message.kind is Kind.TASK:
                self.sent[message.job_id] += 1
                fake.running.append(message.job_id)
                theirs.send(encode_time(Kind.ACK, message.job_id, 0.0))
            elif message.kind is Kind.CANCEL and message.job_id in fake.running:
                fake.running.remove(message.job_id)
                theirs.send(encode(Kind.READY, message.job_id, RESULT))
            elif message.kind is Kind.DRAIN:
                fake.is_draining = True
        for job_id in fake.running[:ends]:
            fake.running.remove(job_id)
            theirs.send(encode(Kind.READY, job_id, RESULT))
        if getattr(fake, "is_draining", False) and not fake.running:
            self.spawner.die(fake, 0)

    def read(self, fake, theirs):
        try:
            data = theirs.recv(1 << 20)
        except BlockingIOError:
            return []
        if not data:
            self.spawner.die(fake, 0)
        return fake.framer.feed(data)

    def play(self):
        """The whole story."""
        self.supervisor.maintain()
        self.turn()
        for _ in range(4):
            self.submit()
        self.turn(ends=0)
        for fake, _ in self.spawner.children[:1]:
            self.spawner.die(fake, -9)
        self.turn()
        self.submit()
        self.turn()
        self.supervisor.maintain()
        self.turn()
        self.finish()
        for _ in range(MOST_TURNS):
            if self.finished:
                return
            self.turn()
            self.supervisor.maintain()

    def check(self):
        """What holds whoever came in between."""
        assert self.finished == 1
        assert self.supervisor.processes == []
        assert len(self.supervisor.jobs) == 0
        for job in self.jobs:
            was_submitted = job.has_ended  # else it waited for a slot, and the worker stopped
            assert self.told[job.id] == (was_submitted and job.state is not State.DISCARDED)
            assert self.sent[job.id] <= 1
        assert self.supervisor.slots_taken == 0
        assert self.semaphore.value == self.semaphore.initial_value


ACTIONS = {
    "maintain": lambda story: story.supervisor.maintain(),
    "terminate": lambda story: [
        story.supervisor.terminate(job, 15) for job in story.jobs if not job.has_ended
    ],
    "catch up": lambda story: story.supervisor.when_caught_up(lambda: None),
    "submit": lambda story: story.submit(),
    "flush": lambda story: story.lose_broker(),
    "turn": lambda story: story.supervisor.on_tick(),
    "restart": lambda story: story.supervisor.restart(),
    "grow": lambda story: story.grow(),
    "stop": lambda story: story.finish(),
}

#: After how many opportunities the next one is taken, and for what.
interruptions = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(sorted(ACTIONS))), min_size=1, max_size=6
)
line_interruptions = st.lists(
    st.tuples(st.integers(0, 1500), st.sampled_from(sorted(ACTIONS))), min_size=1, max_size=4
)


class Interruptions:
    """Takes the opportunities that were chosen."""

    def __init__(self, story, plan):
        self.story = story
        self.plan = list(plan)
        self.passed = 0
        self.is_on = False

    def __call__(self):
        """An opportunity."""
        if self.is_on or not self.plan:
            return
        if self.passed < self.plan[0][0]:
            self.passed += 1
            return
        _, action = self.plan.pop(0)
        self.passed, self.is_on = 0, True
        try:
            ACTIONS[action](self.story)
        finally:
            self.is_on = False

    def trace(self, frame, event, arg):
        """For ``sys.settrace``: each line of ours is an opportunity, as for a handler."""
        if frame.f_code.co_filename not in OURS:
            return None
        if event == "line":
            self()
        return self.trace


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level("CRITICAL")


SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def test_story_without_interruptions():
    """The story itself: all its jobs end, but for those of the process that dies."""
    story = Story()
    story.play()

    story.check()
    assert [job.state for job in story.jobs].count(State.LOST) == 2
    story.spawner.close()


@SETTINGS
@given(plan=interruptions)
def test_celery_comes_back_in(plan):
    """Whatever Celery does while it is told, each job has one outcome and each slot one end."""
    story = Story()
    story.interrupt = Interruptions(story, plan)

    story.play()

    story.check()
    story.spawner.close()


@SETTINGS
@given(plan=line_interruptions)
def test_signal_handler_at_any_line(plan):
    """Wherever a handler interrupts the pool's code, what it asks for is done, once."""
    story = Story()
    interruptions = Interruptions(story, plan)
    before = sys.gettrace()
    sys.settrace(interruptions.trace)
    try:
        story.play()
    finally:
        sys.settrace(before)

    story.check()
    story.spawner.close()
