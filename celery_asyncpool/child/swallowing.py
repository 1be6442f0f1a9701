"""What has become of an exception that was thrown into a suspended coroutine.

A limit is thrown into a body once, and may get lost there: Python 3.11's
``asyncio.wait_for`` drops a cancellation when its inner future is done in the
same turn of the loop, ``suppress(CancelledError)`` drops any, and so do libraries.
A body that lost it went on; one that cleans up still has it in hand: Python keeps
the exception that an ``except`` or ``finally`` block is dealing with beside the
coroutine's frame, and shows it to the garbage collector, which we ask.

Nothing here changes anything, and what is not understood counts as seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import sys
from collections.abc import Iterator
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    GeneratorType,
    ModuleType,
)
from typing import Any

import greenlet

__all__ = [
    "drops_cancellations",
    "greenlets",
    "is_held",
    "is_held_by_thread",
    "timeouts",
    "waits_in_wait_for",
    "was_dropped_by_wait_for",
    "was_seen",
    "went_on",
]

#: What may be suspended at an ``await``, as Python makes it.
_SUSPENDED = (CoroutineType, GeneratorType, AsyncGeneratorType)

#: More than that nobody nests; ends a walk that goes in circles.
_DEPTH = 200

_WAIT_FOR = asyncio.wait_for.__code__


def is_held(coroutine: Any, exc: BaseException, was_in: list[Any]) -> bool:
    """Whether *coroutine*, or what it awaits, is dealing with *exc* or still has it.

    *was_in* are the :func:`greenlets` of when it was thrown in: where one of them still
    runs, what it deals with cannot be known, and it may well be this.
    """
    if any(_leads_to(found, exc) for found in _in_hand(coroutine, BaseException)):
        return True
    return bool(was_in) and any(found in was_in for found in greenlets(coroutine))


def greenlets(coroutine: Any) -> list[Any]:
    """The greenlets in which *coroutine*, or what it awaits, runs functions: SQLAlchemy's."""
    return [found for found in _in_hand(coroutine, greenlet.greenlet) if not found.dead]


def went_on(task: asyncio.Task[Any]) -> bool:
    """Whether *task* was cancelled, has not ended, and deals with no cancellation."""
    if task.done() or not task.cancelling():
        return False
    return not any(_in_hand(task.get_coro(), (asyncio.CancelledError, greenlet.greenlet)))


def is_held_by_thread(thread: int, cls: type[BaseException]) -> bool:
    """Whether the *thread* is dealing with an exception of *cls*."""
    current: Any = sys._current_exceptions().get(thread)
    if isinstance(current, tuple):  # Python 3.11
        current = current[1]
    for _ in range(_DEPTH):
        if current is None or isinstance(current, cls):
            break
        current = current.__context__
    return current is not None


def was_dropped_by_wait_for(exc: BaseException) -> bool:
    """Whether *exc* has come as far as ``asyncio.wait_for``, which drops it in Python 3.11."""
    tb = exc.__traceback__  # begins with the outermost frame that it has come to
    return tb is not None and tb.tb_frame.f_code is _WAIT_FOR


def waits_in_wait_for(coroutine: Any) -> bool:
    """Whether it is ``asyncio.wait_for`` in which *coroutine* waits."""
    suspended = [found for found in _chain(coroutine) if isinstance(found, _SUSPENDED)]
    return bool(suspended) and getattr(suspended[-1], "cr_code", None) is _WAIT_FOR


def was_seen(exc: BaseException, name: type[BaseException], in_dropping_block: bool) -> bool:
    """Whether *exc*, which is a cancellation and a *name*, was caught as the latter.

    False where an ``except`` has caught it that would not catch a plain *name*, and
    where a block has whose :func:`drops_cancellations` was *in_dropping_block*.
    """
    tb = exc.__traceback__
    if tb is None:
        return True
    classes, is_block = _caught_as(tb.tb_frame, tb.tb_lasti, type(exc))
    if classes is not None:
        return _is_subclass(name, classes)
    return not (is_block and in_dropping_block)


def drops_cancellations(coroutine: Any, name: type[BaseException]) -> bool:
    """Whether *coroutine*, or what it awaits, is in a block that may drop cancellations only.

    Such as ``with suppress(CancelledError)``, which would let a plain *name* pass, or a
    task group, which puts the errors of its children in the place of one.
    """
    drops = False
    for suspended in _chain(coroutine):
        blocks = [_drops(found, name) for found in gc.get_referents(suspended)]
        if any(block is not None for block in blocks):  # the innermost counts
            drops = False not in blocks
    return drops


def timeouts(coroutine: Any) -> list[Any]:
    """The blocks of ``asyncio.timeout``, and ``wait_for``, that *coroutine* is in."""
    managers = (
        getattr(found, "__self__", found)
        for suspended in _chain(coroutine)
        for found in gc.get_referents(suspended)
    )
    return list({manager: None for manager in managers if type(manager) is asyncio.Timeout})


