"""The only place that calls Celery about jobs: one call at a time, in their order.

What is to be told waits in a line. Whatever Celery does while it is told (it may ask
for maintenance, submit a job, end one, stop the pool) only adds to what is to be done,
and finds the pool's state whole: nothing is half done while Celery is called.

A call that raises costs no other job its outcome: the next one is made all the same.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.exceptions import Terminated, TimeLimitExceeded
from celery.utils.log import get_logger

from ..core import protocol
from ..core.job import Job
from ..core.jobs import Ask, Report, SlotFree, Tell, Waiting

__all__ = ["Call", "Reporter"]

logger = get_logger(__name__)


class Call(NamedTuple):
    """*function* is to be called when all before it is told."""

    function: Callable[[], Any]


#: What is told, and to whom.
News = Tell | Ask | SlotFree | Waiting | Call


class _PassedOn(Exception):
    """Carries an *error* that Celery wants to hear of."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Reporter:
    """A line of news for Celery.

    Arguments:
        on_slot_free: called when a job gives back the slot that it came with.
        on_waiting: called with the number of jobs that wait for their caps.
        on_answer: called with a job and whether it must not run any more.
        connection_errors: what Celery's callbacks raise when the broker is lost.
    """

    def __init__(
        self,
        on_slot_free: Callable[[], Any],
        on_waiting: Callable[[int], Any],
        on_answer: Callable[[Job, bool], Any],
        connection_errors: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._on_slot_free = on_slot_free
        self._on_waiting = on_waiting
        self._on_answer = on_answer
        self._connection_errors = connection_errors
        self._news: deque[News] = deque()

    def __repr__(self) -> str:
        return f"<Reporter {len(self._news)} to tell>"

    def __len__(self) -> int:
        return len(self._news)

    def add(self, news: Iterable[News]) -> None:
        """Tell these after all others."""
        self._news.extend(news)

    def tell_next(self) -> BaseException | None:
        """Make the first call in the line.

        Returns what it has raised if Celery wants that to be passed on
        (``callbacks_propagate``).
        """
        news = self._news.popleft()
        try:
            self._tell(news)
        except _PassedOn as exc:
            return exc.error
        return None

    def _tell(self, news: News) -> None:
        if isinstance(news, Tell):
            self._tell_of_job(news)
        elif isinstance(news, SlotFree):
            self._call("a free slot", self._on_slot_free)
        elif isinstance(news, Waiting):
            self._call("waiting jobs", self._on_waiting, news.jobs)
        elif isinstance(news, Call):
            self._call("what was told", news.function)
        else:
            revoked = news.job.callbacks.revoked
            answer = revoked is not None and bool(self._call(news.job, revoked))
            self._on_answer(news.job, answer)

    def _tell_of_job(self, news: Tell) -> None:
        job, report = news.job, news.report
        if report is Report.ACCEPTED:
            if job.callbacks.accept is not None:
                self._call(job, job.callbacks.accept, *news.detail)
        elif report is Report.RESULT:
            self._tell_result(job, news.detail)
        elif report in (Report.SOFT_LIMIT, Report.HARD_LIMIT):
            self._tell_limit(job, is_soft=report is Report.SOFT_LIMIT)
        elif report is Report.GIVEN_UP and job.callbacks.fail_for_good is not None:
            self._call(job, job.callbacks.fail_for_good, _einfo(WorkerLostError(news.detail)))
        else:
            if report is Report.OVERDUE:
                logger.error("Hard time limit (%ss) exceeded for %s", job.limits.hard, job)
            self._tell_error(job, _error(news))

    def _tell_result(self, job: Job, payload: bytes) -> None:
        try:
            succeeded, value = protocol.loads(payload)
        except Exception as exc:
            self._tell_error(job, exc)
            return
        if not succeeded:
            self._tell_failure(job, value)
        elif job.callbacks.success is not None:
            self._call(job, job.callbacks.success, value)

    def _tell_limit(self, job: Job, *, is_soft: bool) -> None:
        if job.callbacks.timeout is not None:
            seconds = job.limits.soft if is_soft else job.limits.hard
            tell = functools.partial(job.callbacks.timeout, soft=is_soft, timeout=seconds)
            self._call(job, tell)

    def _tell_error(self, job: Job, error: Exception) -> None:
        self._tell_failure(job, _einfo(error))

    def _tell_failure(self, job: Job, einfo: Any) -> None:
        if job.callbacks.error is not None:
            self._call(job, job.callbacks.error, einfo)
        else:
            logger.error(
                "job %d %s failed, and nobody has asked to be told: %s", job.id, job, einfo
            )

    def _call(self, who: Job | str, function: Callable[..., Any], *args: Any) -> Any:
        """Call into Celery; what goes wrong there must not end the hub."""
        propagate = who.callbacks.propagate if isinstance(who, Job) else ()
        what = f"job {who.id} {who}" if isinstance(who, Job) else who
        try:
            return function(*args)
        except propagate as exc:
            raise _PassedOn(exc) from exc
        except self._connection_errors as exc:
            logger.error("%s: not told, since a connection is lost: %r", what, exc)
            return None
        except Exception as exc:
            logger.error("%s: Celery's callback raised %r", what, exc, exc_info=True)
            return None


def _error(news: Tell) -> Exception:
    """What Celery is given for a job that did not end by itself."""
    job, report = news.job, news.report
    if report is Report.REFUSED:
        refused: Exception = news.detail
        return refused
    if report is Report.TERMINATED:
        return Terminated(job.terminating)
    if report in (Report.TIMED_OUT, Report.OVERDUE):
        error = TimeLimitExceeded(job.limits.hard)
        error.add_note(f"When the limit was over, the task's body was here:\n{news.detail}")
        return error
    return WorkerLostError(news.detail)


def _einfo(error: Exception) -> ExceptionInfo:
    """Return the exception info of *error*, which was not raised."""
    try:
        raise error
    except Exception:
        return ExceptionInfo()
