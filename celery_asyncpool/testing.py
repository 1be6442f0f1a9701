"""The pytest plugin: in tests, eager calls run ``async def`` bodies.

pytest loads it wherever this package is installed, so it imports nothing until
a test has Celery's tasks loaded. ``asyncpool_eager = false`` in pytest's
configuration, or ``-p no:celery_asyncpool``, leaves Celery as it is.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

__all__ = ["pytest_addoption", "pytest_runtest_setup"]


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
