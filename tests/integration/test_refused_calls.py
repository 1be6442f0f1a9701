"""Calls that the pool cannot run as they are: none is lost, and none holds up the others."""

import math
import uuid

import pytest
from transports import messages_in_redis
from worker import wait_for

TIMEOUT = 60
APP = "apps.refused."


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    with start_worker(transport, "refused", "-c", 4, "--processes", 1) as worker:
        yield worker


def publish(client, task, timelimit, **headers):
    """Send a message with any `timelimit` in its header, as any producer can."""
    app, task_id = client.app, str(uuid.uuid4())
    message = app.amqp.as_task_v2(task_id, APP + task, (), {})
    message.headers["timelimit"] = timelimit
    message.headers.update(headers)
    with app.producer_or_acquire() as producer:
        app.amqp.send_task_message(producer, APP + task, message, queue=client_queue(client))
    return app.AsyncResult(task_id)


def client_queue(client):
    return client.app.amqp.queues[client.app.conf.task_default_queue]


def nothing_held(worker):
    """All slots are free, and the worker has no message that is not settled."""
    wait_for(lambda: not worker.slots_in_use(), worker.tail)
    wait_for(lambda: not worker.inspect("active") and not worker.inspect("reserved"), worker.tail)


def messages_left(transport, client):
    """Messages in the queue: those that a worker gave back when it stopped are among them."""
    if transport.folder is not None:
        return len(list((transport.folder / "queue").glob(f"*.{transport.queue}.msg")))
    with client.app.connection_for_read() as connection:
        channel = connection.default_channel
        if transport.name == "redis":
            return sum(messages_in_redis(channel.client, transport.queue))
        return client_queue(client)(channel).queue_declare(passive=True).message_count


@pytest.mark.parametrize("late", ["", "_late"])
@pytest.mark.parametrize(
    ("task", "count", "error"),
    [("hard_first", 1000, "must be less than its time_limit"), ("unpicklable", 100, "lock")],
)
def test_refused(new_transport, start_worker, transport, task, count, error, late):
    """Each has failed and is acknowledged; then good tasks run, and no message is left."""
    own = new_transport(transport.name)
    with start_worker(own, "refused", "-c", 4, "--processes", 1) as worker:
        # Redis does not tell whose unacknowledged messages are; earlier tests may have left some.
        before = messages_left(own, worker.client)
        results = [worker.client.send(task + late) for _ in range(count)]
        good = [worker.client.send("add", n, n) for n in range(20)]

        assert [result.get(timeout=TIMEOUT) for result in good] == [2 * n for n in range(20)]
        for result in results:
            with pytest.raises((ValueError, TypeError), match=error):
                result.get(timeout=TIMEOUT)
        nothing_held(worker)
        worker.stop()
        assert messages_left(own, worker.client) <= before


@pytest.mark.parametrize("late", ["", "_late"])
def test_soft_limit_behind_the_tasks_hard_one(worker, late):
    """The call runs under the hard limit; one line names task and call."""
    results = [worker.client.send(f"limited{late}", soft_time_limit=60) for _ in range(40)]

    assert [result.get(timeout=TIMEOUT) for result in results] == ["ran"] * 40
    for result in results:
        line = (
            f"{APP}limited{late}[{result.id}] runs without its soft_time_limit of 60s: "
            "its time_limit of 30s is over first"
        )
        assert worker.log().count(line) == 1
    nothing_held(worker)


JUNK = [
    [-1, None],
    [None, -5],
    [0, 0],
    [math.nan, math.nan],
    [math.inf, None],
    [-math.inf, math.inf],
    ["soon", ""],
    [True, False],
    [[30], {"soft": 5}],
    [30],
    [30, 20, 10],
    30,
    "30",
    "ab",
    {"soft": 5, "hard": 30},
    [],
    "",
]


