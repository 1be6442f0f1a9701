"""Publish tasks on the filesystem transport as any program does: Celery and kombu alone.

``python file_publisher.py FOLDER QUEUE NAME COUNT [--cut]``: what was published is
appended to FOLDER/sent, a number a line. With --cut each file is written in two
halves, with a pause: a publisher to kill in the middle of a message.
"""

import os
import sys
import time

from celery import Celery
from kombu.transport import filesystem


class SlowFile:
    """Writes the first half at once, and the second one after a while."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        half = len(content) // 2
        self._file.write(content[:half])
        time.sleep(0.05)
        return half + self._file.write(content[half:])


def slow_open(path, mode="r", **options):
    file = open(path, mode, **options)
    if not str(path).endswith(".msg"):
        return file
    time.sleep(0.05)  # it is there, empty and not locked
    return SlowFile(file)


def main(folder, queue, name, count, *options):
    if "--cut" in options:
        filesystem.open = slow_open
    app = Celery("publisher", broker="filesystem://", set_as_current=False)
    app.conf.task_default_queue = queue
    app.conf.broker_transport_options = {
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    }
    sent = os.open(f"{folder}/sent", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(int(count)):
        key = f"{os.getpid()}-{number}"
        app.send_task(name, [key], ignore_result=True)
        os.write(sent, f"{key}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
