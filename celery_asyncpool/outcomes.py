"""One outcome for one body, also where several of its tasks have asked for one.

In a ``TaskGroup`` (asyncio's or anyio's) what the children raise leaves in an
``ExceptionGroup``, which Celery's tracer takes for an error.
"""

from __future__ import annotations

from celery.exceptions import Ignore, Reject, Retry

__all__ = ["unwrapped"]

#: What a body raises to say what becomes of its task; of several the first in this order.
VERDICTS: tuple[type[Exception], ...] = (Reject, Retry, Ignore)


def unwrapped(exc: BaseException | None) -> BaseException | None:
    """Return *exc*; of a group of nothing but Retry, Ignore and Reject, the one that counts.

    Reject goes before Retry, and Retry before Ignore; of two of a kind the one
    that was raised first. A group with an error in it is an error.
    """
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = _leaves(exc)
    if not all(isinstance(leaf, VERDICTS) for leaf in leaves):
        return exc
    return min(leaves, key=_rank)


def _leaves(exc: BaseException) -> list[BaseException]:
    """What is in a group and in the groups in it, in order."""
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]


def _rank(exc: BaseException) -> int:
    return next(rank for rank, kind in enumerate(VERDICTS) if isinstance(exc, kind))
