"""Private servers for tests: on a free port of 127.0.0.1, data in a temporary folder.

Each can be used as a context manager. Nothing of the machine's own servers is
read or touched, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from kombu import Connection

#: Debian's `rabbitmq-server` in the PATH is a wrapper that switches the user.
RABBITMQ_FOLDER = "/usr/lib/rabbitmq/bin"

START_TIMEOUT = 180.0
STOP_TIMEOUT = 60.0


class ServerError(Exception):
    """The server did not start or stop; the text ends with the tail of its log."""


class Server:
    """One server process; `start`, `stop` and `restart` return when it is so.

    The port and the data stay the same until `close`, so a client may
    reconnect after a restart.
    """

    program: str
    #: Where to look for it before the PATH.
    folders: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.program}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @classmethod
    def find(cls) -> str | None:
        """Return the path of the server program, None where it is not installed."""
        path = os.pathsep.join((*cls.folders, os.environ.get("PATH", os.defpath)))
        return shutil.which(cls.program, path=path)

    @property
    def url(self) -> str:
        """The URL of the server, for Celery and kombu."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The server's process; an error when it does not run."""
        assert self._process is not None, f"{self.program} was not started"
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        assert self._process is None, f"{self.program} runs already"
        self._process = self._run(self._command(), self._environ())
        self._wait_until_ready()

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Send *sig* and wait until the server is gone; it may be gone already."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sig)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerError(
                f"{self.program} was killed: no exit {STOP_TIMEOUT:.0f}s after signal {sig}"
                f"\n{self.log_tail()}"
            ) from None

    def restart(self, sig: int = signal.SIGTERM) -> None:
        """Stop it with *sig* (SIGKILL is a crash) and start it on the same port and data."""
        self.stop(sig)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its folder; its data need no orderly end."""
        try:
            self.stop(signal.SIGKILL)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "output.log").read_text(errors="replace")

    def log_tail(self) -> str:
        """The last lines of it."""
        return "\n".join(self.log().splitlines()[-20:])

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environ(self) -> dict[str, str]:
        return dict(os.environ)

    def _run(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start *command* in a session of its own, so that no Ctrl-C reaches it."""
        if setpriv := shutil.which("setpriv"):
            # Linux: a test run that is killed takes its servers with it.
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self.folder / "output.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._takes_connections():
            if process.poll() is not None:
                self._process = None
                raise ServerError(
                    f"{self.program} exited with {process.returncode}\n{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.program} took no connection within {START_TIMEOUT:.0f}s"
                    f"\n{self.log_tail()}"
                )
            time.sleep(0.02)

    def _takes_connections(self) -> bool:
        try:
            # A closed port is known at once; kombu is slow to give up.
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            with Connection(self.url, connect_timeout=5) as connection:
                connection.connect()
        except Exception:
            return False  # not yet; `start` says why if it never does
        return True


class RedisServer(Server):
    """A Redis that keeps its data over a restart (append-only file).

    *options* are more of the server's own: ``"--appendfsync", "always"``.
    """

    program = "redis-server"

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.options = list(options)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [
            self.find() or self.program,
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self.folder), "--save", "", "--appendonly", "yes"),
            *self.options,
        ]


class RedisSentinel(RedisServer):
    """A Sentinel, alone, that knows *server* as ``shop``.

    After *down_after* seconds without an answer of it a replica takes over.
    """

    def __init__(self, server: RedisServer, down_after: float = 60.0) -> None:
        super().__init__()
        self._server = server
        self._down_after = down_after

    def _command(self) -> list[str]:
        config = self.folder / "sentinel.conf"  # in which it keeps what it learns
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\n"
            f"sentinel monitor shop 127.0.0.1 {self._server.port} 1\n"
            f"sentinel down-after-milliseconds shop {self._down_after * 1000:.0f}\n"
        )
        return [self.find() or self.program, str(config), "--sentinel"]


