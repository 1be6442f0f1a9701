"""Real Playwright, real Chromium: many pages at once, and nothing that is left of any."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from proc import look, processes
from worker import Worker, wait_for

from tests.pages import Pages

CHROMIUM = ("chromium", "chrome")

#: Seconds in which a task gets to where it is to be ended, while three browsers start.
LIMIT = 20

#: A busy machine takes its time to close a page.
PATIENT = "asyncpool_cancel_grace=60"


@pytest.fixture(scope="module")
def pages():
    with Pages() as pages:
        yield pages


class BrowserWorker(Worker):
    """A worker that leaves no process of a browser when it ends."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        #: Pids of the browsers' processes that were seen while it ran.
        self.seen = set()

    def stop(self):
        if self.process.poll() is None:
            of_browsers(self)
        super().stop()
        wait_for(lambda: not list(filter(look, self.seen)), lambda: list(map(look, self.seen)))


class TerminalWorker(BrowserWorker):
    """A worker in the foreground of a terminal of its own."""

    def start(self):
        self._master, terminal = os.openpty()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *self.command],
                env=self.environment,
                cwd=Path(__file__).parent,
                stdin=terminal,
                stdout=log,
                stderr=log,
            )
        os.close(terminal)

    def type(self, text):
        os.write(self._master, text)

    def stop(self):
        super().stop()
        os.close(self._master)


@pytest.fixture
def start(new_transport, chromium, tmp_path):
    """Start a worker with browsers; *lazy*: as the first task needs one."""

    def start(*args, conf="", lazy=False, make=BrowserWorker):
        env = {
            **chromium,
            "PLAYWRIGHT_CONF": conf,
            "PLAYWRIGHT_LAZY": "yes" if lazy else "",
            "PLAYWRIGHT_GATES": f"{tmp_path}/gate-",
        }
        return make(new_transport("redis"), "playwright_app", tmp_path, *args, env=env)

    return start


def gate(worker, result):
    """What the task of *result* waits for before it closes."""
    return Path(worker.environment["PLAYWRIGHT_GATES"] + result.id)


def of_browsers(worker):
    """All processes that are neither the worker nor of its pool, however detached.

    By descent, since Chromium writes over what /proc shows of its environment;
    the worker's main process adopts what loses its parent.
    """
    parents = {process.pid: process for process in processes()}
    found = [p for p in parents.values() if descends(parents, p, worker.process.pid)]
    own = {worker.process.pid, *worker.pool_pids()}
    browsers = [process for process in found if process.pid not in own]
    worker.seen.update(process.pid for process in browsers)
    return browsers


def descends(parents, process, pid):
    while process is not None and process.pid != pid:
        process = parents.get(process.parent)
    return process is not None


def of_process(worker, pid):
    """Those of them that the pool's process *pid* has started."""
    parents = {process.pid: process for process in processes()}
    return [process for process in of_browsers(worker) if descends(parents, process, pid)]


def main_chromiums(worker):
    """The browsers' main processes."""
    return [
        process
        for process in of_browsers(worker)
        if process.program in CHROMIUM and "--type=" not in process.command
    ]


def drivers(worker):
    """The processes of Playwright's driver."""
    return [process for process in of_browsers(worker) if process.program == "node"]


def assert_no_browser(worker):
    """No driver and no Chromium is left, alive or dead."""
    wait_for(lambda: not of_browsers(worker), lambda: of_browsers(worker))


def assert_no_page(worker):
    """The shared browsers have no page and no context."""
    left = dict.fromkeys(worker.pool_pids())

    def ask():
        for result in [worker.client.send("contexts") for _ in left]:
            pid, *contexts = result.get()
            left[pid] = contexts
        return all(contexts == [0, []] for contexts in left.values())

    wait_for(ask, lambda: f"no contexts and pages in any process: {left}")


def test_pages_at_once(start, pages):
    """40 page tasks at once, over two processes with one browser each; then nothing is left."""
    with start("-c", 40, "--processes", 2) as worker:
        urls = [pages.url(f"/held/many?{number}") for number in range(40)]
        results = [worker.client.send("title", url) for url in urls]
        wait_for(lambda: pages.asked.count("/held/many") == 40, worker.tail)
        assert len(main_chromiums(worker)) == len(drivers(worker)) == 2

        pages.release("many")

        values = [result.get() for result in results]
        assert {value for value, _ in values} == {"many"}
        assert sorted(pid for _, pid in values) == sorted(worker.pool_pids() * 20)
        assert_no_page(worker)
    assert worker.records("browser closes", connected=True)


def end_by_revoke(worker, send):
    result = send()
    yield result
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get()


def end_by_soft_limit(worker, send):
    result = send(soft_time_limit=LIMIT)
    yield result
    with pytest.raises(SoftTimeLimitExceeded):
        result.get()


def end_by_hard_limit(worker, send):
    result = send(time_limit=LIMIT)
    yield result
    with pytest.raises(TimeLimitExceeded):
        result.get()


ENDS = [end_by_revoke, end_by_soft_limit, end_by_hard_limit]


def test_cancelled_in_goto(start, pages):
    """A page task that is ended in `page.goto` leaves no page and no context."""
    with start("-c", 10, "--processes", 1, conf=PATIENT) as worker:
        [pid] = worker.pool_pids()
        url = pages.url("/held/goto")
        before = pages.asked.count("/held/goto")
        ends = [end(worker, lambda **o: worker.client.send("title", url, **o)) for end in ENDS]
        ends += [end(worker, lambda **o: worker.client.send("title", url, **o)) for end in ENDS]
        results = [next(end) for end in ends]
        wait_for(lambda: pages.asked.count("/held/goto") == before + 6, worker.tail)

        for end in ends:
            next(end, None)

        assert len({result.id for result in results}) == 6
        assert_no_page(worker)
        assert worker.client.send("title", pages.url("/title/after")).get() == ["after", pid]


