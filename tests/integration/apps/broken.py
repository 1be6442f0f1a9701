"""An app whose worker processes cannot start."""

from celery import signals

from .base import make_app

app = make_app("broken")


@signals.worker_process_init.connect
def no_start(**kwargs):
    raise SystemExit("no licence for this machine")
