"""What comes after a task, sent by its process: once, also when something goes wrong."""

import importlib.metadata
import json
import uuid

import pytest
from billiard.exceptions import WorkerLostError
from celery import chain, chord
from kombu import Queue
from transports import make_transport
from worker import wait_for

TIMEOUT = 60
CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])


# A task that has succeeded and is delivered again.


@pytest.fixture(scope="module")
def deduplicating(request, tmp_path_factory, start_worker):
    """A worker with worker_deduplicate_successful_tasks."""
    transport = make_transport("rabbitmq", request, tmp_path_factory.mktemp("rabbitmq"))
    env = {
        "OPERATIONS_CONF": "worker_deduplicate_successful_tasks=True; task_acks_late=True",
    }
    with start_worker(transport, "operations", "-c", 4, "--processes", 2, env=env) as worker:
        yield worker


@pytest.mark.parametrize("flavour", ["async", "def"])
def test_redelivered_success_is_not_run_again(deduplicating, flavour):
    """A task that is delivered again after its success is dropped."""
    worker = deduplicating
    result = worker.client.send(f"{flavour}_store_and_reject")

    worker.wait_log(f"[{result.id}] Task already completed successfully")
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
    assert result.get(timeout=TIMEOUT) == "first"
    assert worker.count("started", result) == 1


@pytest.mark.skipif(CELERY < (5, 7), reason="Celery before 5.7 drops what comes after it, too")
@pytest.mark.parametrize("what", ["chain", "link"])
@pytest.mark.parametrize("flavour", ["async", "def"])
def test_redelivered_success_goes_on(deduplicating, flavour, what):
    """Its chain and its links are sent nevertheless."""
    worker = deduplicating
    before = len(worker.records("got"))
    first, after = worker.client.s(f"{flavour}_store_and_reject"), worker.client.s("got")
    if what == "chain":
        result = chain(first, after).apply_async().parent
    else:
        result = first.apply_async(link=after)

    worker.wait_log(f"[{result.id}] Task already completed successfully")
    wait_for(lambda: len(worker.records("got")) > before, worker.tail)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
    assert [line["value"] for line in worker.records("got")[before:]] == ["first"]
    assert worker.count("started", result) == 1


# A callback that RabbitMQ refuses.


@pytest.fixture
def start(new_transport, start_worker):
    """Start a worker whose processes send a refused callback again, so often."""

    def start(times):
        policy = {"max_retries": times, "interval_start": 0.05, "interval_max": 0.05}
        conf = (
            "broker_transport_options={'confirm_publish': True}; "
            f"task_publish_retry_policy={policy}"
        )
        options = ("-c", 4, "--processes", 2)
        env = {"OPERATIONS_CONF": conf}
        return start_worker(new_transport("rabbitmq"), "operations", *options, env=env)

    return start


@pytest.fixture
def full_queue(rabbitmq_server):
    """The name of a queue that refuses messages until it is purged."""
    name = f"full-{uuid.uuid4().hex[:8]}"
    policy = {"max-length": 1, "overflow": "reject-publish"}
    rabbitmq_server.ctl(
        "set_policy", name, f"^{name}$", json.dumps(policy), "--apply-to", "queues"
    )
    yield name
    rabbitmq_server.ctl("clear_policy", name)


def fill(connection, name):
    queue = Queue(name)(connection.default_channel)
    queue.declare()
    connection.Producer().publish("filler", routing_key=name)
    wait_for(lambda: queue.queue_declare(passive=True).message_count == 1, "it is full")
    return queue


@pytest.mark.skipif(CELERY < (5, 7), reason="Celery before 5.7 does not retry them")
@pytest.mark.parametrize("what", ["chain", "link"])
def test_refused_callback_is_sent_again(start, full_queue, what):
    """A callback that the broker refuses is sent again until it is taken, and is there once."""
    with start(1000) as worker:
        with worker.client.app.connection_for_write() as connection:
            queue = fill(connection, full_queue)
            after = worker.client.s("got").set(queue=full_queue)
            if what == "chain":
                result = chain(worker.client.s("ok", 1), after).apply_async().parent
            else:
                result = worker.client.send("ok", 1, link=after)
            worker.wait_log("Retrying refused callback publish for 'apps.operations.got'")
            # Its process goes on meanwhile.
            assert worker.client.send("ok", 2).get(timeout=TIMEOUT)[0] == 2
            assert not result.ready()

            queue.purge()

            assert result.get(timeout=TIMEOUT)[0] == 1
            message = wait_for(lambda: queue.get(no_ack=True), "the callback")
            assert message.headers["task"] == "apps.operations.got"
            assert queue.get(no_ack=True) is None
            queue.delete()
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        assert worker.count("started", result) == worker.count("task_success", result) == 1


