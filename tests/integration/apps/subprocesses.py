"""Tasks that start processes in all the ways there are."""

import asyncio
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import uvloop
from celery import Task, signals

from .base import configure, make_app
from .recording import record

app = make_app("subprocesses")
configure(app, "SUBPROCESSES_CONF")

#: Each task of a process takes the next hundred exit codes.
blocks = itertools.count()


async def gate_opens(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.02)


def sh(code, before=""):
    """A command that ends with *code*."""
    return ["sh", "-c", f"{before} exit {code}"]


@app.task(bind=True)
async def hundred(self, gate):
    """Run a hundred children at once, which all end together; return wrong exit codes.

    All but the last five are asyncio's; two of these run in threads and three are forked.
    """
    first = next(blocks) % 2 * 100 + 1
    expected = list(range(first, first + 100))
    reader, writer = os.pipe()
    children = [
        await asyncio.create_subprocess_exec(*sh(code, "read _;"), stdin=reader)
        for code in expected[:95]
    ]
    forked = [_fork(code, lambda: _wait_until(gate)) for code in expected[95:98]]
    os.close(reader)
    threads = [
        asyncio.ensure_future(asyncio.to_thread(_run_until, gate, code)) for code in expected[98:]
    ]
    record("children", id=self.request.id, pids=[*(child.pid for child in children), *forked])
    await gate_opens(gate)
    os.close(writer)
    seen = [await child.wait() for child in children]
    seen += [await asyncio.to_thread(_wait_pid, pid) for pid in forked]
    seen += [await thread for thread in threads]
    return [pair for pair in zip(expected, seen, strict=True) if len(set(pair)) > 1]


def _wait_until(gate):
    while not os.path.exists(gate):
        time.sleep(0.05)


def _run_until(gate, code):
    return subprocess.run(sh(code, f"until [ -e {gate} ]; do sleep 0.1; done;")).returncode


