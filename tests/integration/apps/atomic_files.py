"""kombu's filesystem transport and Celery's file backend, with whole files.

Both (kombu 5.7, Celery 5.7) open a file and then write it: a reader that comes
between the two finds it empty, and ends with that, whatever the worker's pool.
The tests are not about that, so for them a file is there whole or not at all.
Nor does one folder pass for another here.
"""

import os
import uuid
from collections import defaultdict
from time import monotonic

from celery.backends.filesystem import FilesystemBackend
from kombu.transport.filesystem import Channel, Transport
from kombu.transport.virtual import BrokerState
from kombu.utils.encoding import ensure_bytes
from kombu.utils.json import dumps

_kombu_init = Transport.__init__
_kombu_queue_bind = Channel._queue_bind
_states = defaultdict(BrokerState)


def _write(path, content):
    """Write a file beside *path*, under a name that means nothing to anybody; return it."""
    # kombu 5.5 takes whatever has ".<queue>.msg" in its name for a message.
    part = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}")
    with open(part, "wb") as file:
        file.write(ensure_bytes(content))
    return part


def _put(self, queue, payload, **kwargs):
    name = f"{round(monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
    path = os.path.join(self.data_folder_out, name)
    os.rename(_write(path, dumps(payload)), path)


def _queue_bind(self, exchange, *args):
    # kombu empties a table that is not there yet before it locks it, which loses
    # what another process has bound meanwhile. One that is there it locks first.
    path = os.path.join(self.control_folder, f"{exchange}.exchange")
    if not os.path.exists(path):
        part = _write(path, "[]")
        try:
            os.link(part, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(part)
    _kombu_queue_bind(self, exchange, *args)


def _set(self, key, value):
    path = os.fsdecode(self._filename(key))
    os.rename(_write(path, value), path)


def _init(self, client, **kwargs):
    # kombu has one state for all folders: what was declared in one it would not
    # declare in another. Its names of queues for replies may well come again.
    _kombu_init(self, client, **kwargs)
    self.state = _states[str(self.client.transport_options.get("control_folder"))]


def install():
    """Write whole files from now on, in this process and its forks."""
    Transport.__init__ = _init
    Channel._put = _put
    Channel._queue_bind = _queue_bind
    FilesystemBackend.set = _set
