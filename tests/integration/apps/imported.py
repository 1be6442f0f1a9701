"""Tasks of no app, in a module that only the setting `imports` names."""

import os

from celery import shared_task


@shared_task
async def shared_async():
    return os.getpid()


@shared_task
def shared_def():
    return os.getpid()