def _fork(code, work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(code)
    return pid


def _wait_pid(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# One child, in each way.


@app.task
async def run_exec(code):
    process = await asyncio.create_subprocess_exec(
        *sh(code, "cat; echo no >&2;"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate(b"yes")
    return [process.returncode, out.decode(), err.decode()]


@app.task
async def run_shell(code):
    process = await asyncio.create_subprocess_shell(
        f"cat; echo no >&2; exit {code}",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate(b"yes")
    return [process.returncode, out.decode(), err.decode()]


def _subprocess_run(code):
    done = subprocess.run(
        sh(code, "cat; echo no >&2;"), input="yes", capture_output=True, text=True
    )
    return [done.returncode, done.stdout, done.stderr]


@app.task
async def run_in_thread(code):
    return await asyncio.to_thread(_subprocess_run, code)


@app.task
def run_in_def(code):
    return _subprocess_run(code)


@app.task
async def run_killed():
    """Children that end by a signal say so."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    process.terminate()
    return await process.wait()


@app.task
async def run_cancelled():
    """The end of a child that nobody waits for any more is seen all the same."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        async with asyncio.timeout(0.05):
            await process.wait()
    except TimeoutError:
        process.kill()
    return await process.wait()


# Forks.


@app.task
async def fork(code):
    return await asyncio.to_thread(_wait_pid, _fork(code, lambda: None))


@app.task
def fork_in_def(code):
    return _wait_pid(_fork(code, lambda: None))


def _leave(how):
    """How code ends in a child that it has forked."""
    if how == "exits":
        sys.exit(7)
    if how == "exits with words":
        sys.exit("that was it")
    if how == "raises":
        raise ValueError("the child's own")
    return "from the child"


class ForkingHandlers(Task):
    """They fork, and leave as the first argument says, where the second one names them."""

    abstract = True

    def _fork(self, place, args):
        if args[1] == place:
            if (pid := os.fork()) == 0:
                return _leave(args[0])
            record("left", id=self.request.id, code=_wait_pid(pid))

    def before_start(self, task_id, args, kwargs):
        return self._fork("before_start", args)

    async def on_success(self, retval, task_id, args, kwargs):
        return self._fork("on_success", args)


@app.task(bind=True, base=ForkingHandlers)
async def fork_and_leave(self, how, place):
    """The child leaves as a program would, without `os._exit`."""
    if place == "body":
        if (pid := os.fork()) == 0:
            return _leave(how)
        record("left", id=self.request.id, code=await asyncio.to_thread(_wait_pid, pid))
    return "from the parent"


@app.task
async def fork_in_child_task(how):
    async def child_task():
        return os.fork() or _leave(how)

    pid = await asyncio.create_task(child_task())
    await asyncio.to_thread(_wait_pid, pid)
    return "from the parent"


@app.task(bind=True, base=ForkingHandlers)
def fork_and_leave_in_def(self, how, place):
    if place == "body":
        if (pid := os.fork()) == 0:
            return _leave(how)
        record("left", id=self.request.id, code=_wait_pid(pid))
    return "from the parent"


@app.task
async def fork_that_runs(code):
    """A forked child has children of its own, and a loop."""
    return await asyncio.to_thread(_wait_pid, _fork(99, lambda: _run_in_fork(code)))


def _run_in_fork(code):
    signal.alarm(60)
    if code % 3 == 0:
        os._exit(_subprocess_run(code)[0])
    factory = uvloop.new_event_loop if code % 3 == 1 else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        os._exit(runner.run(_code_of_child(code)))


async def _code_of_child(code):
    return await (await asyncio.create_subprocess_exec(*sh(code))).wait()


def square(number):
    return [number * number, os.getpid()]


def _exit(code):
    sys.exit(code)


def _sleep():
    time.sleep(600)


def _processes(method):
    return multiprocessing.get_context(method)


@app.task
async def run_multiprocessing(method, code):
    """Exit codes of two processes: one that ends, one that is ended."""
    ending = _processes(method).Process(target=_exit, args=(code,))
    running = _processes(method).Process(target=_sleep)
    ending.start()
    running.start()
    await asyncio.to_thread(ending.join)
    running.terminate()
    await asyncio.to_thread(running.join)
    return [ending.exitcode, running.exitcode]


@app.task
def run_pool(method):
    """`Pool.__exit__` ends its processes by SIGTERM."""
    with _processes(method).Pool(2) as pool:
        return [square for square, _ in pool.map(square, range(20))]


@app.task
async def run_executor(method):
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=_processes(method)) as executor:
        calls = [loop.run_in_executor(executor, square, number) for number in range(20)]
        results = await asyncio.gather(*calls)
        await asyncio.to_thread(executor.shutdown)
    assert os.getpid() not in {pid for _, pid in results}
    return [square for square, _ in results]


@app.task
def run_executor_in_def(method):
    with ProcessPoolExecutor(2, mp_context=_processes(method)) as executor:
        return [square for square, _ in executor.map(square, range(20))]


# Signals.


@app.task
async def handle_signal():
    """How often a handler on the loop has heard of a signal to this process, and where."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    threads = []

    def on_signal():
        threads.append(threading.current_thread() is threading.main_thread())
        heard.set()

    loop.add_signal_handler(signal.SIGUSR2, on_signal)
    try:
        process = await asyncio.create_subprocess_exec("kill", "-USR2", str(os.getpid()))
        assert await process.wait() == 0
        await heard.wait()
    finally:
        removed = loop.remove_signal_handler(signal.SIGUSR2)
    return [threads, removed]


@app.task
async def signal_fork():
    """A signal to a forked child is the child's: its parent's loop hears nothing."""
    loop = asyncio.get_running_loop()
    heard = []
    loop.add_signal_handler(signal.SIGUSR2, heard.append, "parent")
    try:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGUSR2, lambda *args: os._exit(21))
            os.write(writer, b"x")
            while True:
                time.sleep(0.05)  # a signal that comes just before it is handled after it
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        os.kill(pid, signal.SIGUSR2)
        code = await asyncio.to_thread(_wait_pid, pid)
        await asyncio.sleep(0.1)  # what it might have heard has been delivered
    finally:
        loop.remove_signal_handler(signal.SIGUSR2)
    return [code, heard]


@app.task
async def default_signals():
    """Signals that are not at their default in a forked child, and in one that runs a program."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        handled = [signum.name for signum in ENDING if signal.getsignal(signum) not in defaults]
        os.write(writer, ",".join(handled).encode())
        os._exit(0)
    os.close(writer)
    forked = await asyncio.to_thread(os.read, reader, 1000)
    os.close(reader)
    await asyncio.to_thread(_wait_pid, pid)
    process = await asyncio.create_subprocess_exec(
        "cat", "/proc/self/status", stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    status = dict(line.split(":\t", 1) for line in out.decode().splitlines())
    masks = [int(status[name], 16) for name in ("SigBlk", "SigIgn")]
    ran = [signum.name for signum in ENDING if any(mask >> signum - 1 & 1 for mask in masks)]
    return [forked.decode(), ran]


ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD)


# A child of the worker's main process.


@signals.worker_ready.connect
def start_child_of_main_process(**kwargs):
    gate = os.environ.get("SUBPROCESSES_GATE")
    if gate is not None:
        threading.Thread(target=_wait_for_child, args=(gate,), daemon=True).start()


def _wait_for_child(gate):
    process = subprocess.Popen(sh(23, f"until [ -e {gate} ]; do sleep 0.1; done;"))
    record("child of main", child=process.pid)
    record("exit of child of main", code=process.wait())
