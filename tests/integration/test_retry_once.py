"""One attempt has one outcome and one next attempt, whoever has asked for it, and how often."""

import pytest
from celery import chord
from celery.exceptions import Reject
from worker import PATIENCE, wait_for


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    with start_worker(redis_transport, "retries", "-c", "20", "--processes", "2") as worker:
        yield worker


def states_of(worker, result, attempts):
    """The states of all attempts of a task, in order, when as many as *attempts* are over."""
    wait_for(lambda: worker.count("postrun", result) >= attempts, worker.tail)
    settle(worker)
    return [line["state"] for line in worker.records("postrun", id=result.id)]


def settle(worker):
    """Wait until the worker has nothing to do: what was published has run, too."""
    probe = worker.client.send("total", [1])
    assert probe.get(PATIENCE) == 1

    def idle():
        return not any(worker.inspect(what) for what in ("active", "reserved", "scheduled"))

    wait_for(idle, worker.tail)


GROUPS = ["in_task_group", "in_nested_groups", "in_anyio_group", "in_gather", "in_threads"]


@pytest.mark.parametrize("reason", ["retry", "aretry"])
@pytest.mark.parametrize("way", [*GROUPS, "in_late_gather", "in_group_of_block_and_child"])
def test_children(worker, way, reason):
    """Three children of a body that retry are one RETRY and one next attempt."""
    result = worker.client.send("asks", way, reason, reason, reason)

    assert states_of(worker, result, 2) == ["RETRY", "SUCCESS"]
    assert result.get(PATIENCE) == "again"
    assert worker.count("retry", result) == 1
    assert worker.count("failure", result) == 0


@pytest.mark.parametrize("way", GROUPS)
def test_children_of_a_loop_in_a_thread(worker, way):
    """So they are on a loop of a `def` body's own."""
    result = worker.client.send("def_asks", way, "retry", "retry", "retry")

    assert states_of(worker, result, 2) == ["RETRY", "SUCCESS"]
    assert worker.count("retry", result) == 1


@pytest.mark.parametrize("way", ["in_gather_with_exceptions", "in_wait"])
def test_children_whose_retries_are_kept_from_the_tracer(worker, way):
    """A body that goes on has its own outcome; the next attempt, one, comes as in Celery."""
    result = worker.client.send("asks", way, "retry", "retry", "retry")

    assert states_of(worker, result, 2) == ["SUCCESS", "SUCCESS"]
    assert result.get(PATIENCE) == "went on"  # the first SUCCESS stays, as ever with Redis


@pytest.mark.parametrize("way", ["in_task_group", "in_anyio_group"])
@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        (("ignore", "ignore"), "IGNORED"),
        (("reject", "reject"), "REJECTED"),
        (("ignore", "retry"), "RETRY"),
        (("retry", "reject"), "REJECTED"),
    ],
)
def test_children_with_other_verdicts(worker, way, reasons, state):
    """Ignore and Reject count in groups, too: Reject before Retry before Ignore."""
    result = worker.client.send("asks", way, *reasons)

    expected = ["RETRY", "SUCCESS"] if state == "RETRY" else [state]
    assert states_of(worker, result, len(expected)) == expected


@pytest.mark.parametrize("way", ["in_task_group", "in_nested_groups", "in_anyio_group"])
def test_children_with_an_error(worker, way):
    """A group with an error in it has failed: there is no next attempt beside the failure."""
    result = worker.client.send("asks", way, "retry", "error", "retry")

    assert states_of(worker, result, 1) == ["FAILURE"]
    assert worker.records("failure", id=result.id)[0]["type"] == "ExceptionGroup"


@pytest.mark.parametrize("reasons", [("error", "retry"), ("error", "retry", "retry")])
def test_gather_whose_first_error_is_no_retry(worker, reasons):
    """What another child has asked for in the same turn comes to nothing."""
    result = worker.client.send("asks", "in_gather", *reasons)

    assert states_of(worker, result, 1) == ["FAILURE"]


