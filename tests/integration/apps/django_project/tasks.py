"""Tasks that use the ORM."""

import asyncio
import os
import threading

from asgiref.sync import SyncToAsync, sync_to_async
from celery import Task, shared_task, signals
from django.db import close_old_connections, connection, transaction
from django.db.backends.signals import connection_created
from django.utils import translation

from ..recording import record
from .models import Note, Thing

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


# Handlers and receivers.


class Noting(Task):
    """Its plain handlers write with the ORM, in a transaction."""

    abstract = True

    @transaction.atomic
    def note(self, text, task_id):
        Note.objects.create(task_id=task_id, text=text)

    def before_start(self, task_id, args, kwargs):
        self.note("before_start", task_id)

    def on_success(self, retval, task_id, args, kwargs):
        self.note("on_success", task_id)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.note(f"on_failure {exc}", task_id)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self.note("after_return", task_id)


def by_signal(name, sender):
    @getattr(signals, name).connect(weak=False)
    def receiver(sender, task_id=None, **kwargs):
        if sender.name.endswith("noted"):
            Note.objects.create(task_id=task_id or sender.request.id, text=name)


for _name in ("task_prerun", "task_success", "task_failure", "task_postrun"):
    by_signal(_name, "noted")


@shared_task(base=Noting)
async def async_noted(fail):
    await asyncio.sleep(0)
    if fail:
        raise ValueError("no")


@shared_task(base=Noting)
def def_noted(fail):
    if fail:
        raise ValueError("no")


@shared_task
async def notes(task_id):
    return [note.text async for note in Note.objects.filter(task_id=task_id).order_by("pk")]


class OnFailure(Task):
    """The usual way to keep a record of errors."""

    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        Note.objects.create(task_id=task_id, text=repr(exc))


@shared_task(base=OnFailure)
async def failing():
    raise ValueError("no")


# Tenants, chosen on the connection before the body.


def choose_tenant(tenant):
    """As django-tenants: an attribute of the connection, and a setting in the database."""
    connection.tenant = tenant
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant', %s, false)", [tenant])


def find_tenant():
    tenants = [getattr(connection, "tenant", None)]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT current_setting('app.tenant', true)")
            tenants.append(cursor.fetchone()[0] or None)
    return [*tenants, translation.get_language()]


@signals.task_prerun.connect
def enter_tenant(sender, args, **kwargs):
    if sender.name.endswith("receiver_tenant"):
        choose_tenant(args[0])
        translation.activate("de")


@signals.task_prerun.connect
async def enter_tenant_async(sender, args, **kwargs):
    if sender.name.endswith("receiver_atenant"):
        await sync_to_async(choose_tenant)(args[0])
        translation.activate("de")


class InTenant(Task):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        choose_tenant(args[0])
        translation.activate("de")

    def on_success(self, retval, task_id, args, kwargs):
        record("on_success", id=task_id, tenants=find_tenant())


async def work_in_tenant(seconds):
    """What the task sees at first, later, and with the async ORM."""
    found = [await sync_to_async(find_tenant)()]
    await asyncio.sleep(seconds)
    await Thing.objects.acount()
    return [*found, await sync_to_async(find_tenant)()]


@shared_task
async def async_receiver_tenant(tenant, seconds):
    return await work_in_tenant(seconds)


@shared_task
async def async_receiver_atenant(tenant, seconds):
    return await work_in_tenant(seconds)


@shared_task(base=InTenant)
async def async_handler_tenant(tenant, seconds):
    return await work_in_tenant(seconds)


@shared_task
def def_receiver_tenant(tenant, seconds):
    return [find_tenant(), find_tenant()]


@shared_task(base=InTenant)
def def_handler_tenant(tenant, seconds):
    return [find_tenant(), find_tenant()]


@shared_task
async def no_tenant(seconds):
    return await work_in_tenant(seconds)
