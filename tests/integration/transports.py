"""Transports and workers for the tests with a real `celery worker`: fixtures."""

import shutil
import subprocess
from urllib.parse import urlsplit

import pytest
import redis as redis_client
from celery.result import AsyncResult
from worker import PATIENCE, Transport, Worker, wait_for

from tests.conftest import miss

# A result unsubscribes when it is collected, which may be long after the test,
# when its server has gone.
AsyncResult.__del__ = lambda self: None

_celery_get = AsyncResult.get


def _get(self, timeout=PATIENCE, propagate=True, **kwargs):
    """Wait by asking: Celery 5.5 takes a second for each of many results on Redis."""
    patience = PATIENCE if timeout is None else timeout
    wait_for(self.ready, lambda: f"result of {self.id}", patience)
    return _celery_get(self, timeout=timeout, propagate=propagate, **kwargs)


AsyncResult.get = _get

TRANSPORTS = ("redis", "rabbitmq", "filesystem")


def redis_database(request, number):
    """URL of one database of the Redis server."""
    return urlsplit(request.getfixturevalue("redis_url"))._replace(path=f"/{number}").geturl()


def make_transport(name, request, folder):
    """The transport *name*, with an empty queue of its own."""
    if name == "redis":
        return Transport("redis", redis_database(request, 0), redis_database(request, 1))
    if name == "rabbitmq":
        broker = request.getfixturevalue("rabbitmq_url")
        return Transport("rabbitmq", broker, redis_database(request, 1))
    for sub in ("queue", "processed", "control", "results"):
        (folder / sub).mkdir()
    return Transport("filesystem", "filesystem://", f"file://{folder}/results", folder)


#: At one moment: a message may be on its way from one to the other.
MESSAGES_LEFT = """
local waiting = 0
for _, pattern in ipairs(ARGV) do
  for _, list in ipairs(redis.call('KEYS', pattern)) do
    waiting = waiting + redis.call('LLEN', list)
  end
end
return {waiting, redis.call('HLEN', KEYS[1]), redis.call('ZCARD', KEYS[2])}
"""


def messages_in_redis(client, *queues, unacked="unacked", index="unacked_index"):
    """How many messages wait in *queues*, how many a worker holds, and how many are in the index.

    Names of queues are those of their lists: with a prefix, if there is one.
    """
    patterns = [f"{queue}*" for queue in queues]
    return tuple(client.eval(MESSAGES_LEFT, 2, unacked, index, *patterns))


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request, tmp_path_factory):
    """Each transport in turn."""
    return make_transport(request.param, request, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def redis_transport(request, tmp_path_factory):
    """Redis as broker and backend."""
    return make_transport("redis", request, tmp_path_factory.mktemp("redis"))


@pytest.fixture
def new_transport(request, tmp_path):
    """Make the transport of that name with a queue of the test's own, which may leave messages."""
    return lambda name: make_transport(name, request, tmp_path)


@pytest.fixture(scope="module")
def redis(request):
    """A client of the Redis server, on a database that Celery does not use."""
    with redis_client.Redis.from_url(redis_database(request, 2)) as client:
        client.flushdb()
        yield client


@pytest.fixture(scope="module", params=("async", "def"))
def flavour(request):
    """The same feature with an `async def` and with a `def` task."""
    return request.param


@pytest.fixture(scope="module")
def start_worker(tmp_path_factory):
    """Start workers that are stopped, and checked, at the end of the `with` block."""
    tmp_path = tmp_path_factory.mktemp("worker")

    def start(transport, module, *args, **options):
        return Worker(transport, module, tmp_path, *args, **options)

    return start


@pytest.fixture
def certificate(tmp_path):
    """Paths of a certificate for 127.0.0.1, which is its own authority, and of its key."""
    if shutil.which("openssl") is None:
        miss("openssl")
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return [str(path) for path in paths]
