"""What does it cost to give one job to one of P processes, and to take it back?"""

from __future__ import annotations

from celery_asyncpool.core.dispatch import Dispatcher
from celery_asyncpool.core.job import Callbacks, Job

from .clock import report

COUNT = 500


def turn(processes: int) -> None:
    """Queue, assign and release COUNT jobs."""
    dispatcher = Dispatcher(slots=COUNT)
    for pid in range(processes):
        dispatcher.add_process(pid)
    for number in range(COUNT):
        dispatcher.enqueue(Job(number, b"", name="t", uuid="u", callbacks=Callbacks()))
    for job in list(dispatcher.assign()):
        dispatcher.release(job)


def main() -> None:
    """Few and many processes."""
    for processes in (1, 4, 16):
        report(f"a job, {processes} processes", lambda n=processes: turn(n), COUNT)


if __name__ == "__main__":
    main()
