"""The servers that other tests rely on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from kombu import Connection

from .conftest import require
from .servers import RabbitMQServer, RedisServer, Server, ServerError


def put(url: str, queue: str, body: str) -> None:
    with Connection(url) as connection, connection.SimpleQueue(queue) as simple:
        simple.put(body)


def get(url: str, queue: str) -> object:
    with Connection(url) as connection, connection.SimpleQueue(queue) as simple:
        message = simple.get(timeout=10)
        message.ack()
        return message.payload


@pytest.mark.parametrize("server_class", [RedisServer, RabbitMQServer])
def test_server_keeps_messages_over_a_restart_and_then_leaves_nothing(
    server_class: type[Server],
) -> None:
    """A restarted server has its URL and messages; a closed one no process and no folder."""
    require(server_class)
    with server_class() as server:
        url = server.url
        put(url, "kept", "a message")

        server.restart()

        assert server.url == url
        assert get(url, "kept") == "a message"
        assert processes_in(server.folder)
    assert processes_in(server.folder) == []
    assert not server.folder.exists()


class HopelessServer(Server):
    program = "sh"
    url = "redis://127.0.0.1:1/0"

    def _command(self) -> list[str]:
        return ["sh", "-c", "echo no luck today; exit 3"]


def test_server_that_cannot_start_says_why() -> None:
    """The error of a server that exits at once carries what it wrote."""
    with pytest.raises(ServerError, match="sh exited with 3\nno luck today"), HopelessServer():
        raise AssertionError("it started")


def test_vhost_is_empty_and_usable(rabbitmq_server: RabbitMQServer) -> None:
    """Queues of one vhost are unknown in another."""
    put(rabbitmq_server.url, "shared-name", "of the default vhost")

    url = rabbitmq_server.add_vhost("other")

    put(url, "shared-name", "of the other")
    assert get(url, "shared-name") == "of the other"
    assert get(rabbitmq_server.url, "shared-name") == "of the default vhost"


def test_killed_server_comes_back() -> None:
    """`restart(SIGKILL)` is a crash, and the server is there again after it."""
    require(RedisServer)
    with RedisServer() as server:
        server.restart(signal.SIGKILL)

        put(server.url, "again", "x")
        assert get(server.url, "again") == "x"


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is *folder*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().name == folder.name:
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found
