"""Servers for the tests that ask for one; started once, at the first of them.

A server, or a browser, that is not installed skips its tests, and fails them where
``CI`` is set and ``ASYNCPOOL_TEST_WITHOUT`` does not name it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from . import chromium as chromium_browser
from .servers import PostgreSQLServer, RabbitMQServer, RedisServer, Server

#: Marks, and the fixture that each of them tells of.
USES = {
    "redis": "redis_server",
    "rabbitmq": "rabbitmq_server",
    "postgresql": "postgresql_server",
    "chromium": "chromium",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the servers that they use: ``pytest -m "not rabbitmq"``."""
    for item in items:
        for name, fixture in USES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(name)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's Redis; a test that restarts one starts its own `RedisServer`."""
    require(RedisServer)
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the session's Redis."""
    return redis_server.url


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """The session's RabbitMQ; a test that restarts one starts its own `RabbitMQServer`."""
    require(RabbitMQServer)
    with RabbitMQServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq_server: RabbitMQServer) -> str:
    """The URL of the session's RabbitMQ, vhost ``/``; see `RabbitMQServer.add_vhost`."""
    return rabbitmq_server.url


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """The session's PostgreSQL; without one its tests are skipped, in CI too."""
    if PostgreSQLServer.find() is None:
        pytest.skip("needs PostgreSQL, which is not installed")
    with PostgreSQLServer() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> dict[str, str]:
    """The environment in which the tests' apps find a Chromium, for Playwright."""
    require_module("playwright")
    path = chromium_browser.find()
    if path is None:
        miss("chromium")
    return chromium_browser.environment(path)


def require(server: type[Server]) -> None:
    """Skip the test where *server* is not installed; fail it in CI."""
    if server.find() is None:
        miss(server.program)


def require_module(name: str) -> None:
    """Skip the test where the Python module *name* is not installed; fail it in CI."""
    if importlib.util.find_spec(name) is None:
        miss(name)


def miss(what: str) -> NoReturn:
    """Skip the test, since *what* is not installed; fail it in CI, which is to have it."""
    reason = f"needs {what}, which is not installed"
    is_wanted = what not in os.environ.get("ASYNCPOOL_TEST_WITHOUT", "").split()
    if os.environ.get("CI") and is_wanted:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
