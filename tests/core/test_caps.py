"""celery_asyncpool/core/caps.py: how many tasks of a kind may run at once."""

from __future__ import annotations

import pytest

from celery_asyncpool.core.caps import Caps
from celery_asyncpool.core.dispatch import Dispatcher
from celery_asyncpool.core.job import Job


def new_jobs(name: str, *numbers: int) -> list[Job]:
    return [Job(number, b"", name=name) for number in numbers]


def enter(caps: Caps, jobs: list[Job]) -> list[bool]:
    """Let *jobs* enter; whether each has to wait."""
    for job in jobs:
        caps.enter(job)
    return [job.waits for job in jobs]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("proj.scrape", "proj.scrape"),
        ("proj.pdf.render", "proj.pdf.*"),
        ("proj.pdf.merge", "proj.pdf.*"),
        ("proj.pdf.", "proj.pdf.*"),
        ("proj.pdf", "*.pdf"),
        ("other.pdf", "*.pdf"),
        ("proj.mail", None),
        ("proj.Scrape", None),
        ("proj.scrape2", None),
    ],
)
def test_find(name, pattern):
    """A task's cap is the one with its very name, else the first whose pattern matches."""
    caps = Caps([("*.pdf", 3), ("proj.scrape", 2), ("proj.pdf.*", 4)])

    cap = caps.find(name)

    assert (cap and cap.pattern) == pattern
    assert caps.find(name) is cap


def test_find_first_match():
    """Of two patterns that match, the first one counts."""
    caps = Caps([("proj.*", 5), ("proj.pdf.*", 4)])

    assert repr(caps.find("proj.pdf.render")) == "<Cap 'proj.*' 0/5 running, 0 waiting>"


def test_find_very_name():
    """The very name comes before patterns, wherever it stands."""
    caps = Caps([("proj.*", 5), ("proj.pdf", 4)])

    assert repr(caps.find("proj.pdf")) == "<Cap 'proj.pdf' 0/4 running, 0 waiting>"


def test_unused():
    """A cap that no task has is told, one that others stand before too."""
    caps = Caps([("proj.*", 5), ("proj.pdf.*", 4), ("misspelt", 1)])

    assert caps.unused(["proj.pdf.render", "proj.mail"]) == ["proj.pdf.*", "misspelt"]


def test_enter_until_full():
    """So many as the cap allows have places; the others wait."""
    caps = Caps([("scrape", 2)])

    waits = enter(caps, new_jobs("scrape", 1, 2, 3, 4))

    assert waits == [False, False, True, True]
    assert caps.waiting == 2
    assert repr(caps.find("scrape")) == "<Cap 'scrape' 2/2 running, 2 waiting>"


def test_tasks_of_a_pattern_share_the_cap():
    """A pattern counts all tasks that match it together; other tasks have no cap."""
    caps = Caps([("pdf.*", 2)])
    jobs = new_jobs("pdf.a", 1) + new_jobs("pdf.b", 2) + new_jobs("pdf.c", 3)

    assert enter(caps, jobs) == [False, False, True]
    assert enter(caps, new_jobs("mail", *range(4, 50))) == [False] * 46


def test_leave_lets_the_next_one_in():
    """The one that has waited longest takes the place of the one that leaves."""
    caps = Caps([("scrape", 1)])
    first, second, third = jobs = new_jobs("scrape", 1, 2, 3)
    enter(caps, jobs)

    assert caps.leave(first) is second
    assert [job.waits for job in jobs] == [False, False, True]
    assert caps.leave(second) is third
    assert caps.leave(third) is None
    assert repr(caps.find("scrape")) == "<Cap 'scrape' 0/1 running, 0 waiting>"


def test_leave_twice():
    """A place is given back once, however often it is said."""
    caps = Caps([("scrape", 1)])
    first, second, third = jobs = new_jobs("scrape", 1, 2, 3)
    enter(caps, jobs)

    assert caps.leave(first) is second
    assert caps.leave(first) is None
    assert third.waits
    assert repr(caps.find("scrape")) == "<Cap 'scrape' 1/1 running, 1 waiting>"


def test_leave_while_waiting():
    """One that ends while it waits leaves its place in the line, and lets nobody in."""
    caps = Caps([("scrape", 1)])
    first, second, third = jobs = new_jobs("scrape", 1, 2, 3)
    enter(caps, jobs)

    assert caps.leave(second) is None
    assert caps.leave(second) is None
    assert caps.waiting == 1
    assert caps.leave(first) is third


def test_leave_without_cap():
    """A task without a cap leaves nothing."""
    caps = Caps([("scrape", 1)])

    assert caps.leave(*new_jobs("mail", 1)) is None
    assert Caps().leave(*new_jobs("mail", 1)) is None


def test_drop_waiting():
    """Those who waited are given up in order of arrival; those with places keep them."""
    caps = Caps([("scrape", 1), ("pdf", 1)])
    jobs = [Job(number, b"", name=("scrape", "pdf")[number % 2]) for number in range(1, 7)]
    enter(caps, jobs)

    assert caps.drop_waiting() == jobs[2:]
    assert caps.waiting == 0
    assert [caps.leave(job) for job in jobs] == [None] * 6


