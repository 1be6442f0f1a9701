"""Django: call something when the transaction is committed, from sync and from async code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["acall_on_commit", "call_on_commit"]


def call_on_commit(task: Any, call: Callable[[], Any]) -> None:
    """Make *call*, which publishes *task*, when the transaction is committed.

    At once where there is no transaction. Raises ``RuntimeError`` without Django,
    and Django's ``SynchronousOnlyOperation`` on an event loop.
    """
    transaction = _transaction(task)
    from django.core.exceptions import SynchronousOnlyOperation

    try:
        transaction.on_commit(call)
    except SynchronousOnlyOperation as exc:
        raise SynchronousOnlyOperation(
            f"task {task.name}: an event loop runs here, and Django's transactions are sync. "
            "Call it in the sync_to_async function of the transaction, or await "
            "adelay_on_commit or aapply_async_on_commit"
        ) from exc


async def acall_on_commit(task: Any, call: Callable[[], Any]) -> None:
    """As :func:`call_on_commit`, in the thread in which Django's async ORM works here."""
    _transaction(task)
    from asgiref.sync import sync_to_async

    await sync_to_async(call_on_commit)(task, call)


def _transaction(task: Any) -> Any:
    try:
        from django.db import transaction
    except ImportError as exc:
        raise RuntimeError(
            f"task {task.name}: there is no Django here whose transaction could be committed; "
            "use delay, apply_async, adelay or aapply_async"
        ) from exc
    return transaction
