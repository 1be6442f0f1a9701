"""Results of async tasks in Redis: stored on the loop, and never lost with its connection."""

import signal

import pytest
from worker import Transport, wait_for

from tests.conftest import require
from tests.servers import RedisServer, free_port

TASKS = 100


@pytest.fixture
def start(start_worker, redis_url):
    """Start a worker whose results go to *backend*."""

    def start(backend, **settings):
        transport = Transport("redis", f"{redis_url}/0", backend)
        conf = "; ".join(f"{name}={value!r}" for name, value in settings.items())
        env = {"ASYNCPOOL_TEST_SETTINGS": conf}
        worker = start_worker(transport, "client", "-c", 100, "--processes", 2, env=env)
        worker.client.app.conf.update(settings)
        return worker

    return start


def counts(worker, name):
    """One of the figures of ``redis-results``, of all processes."""
    processes = worker.pool()["worker-processes"].values()
    return sum(info["redis-results"][name] for info in processes)


def add_all(worker):
    results = [worker.client.send("add", number, 1) for number in range(TASKS)]
    assert [result.get(timeout=60) for result in results] == list(range(1, TASKS + 1))


def test_on_the_loop(start, redis_url):
    """Each result is stored once, in fewer writes than results need commands, and shown."""
    with start(f"{redis_url}/1", asyncpool_redis_batching=True) as worker:
        add_all(worker)

        # The figures come once a second.
        wait_for(lambda: counts(worker, "on-the-loop") == TASKS, worker.tail)
        assert 0 < counts(worker, "writes") <= 2 * TASKS
        assert counts(worker, "in-threads") == 0


def test_switched_off(start, redis_url):
    """Without the setting threads store them."""
    with start(f"{redis_url}/1", asyncpool_redis_batching=False) as worker:
        add_all(worker)

        assert counts(worker, "on-the-loop") == 0


def test_tls(start, certificate):
    """Over TLS threads store them."""
    require(RedisServer)
    path, key = certificate
    port = free_port()
    options = ("--tls-port", str(port), "--tls-auth-clients", "no")
    files = ("--tls-cert-file", path, "--tls-key-file", key, "--tls-ca-cert-file", path)
    with RedisServer(*options, *files):
        ssl = {"ssl_cert_reqs": "required", "ssl_ca_certs": path}
        backend = f"rediss://127.0.0.1:{port}/1"
        with start(backend, redis_backend_use_ssl=ssl, asyncpool_redis_batching=True) as worker:
            add_all(worker)

            assert counts(worker, "on-the-loop") == 0


def test_server_is_killed(start):
    """Redis is killed and comes back while results are stored: all of them are there.

    With Celery's own setting for that, without which its backend gives some up.
    """
    require(RedisServer)
    settings = {"result_backend_always_retry": True, "asyncpool_redis_batching": True}
    # "always": else what it has confirmed last may be lost with it.
    with RedisServer("--appendfsync", "always") as server:
        with start(f"{server.url}/1", **settings) as worker:
            add_all(worker)
            seconds = [0.5 + number / 200 for number in range(2 * TASKS)]
            results = [worker.client.send("wait", wait, n) for n, wait in enumerate(seconds)]
            wait_for(lambda: counts(worker, "on-the-loop") > TASKS, worker.tail)

            server.restart(signal.SIGKILL)

            values = [result_of(worker, result) for result in results]
            assert values == list(range(2 * TASKS))
            wait_for(lambda: tried(worker) == 3 * TASKS, worker.tail)
            before = counts(worker, "on-the-loop")
            add_all(worker)
            wait_for(lambda: counts(worker, "on-the-loop") == before + TASKS, worker.tail)


def tried(worker):
    """Results that were stored on the loop, or left to a thread."""
    return counts(worker, "on-the-loop") + counts(worker, "in-threads")


def result_of(worker, result):
    """The result when it is there, over whatever connection."""

    def stored():
        meta = worker.client.app.backend.get_task_meta(result.id)
        return [meta["result"]] if meta["status"] == "SUCCESS" else None

    [value] = wait_for(stored, worker.tail)
    return value
