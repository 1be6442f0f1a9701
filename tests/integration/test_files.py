"""Files as broker: publishers are kombu's own, and nothing that they leave harms a worker."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from worker import wait_for

HERE = Path(__file__).parent

#: Seconds for ten thousand messages on a slow and busy machine.
LONG = 300.0


@pytest.fixture
def files(new_transport):
    return new_transport("filesystem")


@pytest.fixture
def publish(files):
    """Start publishers, programs of their own; what still runs at the end is killed."""
    processes = []

    def start(task, count, *options):
        command = [sys.executable, HERE / "file_publisher.py", files.folder, files.queue]
        process = subprocess.Popen(
            [*map(str, command), f"apps.files.{task}", str(count), *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def sent(files):
    path = files.folder / "sent"
    return path.read_text().splitlines() if path.exists() else []


def ran(*workers):
    return Counter(line["key"] for worker in workers for line in worker.records("note"))


def messages(files):
    return sorted(path.name for path in (files.folder / "queue").glob(f"*.{files.queue}.msg"))


@pytest.mark.parametrize("count", [1, 2])
def test_ten_thousand_messages_of_four_publishers(files, publish, start_worker, count):
    """Each runs once, with one worker and with two, and all workers live."""
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(start_worker(files, "files", "-c", 50, "--processes", 2))
            for _ in range(count)
        ]
        publishers = [publish("note", 2500) for _ in range(4)]

        for publisher in publishers:
            _, errors = publisher.communicate(timeout=LONG)
            assert publisher.returncode == 0, errors.decode()
        wait_for(lambda: ran(*workers).total() >= 10_000, workers[0].tail, LONG)

        assert len(sent(files)) == 10_000
        assert ran(*workers) == Counter(sent(files))
        assert messages(files) == []
        assert all("Traceback" not in worker.log() for worker in workers)


def test_publishers_that_are_killed_while_they_write(files, publish, start_worker):
    """What they have sent runs once; the half of a message stays, and is named."""
    with start_worker(files, "files", "-c", 10, "--processes", 1) as worker:
        for _ in range(6):
            publisher = publish("note", 1000, "--cut")
            before = len(sent(files))
            wait_for(lambda before=before: len(sent(files)) > before + 3, worker.tail)
            # In the middle of one, empty or half written.
            wait_for(lambda: messages(files), worker.tail)
            publisher.send_signal(signal.SIGKILL)
            publisher.wait()
        last = worker.client.send("note", "last")

        wait_for(lambda: ran(worker)["last"], worker.tail)
        wait_for(lambda: set(sent(files)) <= set(ran(worker)), worker.tail)
        left = messages(files)
        for name in left:
            worker.wait_log(f"{name} is no message that this worker can take")

        counts = ran(worker)
        assert set(counts.values()) == {1}
        # Whole, but killed before it could say so.
        assert len(counts.keys() - {"last"} - set(sent(files))) <= 6
        worker.wait_settled(last)


def half(content):
    return content[: len(content) // 2]


FOREIGN = {
    "empty": b"",
    "text": b"not JSON",
    "binary": bytes(range(256)),
    "number": b"42",
    "list": b"[]",
    "object": b"{}",
    "no-properties": b'{"body": "e30=", "properties": 7}',
    "no-address": b'{"body": "e30=", "properties": {"delivery_tag": "t"}}',
    "bad-base64": b'{"body": 7, "properties": {"delivery_tag": "t", "body_encoding": "base64"}}',
    "bad-date": b'{"__type__": "datetime", "__value__": "soon"}',
    "deep": b"[" * 100_000,
}


def test_what_is_no_message_is_named_once_and_stays(files, start_worker):
    """Junk, a folder, a pipe, a file without rights: the tasks behind them run."""
    queue = files.folder / "queue"
    for number, (name, content) in enumerate(FOREIGN.items()):
        (queue / f"{number}_{name}.{files.queue}.msg").write_bytes(content)
    (queue / f"0_folder.{files.queue}.msg").mkdir()
    os.mkfifo(queue / f"0_pipe.{files.queue}.msg")
    (queue / f"0_nowhere.{files.queue}.msg").symlink_to("nowhere")
    junk = messages(files)

    with start_worker(files, "files", "-c", 4, "--processes", 1) as worker:
        for name in junk:
            if "nowhere" not in name:
                worker.wait_log(f"{name} is no message that this worker can take")
        for number in range(20):
            worker.client.send("note", number)
        wait_for(lambda: ran(worker).total() == 20, worker.tail)

        log = worker.log()
        assert messages(files) == junk
        assert {log.count(f"{name} is no message") for name in junk} == {0, 1}
        assert worker.process.poll() is None


ADDRESS = {"exchange": "", "routing_key": "q"}
TAG = {"delivery_tag": "t", "delivery_info": ADDRESS}
NO_TASK = {
    "nothing": {"properties": TAG},
    "body": {"properties": TAG, "body": 7},
    "content": {"properties": TAG, "body": "[]", "content-type": 7, "content-encoding": 7},
    "address": {"properties": {**TAG, "delivery_info": dict.fromkeys(ADDRESS)}, "body": "x"},
    "headers": {
        "properties": TAG,
        "headers": {"task": "no.such", "id": "a"},
        "body": "[[], {}, {}]",
    },
    "compressed": {"properties": TAG, "headers": {"compression": "no-such"}, "body": "x"},
    "encoding": {"properties": {**TAG, "body_encoding": "no-such"}, "body": "x"},
}


def test_messages_that_are_no_tasks(files, start_worker):
    """kombu would take them, or not: Celery says what they are, and the next ones run."""
    for name, content in NO_TASK.items():
        path = files.folder / "queue" / f"0_{name}.{files.queue}.msg"
        path.write_text(json.dumps(content))

    with start_worker(files, "files", "-c", 4, "--processes", 1) as worker:
        for number in range(20):
            worker.client.send("note", number)
        wait_for(lambda: ran(worker).total() == 20, worker.tail)

        # Celery's consumer has not started anew, either.
        assert worker.log().count(" ready.") == 1
        assert worker.process.poll() is None


def test_a_file_that_becomes_a_message_runs(files, start_worker, tmp_path):
    """One that was cut off, and is completed later, is seen then."""
    with start_worker(files, "files", "-c", 4, "--processes", 1) as worker:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        client = worker.client.app
        options = {**client.conf.broker_transport_options, "data_folder_out": str(folder)}
        with client.connection_for_write(transport_options=options) as connection:
            worker.client.s("note", "late").apply_async(connection=connection)
        [path] = folder.iterdir()
        content = path.read_bytes()
        target = files.folder / "queue" / path.name
        target.write_bytes(half(content))
        worker.wait_log(f"{path.name} is no message that this worker can take")

        target.write_bytes(content)

        wait_for(lambda: ran(worker)["late"] == 1, worker.tail)
        assert messages(files) == []


def test_retries_are_published_whole(files, start_worker):
    """What the worker's processes publish themselves appears complete, and runs once."""
    with start_worker(files, "files", "-c", 20, "--processes", 2) as worker:
        results = [worker.client.send("again", number, 10) for number in range(50)]

        assert [result.get() for result in results] == list(range(50))
        assert ran(worker) == Counter(range(50))


