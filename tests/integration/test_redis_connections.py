"""Each way to connect to a Redis: a worker with batches runs its tasks over it, and says so."""

from collections import Counter

import pytest
import redis as redis_client
from transports import messages_in_redis, redis_database
from worker import Transport, wait_for

from tests.conftest import require
from tests.servers import RedisSentinel, RedisServer, free_port

TASKS = 50

#: So that a batch comes in many pieces.
PAYLOAD = "x" * 20_000

USER, PASSWORD = "clerk", "s3cret"


@pytest.fixture
def run_tasks(request, start_worker):
    """Run tasks with a worker on that broker; return what it says of its batches, and its log."""

    def run(server, url, batching=True, **settings):
        transport = Transport("redis", url, redis_database(request, 1))
        conf = "; ".join(f"{name}={value!r}" for name, value in settings.items())
        env = {"BATCHES_CONF": f"{conf}; asyncpool_redis_batching={batching}"}
        worker = start_worker(transport, "batches", "-c", 10, "--processes", 1, env=env)
        worker.client.app.conf.update(settings)
        with worker, redis_client.Redis.from_url(server.url) as client:
            tasks = ("early", "late") * (TASKS // 2)
            ids = [worker.client.send(task, PAYLOAD).id for task in tasks]
            wait_for(lambda: started(worker) >= Counter(ids), worker.tail)
            wait_for(lambda: not any(messages_in_redis(client, transport.queue)), worker.tail)

            assert started(worker) == Counter(ids)
            return worker.pool().get("redis"), worker.log()

    return run


def started(worker):
    return Counter(line["id"] for line in worker.records("started"))


@pytest.fixture
def server():
    """A Redis with a user."""
    require(RedisServer)
    with RedisServer() as server:
        set_user(server)
        yield server


def set_user(server, *rules):
    with redis_client.Redis.from_url(server.url) as client:
        user = ("SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all", *rules)
        client.execute_command("ACL", *user)


def test_tls(run_tasks, certificate):
    """``rediss://``, with a certificate that is checked."""
    require(RedisServer)
    path, key = certificate
    port = free_port()
    options = ("--tls-port", str(port), "--tls-auth-clients", "no")
    files = ("--tls-cert-file", path, "--tls-key-file", key, "--tls-ca-cert-file", path)
    with RedisServer(*options, *files) as server:
        ssl = {"ssl_cert_reqs": "required", "ssl_ca_certs": path}
        url = f"rediss://127.0.0.1:{port}/0"

        said, _ = run_tasks(server, url, broker_use_ssl=ssl)

        assert is_on(said)


def test_user(run_tasks, server):
    """A user and a password."""
    said, _ = run_tasks(server, f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}/0")

    assert is_on(said)


def test_unix_socket(run_tasks):
    """``redis+socket://``."""
    require(RedisServer)
    with RedisServer("--unixsocket", "redis.sock") as server:
        said, _ = run_tasks(server, f"redis+socket://{server.folder}/redis.sock")

        assert is_on(said)


def test_sentinel(run_tasks, server):
    """``sentinel://``, which knows where the server is."""
    with RedisSentinel(server) as sentinel:
        url = f"sentinel://127.0.0.1:{sentinel.port}/0"

        said, _ = run_tasks(server, url, broker_transport_options={"master_name": "shop"})

        assert is_on(said)


#: Of the commands for lists only those that kombu sends. (All of scripting cannot
#: be forbidden: with that kombu itself does not start.)
KOMBU_ONLY = ("-@list", "+brpop", "+lpush", "+rpush", "+llen")


def test_user_without_rights(run_tasks, server):
    """Where the script may not do its work messages come in kombu's way, which is said once."""
    set_user(server, *KOMBU_ONLY)

    said, log = run_tasks(server, f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}/0")

    assert not is_on(said)
    assert log.count("in kombu's way") == 1


def test_before_redis_6_2(run_tasks):
    """A server that has no BLMOVE yet."""
    require(RedisServer)
    with RedisServer("--rename-command", "BLMOVE", "") as server:
        said, _ = run_tasks(server, f"{server.url}/0")

        assert is_on(said)


def test_switched_off(run_tasks, server):
    """Without the setting, too."""
    said, _ = run_tasks(server, f"{server.url}/0", batching=False)

    assert not is_on(said)


def is_on(said):
    """Whether all tasks came in batches."""
    if not said["batching"]:
        assert said["reason"]
        assert said["batches"] == 0
        return False
    return said["messages"] >= TASKS and said["fallbacks"] == {}
