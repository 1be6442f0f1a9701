"""The bodies of all tasks, for every library, as ``def`` and as ``async def``.

Each takes its number first and returns it. It writes itself into the ledger,
which is the only thing that it does beside its work.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from typing import Any

from .ledger import VARIABLE, Ledger
from .spin import spin

__all__ = ["ASYNC", "SYNC", "ledger"]

ledger = Ledger(os.environ[VARIABLE])

#: Blocks the calling thread and nothing else; gevent does not replace it.
_usleep = ctypes.CDLL(None).usleep


#: When the gate opens, tasks that hold end over some seconds, this far apart: thousands that
#: store their results in one moment would want as many connections.
APART, GROUPS = 0.015, 1000


class _Shared:
    """What the tasks of one process share."""

    session: Any = None
    pool: Any = None
    gate: Any = None


def noop(number: int) -> int:
    ledger.start(number)
    return ledger.end(number)


def wait(number: int, seconds: float) -> int:
    ledger.start(number)
    time.sleep(seconds)
    return ledger.end(number)


def mixed(number: int, turns: int, seconds: float) -> int:
    ledger.start(number)
    spin(turns)
    time.sleep(seconds)
    return ledger.end(number)


def payload(number: int, data: str, size: int) -> int:
    ledger.start(number)
    if len(data) != size:
        raise ValueError(f"{len(data)} characters instead of {size}")
    return ledger.end(number)


def blocking(number: int, every: int, block: float, seconds: float) -> int:
    ledger.start(number)
    if number % every == 0:
        _usleep(int(block * 1e6))
    else:
        time.sleep(seconds)
    return ledger.end(number)


def http(number: int, url: str, connections: int) -> int:
    ledger.start(number)
    if _Shared.pool is None:
        import urllib3

        _Shared.pool = urllib3.PoolManager(maxsize=connections, retries=False)
    response = _Shared.pool.request("GET", f"{url}/{number}")
    if response.status != 200 or int(response.data) != number:
        raise ValueError(f"{response.status}: {response.data!r}")
    return ledger.end(number)


def hold(number: int) -> int:
    ledger.start(number)
    if _Shared.gate is None:
        _Shared.gate = threading.Event()
        threading.Thread(target=_watch_gate, args=(_Shared.gate,), daemon=True).start()
    _Shared.gate.wait()
    time.sleep(number % GROUPS * APART)
    return ledger.end(number)


def _watch_gate(gate: threading.Event) -> None:
    while not ledger.is_open:
        time.sleep(0.05)
    gate.set()


async def noop_async(number: int) -> int:
    ledger.start(number)
    return ledger.end(number)


async def wait_async(number: int, seconds: float) -> int:
    ledger.start(number)
    await asyncio.sleep(seconds)
    return ledger.end(number)


async def mixed_async(number: int, turns: int, seconds: float) -> int:
    ledger.start(number)
    spin(turns)
    await asyncio.sleep(seconds)
    return ledger.end(number)


async def payload_async(number: int, data: str, size: int) -> int:
    return payload(number, data, size)


async def blocking_async(number: int, every: int, block: float, seconds: float) -> int:
    ledger.start(number)
    if number % every == 0:
        _usleep(int(block * 1e6))
    else:
        await asyncio.sleep(seconds)
    return ledger.end(number)


async def http_async(number: int, url: str, connections: int) -> int:
    import aiohttp

    ledger.start(number)
    if _Shared.session is None:
        _Shared.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections))
    async with _Shared.session.get(f"{url}/{number}") as response:
        text = await response.text()
    if response.status != 200 or int(text) != number:
        raise ValueError(f"{response.status}: {text!r}")
    return ledger.end(number)


async def hold_async(number: int) -> int:
    ledger.start(number)
    if _Shared.gate is None:
        _Shared.gate = asyncio.create_task(_watch_gate_async())
    await asyncio.shield(_Shared.gate)
    await asyncio.sleep(number % GROUPS * APART)
    return ledger.end(number)


async def _watch_gate_async() -> None:
    while not ledger.is_open:  # noqa: ASYNC110 (another process opens it)
        await asyncio.sleep(0.05)


#: Bodies by name.
SYNC = {body.__name__: body for body in (noop, wait, mixed, payload, blocking, http, hold)}
ASYNC = {
    "noop": noop_async,
    "wait": wait_async,
    "mixed": mixed_async,
    "payload": payload_async,
    "blocking": blocking_async,
    "http": http_async,
    "hold": hold_async,
}
