"""The HTTP server of the ``http`` row: ``python -m benchmarks.http_server SECONDS``.

Answers each request after SECONDS with its path's number. It prints its port
and runs until standard input ends.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

__all__ = ["serve"]


async def serve(seconds: float) -> None:
    """Answer requests until standard input ends; print the port."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(seconds)
        return web.Response(text=request.match_info["number"])

    app = web.Application()
    app.router.add_get("/{number}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