def test_children_that_exceed_the_retries(worker):
    """All children's retries are used up: the task fails once."""
    result = worker.client.send("exceeds")

    assert states_of(worker, result, 1) == ["FAILURE"]
    assert worker.count("failure", result) == 1


@pytest.mark.parametrize(
    ("what", "states"), [("retry", ["RETRY", "SUCCESS"]), ("error", ["FAILURE"])]
)
def test_autoretry_and_groups(worker, what, states):
    """`autoretry_for` lets a group of Retry pass, and knows only exceptions that it lists."""
    result = worker.client.send("autoretry_in_group", what)

    assert states_of(worker, result, len(states)) == states


@pytest.mark.parametrize(
    ("how", "states"),
    [
        ("caught", ["SUCCESS", "SUCCESS"]),
        ("throw=False", ["SUCCESS", "SUCCESS"]),
        ("throw=False, then an error", ["FAILURE", "SUCCESS"]),
        ("throw=False, then Ignore", ["IGNORED", "SUCCESS"]),
        ("throw=False, then Reject", ["REJECTED"]),
        ("raised, then an error", ["FAILURE"]),
    ],
)
def test_retry_that_is_not_the_outcome(worker, how, states):
    """It leaves all the same, unless it was raised and gave way to an error."""
    result = worker.client.send("swallows", how)

    assert states_of(worker, result, len(states)) == states


def test_last_of_two_retries_that_are_not_raised(worker):
    """The later call replaces the earlier one."""
    result = worker.client.send("swallows", "twice")

    assert states_of(worker, result, 2) == ["SUCCESS", "SUCCESS"]
    assert [line["how"] for line in worker.records("again", id=result.id)] == ["second"]


def test_retry_that_is_raised_counts(worker):
    """The outcome's own arguments are those of the next attempt, not those of a later call."""
    result = worker.client.send("asks_for_two")

    assert states_of(worker, result, 2) == ["RETRY", "SUCCESS"]
    assert result.get(PATIENCE) == "raised"


def test_child_that_the_body_leaves_behind(worker, tmp_path):
    """It cannot retry a task that is over."""
    path = tmp_path / "over"
    result = worker.client.send("leaves_child_behind", str(path))
    assert states_of(worker, result, 1) == ["SUCCESS"]

    path.touch()

    wait_for(lambda: worker.count("late", result), worker.tail)
    assert states_of(worker, result, 1) == ["SUCCESS"]


@pytest.mark.parametrize(
    ("task", "states"),
    [
        (("in_handler", "before_start"), ["RETRY", "SUCCESS"]),
        (("in_handler", "on_failure"), ["FAILURE", "SUCCESS"]),
        (("in_call",), ["RETRY", "SUCCESS"]),
    ],
)
def test_retry_around_the_body(worker, flavour, task, states):
    """Handlers and a custom `__call__` may ask for it as well."""
    name, *args = task
    result = worker.client.send(f"{flavour}_{name}", *args)

    assert states_of(worker, result, 2) == states
    assert result.get(PATIENCE) == "again"


def test_options(worker):
    """Queue, priority, expiry and arguments of a retry are those of the next attempt."""
    queue = worker.transport.queue
    options = {"queue": queue, "priority": 3, "expires": 600, "countdown": 0}
    options["kwargs"] = {"value": 5}
    result = worker.client.send("asks_with_options", options)

    key, priority, expires, value = result.get(PATIENCE)

    assert (key, priority, value) == (queue, 3, 5)
    assert expires is not None


def test_task_that_enqueues_itself(worker):
    """Another task, with an id of its own, is no retry: it is sent where it is called."""
    ids = []
    result = worker.client.send("enqueues_itself", 3)
    while result is not None:
        ids.append(result.id)
        following = result.get(PATIENCE)
        result = following and worker.client.app.AsyncResult(following)

    assert len(set(ids)) == 4


