"""The delay line: later, in order, and not slower."""

import asyncio
import time

from benchmarks.processes import helper


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    await close(writer)


async def close(writer):
    writer.close()
    await writer.wait_closed()


async def ask(reader, writer, data):
    start = time.monotonic()
    writer.write(data)
    received = await reader.readexactly(len(data))
    return received, time.monotonic() - start


async def ping_often(reader, writer):
    return [(await ask(reader, writer, b"ping"))[1] for _ in range(200)]


async def run(talk, delay, *args):
    gone = asyncio.Event()

    async def serve(reader, writer):
        await echo(reader, writer)
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with helper("delay", server.sockets[0].getsockname()[1], delay) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answer = await talk(reader, writer, *args)
            await close(writer)
            await asyncio.wait_for(gone.wait(), 60)
            return answer


def test_each_direction_takes_the_delay():
    """An answer comes after both delays, never before."""
    received, seconds = asyncio.run(run(ask, 0.2, b"ping"))

    assert received == b"ping"
    assert seconds >= 0.4


def test_many_chunks_are_under_way_at_once_and_in_order():
    """Hundreds of chunks take one delay together, not one each."""
    data = b"".join(number.to_bytes(4, "big") for number in range(2_000_000))

    received, seconds = asyncio.run(run(ask, 0.2, data))

    assert received == data
    assert seconds < 20  # one delay for each of the 64 KiB chunks would be 24 s and more


def test_two_milliseconds_are_two_milliseconds():
    """So small a delay is not rounded up: an answer takes twice two, and little more."""
    times = asyncio.run(run(ping_often, 0.002))

    assert 0.004 <= min(times) < 0.0048
