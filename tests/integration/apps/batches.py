"""Short tasks that any pool can run, with a record of their messages and runs."""

import os
import time

from celery import signals
from celery.exceptions import Reject

from .base import configure, make_app
from .recording import record

app = make_app("batches")
configure(app, "BATCHES_CONF")


@signals.task_received.connect
def on_received(request, **kwargs):
    record("received", id=request.id, at=time.time())


@app.task(bind=True)
def early(self, *args):
    """Record the run, and by whom it is."""
    record("started", id=self.request.id, by=self.request.hostname)


@app.task(bind=True, acks_late=True)
def late(self, *args):
    """The same."""
    record("started", id=self.request.id, by=self.request.hostname)


@app.task(bind=True, acks_late=True, ignore_result=True)
def late_slow(self, seconds):
    """Record the run, and take *seconds*."""
    record("started", id=self.request.id)
    time.sleep(seconds)


@app.task(bind=True)
def hold(self, gate):
    """Record the run and wait for *gate*, or for one that is this worker's."""
    _hold(self, gate)


@app.task(bind=True, acks_late=True)
def hold_late(self, gate):
    """The same."""
    _hold(self, gate)


def _hold(task, gate):
    record("started", id=task.request.id, by=task.request.hostname)
    gates = (gate, f"{gate}-{task.request.hostname}")
    while not any(map(os.path.exists, gates)):
        time.sleep(0.02)
    record("ended", id=task.request.id)


@app.task(bind=True, acks_late=True)
def requeued(self):
    """Go back to the queue once."""
    record("started", id=self.request.id, by=self.request.hostname)
    if not self.request.delivery_info["redelivered"]:
        raise Reject("once more", requeue=True)


@app.task(bind=True, acks_late=True)
def rejected(self):
    """Go nowhere."""
    record("started", id=self.request.id, by=self.request.hostname)
    raise Reject("no more", requeue=False)


@app.task(bind=True, rate_limit="5/s")
def limited(self):
    """Five in a second, of each worker."""
    record("started", id=self.request.id, by=self.request.hostname, at=time.time())
