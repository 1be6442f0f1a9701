"""Flower: what it shows of the worker, and each of its controls, by its HTTP API."""

import base64
import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from program import Program
from worker import PATIENCE, wait_for

from tests.conftest import require_module
from tests.servers import free_port

PASSWORD = "user:word"

AUTHORIZATION = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"


class Flower(Program):
    """``celery flower`` for *worker*, on a port of its own."""

    def __init__(self, worker):
        self.worker = worker
        self.url = f"http://127.0.0.1:{free_port()}"
        super().__init__(
            worker,
            "flower",
            "--address=127.0.0.1",
            f"--port={urllib.parse.urlsplit(self.url).port}",
            f"--basic-auth={PASSWORD}",
            "--inspect-timeout=3000",
        )

    def __enter__(self):
        super().__enter__()
        try:
            wait_for(self._answers, self.tail)
            wait_for(lambda: self.worker.hostname in self.workers(), self.tail)
        except BaseException:
            self.kill()
            raise
        return self

    def _answers(self):
        assert self.process.poll() is None, self.tail()
        with contextlib.suppress(OSError):
            return self.get("healthcheck") == "OK"

    def get(self, path, **query):
        """The text of a page."""
        return self._request(path, query, None)

    def get_json(self, path, **query):
        return json.loads(self.get(path, **query))

    def post(self, path, body="", **query):
        return self._request(path, query, body.encode())

    def control(self, path, **query):
        """Ask Flower for a control command.

        It waits one second for the worker's answer, which may be too short on a busy
        machine: what has come of the command, the worker tells.
        """
        try:
            return self.post(path, **query)
        except urllib.error.HTTPError as exc:
            if not exc.read().endswith((b"Unknown reason", b"Unknown reason'")):
                raise
            return None

    def _request(self, path, query, body):
        url = f"{self.url}/{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, body, {"Authorization": AUTHORIZATION})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def workers(self):
        return self.get_json("api/workers", refresh=1)

    def pool(self):
        """What it knows of the worker's pool; None while it knows nothing."""
        return self.workers().get(self.worker.hostname, {}).get("stats", {}).get("pool")

    def task_state(self, result):
        with contextlib.suppress(urllib.error.HTTPError):
            return self.get_json(f"api/task/info/{result.id}")["state"]


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    require_module("flower")
    with start_worker(redis_transport, "monitored", "-E", "-c", 8, "--processes", 2) as worker:
        yield worker


@pytest.fixture(scope="module")
def flower(worker):
    with Flower(worker) as flower:
        yield flower


def test_password(flower):
    """Who has none is refused: these tests speak to Flower as users should."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{flower.url}/api/workers", timeout=PATIENCE)


def test_pool_is_shown(worker, flower):
    """All that the pool tells of itself is in the API, and on the worker's page."""
    shown = wait_for(flower.pool, flower.tail)

    pool = worker.pool()
    assert shown.keys() == pool.keys()
    assert shown["processes"] == pool["processes"]
    assert shown["max-concurrency"] == 8
    assert shown["worker-processes"].keys() == pool["worker-processes"].keys()
    page = flower.get(f"worker/{worker.hostname}")
    assert "Max concurrency" in page
    for pid in worker.pool_pids():
        assert str(pid) in page


def test_tasks_are_seen(worker, flower, flavour):
    """Tasks that Flower sends, and those of others, are seen to succeed, and are counted."""
    task = f"apps.monitored.{flavour}_add"
    answer = json.loads(flower.post(f"api/task/apply/{task}", body='{"args": [1, 2]}'))
    result = worker.client.send(f"{flavour}_add", 3, 4)

    assert (answer["state"], answer["result"]) == ("SUCCESS", 3)
    assert result.get(PATIENCE) == 7
    wait_for(lambda: flower.task_state(result) == "SUCCESS", flower.tail)
    metrics = flower.get("metrics").splitlines()
    assert any(task in line and "task-succeeded" in line for line in metrics)


