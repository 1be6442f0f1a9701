"""What a type checker makes of tasks, results and lifespans: mypy reads this.

Where it gets something wrong, mypy says so: ``assert_type`` demands the very type, and an
``ignore`` that hides no error is one itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any, assert_type

from celery import Celery
from celery.canvas import Signature
from celery.result import AsyncResult, EagerResult

from celery_asyncpool import AsyncTask, Lifespan, async_task, gather, get, lifespan

app = Celery("typed")


class OwnTask(AsyncTask[..., Any]):
    """A project's own task class."""


# Bodies of all kinds.


@async_task(app)
async def length(text: str, *, factor: int = 1) -> int:
    return len(text) * factor


@async_task(app, name="other.name", acks_late=True)
async def nothing() -> None:
    return None


@async_task(app, bind=True, max_retries=3)
async def bound(self: AsyncTask[..., str], text: str) -> str:
    if not self.request.retries:
        raise await self.aretry(countdown=1)
    return text


@async_task(app)
def plain(number: int) -> float:
    return number / 2


@async_task(app, bind=True)
def plain_bound(self: AsyncTask[..., float], number: int) -> float:
    return number / self.request.retries


@async_task(app, base=OwnTask)
async def own(text: str) -> list[str]:
    return [text]


@async_task()
async def shared(text: str) -> bytes:
    return text.encode()


# What is sent, and what comes back.


def blocking_code() -> None:
    assert_type(length.delay("a", factor=2), AsyncResult[int])
    assert_type(length.delay("a").get(timeout=1), int)
    assert_type(length.apply_async(("a",), countdown=5), AsyncResult[int])
    assert_type(length.apply(("a",)), EagerResult[int])
    assert_type(length.s("a"), Signature[int])
    assert_type(nothing.delay(), AsyncResult[None])
    assert_type(bound.delay("a"), AsyncResult[str])
    assert_type(plain.delay(2), AsyncResult[float])
    assert_type(plain_bound.delay(2), AsyncResult[float])
    assert_type(own.delay("a"), AsyncResult[list[str]])
    assert_type(shared.delay("a"), AsyncResult[bytes])


async def async_code() -> None:
    assert_type(await length.adelay("a", factor=2), AsyncResult[int])
    assert_type(await length.aapply_async(("a",), countdown=5), AsyncResult[int])
    assert_type(await nothing.adelay(), AsyncResult[None])
    assert_type(await bound.adelay("a"), AsyncResult[str])
    assert_type(await plain.adelay(2), AsyncResult[float])
    assert_type(await plain_bound.adelay(2), AsyncResult[float])
    assert_type(await own.adelay("a"), AsyncResult[list[str]])
    assert_type(await shared.adelay("a"), AsyncResult[bytes])

    assert_type(await get(await length.adelay("a")), int)
    assert_type(await get(await own.adelay("a"), timeout=5), list[str])
    assert_type(await gather(await length.adelay("a"), await plain.adelay(2)), list[Any])


# A task that is called runs its body.


async def direct_calls() -> None:
    coroutine = length("a")
    _: Coroutine[Any, Any, int] = coroutine
    assert_type(await coroutine, int)
    assert_type(await length("a"), int)
    assert_type(await bound("a"), str)
    assert_type(await length.run("a"), int)
    assert_type(plain(2), float)
    assert_type(plain_bound(2), float)


# Any of them is an AsyncTask of its parameters.


def takes_task(task: AsyncTask[[str], str]) -> None:
    assert_type(task.delay("a"), AsyncResult[str])


def tasks_are_passed() -> None:
    takes_task(bound)
    takes_task(shared)  # type: ignore[arg-type]


# What a body does not take is an error where it is sent.


async def errors() -> None:
    length.delay(1)  # type: ignore[arg-type]
    length.delay("a", 2)  # type: ignore[call-arg]
    length.delay("a", faktor=2)  # type: ignore[call-arg]
    length.delay()  # type: ignore[call-arg]
    nothing.delay("a")  # type: ignore[call-arg]
    bound.delay(bound, "a")  # type: ignore[call-arg, arg-type]
    await length.adelay(1)  # type: ignore[arg-type]
    await length.adelay_on_commit("a", factor=2)
    await length.adelay_on_commit(1)  # type: ignore[arg-type]
    length.delay_on_commit("a")
    length.delay_on_commit(1)  # type: ignore[arg-type]
    await length.adelay("a", faktor=2)  # type: ignore[call-arg]
    await bound.adelay()  # type: ignore[call-arg]
    await plain.adelay("a")  # type: ignore[arg-type]
    await shared.adelay(b"a")  # type: ignore[arg-type]
    await length(1)  # type: ignore[arg-type]


# Celery's own decorator: its stubs know the class, and neither parameters nor results.


@app.task(base=AsyncTask)
async def by_celery(text: str) -> int:
    return len(text)


async def by_celery_is_sent() -> None:
    assert_type(by_celery.delay("a"), AsyncResult[Any])
    assert_type(await by_celery.adelay("a"), AsyncResult[Any])


typed_app: Celery[AsyncTask[..., Any]] = Celery("typed", task_cls=AsyncTask)


@typed_app.task
async def by_typed_app(text: str) -> int:
    return len(text)


async def by_typed_app_is_sent() -> None:
    assert_type(await by_typed_app.adelay("a"), AsyncResult[Any])


# Lifespans.


class Browser:
    async def title(self, url: str) -> str:
        return url


@lifespan(app)
async def browser() -> AsyncIterator[Browser]:
    yield Browser()


@lifespan(app, lazy=True)
async def late() -> AsyncIterator[int]:
    yield 1


async def lifespans() -> None:
    assert_type(browser, Lifespan[Browser])
    assert_type(browser.get(), Browser)
    assert_type(await browser.get().title("a"), str)
    assert_type(await late.start(), int)
    async with browser.running() as running:
        assert_type(running, Browser)
