"""Bodies that set what their process has once only: of the loop, of signals, of Python."""

import asyncio
import os

from .base import configure, make_app
from .recording import record
from .setters import SETTERS

app = make_app("owners")
configure(app, "OWNERS_CONF")


@app.task(bind=True)
async def takes(self, what, gate):
    """Set something, and hold it until the gate is there."""
    value = SETTERS[what](asyncio.get_running_loop())
    if asyncio.iscoroutine(value):
        await value
    record("started", id=self.request.id)
    while not os.path.exists(gate):
        await asyncio.sleep(0.01)
    return os.getpid()


@app.task
async def runs_a_loop_inside():
    """Tells asyncio that no loop runs, runs one, and does not take it back."""
    asyncio._set_running_loop(None)
    asyncio.run(asyncio.sleep(0))
    return os.getpid()


@app.task
async def turns_the_loop():
    """As nest_asyncio: runs what is ready on asyncio's loop while the loop itself does."""
    loop = asyncio.get_running_loop()

    def turn():
        for _ in range(len(loop._ready)):
            loop._ready.popleft()._run()

    if hasattr(loop, "_ready"):  # uvloop shows it to nobody
        loop.call_soon(turn)
    await asyncio.sleep(0)
    return os.getpid()


async def _one():
    await asyncio.sleep(0)
    return 1


@app.task
async def neighbour():
    """Use all that a neighbour may have set; return what came out, and the process."""
    child = asyncio.create_task(_one())
    in_thread = await asyncio.to_thread(sum, [1, 1])
    gathered = await asyncio.gather(_one(), _one())
    process = await asyncio.create_subprocess_exec("true")
    code = await process.wait()
    name = asyncio.current_task().get_name()
    return [await child, in_thread, gathered, code, name, os.getpid()]


@app.task
def in_thread():
    return os.getpid()


@app.task
async def cancels_all():
    """Cancel everything on the loop but itself, at once and again."""
    for _ in range(3):
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.sleep(0)
    return True