@pytest.mark.skipif(CELERY < (5, 7), reason="Celery before 5.7 does not retry them")
@pytest.mark.parametrize("what", ["chain", "link"])
def test_refused_callback_fails_the_task(start, full_queue, what):
    """When the broker goes on to refuse it, the task fails, and its errback runs once."""
    with start(2) as worker:
        with worker.client.app.connection_for_write() as connection:
            queue = fill(connection, full_queue)
            first = worker.client.s("ok", 1).on_error(worker.client.s("errback"))
            after = worker.client.s("got").set(queue=full_queue)
            if what == "chain":
                result = chain(first, after).apply_async().parent
            else:
                result = first.apply_async(link=after)

            wait_for(result.ready, worker.tail)
            assert result.state == "FAILURE"
            assert type(result.result).__name__ == "OperationalError"
            queue.delete()
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        assert worker.log().count("Retrying refused callback publish") == 2
        assert worker.log().count("Giving up refused callback publish") == 1
        assert worker.count("errback", result) == worker.count("task_failure", result) == 1
        assert worker.count("started", result) == 1
        assert worker.count("task_success", result) == 0


@pytest.mark.skipif(CELERY < (5, 7), reason="Celery before 5.7 does not retry them")
@pytest.mark.parametrize("times", [1000, 2])
def test_refused_body_of_a_chord(start, full_queue, times):
    """It is sent again until it is taken, once; or the chord fails, and its errback runs once."""
    with start(times) as worker, worker.client.app.connection_for_write() as connection:
        queue = fill(connection, full_queue)
        body = worker.client.s("got").set(queue=full_queue).on_error(worker.client.s("errback"))
        result = chord([worker.client.s("ok", number) for number in (1, 2)], body).apply_async()
        worker.wait_log("Retrying refused callback publish for 'apps.operations.got'")
        if times > 2:
            queue.purge()
            message = wait_for(lambda: queue.get(no_ack=True), "the chord's body")
            assert message.headers["id"] == result.id
            assert queue.get(no_ack=True) is None
        else:
            wait_for(result.ready, worker.tail)
            assert type(result.result).__name__ == "ChordError"
            wait_for(lambda: worker.records("errback"), worker.tail)
        queue.delete()
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        assert len(worker.records("errback")) == (times == 2)
        assert len(worker.records("started")) == 2


# Other ways on.


@pytest.mark.parametrize("flavour", ["async", "def"])
def test_replacement_on_another_queue(new_transport, start_worker, flavour):
    """`self.replace` gives the task's result to a task that another worker runs."""
    one, other = new_transport("redis"), new_transport("redis")
    options = ("operations", "-c", 2, "--processes", 1)
    with start_worker(one, *options) as worker, start_worker(other, *options) as second:
        result = worker.client.send(f"{flavour}_replace", other.queue)

        assert result.get(timeout=TIMEOUT) == ["replaced", *second.pool_pids()]


def test_errback_without_a_result_backend(new_transport, start_worker):
    """The errback of a chain's failed link runs once, also where results are stored nowhere."""
    env = {"ASYNCPOOL_TEST_BACKEND": "disabled://"}
    options = ("-c", 2, "--processes", 1)
    with start_worker(new_transport("redis"), "operations", *options, env=env) as worker:
        links = [worker.client.s("fail"), worker.client.s("got")]
        result = chain(links).on_error(worker.client.s("errback")).apply_async()

        wait_for(lambda: worker.records("errback"), worker.tail)
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        assert [line["id"] for line in worker.records("errback")] == [result.parent.id]
        assert not worker.records("got")


@pytest.mark.parametrize("errback", ["errback", "def_errback"])
@pytest.mark.parametrize("how", ["os._exit", "sys.exit"])
def test_errback_of_a_lost_task(redis_transport, start_worker, errback, how):
    """It runs once, async or not, although no process of the task's is there to run it."""
    with start_worker(redis_transport, "operations", "-c", 4, "--processes", 2) as worker:
        result = worker.client.send("die", how, link_error=worker.client.s(errback))

        with pytest.raises(WorkerLostError):
            result.get(timeout=TIMEOUT)

        wait_for(lambda: worker.count("errback", result), worker.tail)
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        assert worker.count("errback", result) == 1
