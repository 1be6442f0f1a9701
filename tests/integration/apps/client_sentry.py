"""The app of client.py, with Sentry, whose events go to the record."""

import threading

import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

from .client import app
from .recording import record

__all__ = ["app"]


class Recorder(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            event = item.payload.json or {}
            record(
                "sentry",
                type=event.get("type", "error"),
                transaction=event.get("transaction"),
                error=[e["type"] for e in event.get("exception", {}).get("values", [])],
                spans=[span["op"] for span in event.get("spans", [])],
            )


@app.task(name="apps.client.where")
async def where():
    return threading.current_thread() is threading.main_thread()


sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    transport=Recorder,
    traces_sample_rate=1.0,
    default_integrations=False,
    integrations=[CeleryIntegration()],
)
