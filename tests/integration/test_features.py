"""What users of Celery do works, with `async def` and `def` tasks, on each transport."""

import contextlib
import time

import pytest
from celery import chain, chord, group
from worker import wait_for

TIMEOUT = 60


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    with start_worker(transport, "features", "-c", 40, "--processes", 2, "-E") as worker:
        yield worker


@pytest.fixture
def send(worker, flavour):
    """Send the task of this flavour."""

    def send(task, *args, **options):
        return worker.client.send(f"{flavour}_{task}", *args, **options)

    return send


@pytest.fixture
def s(worker, flavour):
    """A signature of the task of this flavour."""

    def s(task, *args):
        return worker.client.s(f"{flavour}_{task}", *args)

    return s


def whats(worker, task_id):
    return [line["what"] for line in worker.records(id=task_id)]


def test_result(send):
    """A task's return value is its result."""
    assert send("add", 2, 3).get(timeout=TIMEOUT) == 5


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_serializer(send, serializer):
    """Arguments arrive with either serializer."""
    assert send("add", 2, 3, serializer=serializer).get(timeout=TIMEOUT) == 5


def test_bind(send):
    """A bound task sees its own request."""
    result = send("bound", "value")

    task_id, name, value = result.get(timeout=TIMEOUT)

    assert task_id == result.id
    assert name.endswith("_bound")
    assert value == "value"


def test_retry(worker, send):
    """`raise self.retry(...)` runs the task again, with the count of its retries."""
    result = send("retry", 2)

    assert result.get(timeout=TIMEOUT) == 2
    wait_for(lambda: whats(worker, result.id).count("postrun") == 3, "all runs are over")
    assert whats(worker, result.id).count("retry") == 2


def test_retry_gives_up(worker, send):
    """After max_retries the task fails with MaxRetriesExceededError."""
    result = send("retry", 99)

    with pytest.raises(Exception, match="Can't retry"):
        result.get(timeout=TIMEOUT)

    wait_for(lambda: whats(worker, result.id).count("postrun") == 4, "all runs are over")
    assert whats(worker, result.id).count("failure") == 1


def test_autoretry(worker, send):
    """`autoretry_for` with backoff retries what the body raises."""
    result = send("autoretry", 1)

    assert result.get(timeout=TIMEOUT) == 1
    wait_for(lambda: whats(worker, result.id).count("postrun") == 2, "both runs are over")
    assert whats(worker, result.id).count("retry") == 1


def test_failure(worker, send):
    """An exception is the task's failure, and its traceback shows the user's line."""
    result = send("fail", "broken")

    with pytest.raises(ValueError, match="broken"):
        result.get(timeout=TIMEOUT)

    assert result.state == "FAILURE"
    assert "raise ValueError(text)  # the user's line" in result.traceback
    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    assert whats(worker, result.id) == ["prerun", "failure", "postrun"]


def test_signals_of_success(worker, send):
    """Each signal is sent once, with the task's own request as the current one."""
    result = send("add", 1, 1)
    result.get(timeout=TIMEOUT)

    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    assert whats(worker, result.id) == ["prerun", "success", "postrun"]
    prerun = worker.records("prerun", id=result.id)[0]
    assert prerun["request"] == result.id
    assert prerun["current"].endswith("_add")
    assert worker.records("postrun", id=result.id)[0]["state"] == "SUCCESS"


def test_ignore(send, worker):
    """`raise Ignore` leaves no result."""
    result = send("ignore")

    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    assert result.state == "PENDING"
    assert worker.records("postrun", id=result.id)[0]["state"] == "IGNORED"


def test_reject(send, worker):
    """`raise Reject` rejects the message, and the task is not run again."""
    result = send("reject")

    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    assert worker.records("postrun", id=result.id)[0]["state"] == "REJECTED"
    assert len(worker.records("prerun", id=result.id)) == 1


def test_ignore_result(send, worker):
    """A task with ignore_result runs and stores nothing."""
    before = len(worker.records("quiet ran"))

    result = send("quiet")

    wait_for(lambda: len(worker.records("quiet ran")) == before + 1, "the task ran")
    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    assert result.state == "PENDING"


def test_track_started(send, tmp_path):
    """`track_started` stores STARTED, with the process's pid, while the task runs."""
    gate = tmp_path / "gate"
    result = send("tracked", str(gate))

    wait_for(lambda: result.state == "STARTED", lambda: result.state)
    assert isinstance(result.info["pid"], int)

    gate.touch()
    assert result.get(timeout=TIMEOUT) == "done"


