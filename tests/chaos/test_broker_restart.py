"""The broker is restarted, with tasks in flight."""

import signal

import pytest
from ending import Ending, ending_well
from transports import redis_database
from worker import Transport

from tests.conftest import require
from tests.servers import RabbitMQServer, RedisServer

SERVERS = {"redis": RedisServer, "rabbitmq": RabbitMQServer}


@pytest.fixture(scope="module", params=SERVERS)
def broker(request):
    """A broker of these tests' own."""
    require(SERVERS[request.param])
    with SERVERS[request.param]() as server:
        yield server


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_broker_restart(broker, request, start_worker, tmp_path, sig):
    """What runs runs on, what waits is kept by the broker, and the worker takes it up again."""
    name = broker.program.partition("-")[0]
    # Results go to the session's Redis, which stays.
    transport = Transport(name, broker.url, redis_database(request, 1))
    worker = start_worker(transport, "chaos", "-c", 100, "--processes", 2)
    with ending_well(worker, acks_arrive=False), Ending(worker, tmp_path, listen=False) as ending:
        during, after = ending.gate(), ending.gate()
        early, late = ending.send("hold", str(during), count=25)
        ending.wait_started(*early, *late)
        more_early, more_late = ending.send("hold", str(after), count=25)
        ending.wait_started(*more_early, *more_late)

        broker.stop(sig)
        worker.wait_log("Connection to broker lost")
        during.touch()
        ending.wait_recorded("ended", *early, *late)
        broker.start()

        worker.renew_client()
        worker.stats()
        after.touch()
        early, late = early + more_early, late + more_late
        ending.check(ended=early, repeated=late)
        assert ending.runs(*early) == len(early)
        assert ending.runs(*late) in (len(late), 2 * len(late))
