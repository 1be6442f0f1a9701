"""celery_asyncpool/core/dispatch.py: which process gets the next job."""

from __future__ import annotations

import pytest

from celery_asyncpool.core.dispatch import Dispatcher
from celery_asyncpool.core.job import Job


def new_jobs(count: int, *, first: int = 1) -> list[Job]:
    return [Job(number, b"") for number in range(first, first + count)]


def new_dispatcher(*pids: int, slots: int, jobs: list[Job]) -> Dispatcher:
    dispatcher = Dispatcher(slots)
    for pid in pids:
        dispatcher.add_process(pid)
    for job in jobs:
        dispatcher.enqueue(job)
    return dispatcher


def job_of(pid: int) -> Job:
    """Some job that process *pid* has."""
    job = Job(99, b"")
    job.assign(pid)
    return job


def ids(jobs) -> list[int]:
    return [job.id for job in jobs]


def test_assign_in_order_of_arrival():
    """Jobs leave the queue in the order in which they came."""
    dispatcher = new_dispatcher(1, 2, 3, slots=10, jobs=new_jobs(20))

    assigned = list(dispatcher.assign())

    assert ids(assigned) == list(range(1, 21))


def test_assign_says_where_a_job_goes():
    """An assigned job knows its process."""
    jobs = new_jobs(1)
    dispatcher = new_dispatcher(412, slots=1, jobs=jobs)

    list(dispatcher.assign())

    assert repr(jobs[0]) == "<Job 1 sent pid=412>"
    assert repr(dispatcher) == "<Dispatcher 0 queued, 1/1 slots>"


def test_assign_without_process():
    """Without a process that is up all jobs wait."""
    dispatcher = new_dispatcher(slots=10, jobs=new_jobs(3))

    assigned = list(dispatcher.assign())

    assert assigned == []
    assert repr(dispatcher) == "<Dispatcher 3 queued, 0/0 slots>"


def test_assign_to_two_processes():
    """Two idle processes share the jobs half and half."""
    dispatcher = new_dispatcher(1, 2, slots=10, jobs=new_jobs(10))

    list(dispatcher.assign())

    assert dispatcher.load(1) == dispatcher.load(2) == 5


def test_assign_to_two_processes_one_job_per_turn():
    """The shares stay equal when jobs come one by one."""
    dispatcher = new_dispatcher(1, 2, slots=10, jobs=[])

    for job in new_jobs(10):
        dispatcher.enqueue(job)
        list(dispatcher.assign())

    assert dispatcher.load(1) == dispatcher.load(2) == 5


def test_assign_to_least_loaded():
    """A process that has fewer jobs than the others gets the next ones."""
    dispatcher = new_dispatcher(1, 2, 3, slots=10, jobs=new_jobs(12))
    list(dispatcher.assign())
    dispatcher.release(job_of(2))
    dispatcher.release(job_of(2))
    dispatcher.release(job_of(3))

    for job in new_jobs(2, first=13):
        dispatcher.enqueue(job)
    assigned = list(dispatcher.assign())

    assert assigned[0].pid == 2
    assert [dispatcher.load(pid) for pid in (1, 2, 3)].count(3) == 1
    assert dispatcher.load(1) == 4


def test_assign_to_replacement():
    """A new process gets jobs until it has as many as the others."""
    dispatcher = new_dispatcher(1, slots=10, jobs=new_jobs(4))
    list(dispatcher.assign())

    dispatcher.add_process(2)
    for job in new_jobs(4, first=5):
        dispatcher.enqueue(job)
    assigned = list(dispatcher.assign())

    assert [job.pid for job in assigned] == [2, 2, 2, 2]


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_assign_never_above_slots(slots):
    """A process has never more jobs than slots; the rest waits."""
    dispatcher = new_dispatcher(1, 2, slots=slots, jobs=new_jobs(50))

    assigned = list(dispatcher.assign())
    again = list(dispatcher.assign())

    assert len(assigned) == 2 * slots
    assert again == []
    assert dispatcher.load(1) == dispatcher.load(2) == slots
    assert dispatcher.queued == 50 - 2 * slots


def test_release_makes_room_for_one():
    """Each job that ends makes room for one that waits."""
    dispatcher = new_dispatcher(1, slots=2, jobs=new_jobs(5))
    list(dispatcher.assign())

    dispatcher.release(job_of(1))
    assigned = list(dispatcher.assign())

    assert ids(assigned) == [3]


