"""celery_asyncpool/child/runner.py: no body starts before the kernel has its ACK."""

import asyncio
import socket

import uvloop

from celery_asyncpool.child.jobcontext import JobContext
from celery_asyncpool.child.runner import Runner, share_keys
from celery_asyncpool.child.threads import BodyThreads
from celery_asyncpool.core.protocol import Framer, Kind, dumps, encode, loads
from celery_asyncpool.pipe import Pipe

started = []


def body(number):
    """A job that says that it runs."""
    started.append(number)
    return False, "done", 0.0


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def start_with_full_socket(parent, theirs):
    pipe = Pipe(theirs)
    threads = BodyThreads(2)
    runner = Runner(None, {}, asyncio.get_running_loop(), pipe, threads, grace=1.0)
    while pipe.flush():
        pipe.write(encode(Kind.STATUS, 0, dumps({"filler": "x" * 4096})))
    runner.start()
    task = encode(Kind.TASK, 7, dumps((body, (7,), {}, None, None)))
    await asyncio.get_running_loop().sock_sendall(parent, task)
    while not (runner._accepting or runner.is_busy):  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(0)
    while runner.is_busy:  # noqa: ASYNC110 (only where the body did not wait)
        await asyncio.sleep(0)
    await turns()
    early = list(started)
    kinds = []
    framer = Framer()
    while Kind.READY not in kinds:
        data = await asyncio.get_running_loop().sock_recv(parent, 65536)
        kinds += [message.kind for message in framer.feed(data)]
    threads.shutdown()
    return early, kinds


def test_body_waits_for_its_ack_in_a_full_socket():
    """With a full socket the ACK stays behind, and so does the body; then both go on."""
    started.clear()
    parent, theirs = socket.socketpair()
    parent.setblocking(False)
    loop = uvloop.new_event_loop()
    try:
        early, kinds = loop.run_until_complete(
            asyncio.wait_for(start_with_full_socket(parent, theirs), 20)
        )
    finally:
        loop.close()
        parent.close()
        theirs.close()

    assert early == []
    assert started == [7]
    assert kinds.index(Kind.ACK) < kinds.index(Kind.READY)


async def cancel_before_first_step(parent, theirs):
    loop = asyncio.get_running_loop()
    threads = BodyThreads(2)
    runner = Runner(None, {}, loop, Pipe(theirs), threads, grace=1.0)
    before = asyncio.all_tasks()
    runner._start(JobContext(7, dumps((body, (7,), {}, None, None))))
    for task in asyncio.all_tasks() - before:
        task.cancel()
    framer = Framer()
    ready = []
    while not ready:
        messages = framer.feed(await loop.sock_recv(parent, 65536))
        ready = [loads(message.payload) for message in messages if message.kind is Kind.READY]
    threads.shutdown()
    return ready


def test_job_that_is_cancelled_before_its_first_step():
    """A body that cancels all that is on the loop does not end what was accepted just now."""
    started.clear()
    parent, theirs = socket.socketpair()
    parent.setblocking(False)
    with parent, theirs, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ready = runner.run(asyncio.wait_for(cancel_before_first_step(parent, theirs), 20))

    assert started == [7]
    assert ready == [(True, (False, "done", 0.0))]


def test_shared_keys():
    """Dicts that came through the pipe have the same objects as keys, and all of their items."""
    values = [{"a" * n: n for n in range(1, 5)} | {7: "x"} for _ in range(2)]
    first, second = (share_keys(loads(dumps(value))) for value in values)

    assert [first, second] == values
    assert all(a is b for a, b in zip(first, second, strict=True))