def test_cancelled_anywhere(start, pages):
    """Nor does one that is ended while it opens or closes pages."""
    with start("-c", 10, "--processes", 1, conf=PATIENT) as worker:
        results = [worker.client.send("open_and_close", 10_000) for _ in range(5)]
        worker.wait_started(*results)
        for result in results:
            result.revoke(terminate=True)
            with pytest.raises(TaskRevokedError):
                result.get()

        assert_no_page(worker)


@contextlib.contextmanager
def stopped(processes):
    """They do nothing within this block."""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("task", "closing", "find"),
    [
        ("own_browser", "closing browser", main_chromiums),
        ("own_driver", "closing driver", drivers),
    ],
    ids=["browser.close", "__aexit__ of async_playwright"],
)
def test_cancelled_while_it_closes(start, pages, task, closing, find):
    """A task that is ended while its browser, or its driver, closes leaves no process."""
    with start("-c", 3, "--processes", 1, conf=PATIENT, lazy=True) as worker:
        url = pages.url("/title/own")
        ends = [end(worker, lambda **o: worker.client.send(task, url, **o)) for end in ENDS]
        results = [next(end) for end in ends]
        wait_for(lambda: all(worker.count("in browser", r) for r in results), worker.tail)
        found = find(worker)
        assert len(found) == 3
        with stopped(found):
            for result in results:
                gate(worker, result).touch()
            wait_for(lambda: all(worker.count(closing, r) for r in results), worker.tail)
            results[0].revoke(terminate=True)
            worker.wait_log(f"time limit ({LIMIT}s) exceeded", 2)
            worker.wait_log("Terminating")
        for end in ends:
            next(end, None)

        assert [worker.count("driver closed", result) for result in results] == [0, 0, 0]
        assert_no_browser(worker)
        assert len(worker.up_processes()) == 1


def test_browser_that_is_killed(start, pages):
    """It is replaced for later tasks, once, and nothing of it is left."""
    with start("-c", 10, "--processes", 1, lazy=True) as worker:
        url = pages.url("/title/again")
        assert worker.client.send("insist", url).get() == "again"
        [victim] = main_chromiums(worker)

        os.kill(victim.pid, signal.SIGKILL)
        results = [worker.client.send("insist", url) for _ in range(8)]

        assert [result.get() for result in results] == ["again"] * 8
        wait_for(lambda: len(main_chromiums(worker)) == len(drivers(worker)) == 1, worker.tail)
        assert main_chromiums(worker) != [victim]
        assert_no_page(worker)


def test_process_that_is_killed(start, pages):
    """kill -9 of a pool process leaves neither its Chromium nor its driver; others go on."""
    with start("-c", 4, "--processes", 2) as worker:
        results = [worker.client.send("title", pages.url("/held/killed")) for _ in range(4)]
        wait_for(lambda: pages.asked.count("/held/killed") == 4, worker.tail)
        victim, _ = worker.pool_pids()
        lost = {line["id"] for line in worker.records("started", pid=victim)}
        its_own = of_process(worker, victim)
        assert len(its_own) > 5

        os.kill(victim, signal.SIGKILL)

        wait_for(lambda: not any(look(process.pid) for process in its_own), worker.tail)
        pages.release("killed")
        for result in results:
            if result.id in lost:
                with pytest.raises(WorkerLostError):
                    result.get()
            else:
                assert result.get()[0] == "killed"
        assert len(lost) == 2
        wait_for(lambda: len(worker.up_processes()) == 2, worker.tail)
        wait_for(lambda: len(main_chromiums(worker)) == len(drivers(worker)) == 2, worker.tail)


def test_recycling(start, pages):
    """A process that is replaced closes its browser; the new one has its own."""
    with start("-c", 4, "--processes", 1, "--max-tasks-per-child", 3) as worker:
        [old] = worker.pool_pids()
        results = [worker.client.send("title", pages.url("/title/next")) for _ in range(4)]
        assert {result.get()[0] for result in results} == {"next"}

        wait_for(lambda: look(old) is None, worker.tail)

        assert worker.records("browser closes", pid=old, connected=True)
        wait_for(lambda: len(main_chromiums(worker)) == len(drivers(worker)) == 1, worker.tail)
        assert "left subprocesses" not in worker.log()


def test_cold_shutdown(start, pages):
    """SIGQUIT leaves no page task, no driver and no Chromium."""
    with start("-c", 4, "--processes", 2) as worker:
        for _ in range(4):
            worker.client.send("title", pages.url("/held/cold"))
        wait_for(lambda: pages.asked.count("/held/cold") == 4, worker.tail)

        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()
        wait_for(lambda: not worker.family(), lambda: [look(pid) for pid in worker.family()])


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs setsid")
def test_ctrl_c(start, pages):
    """Ctrl-C in a terminal lets running page tasks finish: no browser hears of it."""
    with start("-c", 4, "--processes", 2, make=TerminalWorker) as worker:
        results = [worker.client.send("title", pages.url("/held/ctrl-c")) for _ in range(4)]
        wait_for(lambda: pages.asked.count("/held/ctrl-c") == 4, worker.tail)
        assert os.getpgid(worker.process.pid) == worker.process.pid

        worker.type(b"\x03")

        worker.wait_log("Warm shutdown")
        pages.release("ctrl-c")
        assert [result.get()[0] for result in results] == ["ctrl-c"] * 4
        assert worker.wait_exit() == 1  # Celery's code for this signal
        assert len(worker.records("browser closes", connected=True)) == 2
