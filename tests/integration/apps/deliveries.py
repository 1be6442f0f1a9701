"""A record of each message: when it is published, delivered, acknowledged, given back.

With it one can tell which delivery of a task ran, and why there was another.
"""

import itertools
import time
import uuid

from celery import bootsteps, current_task, signals

from .recording import record

#: The header that tells one published message from another of the same task.
MESSAGE_HEADER = "message_name"

#: The one that the worker puts into the request of each delivery.
DELIVERY_HEADER = "delivery_number"

_numbers = itertools.count(1)
_channels = itertools.count(1)


def install(app):
    """Record the messages of *app* from now on."""
    signals.before_task_publish.connect(_on_publishing)
    signals.after_task_publish.connect(_on_published)
    signals.task_received.connect(_on_received)
    app.steps["consumer"].add(NumberedChannels)


def note(what, **fields):
    """Record *what*, and when."""
    record(what, at=time.monotonic(), **fields)


class NumberedChannels(bootsteps.StartStopStep):
    """Numbers the channels on which the worker consumes, one for each connection."""

    requires = ("celery.worker.consumer:Tasks",)

    def start(self, c):
        self._number = _channel_number(c.task_consumer.channel)
        note("connected", channel=self._number)

    def stop(self, c):
        note("disconnected", channel=self._number)


def _on_publishing(headers, **kwargs):
    # In a process of the worker: what a task publishes, be it a retry of itself.
    request = current_task.request if current_task else None
    headers[MESSAGE_HEADER] = uuid.uuid4().hex
    headers.pop(DELIVERY_HEADER, None)
    note("publishing", **_message(headers), by=getattr(request, DELIVERY_HEADER, None))


def _on_published(headers, **kwargs):
    note("published", **_message(headers))


def _on_received(request, **kwargs):
    message, number = request.message, next(_numbers)
    request.request_dict[DELIVERY_HEADER] = number
    note(
        "received",
        **_message(message.headers),
        delivery=number,
        channel=_channel_number(message.channel),
    )
    ack, reject = message.ack, message.reject

    def recorded_ack(*args, **kwargs):
        ack(*args, **kwargs)
        note("acked", delivery=number)

    def recorded_reject(requeue=False):
        reject(requeue=requeue)
        note("rejected", delivery=number, requeue=requeue)

    message.ack, message.reject = recorded_ack, recorded_reject


def _message(headers):
    return {
        "id": headers["id"],
        "retries": headers.get("retries") or 0,
        "message": headers[MESSAGE_HEADER],
    }


def _channel_number(channel):
    if not hasattr(channel, "record_number"):
        channel.record_number = next(_channels)
    return channel.record_number
