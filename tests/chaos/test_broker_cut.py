"""The connection to the broker is cut: by a proxy, for 0.1, 5 and 40 s.

Results go to Redis past the proxy, whatever the broker is, so that it is seen
at once what becomes of a task. Early and late acks are in flight at the same
time, half of the tasks each.
"""

import contextlib
import time

import pytest
from ending import Ending, ending_well
from proxy import Proxy
from transports import make_transport
from worker import wait_for

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

    def heal(self):
        """Let it through again, and wait until the worker listens."""
        self.proxy.heal()
        self._connects += 1
        self.worker.wait_log("Connected to", self._connects)
        ping = self.worker.client.app.control.ping
        wait_for(lambda: ping([self.worker.hostname], timeout=0.2, limit=1), self.worker.tail)


@pytest.fixture(scope="module")
def start_behind_proxy(start_worker, request):
    """Start a worker behind a proxy."""

    @contextlib.contextmanager
    def start(transport):
        server = request.getfixturevalue(f"{transport.name}_server")
        with Proxy(server.port) as proxy:
            options = ("-E", "-c", SLOTS, "--processes", 2)
            env = {"ASYNCPOOL_TEST_BROKER": proxy.before(transport.broker)}
            worker = start_worker(transport, "chaos", *options, env=env)
            with ending_well(worker, acks_arrive=False):
                yield Cut(worker, proxy)

    return start


@pytest.fixture(scope="module")
def cut(transport, start_behind_proxy):
    with start_behind_proxy(transport) as cut:
        yield cut


class InFlight:
    """Tasks in all slots of a worker, before, during and after a cut."""

    def __init__(self, cut, tmp_path):
        self.cut = cut
        self.worker = cut.worker
        self.ending = Ending(self.worker, tmp_path)

    def __enter__(self):
        self.ending.__enter__()
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

    def __exit__(self, *exc_info):
        self.ending.__exit__(*exc_info)

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
def test_idle(cut, tmp_path, seconds):
    """The worker connects again and serves as before."""
    with Ending(cut.worker, tmp_path) as ending:
        cut.cut()
        time.sleep(seconds)
        cut.heal()

        ending.check()


@pytest.mark.parametrize("seconds", [0.1, 5])
def test_in_flight(cut, tmp_path, seconds):
    """What runs runs on, its limits hold, and an early ack is no reason to run again."""
    with InFlight(cut, tmp_path) as tasks:
        cut.cut()
        time.sleep(seconds)
        if seconds > 1:
            tasks.end_some()
        cut.heal()

        tasks.end_some()
        tasks.end()


def test_for_long(start_behind_proxy, request, tmp_path, tmp_path_factory):
    """The same with 40 s; both brokers at once, since waiting is most of it."""
    with contextlib.ExitStack() as stack:
        tasks = []
        for name in ("redis", "rabbitmq"):
            folder = tmp_path_factory.mktemp(name)
            cut = stack.enter_context(start_behind_proxy(make_transport(name, request, folder)))
            tasks.append(stack.enter_context(InFlight(cut, folder)))
        end = time.monotonic() + 40
        for some in tasks:
            some.cut.cut()
        for some in tasks:
            some.end_some()
        time.sleep(max(0, end - time.monotonic()))
        for some in tasks:
            some.cut.heal()
        for some in tasks:
            some.end()


def test_silent_network(cut, tmp_path):
    """A network that passes no byte for a while, and closes nothing, costs nothing."""
    worker = cut.worker
    with Ending(worker, tmp_path) as ending:
        gate = ending.gate()
        early, late = ending.send("hold", str(gate), count=100)
        ending.wait_started(*early, *late)

        cut.proxy.freeze()
        gate.touch()
        ending.wait_recorded("ended", *early, *late)
        cut.proxy.thaw()

        ending.check(ended=early + late)
        assert ending.runs(*early, *late) == 200
