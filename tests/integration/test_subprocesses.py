"""Tasks may start processes in every way there is, and hear of each one's end."""

import os
import signal
from collections import Counter

import pytest
from billiard.exceptions import WorkerLostError
from proc import look, zombies_of
from worker import wait_for

#: How a forked child leaves the code that has forked it, and its exit code.
LEFT_CODES = {"exits": 7, "exits with words": 1, "raises": 1, "returns": 0}
FORKING_HANDLERS = ("before_start", "on_success")

SQUARES = [number * number for number in range(20)]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def worker(request, redis_transport, start_worker):
    env = {"SUBPROCESSES_CONF": f"asyncpool_loop={request.param!r}"}
    options = ("-c", 4, "--processes", 2)
    with start_worker(redis_transport, "subprocesses", *options, env=env) as worker:
        yield worker


def call(worker, task, *args):
    return worker.client.send(task, *args).get()


def assert_nothing_left(worker):
    """Only the worker's own processes are there, and no dead child waits to be asked for."""
    expected = {worker.process.pid, *worker.pool_pids()}
    wait_for(
        lambda: set(worker.family()) == expected,
        lambda: [look(pid) for pid in worker.family()],
    )
    wait_for(lambda: not zombies_of(expected), lambda: zombies_of(expected))


@pytest.mark.parametrize("task", ["run_exec", "run_shell", "run_in_thread", "run_in_def"])
def test_run(worker, task):
    """Input, output and exit code of a program."""
    results = [worker.client.send(task, code) for code in range(8)]

    assert [result.get() for result in results] == [[code, "yes", "no\n"] for code in range(8)]
    assert_nothing_left(worker)


@pytest.mark.parametrize(
    ("task", "signum"), [("run_killed", signal.SIGTERM), ("run_cancelled", signal.SIGKILL)]
)
def test_program_that_is_killed(worker, task, signum):
    """Its signal is told, also to somebody who asks again."""
    assert call(worker, task) == -signum


@pytest.mark.parametrize("task", ["fork", "fork_in_def", "fork_that_runs"])
def test_fork(worker, task):
    """The exit code of a forked child comes to who waits for its pid; it may run others."""
    results = [worker.client.send(task, code) for code in range(8)]

    assert [result.get() for result in results] == list(range(8))
    assert_nothing_left(worker)


@pytest.mark.parametrize(
    ("task", "place"),
    [
        *(("fork_and_leave", place) for place in ("body", *FORKING_HANDLERS)),
        *(("fork_and_leave_in_def", place) for place in ("body", *FORKING_HANDLERS)),
    ],
)
def test_forked_child_that_leaves(worker, task, place):
    """It ends where the code ends that has forked it, as a program; its parent's job goes on."""
    sent = {how: worker.client.send(task, how, place) for how in LEFT_CODES}

    assert {result.get() for result in sent.values()} == {"from the parent"}

    def codes():
        lines = {line["id"]: line["code"] for line in worker.records("left")}
        return {how: lines.get(result.id) for how, result in sent.items()}

    wait_for(lambda: codes() == LEFT_CODES, codes)
    assert_nothing_left(worker)
    assert [call(worker, "fork", code) for code in range(4)] == list(range(4))


@pytest.mark.parametrize("how", LEFT_CODES)
def test_forked_child_that_returns_to_the_loop(worker, how):
    """A child that was forked in an asyncio task of a body's ends, and runs nothing else."""
    sent = [worker.client.send("fork_in_child_task", how) for _ in range(4)]

    assert {result.get() for result in sent} == {"from the parent"}
    assert_nothing_left(worker)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(worker, method):
    """Its processes run, end, and can be terminated; so do those of its pool and executor."""
    sent = [
        worker.client.send("run_multiprocessing", method, 9),
        worker.client.send("run_pool", method),
        worker.client.send("run_executor", method),
        worker.client.send("run_executor_in_def", method),
    ]

    assert [result.get() for result in sent] == [[9, -15], SQUARES, SQUARES, SQUARES]


def test_signal_handler_of_the_loop(worker):
    """`loop.add_signal_handler` works, since a body's loop is that of the main thread."""
    assert call(worker, "handle_signal") == [[True], True]


def test_signal_to_a_forked_child(worker):
    """It does not come to the loop of the process that was forked."""
    assert call(worker, "signal_fork") == [21, []]


def test_signals_of_children(worker):
    """No signal that ends a process is ignored or blocked in one that a task starts."""
    assert call(worker, "default_signals") == ["", []]


def start_hundreds(worker, gate, count):
    """Tasks that each hold a hundred children, spread evenly over the processes."""
    tasks = [worker.client.send("hundred", str(gate)) for _ in range(count)]
    wait_for(lambda: len(worker.records("children")) == count, worker.tail)
    lines = {line["id"]: line for line in worker.records("children")}
    by_process = Counter(line["pid"] for line in lines.values())
    assert set(by_process.values()) == {count / len(by_process)}
    return [(task, lines[task.id]["pid"], lines[task.id]["pids"]) for task in tasks]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_exit_codes_under_load(new_transport, start_worker, tmp_path, loop):
    """200 children of each process end at once: each code is right, whatever becomes of others.

    Meanwhile one process is killed, and the other one replaced; and nobody takes
    the exit of a child that the worker's main process has started.
    """
    gate = tmp_path / "gate"
    env = {
        "SUBPROCESSES_CONF": f"asyncpool_loop={loop!r}; worker_pool_restarts=True",
        "SUBPROCESSES_GATE": str(gate),
    }
    options = ("-c", 4, "--processes", 2)
    with start_worker(new_transport("redis"), "subprocesses", *options, env=env) as worker:
        first, second = worker.pool_pids()
        tasks = start_hundreds(worker, gate, 4)
        assert all(look(pid) for _, _, pids in tasks for pid in pids)

        os.kill(first, signal.SIGKILL)
        lost = [pids for _, process, pids in tasks if process == first]
        wait_for(lambda: not any(look(pid) for pids in lost for pid in pids), "they are killed")
        worker.client.app.control.broadcast("pool_restart", destination=[worker.hostname])
        wait_for(lambda: not {first, second} & set(worker.up_processes()), worker.tail)
        wait_for(lambda: len(worker.up_processes()) == 2, worker.tail)
        gate.touch()

        for task, process, _ in tasks:
            if process == first:
                with pytest.raises(WorkerLostError, match="SIGKILL"):
                    task.get()
            else:
                assert task.get() == []
        more = [worker.client.send("hundred", str(gate)) for _ in range(4)]
        assert [task.get() for task in more] == [[], [], [], []]
        wait_for(lambda: worker.records("exit of child of main"), worker.tail)
        [line] = worker.records("exit of child of main")
        assert line["code"] == 23
        wait_for(lambda: look(second) is None, worker.tail)
        assert_nothing_left(worker)
