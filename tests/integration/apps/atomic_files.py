"""kombu's filesystem transport with whole files.

kombu (5.7) opens a message's file and then writes it; a consumer that reads
between the two finds an empty message, and Celery's worker ends with it,
whatever its pool. The tests are not about that, so messages appear whole here.
"""

import os
import uuid
from time import monotonic

from kombu.transport.filesystem import Channel
from kombu.utils.json import dumps


def _put(self, queue, payload, **kwargs):
    name = f"{round(monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
    path = os.path.join(self.data_folder_out, name)
    with open(f"{path}.part", "w") as file:
        file.write(dumps(payload))
    os.rename(f"{path}.part", path)


def install():
    """Write whole files from now on, in this process and its forks."""
    Channel._put = _put