def can_be_sent(transport, timelimit):
    """RabbitMQ ends connections that bring it NaN or infinity."""
    values = timelimit if isinstance(timelimit, list) else []
    return transport.name != "rabbitmq" or not any(type(value) is float for value in values)


@pytest.mark.parametrize("late", ["", "_late"])
def test_junk_in_the_header(worker, late):
    """Whatever a message has for limits: it runs under those that make sense."""
    junk = [timelimit for timelimit in JUNK if can_be_sent(worker.transport, timelimit)]
    results = [publish(worker.client, f"limited{late}", timelimit) for timelimit in junk]

    assert [result.get(timeout=TIMEOUT) for result in results] == ["ran"] * len(junk)
    nothing_held(worker)


def test_junk_is_named(worker):
    """The log says which limit of which call was left out."""
    one = publish(worker.client, "limited", [-1, 5])
    other = publish(worker.client, "limited", [30, 20, 10])
    text = publish(worker.client, "limited", ["30", "20.5"])

    for result in (one, other, text):
        result.get(timeout=TIMEOUT)
    assert f"{APP}limited[{one.id}] runs without the time_limit -1 of its message" in worker.log()
    assert (
        f"{APP}limited[{other.id}] runs without the limits of its message, whose timelimit must "
        "be [time_limit, soft_time_limit], got [30, 20, 10]"
    ) in worker.log()
    assert f"{APP}limited[{text.id}] runs without" not in worker.log()
    [line] = worker.records("ran", id=text.id)
    assert line["timelimit"] == [30, 20.5]


def test_retry_of_a_call_with_junk(worker):
    """Its next attempt is sent with what was left of its limits."""
    result = publish(worker.client, "retried", [40, "soon"])

    assert result.get(timeout=TIMEOUT) == [40, None]


def test_same_limits(worker):
    """Celery allows both to be the same: the hard one holds, as the log says at the start."""
    assert worker.client.send("same_limits").get(timeout=TIMEOUT) == "ran"
    assert f"soft_time_limit of task {APP}same_limits is left out" in worker.log()


HARD_FIRST = "soft_time_limit of task {} must be less than its time_limit, got 60 and 30"
REFUSED = {
    "hard_first": HARD_FIRST,
    "hard_first_late": HARD_FIRST,
    "junk_limit": "time_limit of task {} must be a number of seconds above 0, got 'soon'",
    "nan_limit": "time_limit of task {} must be a number of seconds above 0, got nan",
    "hook_without_limit": "task {} has on_soft_limit and no soft limit that would call it",
    "hook_is_text": "on_soft_limit of task {} must be a function that takes the task, got 'told'",
}


@pytest.mark.parametrize("task", REFUSED)
def test_task_with_nonsense(worker, task):
    """The worker starts, and names it in an error; its calls fail with that sentence."""
    why = REFUSED[task].format(APP + task)

    with pytest.raises(ValueError, match=r"must be|no soft limit") as raised:
        worker.client.send(task).get(timeout=TIMEOUT)

    assert why in str(raised.value)
    starts = [
        line for line in worker.log().splitlines() if f"calls of task {APP}{task} fail" in line
    ]
    assert len(starts) == 1
    assert "ERROR" in starts[0]
    assert why in starts[0]
    nothing_held(worker)


@pytest.mark.parametrize(
    ("task", "limits"),
    [
        ("hard_first", {"soft_time_limit": 20}),
        ("hard_first", {"time_limit": 90}),
        ("junk_limit", {"time_limit": 90}),
        ("hook_without_limit", {"soft_time_limit": 20}),
    ],
)
def test_call_that_has_what_its_task_lacks(worker, task, limits):
    """With limits of its own a call of such a task runs."""
    assert worker.client.send(task, **limits).get(timeout=TIMEOUT) == "ran"


def test_hook_of_a_base_class(worker):
    """A hook for many tasks keeps none of them from running."""
    assert worker.client.send("hook_of_base").get(timeout=TIMEOUT) == "ran"
    assert f"task {APP}hook_of_base" not in worker.log()
