"""Messages in a folder are taken once and whole; what is none is left alone."""

import fcntl
import json
import os
import resource
import threading
from pathlib import Path

import pytest

from celery_asyncpool.files.inbox import PATIENCE, TRY_AGAIN, Inbox


class Parser:
    """Counts what it is asked to read."""

    def __init__(self):
        self.contents = []

    def __call__(self, content):
        self.contents.append(content)
        return json.loads(content)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def parser():
    return Parser()


@pytest.fixture
def inbox(tmp_path, parser, clock):
    return Inbox(str(tmp_path), "q", parser, clock=clock)


def put(folder, name, content="{}", queue="q"):
    path = folder / f"{name}.{queue}.msg"
    path.write_text(content)
    return path


def test_oldest_first(tmp_path, inbox):
    """Messages come in the order of their names, and their files go."""
    for number in (3, 1, 2):
        put(tmp_path, f"{number}_x", f'"{number}"')

    assert [inbox.take() for _ in range(4)] == ["1", "2", "3", None]
    assert list(tmp_path.iterdir()) == []


def test_other_queues_and_files_are_not_touched(tmp_path, inbox):
    """Only what has the queue's very name behind the first dot is a message of the queue."""
    put(tmp_path, "1_x", queue="b.q")
    put(tmp_path, "2_x", queue="q.x")
    (tmp_path / ".q.msg.part").write_text("{}")
    (tmp_path / "notes.txt").write_text("{}")

    assert inbox.take() is None
    assert len(list(tmp_path.iterdir())) == 4


def test_message_that_is_being_written(tmp_path, inbox, parser):
    """While its publisher has it locked it is not read; then it is."""
    path = put(tmp_path, "1_x", '{"whole": 1}')
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert inbox.take() is None
        assert parser.contents == []

    assert inbox.take() == {"whole": 1}


def test_messages_behind_one_that_is_being_written_come(tmp_path, inbox):
    """A publisher that was stopped while it wrote holds up nobody."""
    path = put(tmp_path, "1_x", '{"who')
    put(tmp_path, "2_x", "2")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        assert inbox.take() == 2
        assert inbox.take() is None


def test_half_a_message_is_read_again_when_it_changes(tmp_path, inbox, parser, clock):
    """As long as it is as it was, it costs no reading."""
    path = put(tmp_path, "1_x", '{"a":')
    for _ in range(5):
        assert inbox.take() is None
        clock.now += TRY_AGAIN
    assert len(parser.contents) == 1

    path.write_text('{"a": 1}')

    assert inbox.take() == {"a": 1}


def test_what_is_no_message_is_named_once(tmp_path, inbox, clock, caplog):
    """Not at once, since it may be half written; then with one line."""
    path = put(tmp_path, "1_x", "junk")
    assert inbox.take() is None
    assert inbox.take() is None
    assert caplog.messages == []

    for _ in range(5):
        clock.now += PATIENCE
        assert inbox.take() is None

    [line] = caplog.messages
    assert str(path) in line
    assert path.read_text() == "junk"


def test_what_cannot_be_taken_is_tried_again_and_named_once(tmp_path, inbox, clock, caplog):
    """A folder in the place of a message: nothing else waits for it."""
    folder = tmp_path / "1_x.q.msg"
    folder.mkdir()
    for _ in range(5):
        assert inbox.take() is None
        clock.now += PATIENCE
    [line] = caplog.messages
    assert str(folder) in line
    folder.rmdir()
    put(tmp_path, "1_x", "1")

    clock.now += TRY_AGAIN

    assert inbox.take() == 1
    assert len(caplog.messages) == 1


def test_many_workers_at_one_folder(tmp_path, parser):
    """Each message goes to one of them."""
    for number in range(500):
        put(tmp_path, f"{number:04}_x", str(number))
    taken = [[] for _ in range(4)]

    def work(mine):
        inbox = Inbox(str(tmp_path), "q", parser)
        while (message := inbox.take()) is not None:
            mine.append(message)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(number for mine in taken for number in mine) == list(range(500))


def test_folder_that_is_not_there(tmp_path, parser, clock, caplog):
    """That is said once a minute, and ends when there is one."""
    inbox = Inbox(str(tmp_path / "later"), "q", parser, clock=clock)
    for _ in range(3):
        assert inbox.take() is None
    [line] = caplog.messages
    assert str(tmp_path / "later") in line
    (tmp_path / "later").mkdir()
    put(tmp_path / "later", "1_x", "1")

    assert inbox.take() == 1


def test_no_descriptor_left(tmp_path, inbox, caplog):
    """The message is left, and taken when there is room again."""
    put(tmp_path, "1_x", "1")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = os.dup(0)  # the lowest free number
    os.close(least)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, limits[1]))
    try:
        assert inbox.take() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert "Too many open files" in caplog.text
    assert inbox.take() == 1


def test_processed_messages_on_another_file_system(tmp_path, parser):
    """They are copied, by the one worker that has the message."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    kept = elsewhere / f"asyncpool-{os.getpid()}-{tmp_path.name}"
    put(tmp_path, "1_x", "1")
    try:
        inbox = Inbox(str(tmp_path), "q", parser, processed=str(kept))

        assert inbox.take() == 1
        assert [path.name for path in kept.iterdir()] == ["1_x.q.msg"]
        assert list(tmp_path.iterdir()) == []
    finally:
        for path in kept.iterdir():
            path.unlink()
        kept.rmdir()


def test_empty_look_into_a_full_folder_is_not_repeated_at_once(tmp_path, parser, caplog):
    """A queue without messages costs a tenth of the time at most, however many files there are."""

    class Slow(Clock):
        def __call__(self):
            self.now += 0.5  # a look takes so long
            return self.now

    clock = Slow()
    inbox = Inbox(str(tmp_path), "q", parser, clock=clock)
    assert inbox.take() is None
    put(tmp_path, "1_x", "1")

    assert inbox.take() is None
    clock.now += 5.0

    assert inbox.take() == 1
