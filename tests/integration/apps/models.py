"""Tasks with ``pydantic=True``."""

import asyncio
import functools

import celery
from celery import shared_task
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from celery_asyncpool import AsyncTask, async_task

from .base import make_app

app = make_app("models")


class In(BaseModel):
    x: int
    tag: str = "none"

    @field_validator("tag")
    @classmethod
    def of_context(cls, value: str, info: ValidationInfo) -> str:
        prefix = (info.context or {}).get("prefix", "")
        return f"{prefix}{value}"


class Out(BaseModel):
    total: int = Field(alias="sum")
    empty: int | None = None

    model_config = {"populate_by_name": True}


async def body(given: In) -> Out:
    await asyncio.sleep(0)
    assert isinstance(given, In)
    return Out(total=given.x + 1)


async def optional(given: In | None = None) -> Out | None:
    await asyncio.sleep(0)
    assert given is None or isinstance(given, In)
    return None if given is None else Out(total=given.x)


async def many(given: list[In], named: dict[str, In] | None = None) -> list[Out]:
    await asyncio.sleep(0)
    assert all(isinstance(item, In) for item in (*given, *(named or {}).values()))
    return [Out(total=item.x) for item in (*given, *(named or {}).values())]


async def by_name(x: int) -> dict[str, Out | None]:
    return {"one": Out(total=x), "none": None}


async def either(given: In | int) -> Out | int:
    return Out(total=given.x) if isinstance(given, In) else given


async def plain(x: int) -> int:
    return x


async def unannotated(x):
    return x


def def_body(given: In) -> Out:
    assert isinstance(given, In)
    return Out(total=given.x + 1)


@functools.wraps(body)
def hidden(*args, **kwargs):
    return body(*args, **kwargs)


@functools.wraps(body)
def runs(*args, **kwargs):
    return asyncio.run(body(*args, **kwargs))


BODIES = {
    function.__name__: function
    for function in (body, optional, many, by_name, either, plain, unannotated, def_body)
}
BODIES |= {"hidden": hidden, "runs": runs}

for _name, _function in BODIES.items():
    app.task(_function, name=f"apps.models.{_name}", pydantic=True)
    app.task(_function, name=f"apps.models.own_{_name}", pydantic=True, base=AsyncTask)
    app.task(_function, name=f"apps.models.auto_{_name}", pydantic=True, autoretry_for=(KeyError,))

async_task(app, name="apps.models.decorated", pydantic=True)(body)
shared_task(body, name="apps.models.shared", pydantic=True)


@app.task(bind=True, pydantic=True)
async def bound(self: celery.Task, given: In) -> Out:
    assert self.request.id
    return Out(total=given.x + 1)


@app.task(
    bind=True,
    base=AsyncTask,
    pydantic=True,
    pydantic_strict=True,
    pydantic_context={"prefix": "p-"},
    pydantic_dump_kwargs={"by_alias": True, "exclude_none": True},
)
async def configured(self, given: In, others: list[In]) -> Out:
    assert [given.tag, *(other.tag for other in others)] == ["p-a", "p-b"]
    return Out(total=given.x)
