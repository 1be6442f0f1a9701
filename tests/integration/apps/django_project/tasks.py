"""Tasks that use the ORM."""

import asyncio
import os
import threading

from asgiref.sync import SyncToAsync, sync_to_async
from celery import shared_task
from django.db import close_old_connections, connection, transaction
from django.db.backends.signals import connection_created

from ..recording import record
from .models import Thing

#: How many calls of the ORM must be under way at once, in one process.
MEETING = threading.Barrier(int(os.environ.get("DJANGO_MEETING", "4")))


def note_connection(sender, connection, **kwargs):
    record("opened", thread=threading.current_thread().name)
    if "_close" in vars(connection):
        return  # it was open before
    close = connection._close

    def noted():
        if connection.connection is not None:
            record("closed", thread=threading.current_thread().name)
        return close()

    connection._close = noted


connection_created.connect(note_connection, weak=False)


class DatabaseSyncToAsync(SyncToAsync):
    """As Channels' `database_sync_to_async`."""

    def thread_handler(self, loop, *args, **kwargs):
        close_old_connections()
        try:
            return super().thread_handler(loop, *args, **kwargs)
        finally:
            close_old_connections()


def meet(name):
    """A call that ends only when others are under way beside it."""
    MEETING.wait(60)
    return Thing.objects.create(name=name).pk


@shared_task
async def meet_others(name):
    pk = await sync_to_async(meet)(name)
    thing = await Thing.objects.aget(pk=pk)
    return thing.name


@shared_task
async def threads(calls):
    """The threads of a job's calls, and of those of its child tasks."""

    @sync_to_async
    def thread():
        Thing.objects.exists()
        return threading.current_thread().name

    names = [await thread() for _ in range(calls)]
    return names + await asyncio.gather(*(thread() for _ in range(calls)))


@shared_task
async def create(names):
    await Thing.objects.abulk_create([Thing(name=name) for name in names])


@shared_task
async def iterate(names):
    """Reads with a cursor that stays open between calls."""
    found = []
    async for thing in Thing.objects.filter(name__in=names).order_by("pk").aiterator(chunk_size=1):
        await asyncio.sleep(0.001)
        found.append(thing.name)
    return found


@shared_task
async def crud(name):
    """The async ORM's calls, one after the other, and beside each other."""
    thing = await Thing.objects.acreate(name=name)
    thing.name += "!"
    await thing.asave()
    found = await Thing.objects.aget(pk=thing.pk)
    same, created = await Thing.objects.aget_or_create(name=found.name)
    names = [row.name async for row in Thing.objects.filter(pk=thing.pk)]
    counts = await asyncio.gather(*(Thing.objects.filter(pk=thing.pk).acount() for _ in range(3)))
    is_same = same.pk == thing.pk
    await thing.adelete()
    exists = await Thing.objects.filter(name=found.name).aexists()
    return [found.name, is_same, created, names, counts, exists]


@transaction.atomic
def create_both(names, fail):
    for name in names:
        Thing.objects.create(name=name)
    if fail:
        raise ValueError("no")


@shared_task
async def create_in_transaction(names, fail):
    await sync_to_async(create_both)(names, fail)
    return await Thing.objects.filter(name__in=names).acount()


@DatabaseSyncToAsync
def look(name):
    return Thing.objects.filter(name=name).exists()


@shared_task
async def call_like_channels(name):
    """Ends its connections itself, in the middle of the task."""
    before = await look(name)
    await Thing.objects.acreate(name=name)
    return [before, await look(name), await Thing.objects.filter(name=name).acount()]


@shared_task
async def pool_use():
    """The connections of the pool, and how many of them nobody has."""

    @sync_to_async
    def stats():
        connection.close()  # our own goes back, too
        found = connection.pool.get_stats()
        return found["pool_max"], found["pool_size"], found["pool_available"]

    return await stats()


@shared_task
async def count():
    return await Thing.objects.acount()


@shared_task
async def fail():
    await Thing.objects.acount()
    raise ValueError("no")


@shared_task
def plain():
    Thing.objects.exists()
    return threading.current_thread().name


@shared_task(ignore_result=True)
async def states(ids):
    """What django-celery-results has stored."""
    from django_celery_results.models import TaskResult

    found = {row.task_id: row.status async for row in TaskResult.objects.filter(task_id__in=ids)}
    record("states", states=[found.get(task_id) for task_id in ids])
