"""The proxy of these tests does what it says."""

import contextlib
import socket
import threading

import pytest
from proxy import Proxy


@pytest.fixture
def echo():
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _serve(listener):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection):
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


@pytest.fixture
def proxy(echo):
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def ask(client, text=b"hello"):
    client.sendall(text)
    answer = b""
    while len(answer) < len(text):
        answer += client.recv(65536)
    return answer


def test_passes_on_in_both_directions(proxy):
    """What a client sends arrives, however much it is; so does the end."""
    text = b"x" * 2_000_000
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(text,))
        sender.start()
        received = 0
        while received < len(text):
            received += len(client.recv(65536))
        sender.join()
        assert proxy.connections == 1
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_cut_closes_and_refuses_until_healed(proxy):
    """Connections end, new ones are refused, and after heal() the same port works."""
    port = proxy.port
    with connect(proxy) as client:
        ask(client)

        proxy.cut()

        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
        assert proxy.connections == 0

    proxy.heal()

    assert proxy.port == port
    with connect(proxy) as client:
        assert ask(client) == b"hello"


def test_freeze_holds_bytes_back_until_thawed(proxy):
    """No byte passes, on old connections and on new ones; then all of them do."""
    with connect(proxy) as old:
        ask(old)

        proxy.freeze()

        with connect(proxy) as new:
            for client in (old, new):
                client.sendall(b"hello")
                client.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(10)

            proxy.thaw()

            assert old.recv(5) == b"hello"
            assert new.recv(5) == b"hello"


def test_server_that_is_away(echo):
    """A connection is closed when the server takes none."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Proxy(unused.getsockname()[1]) as proxy, connect(proxy) as client:
            assert client.recv(1) == b""


def test_url_before_a_server(proxy):
    """A URL keeps its user, password and path."""
    assert proxy.before("amqp://guest:guest@127.0.0.1:5672//") == (
        f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    )
    assert proxy.before("redis://127.0.0.1:6379/3") == f"redis://127.0.0.1:{proxy.port}/3"
