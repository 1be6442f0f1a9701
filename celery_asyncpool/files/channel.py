"""kombu's filesystem channel, with whole messages and tables."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.exceptions import ChannelError, ConnectionError
from kombu.transport import filesystem
from kombu.utils.encoding import bytes_to_str, str_to_bytes
from kombu.utils.json import dumps, loads

from .inbox import Inbox
from .tables import create_table, mend_table
from .writing import write_whole

__all__ = ["Channel"]

#: How often a table that cannot be read is read again, and after how many seconds:
#: whoever creates it needs no longer than that, unless it was killed.
TABLE_TRIES = 50
TABLE_WAIT = 0.02


class Channel(filesystem.Channel):
    """Reads with care what others have written, and writes whole files.

    Names and contents of the files are kombu's.
    """

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._inboxes: dict[str, Inbox] = {}
        self._make_folders()

    def _make_folders(self) -> None:
        folders = [self.data_folder_in, self.data_folder_out, self.control_folder]
        if self.store_processed:
            folders.append(self.processed_folder)
        for folder in folders:
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as exc:
                # What makes Celery say so and try again.
                raise ConnectionError(f"cannot make the folder {folder}: {exc}") from exc

    # Messages.

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        inbox = self._inboxes.get(queue)
        if inbox is None:
            inbox = self._inboxes[queue] = Inbox(
                os.fspath(self.data_folder_in),
                queue,
                self._parse,
                os.fspath(self.processed_folder) if self.store_processed else None,
            )
        message = inbox.take()
        if message is None:
            raise Empty()
        return message

    def _parse(self, content: bytes) -> Any:
        """Return the message in a file; raises whatever it may be when there is none."""
        payload = loads(bytes_to_str(content))
        _check(self.Message(payload, channel=self))  # what kombu makes of it later
        return payload

    def _put(  # type: ignore[override]  # as kombu's own
        self, queue: str, payload: Any, **kwargs: Any
    ) -> None:
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        path = os.path.join(self.data_folder_out, name)
        try:
            write_whole(path, str_to_bytes(dumps(payload)))
        except OSError as exc:
            raise ChannelError(f"Cannot add file {path!r} to directory") from exc

    # Tables.

    def get_table(self, exchange: str) -> Any:
        return self._with_table(exchange, super().get_table, exchange)

    def _queue_bind(self, exchange: str, *args: Any) -> None:
        try:
            create_table(self._table_path(exchange))
        except OSError as exc:
            raise ChannelError(f"Cannot open {self._table_path(exchange)}") from exc
        self._with_table(exchange, super()._queue_bind, exchange, *args)

    def _delete(self, queue: str, exchange: str, *args: Any, **kwargs: Any) -> None:
        self._with_table(exchange, super()._delete, queue, exchange, *args, **kwargs)

    def _with_table(
        self, exchange: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call *function*, which reads the table of *exchange*, when that can be read."""
        for _ in range(TABLE_TRIES):
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError):  # it is not JSON, or not a table
                time.sleep(TABLE_WAIT)
        try:
            mend_table(self._table_path(exchange), self._own_bindings(exchange))
        except OSError as exc:
            raise ChannelError(f"Cannot open {self._table_path(exchange)}") from exc
        return function(*args, **kwargs)

    def _own_bindings(self, exchange: str) -> list[list[str]]:
        """What this process has bound to *exchange*, as it is in the table."""
        kind: Any = self.typeof(exchange)
        state: Any = self.state
        return [
            [
                part or ""
                for part in kind.prepare_bind(key.queue, exchange, key.routing_key, arguments)
            ]
            for key, arguments in [*state.bindings.items()]
            if key.exchange == exchange
        ]

    def _table_path(self, exchange: str) -> str:
        checked = getattr(self, "_exchange_file", None)  # not in kombu 5.5
        return os.fspath(
            checked(exchange) if checked else self.control_folder / f"{exchange}.exchange"
        )


def _check(message: Any) -> None:
    """Raise ``TypeError`` for what would end Celery's consumer in place of one message."""
    address = message.delivery_info
    where = [address.get(name) for name in ("exchange", "routing_key")]
    kind = [message.content_type or "", message.content_encoding or ""]
    if not all(isinstance(text, str) for text in (message.delivery_tag, *where, *kind)):
        raise TypeError("its address or its kind is no text")
    if not isinstance(message.body, (str, bytes)):
        raise TypeError("its body is no text")
