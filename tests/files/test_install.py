"""kombu and Celery are as before when the last worker of a process has gone."""

import pytest
from celery.backends.filesystem import FilesystemBackend
from kombu.transport import filesystem

from celery_asyncpool.files import WholeFiles
from celery_asyncpool.files.channel import Channel


@pytest.fixture
def stock():
    channel, write = filesystem.Transport.Channel, FilesystemBackend.set
    yield channel, write
    filesystem.Transport.Channel, FilesystemBackend.set = channel, write


def test_until_the_last_worker_has_gone(stock):
    """Two workers of one process may begin and end in any order."""
    first, second = WholeFiles(), WholeFiles()
    first.install()
    first.install()
    second.install()
    assert filesystem.Transport.Channel is Channel

    first.uninstall()
    assert filesystem.Transport.Channel is Channel
    second.uninstall()
    second.uninstall()

    assert (filesystem.Transport.Channel, FilesystemBackend.set) == stock


def test_what_somebody_else_has_put_there_stays(stock):
    """A tool that came later is not taken away."""

    class Other(Channel):
        pass

    files = WholeFiles()
    files.install()
    filesystem.Transport.Channel = Other

    files.uninstall()

    assert filesystem.Transport.Channel is Other
    assert FilesystemBackend.set is stock[1]
