"""Servers for the tests that ask for one; started once, at the first of them.

A server that is not installed skips its tests, and fails them where ``CI`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .servers import PostgreSQLServer, RabbitMQServer, RedisServer, Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the servers that they use: ``pytest -m "not rabbitmq"``."""
    for item in items:
        for name in ("redis", "rabbitmq", "postgresql"):
            if f"{name}_server" in getattr(item, "fixturenames", ()):
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
    """The session's PostgreSQL."""
    require(PostgreSQLServer)
    with PostgreSQLServer() as server:
        yield server


def require(server: type[Server]) -> None:
    """Skip the test where *server* is not installed; fail it in CI."""
    if server.find() is None:
        reason = f"needs {server.program}, which is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