class RabbitMQServer(Server):
    """A RabbitMQ node without plugins, with an epmd of its own."""

    program = "rabbitmq-server"
    folders = (RABBITMQ_FOLDER,)

    def __init__(self) -> None:
        super().__init__()
        self._epmd_port = free_port()
        self._dist_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.vhost_url("/")

    def vhost_url(self, vhost: str) -> str:
        """The URL of *vhost*; see `add_vhost`."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def add_vhost(self, name: str) -> str:
        """Create the vhost *name* and return its URL; takes a second or two."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.vhost_url(name)

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl` on this node and return what it printed."""
        server = self.find()
        assert server is not None, "RabbitMQ is not installed"
        done = subprocess.run(
            [str(Path(server).with_name("rabbitmqctl")), *args],
            env=self._environ(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise ServerError(f"rabbitmqctl {' '.join(args)}: {done.stdout}")
        return done.stdout

    def start(self) -> None:
        if self._epmd is None:
            # Otherwise the node starts one as a daemon, which outlives it.
            self._epmd = self._run([shutil.which("epmd") or "epmd"], self._environ())
            _wait_for_port(self._epmd_port)
        super().start()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._epmd is not None:
                self._epmd.kill()
                self._epmd.wait()
                self._epmd = None

    def _command(self) -> list[str]:
        return [self.find() or self.program]

    def _environ(self) -> dict[str, str]:
        folder = self.folder
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
        )
        (folder / "enabled_plugins").write_text("[].\n")
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))
        }
        return {
            **environ,
            "HOME": str(folder),  # of the Erlang cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"test-{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            # The start script then becomes the server instead of waiting for it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


class PostgreSQLServer(Server):
    """A PostgreSQL with one superuser, ``test``, who needs no password.

    It refuses to run as root: there the package's own user runs it.
    """

    program = "postgres"
    folders = tuple(str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin")))
    user = "postgres"

    @property
    def url(self) -> str:
        return f"postgresql://test@127.0.0.1:{self.port}/postgres"

    @property
    def django_settings(self) -> dict[str, str | int]:
        """What Django's DATABASES wants, but for the engine."""
        return {"NAME": "postgres", "USER": "test", "HOST": "127.0.0.1", "PORT": self.port}

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            if os.geteuid() == 0:
                shutil.chown(self.folder, self.user)
            initdb = str(Path(self._program).with_name("initdb"))
            options = ("-D", str(data), "-U", "test", "-A", "trust", "--no-sync")
            command = [*self._as_user(), initdb, *options]
            subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        super().start()

    @property
    def _program(self) -> str:
        return os.path.realpath(self.find() or self.program)

    def _as_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        ids = (f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups")
        return ["setpriv", *ids, "--pdeathsig", "KILL"]

    def _command(self) -> list[str]:
        return [
            *self._as_user(),
            self._program,
            *("-D", str(self.folder / "data"), "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", "fsync=off", "-c", "max_connections=100"),
        ]

    def _takes_connections(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False  # not yet; `start` says why if it never does
        return True


def free_port() -> int:
    """Return a port of 127.0.0.1 to listen on, which no other test run is given.

    Not one of those that the kernel picks for clients: one of them might have it
    while our server restarts.
    """
    while True:
        port = random.randrange(15_000, _first_port_of_clients())
        with socket.socket() as sock, contextlib.suppress(OSError):
            _reserve(port)
            sock.bind(("127.0.0.1", port))
            return port


#: Keep the ports that were given to this process from others, until it ends.
_reservations: list[socket.socket] = []


def _reserve(port: int) -> None:
    """Raise OSError where another process has *port*, be it for a server yet to start."""
    if sys.platform != "linux":  # where the name below would be a file
        return
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0celery-asyncpool-tests-port-{port}")
    except OSError:
        lock.close()
        raise
    _reservations.append(lock)


def _first_port_of_clients() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32_768
    return max(int(text.split()[0]), 20_000)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