def test_acks_late(send):
    """A task with acks_late runs."""
    assert send("late", 7).get(timeout=TIMEOUT) == 7


def test_eta(send):
    """A task with a countdown does not run before its time."""
    sent = time.time()

    result = send("add", 1, 2, countdown=0.5)

    assert result.get(timeout=TIMEOUT) == 3
    assert time.time() - sent >= 0.5


def test_expired(send):
    """A task that has expired before it arrived never runs."""
    result = send("add", 1, 2, expires=-1)

    wait_for(lambda: result.state == "REVOKED", lambda: result.state)


def test_rate_limit(send):
    """A rate limit holds: of six tasks at five a second, at most two start at once."""
    sent = time.monotonic()
    results = [send("rated") for _ in range(6)]

    times = [result.get(timeout=TIMEOUT) for result in results]

    assert max(times) - sent >= 0.7


def test_priority(send):
    """A message with a priority is taken."""
    assert send("add", 1, 2, priority=5).get(timeout=TIMEOUT) == 3


def test_chain(s):
    """Each link of a chain gets the result of the one before."""
    assert chain(s("add", 1, 2), s("add", 3), s("add", 4)).apply_async().get(timeout=TIMEOUT) == 10


def test_group(s):
    """A group gives all results in order."""
    result = group(s("add", number, number) for number in range(10)).apply_async()

    assert result.get(timeout=TIMEOUT) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_chord(s):
    """The body of a chord gets the results of its header."""
    result = chord([s("add", number, 1) for number in range(5)], s("total")).apply_async()

    assert result.get(timeout=TIMEOUT) == 15


def test_chain_of_group(s):
    """A group in the middle of a chain becomes a chord."""
    result = chain(s("add", 1, 1), group(s("add", 1), s("add", 2)), s("total")).apply_async()

    assert result.get(timeout=TIMEOUT) == 7


def test_link(worker, send, s):
    """A linked task gets the result."""
    send("add", 20, 22, link=s("linked"))

    wait_for(lambda: worker.records("linked", value=42), "the linked task ran")


@pytest.mark.parametrize("errback", ["async_errback", "def_errback"])
def test_link_error(worker, send, errback):
    """An errback of the old form, run where the task failed, runs once."""
    result = send("fail", "for the errback", link_error=worker.client.s(errback))

    with contextlib.suppress(ValueError):
        result.get(timeout=TIMEOUT)

    wait_for(lambda: worker.records("errback", id=result.id), "the errback ran")
    assert len(worker.records("errback", id=result.id)) == 1


@pytest.mark.parametrize("kind", ["handled", "handled_async"])
def test_handlers_of_success(worker, send, kind):
    """Plain and async handlers are called once, in Celery's order."""
    result = send(kind, False)
    assert result.get(timeout=TIMEOUT) == 1

    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    called = ["called"] if kind == "handled" else []
    assert whats(worker, result.id) == [
        *("prerun", "before_start"),
        *called,
        *("on_success", "success", "after_return", "postrun"),
    ]


@pytest.mark.parametrize("kind", ["handled", "handled_async"])
def test_handlers_of_failure(worker, send, kind):
    """Plain and async failure handlers are called once, in Celery's order."""
    result = send(kind, True)
    with pytest.raises(ValueError, match="handled"):
        result.get(timeout=TIMEOUT)

    wait_for(lambda: "postrun" in whats(worker, result.id), "postrun")
    assert whats(worker, result.id) == [
        *("prerun", "before_start", "on_failure", "failure", "after_return", "postrun")
    ]


def test_custom_call(worker, send, flavour):
    """A plain __call__ of the task's class gets the result, not a coroutine."""
    result = send("handled", False)
    result.get(timeout=TIMEOUT)

    assert worker.records("called", id=result.id)[0]["type"] == "int"


def test_async_custom_call(worker):
    """An async __call__ of the task's class is awaited."""
    result = worker.client.send("async_called")

    assert result.get(timeout=TIMEOUT) == 1
    assert worker.records("called", id=result.id)[0]["type"] == "int"


def test_body_is_on_the_main_thread(worker):
    """An async body runs on the process's main thread."""
    assert worker.client.send("loop_thread").get(timeout=TIMEOUT)[1] is True


def test_hidden_async_body(worker):
    """A decorator without functools.wraps does not keep a body off the loop."""
    send = worker.client.app.send_task
    results = [send("async_hidden", (0.01,), queue=worker.transport.queue) for _ in range(5)]

    threads = {result.get(timeout=TIMEOUT) for result in results}

    main = worker.client.send("loop_thread").get(timeout=TIMEOUT)[0]
    assert main in threads


