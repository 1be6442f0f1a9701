"""celery_asyncpool/knownsettings.py: a setting that nobody reads is named."""

import logging
import types

import pytest
from celery import Celery

from celery_asyncpool.knownsettings import tell_of_unknown_settings
from celery_asyncpool.settings import NAMES, Settings
from celery_asyncpool.signals import asyncpool_process_started


class Recorder(dict):
    """A configuration that knows what was looked up in it."""

    def __init__(self):
        super().__init__()
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


def test_names():
    """The names are those that the pool reads, neither more nor fewer."""
    conf = Recorder()
    Settings.from_conf(conf, slots=1)

    assert {name for name in conf.asked if name.startswith("asyncpool_")} == set(NAMES)


@pytest.fixture
def told(caplog):
    """What is told of the settings of an app, as setting and suggestion."""

    def tell(app):
        tell_of_unknown_settings(app.conf)
        lines = [record.getMessage() for record in caplog.records]
        assert all(record.levelno == logging.ERROR for record in caplog.records)
        return [(line.split()[0], line.rstrip("?").split()[-1]) for line in lines]

    return tell


@pytest.fixture
def app():
    return Celery(set_as_current=False)


def test_good_settings(app, told):
    """There is nothing to tell of, nor of settings that are not ours."""
    app.conf.update(dict.fromkeys(NAMES, 1), my_asyncpool_threads=1, asyncpools=1, worker_x=1)

    assert told(app) == []


def test_misspelt_attribute(app, told, caplog):
    """The line names the setting and the nearest one that there is."""
    app.conf.asyncpool_thread = 8

    assert told(app) == [("asyncpool_thread", "asyncpool_threads")]
    assert caplog.messages == [
        "asyncpool_thread is no setting of celery_asyncpool and has no effect; "
        "did you mean asyncpool_threads?"
    ]


def test_other_case(app, told):
    """Celery does not read capitals without a namespace."""
    app.conf.ASYNCPOOL_THREADS = 8

    assert app.conf.get("asyncpool_threads") is None
    assert told(app) == [("ASYNCPOOL_THREADS", "asyncpool_threads")]


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("CELERY_ASYNCPOOL_THREAD", "CELERY_ASYNCPOOL_THREADS"),
        ("ASYNCPOOL_THREADS", "CELERY_ASYNCPOOL_THREADS"),
        ("CELERY_ASYNCPOOL_MAX_CRASH", "CELERY_ASYNCPOOL_MAX_CRASHES"),
        ("asyncpool_proceses", "asyncpool_processes"),
    ],
)
def test_namespace(app, told, key, suggestion):
    """The suggestion is spelt as it has to be there."""
    good = {f"CELERY_{name.upper()}": 1 for name in NAMES}
    app.config_from_object({**good, key: 8}, namespace="CELERY")

    assert told(app) == [(key, suggestion)]


def test_namespace_in_small_letters(app, told):
    """A namespace is spelt as it is given."""
    app.config_from_object({"my_asyncpool_thread": 8, "my_asyncpool_loop": 1}, namespace="my")

    assert told(app) == [("my_asyncpool_thread", "my_asyncpool_threads")]


def test_prefix_without_a_namespace(app, told):
    """Celery does not look for the prefix that it is not told of."""
    app.config_from_object({"CELERY_ASYNCPOOL_THREADS": 8, "broker_url": "memory://"})

    assert told(app) == [("CELERY_ASYNCPOOL_THREADS", "asyncpool_threads")]


def test_module(app, told):
    """What a module of settings has imported is no setting."""
    module = types.ModuleType("celeryconfig")
    module.asyncpool_process_started = asyncpool_process_started
    module.asyncpool_helper = lambda: 8
    module.asyncpool_threads = 8
    module.asyncpool_cancel_grase = None
    app.config_from_object(module)

    assert told(app) == [("asyncpool_cancel_grase", "asyncpool_cancel_grace")]


def test_old_names_of_celerys_settings(app, told):
    """An app with Celery's old names has ours all the same."""
    app.config_from_object({"CELERY_RESULT_BACKEND": "rpc://", "asyncpool_thread": 8})

    assert told(app) == [("asyncpool_thread", "asyncpool_threads")]
