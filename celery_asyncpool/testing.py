"""For tests: a worker in the test's own process, with any test runner.

Where there is pytest, this is also the name of its plugin (:mod:`.pytest_plugin`).
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .testworker import TestWorker

try:
    from .pytest_plugin import (
        asyncpool_app,
        asyncpool_worker,
        pytest_addoption,
        pytest_runtest_setup,
    )
except ImportError:
    if sys.modules.get("pytest") is not None:
        raise  # it is there, and what is wrong is something else

__all__ = [
    "asyncpool_app",
    "asyncpool_worker",
    "pytest_addoption",
    "pytest_runtest_setup",
    "start_worker",
]


def start_worker(app: Any) -> AbstractContextManager[TestWorker]:
    """Run the tasks of *app* in this process while the block runs.

    Its messages and results stay in memory. Async bodies run on a loop of their
    own in another thread, between the start and the end of the app's lifespans:
    on ``TestWorker.loop``. When the block ends, bodies that run are cancelled.

    Raises :exc:`celery_asyncpool.LifespanError` when a lifespan does not start.
    """
    from .testworker import start_worker

    return start_worker(app)