def test_large_result(send):
    """A result of a megabyte arrives whole."""
    assert len(send("big", 1024 * 1024).get(timeout=TIMEOUT)) == 1024 * 1024


def test_large_argument(send):
    """An argument of a megabyte arrives whole."""
    assert send("add", "x" * 1024 * 1024, "y").get(timeout=TIMEOUT)[-2:] == "xy"


def test_unserialisable_result(send):
    """A result that cannot be encoded is that task's failure, which says so."""
    with pytest.raises(Exception, match="not JSON serializable"):
        send("unserialisable").get(timeout=TIMEOUT)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("unpicklable", "holds a lock"),
        ("one way", "one way|'one', 'way'"),
        ("exit", "exitcode 3"),
        ("interrupt", "KeyboardInterrupt"),
    ],
)
def test_exception_that_is_hard_to_report(worker, send, tmp_path, kind, text):
    """It fails that task with a clear error; its process and neighbours live."""
    gate = tmp_path / "gate"
    pids = worker.pool_pids()
    neighbours = [send("hold", str(gate), n) for n in range(2)]  # one in each process
    result = send("bad_exception", kind)

    with pytest.raises(Exception, match=text):
        result.get(timeout=TIMEOUT)

    gate.touch()
    assert [neighbour.get(timeout=TIMEOUT) for neighbour in neighbours] == [0, 1]
    assert worker.pool_pids() == pids
    assert result.state == "FAILURE"


def test_generator(send):
    """A body that returns a generator fails with an error that says so."""
    with pytest.raises(TypeError, match="returned a generator"):
        send("generator").get(timeout=TIMEOUT)


def test_body_that_cancels_itself(worker):
    """A cancelled body is a failed task, not a lost one."""
    with pytest.raises(Exception, match="cancelled"):
        worker.client.send("async_cancels_itself").get(timeout=TIMEOUT)


@pytest.mark.parametrize("how", ["stop", "exit"])
def test_body_that_ends_the_loop(worker, how):
    """A body that stops the loop, or a SystemExit in a task of its own, ends neither."""
    pids = worker.pool_pids()

    assert worker.client.send("async_kills_loop", how).get(timeout=TIMEOUT) == "lived on"

    assert worker.pool_pids() == pids


def test_unknown_task(worker):
    """A task that nobody knows is discarded with Celery's error, and the worker goes on."""
    result = worker.client.send("nobody_knows")

    with pytest.raises(Exception, match="nobody_knows"):
        result.get(timeout=TIMEOUT)
    assert worker.client.send("async_add", 1, 2).get(timeout=TIMEOUT) == 3


def test_stats(worker):
    """`inspect stats` shows the pool, its processes and what each does."""
    worker.client.send("async_add", 1, 2).get(timeout=TIMEOUT)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
    pool = worker.pool()

    assert pool["implementation"] == "celery_asyncpool.pool:Pool"
    assert pool["max-concurrency"] == 40
    assert len(pool["processes"]) == 2
    for pid in pool["processes"]:
        process = pool["worker-processes"][str(pid)]
        assert process["state"] == "up"
        assert process["slots"] == 20
        assert process["slots-in-use"] == 0
    assert sum(process["jobs-done"] for process in pool["worker-processes"].values()) > 0


def test_stats_of_a_busy_pool(worker, send, flavour, tmp_path):
    """`inspect stats` counts slots in use, and threads in use by `def` tasks."""
    gate = tmp_path / "gate"
    results = [send("tracked", str(gate)) for _ in range(4)]
    wait_for(lambda: all(r.state == "STARTED" for r in results), "all started")

    def threads():
        return [info["threads-in-use"] for info in worker.up_processes().values()]

    try:
        wait_for(lambda: worker.slots_in_use() == 4, worker.pool)
        wait_for(lambda: threads() == ([2, 2] if flavour == "def" else [0, 0]), worker.pool)
    finally:
        gate.touch()
    assert [result.get(timeout=TIMEOUT) for result in results] == ["done"] * 4
    wait_for(lambda: threads() == [0, 0], worker.pool)


def test_identity(worker):
    """`self.request` and `current_task` are right in 300 interleaved tasks; gone afterwards."""
    results = [worker.client.send("identity", 0.1) for _ in range(300)]

    wrong = [result.get(timeout=TIMEOUT) for result in results]

    assert wrong == [[]] * 300
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
    for _ in range(4):  # both processes
        assert worker.client.send("leftovers").get(timeout=TIMEOUT) == [None, 0]
