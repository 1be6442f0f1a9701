"""README's example of types; it stands there word for word."""

from __future__ import annotations

# prices.py
from celery import Celery

from celery_asyncpool import AsyncTask, async_task, get

app = Celery("shop")


@async_task(app)
async def price(item: str, *, currency: str = "EUR") -> float:
    return 10.0 * len(item)


@async_task(app, bind=True, max_retries=3)
async def order(self: AsyncTask[..., int], items: list[str]) -> int:
    if not self.request.retries:
        raise await self.aretry(countdown=1)
    return len(items)


async def offer(item: str) -> str:
    result = await price.adelay(item, currency="USD")  # AsyncResult[float]
    return f"{item}: {await get(result):.2f}"


# The end of README's example.
