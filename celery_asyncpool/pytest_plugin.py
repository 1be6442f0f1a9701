"""The pytest plugin: eager calls run ``async def`` bodies; a worker for tests.

pytest loads it wherever this package is installed, so it imports nothing until
a test has Celery's tasks loaded, or asks for the worker. ``asyncpool_eager = false``
in pytest's configuration, or ``-p no:celery_asyncpool``, leaves Celery as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testworker import TestWorker

__all__ = ["asyncpool_app", "asyncpool_worker", "pytest_addoption", "pytest_runtest_setup"]


@pytest.fixture
def asyncpool_app() -> Any:
    """The app of :func:`asyncpool_worker`; define your own to name another one.

    The default is Celery's current app: the one that was made last.
    """
    from celery import current_app

    if current_app.main == "default":
        pytest.fail(
            "which app should asyncpool_worker run? Import it before the test, or define a "
            "fixture asyncpool_app that returns it",
            pytrace=False,
        )
    return current_app._get_current_object()  # type: ignore[attr-defined]


@pytest.fixture
def asyncpool_worker(asyncpool_app: Any) -> Iterator[TestWorker]:
    """A worker for the test, sync or async; see :func:`.testing.start_worker`."""
    from .testworker import start_worker

    with start_worker(asyncpool_app) as worker:
        yield worker


def pytest_addoption(parser: Any) -> None:
    """Add the option that switches it off."""
    text = "celery_asyncpool: let eager calls run async tasks"
    parser.addini("asyncpool_eager", text, type="bool", default=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Before a test: see :func:`celery_asyncpool.eager.install`."""
    if "celery.app.task" in sys.modules and item.config.getini("asyncpool_eager"):
        from .eager import install

        install()