def test_publish_signals(worker):
    """They are sent once, in the place of the body that asked: its task, its context variables."""
    result = worker.client.send("sees_parents")

    assert result.get(PATIENCE) == [result.id, result.id]
    [before] = worker.records("before publish", id=result.id)
    assert (before["current"], before["place"]) == (result.id, "body")
    assert worker.count("after publish", result) == 1


# Custom classes.


def test_result_of_apply_async(worker, flavour):
    """An overridden `apply_async` gets a result; `retry` may do more, and raise what it got."""
    result = worker.client.send(f"{flavour}_uses_result", 7)

    assert states_of(worker, result, 2) == ["RETRY", "SUCCESS"]
    assert result.get(PATIENCE) == 7
    [applied] = worker.records("applied", id=result.id)
    assert (applied["type"], applied["app"], applied["ready"]) == ("AsyncResult", "retries", False)
    assert worker.count("asked", result) == 1
    wait_for(lambda: worker.count("noted", result) == 1, worker.tail)
    assert worker.count("failure", result) == 0


@pytest.mark.parametrize("how", ["super", "async super", "async retry", "unbound"])
def test_retry_past_an_override(worker, flavour, how):
    """Celery's own `retry`, by whatever road it is called, waits for the end of the attempt."""
    result = worker.client.send(f"{flavour}_asks_past", how)

    assert states_of(worker, result, 2) == ["RETRY", "SUCCESS"]
    assert worker.count("began", result) == 2
    assert result.get(PATIENCE) == "again"


def test_chord_of_tasks_that_retry(worker, flavour):
    """A chord waits for the last attempts of its members."""
    header = [worker.client.s(f"{flavour}_uses_result", n) for n in range(5)]

    assert chord(header)(worker.client.s("total")).get(PATIENCE) == 10


@pytest.mark.parametrize(
    ("task", "state", "error"),
    [
        ("breaks_after_apply", "REJECTED", Reject),
        ("breaks_after_retry", "FAILURE", KeyError),
    ],
)
def test_custom_class_whose_own_code_fails(worker, task, state, error):
    """The outcome is that of the error, as in Celery, and nothing is published."""
    result = worker.client.send(task)

    assert states_of(worker, result, 1) == [state]
    assert worker.count("before publish", result) == 0


# The message cannot be sent.


def test_retry_that_cannot_be_sent(worker, flavour):
    """The task fails, once, for all to hear, and its message is settled."""
    link = worker.client.s("errback")
    result = worker.client.send(f"{flavour}_unsendable", link_error=link)

    with pytest.raises(Exception, match="none of task_queues"):
        result.get(PATIENCE)
    wait_for(lambda: worker.count("after_return", result) == 1, worker.tail)
    settle(worker)
    whats = [line["what"] for line in worker.records(id=result.id)]
    assert [what for what in whats if "publish" not in what] == [
        *("prerun", "on_retry", "retry", "postrun"),
        *("errback", "on_failure", "failure", "after_return"),
    ]
    [failure] = worker.records("failure", id=result.id)
    assert failure["request"] == result.id
    assert "could not be published" in result.traceback


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_arguments_are_those_of_the_call(worker, flavour, serializer):
    """What the body does to them after its call of `retry` is not in the message."""
    result = worker.client.send(f"{flavour}_changes_arguments", ["own"], serializer=serializer)

    assert result.get(PATIENCE) == [["own"], ["given"]]


def test_arguments_that_cannot_be_sent(worker, flavour):
    """`retry` itself raises Reject, as in Celery."""
    result = worker.client.send(f"{flavour}_unserialisable", 1)

    assert states_of(worker, result, 1) == ["REJECTED"]
    assert worker.count("retry", result) == 0


def test_retry_beside_another_outcome_that_cannot_be_sent(worker, flavour):
    """That outcome stays, since others know it; the log tells of the retry."""
    result = worker.client.send(f"{flavour}_unsendable", False)

    assert states_of(worker, result, 1) == ["SUCCESS"]
    assert result.get(PATIENCE) == "went on"
    worker.wait_log(f"{flavour}_unsendable[{result.id}]: its next attempt, which its body asked")
