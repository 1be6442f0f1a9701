"""A program with a worker in it: embedding.py another|main fork|spawn."""

import contextlib
import ctypes
import functools
import gc
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from celery import Celery, shared_task, signals
from celery.contrib.testing.worker import start_worker
from celery.result import allow_join_result
from celery.worker import state as worker_state

from celery_asyncpool.parent import adopted

PR_GET_CHILD_SUBREAPER = 37
PATIENCE = 100.0

app = Celery(
    "embedding",
    broker=os.environ["ASYNCPOOL_TEST_BROKER"],
    backend=os.environ["ASYNCPOOL_TEST_BACKEND"],
    include=["embedding"],  # in a process that is spawned
)
app.conf.task_default_queue = os.environ["ASYNCPOOL_TEST_QUEUE"]
app.conf.worker_hijack_root_logger = False


@shared_task(name="embedding.add")
async def add(x, y):
    logging.getLogger("embedding").error("%s and %s", x, y)
    return x + y


class BadError(Exception):
    """Can be pickled, but not be read again."""

    def __init__(self, x, y):
        super().__init__(x)


@shared_task(name="embedding.fail")
async def fail():
    raise BadError(1, 2)


class Records(logging.Handler):
    """Keeps what is logged, as pytest's `caplog` does."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        if record.name in ("embedding", "celery.app.trace") and record.process != os.getpid():
            self.lines.append((record.name, record.levelname, record.getMessage()))


def process_state():
    """What a worker might change in the process."""
    subreaper = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(subreaper), 0, 0, 0)
    return {
        "gc thresholds": gc.get_threshold(),
        "frozen": gc.get_freeze_count() > 0,
        "subreaper": subreaper.value,
        "FORKED_BY_MULTIPROCESSING": os.environ.get("FORKED_BY_MULTIPROCESSING"),
        "children": children(),
        "threads": len(threading.enumerate()),
        "log handlers": [type(handler).__name__ for handler in logging.getLogger().handlers],
    }


def children():
    """Pids, whichever thread has started them; the thread may have ended."""
    pids = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            pids += path.read_text().split()
    return pids


def ask_for_exit_code(hostname):
    """Return the exit code of a subprocess that dies while the pool looks for dead ones."""
    adopted.PATIENCE = 0.0
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert app.control.broadcast("pool_grow", destination=[hostname], reply=True, timeout=5)
    return process.wait()


@contextlib.contextmanager
def worker_in_another_thread():
    with start_worker(
        app,
        pool="celery_asyncpool:Pool",
        concurrency=1,
        hostname="embedded@test",
        perform_ping_check=False,
        shutdown_timeout=PATIENCE,
    ):
        yield


def run_in_main_thread(work):
    """Call *work* in another thread while the worker runs, then end it."""
    ready = threading.Event()
    on_ready = functools.partial(_set, ready)
    signals.worker_ready.connect(on_ready)
    worker = app.Worker(pool="celery_asyncpool:Pool", concurrency=1, hostname="embedded@test")
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(_work_and_stop, ready, work)
        worker.start()
        done.result()
    worker_state.should_stop = None


def _set(event, **kwargs):
    event.set()


def _work_and_stop(ready, work):
    try:
        assert ready.wait(PATIENCE)
        work()
    finally:
        worker_state.should_stop = 0


def main(thread, start):
    app.conf.worker_pool_start_method = start
    records = Records()
    logging.getLogger().addHandler(records)
    said = {"results": [], "logged": records.lines, "before": process_state()}

    def work():
        with allow_join_result():
            said["results"].append(add.delay(1, 2).get(timeout=PATIENCE))
            with contextlib.suppress(Exception):
                fail.delay().get(timeout=PATIENCE)
        said["during"] = process_state()
        if thread == "another":
            said["exit code"] = ask_for_exit_code("embedded@test")

    for _ in range(2):
        if thread == "another":
            with worker_in_another_thread():
                work()
        else:
            run_in_main_thread(work)
    said["after"] = process_state()
    print(json.dumps(said), file=sys.__stdout__)


if __name__ == "__main__":
    logging.basicConfig()
    main(*sys.argv[1:])
