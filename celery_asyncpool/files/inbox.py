"""The messages of one queue, files in a folder, of which each is taken once and whole.

Publishers are not ours. kombu's opens a file under its final name, locks it, writes
it, and unlocks it: a reader may come at any point, and the publisher may die at any.
So a file is read first and taken after that, by removing it, which one of any number
of workers can do. A file that is locked is being written. One that is no message
stays where it is; it is named in the log when it has not changed for a while, and is
not read again before it does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery.utils.log import get_logger

__all__ = ["Inbox"]

logger = get_logger(__name__)

#: Seconds that a file which is no message may still become one, before it is named.
PATIENCE = 5.0

#: Seconds until a file that could not be opened, or taken, is tried again; and
#: between two lines that say that the folder cannot be read.
TRY_AGAIN = 60.0

#: A look into the folder that found nothing is repeated after so many times as long.
REST = 10.0

#: Not the file's fault: this process has no descriptor, or the system no memory, left.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: The file system has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

#: A file's state: it was written to, or its rights were changed, if this is another one.
Signature = tuple[int, int, int, int]


class Inbox:
    """The messages of *queue* in *folder*.

    Arguments:
        parse: gets a file's content and returns the message; raises what it likes
            when it is none.
        processed: the folder into which taken messages are moved; None: they are removed.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        folder: str,
        queue: str,
        parse: Callable[[bytes], Any],
        processed: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        #: What follows the first dot in the name of a message, as kombu has it.
        self._ending = f"{queue}.msg"
        self._parse = parse
        self._processed = processed
        self._clock = clock
        #: Names from the last look into the folder, oldest first.
        self._names: deque[str] = deque()
        self._look_again_at = 0.0
        self._set_aside: dict[str, _SetAside] = {}
        #: Files that the log has named.
        self._named: set[str] = set()
        self._complain_again_at = 0.0

    def take(self) -> Any | None:
        """Return the oldest message and remove its file; None when there is none to have.

        The folder is listed only when all that was there has been tried. Raises
        nothing of what the file system may raise: the log says it, and the next
        call tries again.
        """
        try:
            message = self._take_listed()
            if message is None and self._clock() >= self._look_again_at:
                self._list()
                message = self._take_listed()
        except OSError as exc:
            self._complain(exc)
            return None
        return message

    def _take_listed(self) -> Any | None:
        while self._names:
            message = self._try(self._names.popleft())
            if message is not None:
                return message
        return None

    def _try(self, name: str) -> Any | None:
        """Take the message *name*; None if that cannot be, or not now."""
        path = os.path.join(self._folder, name)
        try:
            message = self._read_message(path)
            self._claim(path, name)
        except (FileNotFoundError, BlockingIOError):
            return None  # another worker was first; or it is being written
        except OSError as exc:
            if exc.errno in NO_ROOM:
                raise
            reason = f"it cannot be taken ({exc.strerror})"
            self._set_aside[name] = _SetAside(None, reason, self._clock())
            return None
        except _NoMessage as exc:
            self._set_aside[name] = _SetAside(exc.signature, str(exc), self._clock())
            return None
        return message

    def _read_message(self, path: str) -> Any:
        signature, content = _read(path)
        try:
            return self._parse(content)
        except Exception as exc:  # whatever a file may have in it
            raise _NoMessage(signature, content, exc) from exc

    def _claim(self, path: str, name: str) -> None:
        """Make the file ours; raises ``FileNotFoundError`` when another worker was first."""
        if self._processed is None:
            os.unlink(path)
            return
        os.makedirs(self._processed, exist_ok=True)
        target = os.path.join(self._processed, name)
        try:
            os.rename(path, target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            # To another file system it is copied, which two workers can do at once.
            own = os.path.join(self._folder, f".{uuid.uuid4().hex}")
            os.rename(path, own)
            _move(own, target)

    def _list(self) -> None:
        """See what there is. A long look that finds nothing is not soon repeated.

        In a folder with many messages for one queue those without any, remote
        control's, are asked for as often.
        """
        began = self._clock()
        with os.scandir(self._folder) as entries:
            found = {entry.name for entry in entries if self._is_ours(entry.name)}
        now = self._clock()
        self._named &= found
        for name in [*self._set_aside]:
            if name not in found or not self._stays_aside(name, now):
                del self._set_aside[name]
        self._names = deque(sorted(found - self._set_aside.keys()))
        self._look_again_at = 0.0 if self._names else now + REST * (now - began)

    def _is_ours(self, name: str) -> bool:
        return name.partition(".")[2] == self._ending

    # What is no message.

    def _stays_aside(self, name: str, now: float) -> bool:
        """Whether there is no use in another try; names the file once that has lasted."""
        file = self._set_aside[name]
        path = os.path.join(self._folder, name)
        if file.has_changed(path, now):
            return False
        if name not in self._named and now - file.since >= PATIENCE:
            self._named.add(name)
            logger.warning(
                "%s is no message that this worker can take: %s. It stays where it is, and is "
                "tried again when that changes; remove it if nobody is going to finish it",
                path,
                file.reason,
            )
        return True

    def _complain(self, exc: OSError) -> None:
        now = self._clock()
        if now >= self._complain_again_at:
            self._complain_again_at = now + TRY_AGAIN
            logger.error(
                "cannot look for messages in %s (%s); trying again", self._folder, exc.strerror
            )


@dataclass(frozen=True, slots=True)
class _SetAside:
    """A file that is no message.

    *signature* says what it was like when it was read; None: it could not be read,
    or not be taken.
    """

    signature: Signature | None
    reason: str
    since: float

    def has_changed(self, path: str, now: float) -> bool:
        """Whether it may be a message now."""
        if self.signature is None:
            return now >= self.since + TRY_AGAIN
        try:
            return self.signature != _signature(os.stat(path))
        except OSError:
            return True


class _NoMessage(Exception):
    """What a file has in it is no message."""

    def __init__(self, signature: Signature, content: bytes, exc: Exception) -> None:
        self.signature = signature
        if content:
            reason = (
                "it is not what kombu writes, or its publisher was killed while it wrote "
                f"({type(exc).__name__}: {exc})"
            )
        else:
            reason = "it is empty: its publisher was killed, or the disk is full"
        super().__init__(reason)


def _read(path: str) -> tuple[Signature, bytes]:
    """Return the file's state and its content.

    Raises ``BlockingIOError`` while its publisher has it locked.
    """
    # Without O_NONBLOCK the opening of a named pipe would wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        _lock(fd)
        with open(fd, "rb", closefd=False) as file:
            content = file.read()
        return _signature(info), content
    finally:
        os.close(fd)  # unlocks it


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as exc:
        # A file system without locks: what is read shows whether it is whole.
        if exc.errno not in NO_LOCKS:
            raise


def _signature(info: os.stat_result) -> Signature:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _move(own: str, target: str) -> None:
    """Move a message that is ours already, so it is run whether or not that works."""
    try:
        shutil.move(own, target)
    except OSError as exc:
        logger.error("could not keep the processed message %s (%s): %s", target, own, exc)
