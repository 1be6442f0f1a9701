"""The Celery app of the tests, configured by the environment.

``ASYNCPOOL_TEST_BATCHING=off`` runs all of them without `asyncpool_redis_batching`,
but for those that set it themselves.
"""

import os

from celery import Celery

from . import atomic_files

atomic_files.install()


def make_app(name):
    """An app like a user's, on the broker and backend that the test chose."""
    app = Celery(
        name,
        broker=os.environ["ASYNCPOOL_TEST_BROKER"],
        backend=os.environ["ASYNCPOOL_TEST_BACKEND"],
    )
    app.conf.update(
        broker_connection_retry_on_startup=True,
        accept_content=["json", "pickle"],
        task_default_queue=os.environ.get("ASYNCPOOL_TEST_QUEUE", "celery"),
        result_expires=600,
        worker_proc_alive_timeout=60,  # the machine may be slow, or busy
    )
    if not batching():
        app.conf.asyncpool_redis_batching = False
    folder = os.environ.get("ASYNCPOOL_TEST_FOLDER")
    if folder:
        app.conf.broker_transport_options = {
            "data_folder_in": f"{folder}/queue",
            "data_folder_out": f"{folder}/queue",
            "processed_folder": f"{folder}/processed",
            "control_folder": f"{folder}/control",
            "polling_interval": 0.02,
        }
    return app


def batching():
    """Whether the tests run with batches for Redis, which is the default."""
    value = os.environ.get("ASYNCPOOL_TEST_BATCHING", "on")
    if value not in ("on", "off"):
        raise ValueError(f"ASYNCPOOL_TEST_BATCHING must be on or off, not {value!r}")
    return value == "on"


def configure(app, variable):
    """Apply the settings in the environment's *variable*: ``name=value; name=value``."""
    for setting in filter(None, os.environ.get(variable, "").split("; ")):
        name, _, value = setting.partition("=")
        setattr(app.conf, name, eval(value))
