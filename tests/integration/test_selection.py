"""The ways to select the pool, and its settings."""

import gc
import importlib.metadata
import os
import subprocess
import sys

import pytest
from transports import redis_database
from worker import HERE

from celery_asyncpool.cpus import usable_cpus

TIMEOUT = 60
CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])


@pytest.mark.parametrize(
    ("selection", "env"),
    [
        (("-P", "asyncpool"), {}),
        (("-P", "celery_asyncpool:Pool"), {}),
        (("-P", "custom"), {"CELERY_CUSTOM_WORKER_POOL": "celery_asyncpool:Pool"}),
        ((), {"CONFIGURED": "worker_pool='celery_asyncpool:Pool'"}),
        ((), {"CONFIGURED": "worker_pool='asyncpool'"}),
    ],
    ids=["alias", "class", "custom", "setting", "setting-alias"],
)
def test_selection(redis_transport, start_worker, selection, env):
    """Each way gives this pool, with -c slots spread over --processes."""
    options = ("-c", 30, "--processes", 3)
    with start_worker(
        redis_transport, "configured", *options, env=env, selection=selection
    ) as worker:
        pool = worker.pool()

        assert pool["implementation"] == "celery_asyncpool.pool:Pool"
        assert pool["max-concurrency"] == 30
        assert [info["slots"] for info in pool["worker-processes"].values()] == [10, 10, 10]
        assert worker.stats()["prefetch_count"] == 30 * 4


def test_defaults(redis_transport, start_worker):
    """Without -c: as many processes as CPUs, 100 slots each."""
    with start_worker(redis_transport, "configured") as worker:
        pool = worker.pool()

        assert len(pool["processes"]) == usable_cpus()
        assert pool["max-concurrency"] == 100 * usable_cpus()
        assert pool["loop"] == "uvloop"
        name = worker.client.send("loop_class").get(timeout=TIMEOUT)
        assert name.startswith("uvloop")


@pytest.mark.parametrize("how", ["app.conf", "django"])
def test_settings(redis_transport, start_worker, how):
    """The settings are plain Celery configuration, also from Django's settings."""
    if how == "django":
        settings = (
            "CELERY_ASYNCPOOL_PROCESSES=3; CELERY_ASYNCPOOL_THREADS=5; "
            "CELERY_ASYNCPOOL_LOOP='asyncio'; CELERY_WORKER_CONCURRENCY=9"
        )
        env = {"DJANGO": settings, "DJANGO_SETTINGS_MODULE": "apps.django_settings"}
    else:
        settings = (
            "asyncpool_processes=3; asyncpool_threads=5; "
            "asyncpool_loop='asyncio'; worker_concurrency=9"
        )
        env = {"CONFIGURED": settings}
    with start_worker(redis_transport, "configured", env=env) as worker:
        pool = worker.pool()

        assert [info["slots"] for info in pool["worker-processes"].values()] == [3, 3, 3]
        assert [info["threads"] for info in pool["worker-processes"].values()] == [5, 5, 5]
        assert pool["loop"] == "asyncio"
        name = worker.client.send("loop_class").get(timeout=TIMEOUT)
        assert name.startswith("asyncio")


@pytest.mark.parametrize(
    ("settings", "threshold"), [("", 10_000), ("asyncpool_gc_threshold=0", gc.get_threshold()[0])]
)
def test_gc_threshold(redis_transport, start_worker, settings, threshold):
    """It holds in the main process and in the others; 0 leaves Python's."""
    env = {"CONFIGURED": settings}
    with start_worker(redis_transport, "configured", "-c", 2, "--processes", 1, env=env) as worker:
        assert worker.client.send("gc_threshold").get(timeout=TIMEOUT) == threshold
        assert [line["gc_threshold"] for line in worker.records("ready")] == [threshold]