def test_grow_and_shrink(worker, flower):
    """Both count slots."""
    flower.control(f"api/worker/pool/grow/{worker.hostname}", n=3)
    wait_for(lambda: worker.pool()["max-concurrency"] == 11, worker.tail)
    wait_for(lambda: (flower.pool() or {}).get("max-concurrency") == 11, flower.tail)

    flower.control(f"api/worker/pool/shrink/{worker.hostname}", n=3)
    wait_for(lambda: worker.pool()["max-concurrency"] == 8, worker.tail)


def test_revoke(worker, flower):
    """A running task ends, and no other one, nor a process."""
    pids = worker.pool_pids()
    revoked, other = (worker.client.send("waits") for _ in range(2))
    worker.wait_started(revoked, other)

    for result in (revoked, other):
        assert [line["id"] for line in worker.inspect("active") if line["id"] == other.id]
        flower.post(f"api/task/revoke/{result.id}", terminate="true")
        with pytest.raises(TaskRevokedError):
            result.get(PATIENCE)
        wait_for(lambda result=result: flower.task_state(result) == "REVOKED", flower.tail)

    assert worker.pool_pids() == pids


def test_rate_limit(worker, flower):
    """The worker takes a rate limit, and the task runs within it."""
    path = "api/task/rate-limit/apps.monitored.async_add"
    flower.control(path, workername=worker.hostname, ratelimit="100/s")
    worker.wait_log("New rate limit for tasks of type apps.monitored.async_add: 100/s")

    results = [worker.client.send("async_add", 1, n) for n in range(3)]

    assert [result.get(PATIENCE) for result in results] == [1, 2, 3]


def restart_pool(worker, flower):
    pids = set(worker.pool_pids())
    flower.control(f"api/worker/pool/restart/{worker.hostname}")
    wait_for(lambda: not pids & set(worker.pool_pids()), worker.tail)


def test_pool_restart(worker, flower):
    """All processes are replaced."""
    restart_pool(worker, flower)

    assert worker.client.send("async_add", 1, 2).get(PATIENCE) == 3


def test_time_limits(worker, flower):
    """Limits that Flower sets hold once the pool is restarted: Celery reads them then."""
    path = "api/task/timeout/apps.monitored.waits"
    flower.control(path, workername=worker.hostname, soft=0.5, hard=60)
    worker.wait_log("soft=0.5 hard=60.0")
    restart_pool(worker, flower)
    with pytest.raises(SoftTimeLimitExceeded):
        worker.client.send("waits").get(PATIENCE)

    flower.control(path, workername=worker.hostname, hard=0.5)
    worker.wait_log("soft=None hard=0.5")
    restart_pool(worker, flower)
    with pytest.raises(TimeLimitExceeded):
        worker.client.send("waits").get(PATIENCE)


def test_autoscale_and_shutdown(new_transport, start_worker):
    """The range of the autoscaler is set; a shutdown is a warm one, and Flower sees it."""
    require_module("flower")
    options = ("monitored", "-E", "--autoscale=8,2", "--processes", 2)
    with start_worker(new_transport("redis"), *options) as worker, Flower(worker) as flower:
        flower.control(f"api/worker/pool/autoscale/{worker.hostname}", min=3, max=12)
        wait_for(lambda: worker.stats()["autoscaler"]["max"] == 12, worker.tail)
        wait_for(lambda: worker.pool()["max-concurrency"] >= 3, worker.tail)
        running = worker.client.send("waits")
        worker.wait_started(running)

        flower.post(f"api/worker/shutdown/{worker.hostname}")
        worker.wait_log("waiting for 1 task")
        flower.post(f"api/task/revoke/{running.id}", terminate="true")

        assert worker.wait_exit() == 0
        wait_for(
            lambda: not flower.get_json("api/workers", status=1)[worker.hostname], flower.tail
        )
