"""kombu's filesystem transport for the clients of the tests, which are many in one process.

A client that binds its queue for replies empties a table that another one has just
made (kombu 5.7): a publisher's own fault, of which the tests are not about. Nor does
one folder pass for another here. Messages and results are written as kombu and
Celery do it.
"""

import os
import uuid
from collections import defaultdict

from kombu.transport.filesystem import Channel, Transport
from kombu.transport.virtual import BrokerState

_kombu_init = Transport.__init__
_kombu_queue_bind = Channel._queue_bind
_states = defaultdict(BrokerState)


def _queue_bind(self, exchange, *args):
    # kombu empties a table that is not there yet before it locks it, which loses
    # what another process has bound meanwhile. One that is there it locks first.
    path = os.path.join(self.control_folder, f"{exchange}.exchange")
    if not os.path.exists(path):
        part = os.path.join(self.control_folder, f".{uuid.uuid4().hex}")
        with open(part, "w") as file:
            file.write("[]")
        try:
            os.link(part, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(part)
    _kombu_queue_bind(self, exchange, *args)


def _init(self, client, **kwargs):
    # kombu has one state for all folders: what was declared in one it would not
    # declare in another. Its names of queues for replies may well come again.
    _kombu_init(self, client, **kwargs)
    self.state = _states[str(self.client.transport_options.get("control_folder"))]


def install():
    """Begin, in this process and its forks."""
    Transport.__init__ = _init
    Channel._queue_bind = _queue_bind