def test_release_of_unknown_process():
    """A job of a process that is gone frees nothing."""
    dispatcher = new_dispatcher(1, slots=2, jobs=[])

    dispatcher.release(job_of(99))

    assert repr(dispatcher) == "<Dispatcher 0 queued, 0/2 slots>"
    assert dispatcher.load(99) == 0


def test_draining_process_gets_nothing():
    """A process that drains gets no job, however idle it is."""
    dispatcher = new_dispatcher(1, 2, slots=2, jobs=new_jobs(3))

    dispatcher.close_process(1)
    assigned = list(dispatcher.assign())

    assert [job.pid for job in assigned] == [2, 2]
    assert dispatcher.queued == 1


def test_draining_process_keeps_its_jobs_counted():
    """The jobs of a process that drains are in flight until they end."""
    dispatcher = new_dispatcher(1, slots=2, jobs=new_jobs(2))
    list(dispatcher.assign())

    dispatcher.close_process(1)
    before = dispatcher.in_flight()
    dispatcher.release(job_of(1))

    assert before == 2
    assert dispatcher.in_flight() == dispatcher.load(1) == 1
    assert repr(dispatcher) == "<Dispatcher 0 queued, 1/0 slots>"


def test_removed_process_gets_nothing():
    """A process that is gone gets no job, and its slots are gone with it."""
    dispatcher = new_dispatcher(1, 2, slots=2, jobs=new_jobs(4))
    list(dispatcher.assign())

    dispatcher.remove_process(1)
    dispatcher.enqueue(Job(5, b""))
    assigned = list(dispatcher.assign())

    assert assigned == []
    assert repr(dispatcher) == "<Dispatcher 1 queued, 2/2 slots>"


@pytest.mark.parametrize("method", ["close_process", "remove_process"])
def test_unknown_process_can_go(method):
    """A process that never came up can be closed and removed like any other."""
    dispatcher = new_dispatcher(1, slots=2, jobs=[])

    getattr(dispatcher, method)(99)

    assert repr(dispatcher) == "<Dispatcher 0 queued, 0/2 slots>"


def test_process_added_twice():
    """Hearing again that a process is up keeps the count of its jobs."""
    dispatcher = new_dispatcher(1, slots=2, jobs=new_jobs(2))
    list(dispatcher.assign())

    dispatcher.add_process(1)

    assert dispatcher.load(1) == 2


def test_requeued_jobs_go_first_and_in_order():
    """Jobs that a dead process gives back go before all others, in their order."""
    dispatcher = new_dispatcher(1, slots=3, jobs=new_jobs(6))
    given_back = list(dispatcher.assign())
    dispatcher.remove_process(1)
    for job in given_back:
        job.give_back()

    dispatcher.requeue(given_back)
    dispatcher.add_process(2)
    first_turn = ids(dispatcher.assign())
    for _ in range(3):
        dispatcher.release(job_of(2))
    second_turn = ids(dispatcher.assign())

    assert first_turn == [1, 2, 3]
    assert second_turn == [4, 5, 6]


def test_requeue_of_nothing():
    """A process that had no job gives none back."""
    dispatcher = new_dispatcher(1, slots=3, jobs=new_jobs(2))

    dispatcher.requeue([])

    assert ids(dispatcher.assign()) == [1, 2]


def test_ended_jobs_are_skipped():
    """A job that ended while it waited goes nowhere and takes no slot."""
    jobs = new_jobs(5)
    dispatcher = new_dispatcher(1, slots=2, jobs=jobs)
    for job in (jobs[0], jobs[1], jobs[3]):
        job.discard()

    assigned = list(dispatcher.assign())

    assert ids(assigned) == [3, 5]
    assert dispatcher.load(1) == 2
    assert dispatcher.queued == 0


def test_ended_jobs_are_dropped_without_free_slot():
    """Jobs that ended do not pile up in front of a full pool."""
    jobs = new_jobs(3)
    dispatcher = new_dispatcher(slots=2, jobs=jobs)
    jobs[0].discard()
    jobs[1].discard()

    assigned = list(dispatcher.assign())

    assert assigned == []
    assert dispatcher.queued == 1


def test_assign_sees_what_happens_between_two_jobs():
    """A slot freed, and a job that ends or arrives while jobs are handed out, count at once."""
    jobs = new_jobs(4)
    dispatcher = new_dispatcher(1, slots=1, jobs=jobs)
    assigned = []

    for job in dispatcher.assign():
        assigned.append(job.id)
        if job.id == 1:
            jobs[1].discard()
            dispatcher.enqueue(Job(5, b""))
        if job.id != 4:
            dispatcher.release(job_of(1))

    assert assigned == [1, 3, 4]
    assert dispatcher.queued == 1


