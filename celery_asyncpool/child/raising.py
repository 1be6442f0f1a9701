"""An exception in a thread that runs something else: CPython's, with its hazards.

``PyThreadState_SetAsyncExc`` leaves an exception for a thread, which finds it
at its next bytecode, and tells the interpreter that there is one. Before
Python 3.13 the interpreter takes that back only when a thread finds one: after
one was taken back itself, or while the thread is in a call into C, all threads
look for it at each step; and on 3.11 a thread that is traced (``sys.settrace``,
``sys.setprofile``, coverage, cProfile) does nothing else any more.
"""

from __future__ import annotations

import _thread
import ctypes
import sys
import threading

__all__ = ["raise_in_thread", "take_back"]


def raise_in_thread(thread: int, exception: type[BaseException]) -> None:
    """Raise *exception* in *thread* at its next bytecode."""
    _leave(thread, exception)


def take_back(thread: int) -> None:
    """What was raised in *thread*, and has not arrived, does not.

    Only where something was raised: this costs a thread.
    """
    _leave(thread, None)


def _leave(thread: int, exception: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(exception) if exception is not None else None
    )
    if sys.version_info < (3, 13):
        # Not `threading.Thread`: tracing tools follow these.
        _thread.start_new_thread(_find_one, ())


class _Found(BaseException):
    """What a thread leaves for itself, to find it."""


def _find_one() -> None:
    """In a thread of its own: make the interpreter believe that all has been found.

    A thread that has not found its own says so again when it gets to run.
    """
    try:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_Found)
        )
        while True:
            pass
    except _Found:
        return
