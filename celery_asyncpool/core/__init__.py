"""The pure rooms: what to do, decided without sockets, processes or clocks.

Nothing in this folder imports socket, os, time, signal, threading, asyncio,
kombu, celery or uvloop; time comes in as an argument (monotonic seconds).
"""
