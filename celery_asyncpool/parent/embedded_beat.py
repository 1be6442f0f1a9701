"""Beat in a process beside the pool's: ``celery worker -B``.

Celery stops it with the worker. A worker that is killed leaves it behind, where it
sends tasks for ever: beside the beat of the next worker, each of them twice.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from billiard.process import current_process
from billiard.util import set_pdeathsig  # type: ignore[attr-defined]
from celery.signals import beat_embedded_init
from celery.utils.log import get_logger

__all__ = ["end_beat_with_worker", "leave_beat_alone"]

logger = get_logger(__name__)


def end_beat_with_worker() -> None:
    """From now on a beat that is started in a process of this one ends with this one.

    Celery starts its beat before or after the pool, so call this when the pool is made.
    """
    beat_embedded_init.connect(_end_with_parent)


def leave_beat_alone() -> None:
    """Undo it."""
    beat_embedded_init.disconnect(_end_with_parent)


def _end_with_parent(**kwargs: Any) -> None:
    """In beat's process, before it sends anything: the kernel tells of the parent's end."""
    try:
        set_pdeathsig(signal.SIGTERM)
    except OSError:
        logger.debug("this system has no parent-death signal: beat outlives a killed worker")
        return
    # The parent may have gone before the kernel knew that this one wants to hear of it.
    if os.getppid() != current_process()._parent_pid:  # type: ignore[attr-defined]
        raise SystemExit("beat: the worker that has started this process is gone")
