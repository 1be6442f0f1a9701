"""Tasks that tell what django-structlog has bound for them."""

import asyncio
import json

import structlog
from asgiref.sync import sync_to_async
from celery import shared_task
from django.dispatch import receiver
from django_structlog.celery import signals

from ..django_project.models import Thing
from ..recording import record


class Recorded:
    """Where structlog writes."""

    def msg(self, message):
        line = json.loads(message)
        record("logged", id=line.get("task_id"), event=line["event"], things=line.get("things"))

    log = debug = info = warning = error = exception = msg


structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
    logger_factory=lambda *args: Recorded(),
)
logger = structlog.get_logger()


@receiver(signals.bind_extra_task_metadata)
def bind_things(sender, task, logger, **kwargs):
    """As users do: something out of the database, for each line of the log."""
    structlog.contextvars.bind_contextvars(things=Thing.objects.count())


def look():
    logger.info("in a thread")


@shared_task
async def async_logging():
    logger.info("in the body")
    await asyncio.sleep(0.01)
    await sync_to_async(look)()
    structlog.contextvars.bind_contextvars(things=-1)


@shared_task
def def_logging():
    logger.info("in the body")
    look()
    structlog.contextvars.bind_contextvars(things=-1)
