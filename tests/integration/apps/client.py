"""Tasks that async code dispatches and awaits, and that do so themselves."""

import asyncio

from celery import chord, group

from celery_asyncpool import AsyncTask, apply_async, as_completed, gather, get

from .base import configure, make_app
from .recording import record

app = make_app("client")
app.Task = AsyncTask
app.task_cls = AsyncTask
app.conf.broker_connection_timeout = 60  # the machine may be slow, or busy
configure(app, "ASYNCPOOL_TEST_SETTINGS")


@app.task
async def add(x, y):
    return x + y


@app.task
async def wait(seconds, value):
    await asyncio.sleep(seconds)
    return value


@app.task
async def fail(text):
    raise ValueError(text)


@app.task
async def total(numbers):
    return sum(numbers)


@app.task
async def dispatches(count):
    """Sends tasks and awaits their results inside of a body."""
    results = [await add.adelay(number, 1) for number in range(count)]
    first = await get(results[0])
    rest = await gather(*results[1:])
    return [first, *rest]


@app.task
async def finishes(count):
    """Awaits a group, member by member."""
    result = await apply_async(group(add.s(number, 1) for number in range(count)))
    return sorted([member.result async for member in as_completed(result)])


@app.task
async def sums(count):
    result = await apply_async(chord([add.s(number, 1) for number in range(count)], total.s()))
    return await get(result)


@app.task(bind=True, max_retries=2)
async def retries(self):
    if self.request.retries < 2:
        raise await self.aretry(countdown=0)
    return self.request.retries


@app.task(bind=True)
async def retries_early(self):
    """Asks for its retry, and goes on for a second."""
    record("attempt", id=self.request.id)
    if not self.request.retries:
        await self.aretry(countdown=0, throw=False)
        await add(1, 2)  # a plain call, whose end is not that of this body
        await asyncio.sleep(1)
        record("end", id=self.request.id)


@app.task(bind=True)
async def tells(self, seconds):
    await self.aupdate_state(state="HALF", meta={"done": 50})
    await asyncio.sleep(seconds)
    return "told"


@app.task
async def blocks():
    return add.delay(1, 2).id


@app.task
async def blocks_twice():
    for _ in range(2):
        add.delay(1, 2)


@app.task
def publishes_in_a_thread():
    return add.delay(1, 2).id


@app.task
def waits_on_its_own_loop():
    async def main():
        return (await add.adelay(1, 2)).get(timeout=60, disable_sync_subtasks=False)

    return asyncio.run(main())


@app.task
async def waits_blocking():
    result = await add.adelay(1, 2)
    return result.get(timeout=5, disable_sync_subtasks=False)