#: A program that has a worker in itself, for a moment.
EMBEDDED = """
import gc, os, sys
from celery import Celery, signals
from celery.worker import state

def say():  # not to the log, which a worker makes of standard output
    print(gc.get_threshold()[0], file=sys.__stdout__, flush=True)

@signals.worker_ready.connect
def on_ready(**kwargs):
    say()
    state.should_stop = 0

app = Celery(broker=os.environ["BROKER"])
say()
worker = app.Worker(
    pool="celery_asyncpool:Pool", concurrency=1, hostname="embedded@test", queues=["embedded"]
)
worker.start()
say()
"""


def test_gc_threshold_of_a_program_with_a_worker(redis_transport):
    """When the worker has ended, the program's own number is back."""
    env = {**os.environ, "BROKER": redis_transport.broker, "C_FORCE_ROOT": "1"}

    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED], env=env, capture_output=True, text=True, timeout=TIMEOUT
    )

    assert done.returncode == 0, done.stderr
    said = [int(line) for line in done.stdout.splitlines() if line.isdecimal()]
    own = gc.get_threshold()[0]
    assert said == [own, 10_000, own], done.stdout


def test_more_processes_than_slots(redis_transport, start_worker):
    """There are never more processes than slots."""
    with start_worker(redis_transport, "configured", "-c", 2, "--processes", 8) as worker:
        assert len(worker.pool_pids()) == 2


def test_slots_without_hub(request, start_worker, tmp_path_factory):
    """Without a hub -c is spread in the same way."""
    from transports import make_transport

    transport = make_transport("filesystem", request, tmp_path_factory.mktemp("fs"))
    with start_worker(transport, "configured", "-c", 30, "--processes", 3) as worker:
        assert [info["slots"] for info in worker.up_processes().values()] == [10, 10, 10]


AUTO = pytest.param(
    ("-c", "auto"),
    "",
    marks=pytest.mark.skipif(CELERY < (5, 7), reason="-c auto is new in Celery 5.7"),
)


@pytest.mark.parametrize(
    ("args", "configured"),
    [AUTO, (("-c", 0), ""), ((), "worker_concurrency=' Auto'")],
)
def test_auto_concurrency(redis_transport, start_worker, args, configured):
    """``auto`` is as good as no ``-c``, as for all pools but prefork: 100 slots per process."""
    with start_worker(
        redis_transport, "configured", *args, "--processes", 2, env={"CONFIGURED": configured}
    ) as worker:
        assert worker.pool()["max-concurrency"] == 200
        assert worker.client.send("add", 1, 2).get(timeout=TIMEOUT) == 3


def test_settings_as_text(redis_transport, start_worker):
    """Configuration that was read from the environment is text."""
    env = {
        "CONFIGURED": "worker_concurrency='8'; asyncpool_processes='2'; asyncpool_threads='4'; "
        "asyncpool_redis_batching='false'; worker_proc_alive_timeout='60.5'; "
        "task_time_limit='30'; worker_max_tasks_per_child='100'"
    }
    with start_worker(redis_transport, "configured", env=env) as worker:
        pool = worker.pool()
        assert pool["max-concurrency"] == 8
        assert len(pool["processes"]) == 2
        assert pool["timeouts"] == [0, 30]
        assert pool["max-tasks-per-child"] == 100
        assert [info["threads"] for info in worker.up_processes().values()] == [4, 4]
        assert worker.client.send("add", 1, 2).get(timeout=TIMEOUT) == 3


def test_unknown_setting(redis_transport, start_worker):
    """It is named in an error line, whatever the log level; the worker runs."""
    env = {"CONFIGURED": "asyncpool_thread=8"}
    with start_worker(redis_transport, "configured", "-c", 1, env=env) as worker:
        [line] = [line for line in worker.log().splitlines() if "asyncpool_thread " in line]

    assert "ERROR" in line
    assert line.endswith("did you mean asyncpool_threads?")