def test_drop_queued():
    """All jobs that wait are given up, those in flight are not."""
    jobs = new_jobs(4)
    dispatcher = new_dispatcher(1, slots=1, jobs=jobs)
    list(dispatcher.assign())
    jobs[2].discard()

    dropped = dispatcher.drop_queued()

    assert ids(dropped) == [2, 4]
    assert repr(dispatcher) == "<Dispatcher 0 queued, 1/1 slots>"
    assert dispatcher.drop_queued() == []


def test_assign_never_above_limit():
    """All processes together have never more jobs than the limit, whatever their slots."""
    dispatcher = Dispatcher(slots=3, limit=5)
    for job in new_jobs(10):
        dispatcher.enqueue(job)
    for pid in (1, 2):
        dispatcher.add_process(pid)

    assigned = list(dispatcher.assign())
    dispatcher.release(job_of(1))
    after_release = list(dispatcher.assign())

    assert len(assigned) == 5
    assert ids(after_release) == [6]
    assert dispatcher.in_flight() == 5


def test_limit_counts_draining_processes():
    """Jobs of a process that drains count for the limit; those of one that is gone do not."""
    dispatcher = Dispatcher(slots=3, limit=3)
    dispatcher.add_process(1)
    for job in new_jobs(6):
        dispatcher.enqueue(job)
    list(dispatcher.assign())

    dispatcher.close_process(1)
    dispatcher.add_process(2)
    while_draining = list(dispatcher.assign())
    dispatcher.remove_process(1)
    dispatcher.release(job_of(1))
    when_gone = list(dispatcher.assign())

    assert while_draining == []
    assert ids(when_gone) == [4, 5, 6]


def quarantined(*numbers: int) -> list[Job]:
    jobs = [Job(number, b"") for number in numbers]
    for job in jobs:
        job.quarantined = True
    return jobs


def test_quarantined_jobs_never_meet():
    """A process has one quarantined job at a time; other jobs keep it company."""
    dispatcher = new_dispatcher(1, 2, slots=5, jobs=[*quarantined(1, 2, 3), *new_jobs(4, first=4)])

    assigned = list(dispatcher.assign())

    assert sorted(ids(assigned)) == [1, 2, 4, 5, 6, 7]
    assert {job.pid for job in assigned if job.quarantined} == {1, 2}
    assert dispatcher.queued == 1


def test_quarantined_job_follows_the_one_before():
    """When a quarantined job has ended, or its process has, the next one starts."""
    first, second, third = quarantined(1, 2, 3)
    dispatcher = new_dispatcher(1, slots=5, jobs=[first, second, third])
    list(dispatcher.assign())

    dispatcher.release(first)
    after_end = list(dispatcher.assign())
    dispatcher.remove_process(1)
    dispatcher.add_process(2)
    after_exit = list(dispatcher.assign())

    assert after_end == [second]
    assert after_exit == [third]


def test_quarantined_jobs_are_dropped_with_the_others():
    """When the broker is lost, no job waits any more."""
    dispatcher = new_dispatcher(slots=1, jobs=[*quarantined(1), *new_jobs(1, first=2)])

    assert ids(dispatcher.drop_queued()) == [1, 2]
    assert dispatcher.queued == 0


def test_held_process_gets_nothing():
    """A process whose pipe is full gets no job until it reads again."""
    dispatcher = new_dispatcher(1, 2, slots=5, jobs=new_jobs(4))
    dispatcher.hold(1)
    while_held = list(dispatcher.assign())

    dispatcher.resume(1)
    for job in new_jobs(4, first=5):
        dispatcher.enqueue(job)
    after = list(dispatcher.assign())

    assert {job.pid for job in while_held} == {2}
    assert {job.pid for job in after} == {1}


def test_hold_does_not_open_a_draining_process():
    """A process that drains stays closed, whatever its pipe does."""
    dispatcher = new_dispatcher(1, slots=5, jobs=new_jobs(1))
    dispatcher.close_process(1)

    dispatcher.hold(1)
    dispatcher.resume(1)

    assert list(dispatcher.assign()) == []


def test_resize():
    """A smaller limit lets what is in flight end; a bigger one takes effect at once."""
    jobs = new_jobs(8)
    dispatcher = new_dispatcher(1, slots=4, jobs=jobs)
    list(dispatcher.assign())

    dispatcher.resize(2, 2)
    dispatcher.release(jobs[0])
    when_smaller = list(dispatcher.assign())
    dispatcher.resize(5, 5)
    when_bigger = list(dispatcher.assign())

    assert when_smaller == []
    assert ids(when_bigger) == [5, 6]
