"""What a worker process sets up once and shares between its tasks."""

import signal

import celery
import pytest
from worker import wait_for

TIMEOUT = 60


@pytest.fixture
def start(redis_transport, start_worker):
    def start(fault="", conf="", *args):
        return start_worker(
            redis_transport,
            "lifespans",
            *("-c", 20, "--processes", 2, *args),
            env={"LIFESPANS_FAULT": fault, "LIFESPANS_CONF": conf},
        )

    return start


def steps(worker, pid):
    """What process *pid* has recorded, in its order."""
    return [line["what"] for line in worker.records(pid=pid)]


def test_order(start):
    """Opened in the order of definition before the first task, closed in reverse at the end."""
    with start() as worker:
        pids = worker.pool_pids()
        results = [worker.client.send("names") for _ in range(40)]
        found = [result.get(timeout=TIMEOUT) for result in results]
        assert {tuple(names[1:3]) for names in found} == {("first", "second")}
        objects = {pid: {names[3] for names in found if names[0] == pid} for pid in pids}
        assert all(len(ids) == 1 for ids in objects.values()), objects
        assert worker.client.send("names_in_thread").get(timeout=TIMEOUT)[1] == "first"

        worker.process.send_signal(signal.SIGTERM)

        assert worker.wait_exit() == 0
        for pid in pids:
            assert steps(worker, pid) == [
                *("first opens", "second opens", "started"),
                *("stopping", "second closes", "first closes", "stopped"),
            ]
        for what in ("started", "stopping", "second closes"):
            assert all(line["first_is_open"] for line in worker.records(what))
        assert {line["app"] for line in worker.records("started")} == {"lifespans"}
        assert {line["hostname"] for line in worker.records("started")} == {worker.hostname}
        assert "ValueError: a receiver that fails" in worker.log()


def test_lazy_one_starts_once(start):
    """However many tasks ask for it first, it is started once in each process."""
    with start() as worker:
        results = [worker.client.send("use_lazy") for _ in range(40)]
        found = {tuple(result.get(timeout=TIMEOUT)) for result in results}

        pids = {pid for pid, _ in found}
        assert len(found) == len(pids)
        assert sorted(line["pid"] for line in worker.records("lazy opens")) == sorted(pids)


def test_start_outlives_who_asked_first(start, tmp_path):
    """The task that asks first is revoked meanwhile: the others get what it has started."""
    gate = tmp_path / "gate"
    with start("", "", "--processes", 1) as worker:
        results = [worker.client.send("use_until", str(gate)) for _ in range(3)]
        wait_for(lambda: worker.records("lazy opens"), worker.tail)
        results[0].revoke(terminate=True)
        wait_for(results[0].ready, worker.tail)
        gate.touch()

        for result in results[1:]:
            result.get(timeout=TIMEOUT)
        assert len(worker.records("lazy opens")) == 1


def test_restart(start):
    """A broken one is replaced once for all who noticed, and the old one is closed."""
    with start() as worker:
        worker.client.send("replace_lazy").get(timeout=TIMEOUT)

        assert len(worker.records("lazy opens")) == 2
        wait_for(lambda: len(worker.records("lazy closes")) == 1, worker.tail)


def test_closed_after_the_last_task(start, tmp_path):
    """A warm shutdown ends the tasks first, then what they use."""
    gate = tmp_path / "gate"
    with start() as worker:
        result = worker.client.send("use_until", str(gate))
        wait_for(lambda: worker.records("in use"), worker.tail)
        [line] = worker.records("in use")

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 1 tasks")
        gate.touch()

        assert worker.wait_exit() == 0
        result.get(timeout=TIMEOUT)
        assert worker.records("used")[0]["first_is_open"]
        ends = steps(worker, line["pid"])[-5:]
        assert ends == ["stopping", "lazy closes", "second closes", "first closes", "stopped"]


def test_closed_in_cold_shutdown(start, tmp_path):
    """Bodies are cancelled, then the lifespans close; the process is not killed."""
    with start() as worker:
        worker.client.send("use_until", str(tmp_path / "gate"))
        wait_for(lambda: worker.records("in use"), worker.tail)
        [line] = worker.records("in use")

        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()
        assert worker.records("used")[0]["first_is_open"]
        assert "first closes" in steps(worker, line["pid"])


def test_recycled_process_closes_its_own(start):
    """The replacement opens its own before the old process closes its."""
    with start("", "", "--max-tasks-per-child", 3) as worker:
        for _ in range(12):
            worker.client.send("names").get(timeout=TIMEOUT)
        wait_for(lambda: worker.records("first closes"), worker.tail)
        wait_for(lambda: len(worker.up_processes()) == 2, worker.pool)

        closed = {line["pid"] for line in worker.records("first closes")}
        assert not closed & set(worker.up_processes())
        for pid in closed:
            assert "stopping" in steps(worker, pid)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("fails", "first did not start: ConnectionError('no such host')"),
        ("hangs", "first did not start within 1s (asyncpool_lifespan_timeout)"),
    ],
)
def test_failing_start(start, fault, says):
    """One that cannot start is a crash at start: named, tried a few times, then given up."""
    worker = start(fault, "asyncpool_lifespan_timeout=1")
    worker.start()
    try:
        assert worker.wait_exit(timeout=120) != 0
        assert f"lifespan apps.lifespans.{says}" in worker.log()
        assert "could not start; giving up" in worker.log()
        wait_for(lambda: not worker.family(), worker.family)
    finally:
        worker.kill_everything()
        worker.client.close()


def test_failing_end(start):
    """One that fails at its end is logged with its traceback; the worker ends as it should."""
    with start("fails at its end") as worker:
        worker.process.send_signal(signal.SIGTERM)

        assert worker.wait_exit() == 0
        assert "lifespan apps.lifespans.first failed at its end" in worker.log()
        assert 'raise ConnectionError("gone already")' in worker.log()


def test_handlers_that_cannot_work(start):
    """A SIGCHLD handler is taken back, an async receiver of Celery's is named; exit codes hold."""
    with start("handlers") as worker:
        codes = worker.client.send("exit_codes").get(timeout=TIMEOUT)

        assert codes == list(range(20))
        for pid in worker.pool_pids():
            assert f"worker process {pid}: the SIGCHLD handler" in worker.log()
        assert "never_awaited" in worker.log()
        assert "is an `async def` receiver of worker_process_init" in worker.log()
        assert "Connect it to celery_asyncpool.signals.asyncpool_process_started" in worker.log()
        assert "is an `async def` receiver of task_received" in worker.log()
        assert not worker.records("never")


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="worker_pool_start_method is of Celery 5.7")
def test_spawned_processes_have_them(start):
    """With worker_pool_start_method="spawn", too."""
    with start("", "worker_pool_start_method='spawn'") as worker:
        assert worker.client.send("names").get(timeout=TIMEOUT)[1:3] == ["first", "second"]