@pytest.mark.skipif(CELERY < (5, 7), reason="worker_pool_start_method is new in Celery 5.7")
def test_spawn(redis_transport, start_worker):
    """With worker_pool_start_method = "spawn" processes are fresh interpreters."""
    env = {"CONFIGURED": "worker_pool_start_method='spawn'; worker_proc_alive_timeout=30"}
    with start_worker(redis_transport, "configured", "-c", 4, "--processes", 2, env=env) as worker:
        assert worker.client.send("loop_class").get(timeout=TIMEOUT).startswith("uvloop")
        assert worker.client.send("add", 1, 2).get(timeout=TIMEOUT) == 3
        executed = [line["spawned"] for line in worker.records("init")]
        assert executed == [True, True]
        assert worker.client.send("gc_threshold").get(timeout=TIMEOUT) == 10_000


def run_worker(request, *args, env=None):
    """Run a worker that is expected to end by itself; return the finished process."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(HERE),
        "ASYNCPOOL_TEST_BROKER": redis_database(request, 0),
        "ASYNCPOOL_TEST_BACKEND": redis_database(request, 1),
        "ASYNCPOOL_TEST_RECORD": "/dev/null",
        "C_FORCE_ROOT": "1",
        **(env or {}),
    }
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "apps.configured", "worker", *args],
        env=environment,
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(
    ("configured", "sentence"),
    [
        (
            "asyncpool_processes=0",
            "asyncpool_processes must be a whole number of at least 1, got 0",
        ),
        (
            "asyncpool_threads='many'",
            "asyncpool_threads must be a whole number of at least 1, got 'many'",
        ),
        (
            "worker_concurrency='many'",
            "worker_concurrency must be a whole number of at least 1, got 'many'",
        ),
        (
            "worker_concurrency=True",
            "worker_concurrency must be a whole number of at least 1, got True",
        ),
        (
            "worker_proc_alive_timeout='soon'",
            "worker_proc_alive_timeout must be a number of seconds above 0, got 'soon'",
        ),
        ("asyncpool_loop='trio'", "asyncpool_loop must be 'uvloop' or 'asyncio', got 'trio'"),
        (
            "asyncpool_limits={'proj.scrape': 0}",
            "asyncpool_limits['proj.scrape'] must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_bad_setting(request, configured, sentence):
    """A bad value ends the worker with one sentence: the setting, the value, what is allowed."""
    done = run_worker(request, "-P", "asyncpool", env={"CONFIGURED": configured})

    assert done.returncode == 1
    assert f"Error: celery_asyncpool: {sentence}" in done.stderr
    assert "Traceback" not in done.stderr


def test_fast_locals(request):
    """USE_FAST_LOCALS cannot work, and is refused by name."""
    done = run_worker(request, "-P", "asyncpool", env={"USE_FAST_LOCALS": "1"})

    assert done.returncode == 1
    assert "USE_FAST_LOCALS must not be set" in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_bad_processes_option(request, value):
    """--processes takes a number of at least 1."""
    done = run_worker(request, "-P", "asyncpool", "--processes", value)

    assert done.returncode == 2
    assert "Invalid value for '--processes'" in done.stderr


def test_processes_option_of_another_pool(request):
    """--processes with another pool is an error, not ignored."""
    done = run_worker(request, "-P", "prefork", "--processes", "2")

    assert done.returncode == 1
    assert "--processes is an option of the asyncpool pool" in done.stderr


def test_help():
    """`celery worker --help` and `celery --help` know of the pool."""
    command = [sys.executable, "-m", "celery"]

    worker_help = subprocess.run(
        [*command, "worker", "--help"], capture_output=True, text=True, check=True, cwd=HERE
    )
    main_help = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, check=True, cwd=HERE
    )

    assert "asyncpool" in worker_help.stdout
    assert "--processes" in worker_help.stdout
    assert "asyncpool" in main_help.stdout


def test_prefork_is_untouched(redis_transport, start_worker):
    """A worker with another pool runs as if this package were not installed."""
    worker = start_worker(redis_transport, "configured", "-c", 1, selection=("-P", "solo"), env={})
    try:
        worker.start()
        worker.wait_log(" ready.")
        assert worker.client.send("add", 1, 2).get(timeout=TIMEOUT) == 3
        worker.stop()
    finally:
        worker.kill_everything()
        worker.client.close()
