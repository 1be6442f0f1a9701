"""What is published, and what is not, when the broker or the caller gives up."""

import asyncio
import socket
import threading

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_asyncpool.client.publish import call_in_thread, publish

PATIENCE = 60.0


@pytest.fixture
def silent_broker():
    """The port of a server that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


@pytest.fixture
def make_app():
    """Make an app on a broker."""
    apps = []

    def make(broker):
        app = Celery("publishes", broker=broker, set_as_current=False)
        app.conf.broker_connection_timeout = 0.5
        app.conf.task_publish_retry = False
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@pytest.mark.parametrize("broker", ["amqp://127.0.0.1:{}//", "redis://127.0.0.1:{}/0"])
def test_silent_broker(make_app, silent_broker, broker):
    """No answer is an error soon, the loop turns meanwhile, and the call is never made."""
    app = make_app(broker.format(silent_broker))
    called = []

    async def main():
        turns = 0
        publishing = asyncio.create_task(publish(app, lambda: called.append(1)))
        while not publishing.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(OperationalError, match="no connection"):
            await publishing
        return turns

    assert asyncio.run(main()) > 10
    assert called == []


def test_order_after_a_cancellation(make_app):
    """What a cancelled call has begun ends before the next call of its coroutine begins."""
    release, began, order = threading.Event(), threading.Event(), []

    def first():
        began.set()
        release.wait(PATIENCE)
        order.append("first")

    async def main():
        async with asyncio.timeout(PATIENCE):
            try:
                async with asyncio.timeout(None) as scope:
                    publishing = call_in_thread(first)
                    asyncio.get_running_loop().create_task(interrupt(scope))
                    await publishing
            except TimeoutError:
                order.append("interrupted")
            asyncio.get_running_loop().call_later(0.1, release.set)
            await call_in_thread(order.append, "second")

    async def interrupt(scope):
        await asyncio.to_thread(began.wait, PATIENCE)
        scope.reschedule(0)

    asyncio.run(main())

    assert order == ["interrupted", "first", "second"]
