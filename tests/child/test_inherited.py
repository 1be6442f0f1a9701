"""celery_asyncpool/child/inherited.py: letting go of what a fork has copied."""

from __future__ import annotations

import os
import socket

from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from celery_asyncpool.child.inherited import forget_parent


def in_fork(look):
    """Return what *look* says of a fork of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, look().encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader) as file:
        return file.read()


def target(fd: int) -> str:
    return os.readlink(f"/dev/fd/{fd}")


def test_descriptors_are_replaced():
    """What is named is nothing any more, and its number is not free for others."""
    reader, writer = os.pipe()

    def look() -> str:
        forget_parent((reader, writer))
        return f"{target(reader)} {target(writer)}"

    assert in_fork(look) == "/dev/null /dev/null"
    assert target(reader).startswith("pipe:")


def test_closed_descriptors_are_no_error():
    """After a reconnect a hub remembers numbers that are closed."""
    closed = os.open(os.devnull, os.O_RDONLY)
    os.close(closed)

    def look() -> str:
        forget_parent((closed,))
        return "none"

    assert in_fork(look) == "none"


def test_connections_of_a_peer_of_the_hub():
    """Connections to the same server go too, also where no hub knows them; others stay."""
    server, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    in_hub, apart = (socket.create_connection(server.getsockname()) for _ in range(2))
    elsewhere = socket.create_connection(other.getsockname())
    before = get_event_loop()
    hub = Hub()
    hub.add_reader(in_hub, lambda: None)
    set_event_loop(hub)

    def look() -> str:
        forget_parent(())
        gone = [target(in_hub.fileno()), target(apart.fileno())]
        stays = target(elsewhere.fileno()).partition(":")[0]
        return f"{gone} {stays} {get_event_loop()}"

    try:
        assert in_fork(look) == "['/dev/null', '/dev/null'] socket None"
    finally:
        set_event_loop(before)
        for sock in (server, other, in_hub, apart, elsewhere):
            sock.close()
