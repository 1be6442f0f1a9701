"""The connection to the broker is cut: by a proxy, for 0.1, 5 and 40 s.

Results go to Redis past the proxy, whatever the broker is, so that it is seen
at once what becomes of a task. Early and late acks are in flight at the same
time, half of the tasks each. Most of the time is spent with waiting, and so the
workers on Redis and on RabbitMQ are cut off at the same time; the 40 s, which
differ from 5 s by the number of vain attempts only, are left out when idle.
"""

import contextlib
import os
import time

import pytest
from ending import Ending, ending_well
from proxy import Proxy
from transports import make_transport
from worker import wait_for

from tests.servers import RabbitMQServer, RedisServer

SERVERS = {"redis": RedisServer, "rabbitmq": RabbitMQServer}
SLOTS = 500


class Cut:
    """A worker behind a proxy."""

    def __init__(self, worker, proxy):
        self.worker = worker
        self.proxy = proxy
        self._connects = 1

    def cut(self):
        """Cut the connection; the worker knows when this returns."""
        self.proxy.cut()
        self.worker.wait_log("Connection to broker lost", self._connects)

    def wait_connected(self):
        """Wait until the worker listens again."""
        self._connects += 1
        self.worker.wait_log("Connected to", self._connects)
        ping = self.worker.client.app.control.ping
        wait_for(lambda: ping([self.worker.hostname], timeout=0.2, limit=1), self.worker.tail)


@pytest.fixture(scope="module")
def cuts(start_worker, request, tmp_path_factory):
    """A worker on each broker that there is, behind a proxy."""
    with contextlib.ExitStack() as stack:
        cuts = []
        for name, server in SERVERS.items():
            if server.find() is None and not os.environ.get("CI"):
                continue
            transport = make_transport(name, request, tmp_path_factory.mktemp(name))
            port = request.getfixturevalue(f"{name}_server").port
            proxy = stack.enter_context(Proxy(port))
            options = ("-E", "-c", SLOTS, "--processes", 2)
            env = {"ASYNCPOOL_TEST_BROKER": proxy.before(transport.broker)}
            worker = start_worker(transport, "chaos", *options, env=env)
            stack.enter_context(ending_well(worker, acks_arrive=False))
            cuts.append(Cut(worker, proxy))
        if not cuts:
            pytest.skip("needs Redis or RabbitMQ, which are not installed")
        yield cuts


@pytest.fixture
def each(cuts, tmp_path):
    """Enter one object for each worker."""
    with contextlib.ExitStack() as stack:

        def enter(cls):
            return [stack.enter_context(cls(cut, _folder(tmp_path, cut))) for cut in cuts]

        yield enter


def heal(cuts):
    """Let all connections through again, and wait until the workers listen."""
    for cut in cuts:
        cut.proxy.heal()
    for cut in cuts:
        cut.wait_connected()


def _folder(tmp_path, cut):
    folder = tmp_path / cut.worker.transport.name
    folder.mkdir()
    return folder


class Idle:
    """A worker without tasks, before and after a cut."""

    def __init__(self, cut, tmp_path):
        self.cut = cut
        self.ending = Ending(cut.worker, tmp_path)

    def __enter__(self):
        self.ending.__enter__()
        return self

    def __exit__(self, *exc_info):
        self.ending.__exit__(*exc_info)


class InFlight(Idle):
    """A worker with tasks in all slots, before, during and after a cut."""

    def __enter__(self):
        super().__enter__()
        self.worker = self.cut.worker
        send = self.worker.client.send
        self.limited = [send("forever", time_limit=2) for _ in range(20)]
        self._gates = [self.ending.gate() for _ in range(2)]
        count = (SLOTS - 20) // 4
        self.during, self.after = (
            self.ending.send("hold", str(gate), count=count) for gate in self._gates
        )
        for early, late in (self.during, self.after):
            self.ending.wait_started(*early, *late)
        return self

    def end_some(self):
        """Let half of the tasks end, and see that they do, and that limits hold."""
        self._gates[0].touch()
        self.ending.wait_recorded("ended", *self.during[0], *self.during[1])
        self.ending.wait_recorded("broken off", *self.limited)

    def end(self):
        """Let the others end too, and check everything.

        RabbitMQ sends all tasks again for which it has no ack, at once; they run
        a second time beside the first one, as in Celery's other pools. Redis
        does not know that the worker was away, or hears it from the worker.
        """
        (early, late), (more_early, more_late) = self.during, self.after
        late, early = late + more_late, early + more_early
        if self.worker.transport.name == "rabbitmq":
            self.ending.wait_started(*late, times=2)
        self._gates[1].touch()

        self.ending.check(ended=early, repeated=late, timed_out=self.limited, all_events=False)
        assert self.ending.runs(*early, *self.limited) == len(early + self.limited)
        assert self.ending.runs(*late) in (len(late), 2 * len(late))


@pytest.mark.parametrize("seconds", [0.1, 5])
def test_idle(each, seconds):
    """The worker connects again and serves as before."""
    idle = each(Idle)
    for each_one in idle:
        each_one.cut.cut()
    time.sleep(seconds)
    heal([each_one.cut for each_one in idle])

    for each_one in idle:
        each_one.ending.check()


@pytest.mark.parametrize("seconds", [0.1, 5, 40])
def test_in_flight(each, seconds):
    """What runs runs on, its limits hold, and an early ack is no reason to run again."""
    in_flight = each(InFlight)
    healed = time.monotonic() + seconds
    for tasks in in_flight:
        tasks.cut.cut()
    for tasks in in_flight if seconds > 1 else ():
        tasks.end_some()
    time.sleep(max(0, healed - time.monotonic()))
    heal([tasks.cut for tasks in in_flight])

    for tasks in in_flight:
        tasks.end_some()
        tasks.end()


def test_silent_network(each):
    """A network that passes no byte for a while, and closes nothing, costs nothing."""
    for idle in each(Idle):
        ending = idle.ending
        gate = ending.gate()
        early, late = ending.send("hold", str(gate), count=100)
        ending.wait_started(*early, *late)

        idle.cut.proxy.freeze()
        gate.touch()
        ending.wait_recorded("ended", *early, *late)
        idle.cut.proxy.thaw()

        ending.check(ended=early + late)
        assert ending.runs(*early, *late) == 200