# With the Dispatcher.


def dispatch(caps: dict[str, int], jobs: list[Job], *, slots: int = 100) -> Dispatcher:
    dispatcher = Dispatcher(slots, caps=Caps(caps.items()))
    dispatcher.add_process(1)
    dispatcher.add_process(2)
    for job in jobs:
        dispatcher.enqueue(job)
    return dispatcher


def assigned(dispatcher: Dispatcher) -> list[int]:
    return [job.id for job in dispatcher.assign()]


def end(dispatcher: Dispatcher, job: Job) -> None:
    dispatcher.release(job)
    job.accept()
    job.finish()
    dispatcher.leave(job)


def test_cap_holds_over_all_processes():
    """Two processes together run no more than the cap; others are not held up."""
    scrapes = new_jobs("scrape", *range(1, 101))
    dispatcher = dispatch({"scrape": 3}, [*scrapes, *new_jobs("mail", 101, 102)])

    assert assigned(dispatcher) == [1, 2, 3, 101, 102]
    assert repr(dispatcher) == "<Dispatcher 0 queued, 5/200 slots>"
    end(dispatcher, scrapes[1])
    assert assigned(dispatcher) == [4]


def test_let_in_job_goes_before_those_that_came_later():
    """A job that has waited for its cap waits for a process by its arrival."""
    first, second = new_jobs("scrape", 1, 3)
    mails = new_jobs("mail", 2, 4, 5)
    dispatcher = dispatch({"scrape": 1}, [], slots=1)
    dispatcher.close_process(2)
    for job in (first, mails[0], second, *mails[1:]):
        dispatcher.enqueue(job)

    order = []
    for _ in range(5):
        [job] = [job for job in dispatcher.assign()]
        order.append(job.id)
        end(dispatcher, job)

    assert order == [1, 2, 3, 4, 5]


def test_jobs_let_in_by_two_caps_go_by_their_arrival():
    """Which cap has let a job in makes no difference."""
    scrapes, pdfs = new_jobs("scrape", 1, 4), new_jobs("pdf", 2, 3)
    dispatcher = dispatch({"scrape": 1, "pdf": 1}, [*scrapes, *pdfs])
    assert assigned(dispatcher) == [1, 2]

    end(dispatcher, scrapes[0])
    end(dispatcher, pdfs[0])

    assert assigned(dispatcher) == [3, 4]


def test_requeued_job_keeps_its_place():
    """A job that a dead process gives back runs first, and nobody has taken its place."""
    first, second = jobs = new_jobs("scrape", 1, 2)
    dispatcher = dispatch({"scrape": 1}, jobs)
    assert assigned(dispatcher) == [1]
    dispatcher.remove_process(first.pid)
    first.give_back()

    dispatcher.requeue([first])

    assert assigned(dispatcher) == [1]
    assert second.waits


def test_returned_jobs_go_before_those_that_were_let_in():
    """What processes give back goes first, whoever was let in meanwhile."""
    scrapes, [mail] = new_jobs("scrape", 1, 2, 3), new_jobs("mail", 4)
    dispatcher = dispatch({"scrape": 2}, [*scrapes, mail], slots=2)
    assert assigned(dispatcher) == [1, 2, 4]
    end(dispatcher, scrapes[0])  # 3 is let in, and has not gone anywhere

    for job in (scrapes[1], mail):
        dispatcher.remove_process(job.pid)
        job.give_back()
        dispatcher.requeue([job])
    dispatcher.add_process(3)
    dispatcher.add_process(4)

    assert assigned(dispatcher) == [4, 2, 3]


def test_quarantined_job_with_a_cap():
    """A suspect waits for its cap first, and then for a process without another suspect."""
    jobs = new_jobs("scrape", 1, 2, 3)
    for job in jobs:
        job.quarantined = True
    dispatcher = dispatch({"scrape": 2}, jobs)
    dispatcher.close_process(2)
    assert assigned(dispatcher) == [1]

    end(dispatcher, jobs[0])

    assert not jobs[2].waits
    assert assigned(dispatcher) == [2]
    end(dispatcher, jobs[1])
    assert assigned(dispatcher) == [3]


def test_drop_queued_drops_what_waits_for_caps():
    """When the broker is lost, nobody waits any more, and the places are free in the end."""
    jobs = new_jobs("scrape", 1, 2, 3)
    dispatcher = dispatch({"scrape": 1}, jobs)
    dispatcher.close_process(1)
    dispatcher.close_process(2)

    dropped = dispatcher.drop_queued()
    for job in dropped:
        job.discard()

    assert [job.id for job in dropped] == [2, 3, 1]
    assert [dispatcher.leave(job) for job in dropped] == [None] * 3
    assert repr(dispatcher.caps.find("scrape")) == "<Cap 'scrape' 0/1 running, 0 waiting>"
