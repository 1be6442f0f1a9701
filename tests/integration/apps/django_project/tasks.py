"""Tasks that use the ORM."""

import asyncio
import os
import threading

from asgiref.sync import sync_to_async
from celery import shared_task
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
