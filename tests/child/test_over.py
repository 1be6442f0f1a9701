"""celery_asyncpool/child/cancel.py: the parent's clock for a body that is faster than our own."""

from __future__ import annotations

import asyncio
import threading

from celery_asyncpool.child.cancel import BodyControl
from celery_asyncpool.core.timelimits import Limits


def test_def_body_that_ends_while_its_start_is_told():
    """The parent, which has just heard of the start, hears that there is nothing to time."""
    told = []

    async def main():
        control = BodyControl(
            Limits(hard=60.0),
            5.0,
            asyncio.get_running_loop(),
            "a task",
            on_started=lambda: (told.append("started"), control.end()),
            on_cancelled=lambda: told.append("cancelled"),
            on_limit=lambda is_soft: told.append("limit"),
            on_over=lambda: told.append("over"),
            on_stuck=lambda verdict, stack: told.append("stuck"),
        )
        control.start(threading.get_ident())
        for _ in range(3):
            await asyncio.sleep(0)
        control.close()

    asyncio.run(main())

    assert told == ["started", "over"]
