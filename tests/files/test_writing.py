"""Files that are there whole or not at all."""

import os

import pytest

from celery_asyncpool.files.writing import create_whole, write_whole


def test_write_replaces(tmp_path):
    """The file has the new content, and nothing else is left."""
    path = tmp_path / "file"
    path.write_text("old")

    write_whole(str(path), b"new")

    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_keeps_what_it_has_opened(tmp_path):
    """Who has opened the former one reads all of that."""
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        write_whole(str(path), b"new")

        assert reader.read() == "old"


def test_create_leaves_what_is_there(tmp_path):
    """Of two who create a file, one does."""
    path = tmp_path / "file"

    create_whole(str(path), b"first")
    create_whole(str(path), b"second")

    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    """A folder is in the way: the error says so, and there is no part of the file."""
    path = tmp_path / "folder"
    path.mkdir()

    with pytest.raises(OSError, match="folder"):
        write_whole(str(path), b"x")

    assert list(tmp_path.iterdir()) == [path]


def test_rights_are_those_of_any_new_file(tmp_path):
    """As kombu's: others may read it if the umask says so."""
    before = os.umask(0o027)
    try:
        write_whole(str(tmp_path / "file"), b"x")
    finally:
        os.umask(before)

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
