"""What async code uses instead of Celery's blocking calls: publish, wait, be told.

Works in the pool's processes, web servers and scripts, on any event loop.
Nothing here belongs to a loop: a few threads publish, and one thread for each
result backend waits for everybody. So a second ``asyncio.run`` finds all as the
first one left it.
"""
