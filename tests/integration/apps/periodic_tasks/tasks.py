"""Tasks of a Django project with django-celery-beat, and those that schedule them."""

import json

from celery import shared_task
from django.db import OperationalError
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from ..django_project.models import Thing
from ..recording import record


@shared_task(bind=True)
async def async_tick(self, name):
    """Use the ORM, and record the run."""
    await Thing.objects.acreate(name=name)
    record("ran", id=self.request.id, name=name)


@shared_task(bind=True)
def def_tick(self, name):
    """The same."""
    Thing.objects.create(name=name)
    record("ran", id=self.request.id, name=name)


#: SQLite refuses a transaction that reads and then writes while another one writes.
RETRIED = {"autoretry_for": (OperationalError,), "default_retry_delay": 0.1, "max_retries": 50}


@shared_task(**RETRIED)
async def plan(name, task, **fields):
    """Schedule a task of this module, each second, with the async ORM."""
    second, _ = await IntervalSchedule.objects.aget_or_create(
        every=1, period=IntervalSchedule.SECONDS
    )
    fields |= {
        "task": f"apps.periodic_tasks.tasks.{task}",
        "interval": second,
        "args": json.dumps([name]),
    }
    await PeriodicTask.objects.aupdate_or_create(name=name, defaults=fields)


@shared_task(**RETRIED)
async def disable(name):
    """Take it off the schedule."""
    entry = await PeriodicTask.objects.aget(name=name)
    entry.enabled = False
    await entry.asave()


@shared_task
async def count(name):
    """How often its task has used the ORM."""
    return await Thing.objects.filter(name=name).acount()