def _drops(found: Any, name: type[BaseException]) -> bool | None:
    """Whether a block drops cancellations only; None where it lets them pass."""
    manager = getattr(found, "__self__", found)  # a frame has the method of the block's end
    if isinstance(manager, asyncio.TaskGroup):
        return True
    if not isinstance(manager, contextlib.suppress):
        return None
    classes = getattr(manager, "_exceptions", ())
    if not _is_subclass(asyncio.CancelledError, classes) and not _is_subclass(name, classes):
        return None
    return not _is_subclass(name, classes)


def _in_hand(coroutine: Any, classes: Any) -> Iterator[Any]:
    """What *coroutine*, and what it awaits, have in hand of *classes*."""
    for suspended in _chain(coroutine):
        for found in gc.get_referents(suspended):
            if isinstance(found, classes):
                yield found


def _chain(coroutine: Any) -> Iterator[Any]:
    """*coroutine* and what it awaits, down to the future, which is not among them."""
    current = coroutine
    for _ in range(_DEPTH):
        if current is None:
            return
        yield current
        current = _awaited(current)


def _awaited(current: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(current, name):
            return getattr(current, name)
    if isinstance(current, asyncio.Future):
        return None
    # A step of an async generator, say, which does not tell its generator.
    return next((r for r in gc.get_referents(current) if isinstance(r, _SUSPENDED)), None)


def _leads_to(found: BaseException, exc: BaseException) -> bool:
    """Whether *found* is *exc*, or was raised while that was dealt with."""
    current: BaseException | None = found
    for _ in range(_DEPTH):
        if current is None or current is exc:
            break
        current = current.__context__
    return current is exc


# Which `except` of a frame catches: Python does not tell, its bytecode does.


def _caught_as(frame: FrameType, offset: int, raised: type[BaseException]) -> tuple[Any, bool]:
    """The classes of the ``except`` that catches *raised*, and whether a ``with`` may have.

    No classes: none catches it, or one without classes.
    """
    code = frame.f_code
    instructions = {found.offset: found for found in dis.get_instructions(code)}
    is_block = False
    for _ in range(_DEPTH):
        handler = _handler_at(code, offset)
        if handler is None:
            break
        classes, last = _clause(frame, instructions, handler, raised)
        if classes is not None:
            return classes, is_block
        if last.opname == "POP_TOP":
            return None, False  # `except:`
        is_block = is_block or last.opname == "WITH_EXCEPT_START"
        offset = last.offset
    return None, is_block


def _handler_at(code: CodeType, offset: int) -> int | None:
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        if entry.start <= offset < entry.end:
            return int(entry.target)
    return None


def _clause(
    frame: FrameType, instructions: dict[int, Any], start: int, raised: type[BaseException]
) -> tuple[Any, Any]:
    """The classes of the clause at *start* that catches *raised*; the last instruction read."""
    stack: list[Any] = []
    found = instructions[start]
    for found in _from(instructions, start):
        name = found.opname
        if name.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF")):
            stack.append(_variable(frame, found.argval))
        elif name == "LOAD_ATTR" and stack:
            stack.append(_attribute(stack.pop(), found.argval))
        elif name == "BUILD_TUPLE":
            stack[-found.arg :] = [tuple(stack[-found.arg :])]
        elif name in ("CHECK_EXC_MATCH", "CHECK_EG_MATCH"):
            classes = stack.pop() if stack else None
            if _is_subclass(raised, classes):
                return classes, found
        elif name not in _AROUND:
            break  # a `finally`, a `with`, an `except:`, the end of clauses that do not match
    return None, found


#: Instructions between the classes of clauses.
_AROUND = frozenset({"PUSH_EXC_INFO", "CACHE", "NOP", "EXTENDED_ARG", "NOT_TAKEN", "COPY"})


def _from(instructions: dict[int, Any], start: int) -> Iterator[Any]:
    """The instructions from *start* on; past a clause that does not match, to the next."""
    offset = start
    last = max(instructions)
    while offset <= last:
        found = instructions.get(offset)
        offset += 2
        if found is None:
            continue
        if "JUMP" in found.opname and "IF_FALSE" in found.opname:
            offset = found.argval
        else:
            yield found


def _variable(frame: FrameType, name: Any) -> Any:
    for variables in (frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in variables:
            return variables[name]
    return None


def _attribute(owner: Any, name: str) -> Any:
    # Of other objects it might be a property, and do something.
    return getattr(owner, name, None) if isinstance(owner, (ModuleType, type)) else None


def _is_subclass(cls: type[BaseException], classes: Any) -> bool:
    try:
        return issubclass(cls, classes)
    except TypeError:
        return False  # no classes: the clause raises this itself