@pytest.mark.parametrize("content", ["", "[[", '[["a", "", "b"]]]]', "[1]", "7"])
def test_tables_of_bindings_that_are_cut_off(files, start_worker, content):
    """A publisher was killed when it created one: the worker mends it, and is heard."""
    tables = [
        files.folder / "control" / f"{name}.exchange" for name in ("celery.pidbox", files.queue)
    ]
    for path in tables:
        path.write_text(content)

    with start_worker(files, "files", "-c", 4, "--processes", 1) as worker:
        worker.client.send("note", "a")
        wait_for(lambda: ran(worker)["a"] == 1, worker.tail)

        assert all(json.loads(path.read_text()) for path in tables)
        assert worker.log().count("could not be read") == 2


def test_folders_that_are_not_there_are_made(files, start_worker):
    """The worker makes them, so that publishers find them."""
    for name in ("queue", "control"):
        (files.folder / name).rmdir()
    with start_worker(files, "files", "-c", 4, "--processes", 1) as worker:
        worker.client.send("note", "a")

        wait_for(lambda: ran(worker)["a"] == 1, worker.tail)


def test_folder_that_cannot_be_made(files, start_worker):
    """The worker says which, and goes on when it can be."""
    folder = files.folder / "queue"
    folder.rmdir()
    folder.write_text("in the way")
    worker = start_worker(files, "files", "-c", 4, "--processes", 1)
    worker.start()
    try:
        worker.wait_log(f"cannot make the folder {folder}")
        folder.unlink()
        folder.mkdir()
        worker.wait_ready()
        worker.client.send("note", "a")

        wait_for(lambda: ran(worker)["a"] == 1, worker.tail)
        worker.stop()
    finally:
        worker.kill_everything()
        worker.client.close()


def test_processed_messages_are_kept(files, start_worker):
    """With ``store_processed`` each message is moved, into a folder that the worker makes."""
    folder = files.folder / "kept"
    options = {
        "data_folder_in": f"{files.folder}/queue",
        "data_folder_out": f"{files.folder}/queue",
        "control_folder": f"{files.folder}/control",
        "store_processed": True,
        "processed_folder": str(folder),
        "polling_interval": 0.02,
    }
    env = {"FILES_CONF": f"broker_transport_options={options!r}"}
    with start_worker(files, "files", "-c", 4, "--processes", 1, env=env) as worker:
        for number in range(20):
            worker.client.send("note", number)
        wait_for(lambda: ran(worker).total() == 20, worker.tail)

        kept = [*folder.glob(f"*.{files.queue}.msg")]
        assert len(kept) == 20
        assert ran(worker) == Counter(range(20))
