"""The check of a soak finds what is lost, doubled or wrong in a made-up record."""

import itertools
from pathlib import Path

import pytest

from .__main__ import conclude
from .check import (
    CONNECTION_LOST,
    DOUBLED,
    LEAKED,
    LOST,
    PROCESS_LOST,
    PUBLISHED_AGAIN,
    WRONG,
    Sent,
    State,
    Verdict,
    check,
)
from .history import read_history
from .kinds import KINDS
from .run import Outcome

SUCCEEDED = State("SUCCESS", None, 5)


class Record:
    """A record of one task, line by line; each line is a second later."""

    def __init__(self, kind="awaits", state=SUCCEEDED):
        self.lines = []
        self.now = 100.0
        self.cuts = []
        self.deaths = set()
        self.sent = {"t": Sent(KINDS[kind], 5, {})}
        self.states = {"t": state}
        self._numbers = itertools.count(1)
        self._channel = 0
        self.connect()

    def add(self, what, **fields):
        self.now += 1.0
        self.lines.append({"what": what, "at": self.now, **fields})

    def connect(self):
        self._channel += 1
        self.add("connected", channel=self._channel)

    def cut(self):
        """Cut the connection; the worker makes another one."""
        self.now += 1.0
        self.cuts.append(self.now)
        self.add("disconnected", channel=self._channel)
        self.now += 5.0
        self.connect()

    def publish(self, message="m", retries=0, by=None, confirmed=True):
        self.add("publishing", id="t", message=message, retries=retries, by=by)
        if confirmed:
            self.add("published", id="t", message=message, retries=retries)

    def receive(self, message="m"):
        number = next(self._numbers)
        self.add("received", id="t", message=message, delivery=number, channel=self._channel)
        return number

    def start(self, delivery, pid=1):
        self.add("started", id="t", delivery=delivery, pid=pid)

    def end(self, delivery, how="returned"):
        self.add("ended", id="t", delivery=delivery, how=how)

    def run(self, message="m", how="returned"):
        """Deliver it and let its body start and end."""
        delivery = self.receive(message)
        self.start(delivery)
        self.end(delivery, how)
        return delivery

    def ack(self, delivery):
        self.add("acked", delivery=delivery)

    def reject(self, delivery, requeue=True):
        self.add("rejected", delivery=delivery, requeue=requeue)

    def check(self):
        return check(self.sent, self.states, read_history(self.lines), self.cuts, self.deaths)

    def found(self):
        """What is wrong, by its first words."""
        return sorted(finding.what for finding in self.check().findings)


# Nothing is wrong.


def test_one_run_is_well():
    """Sent, delivered, run, acknowledged."""
    record = Record()
    record.publish()
    record.ack(record.run())

    verdict = record.check()

    assert verdict.findings == []
    assert verdict.outcomes == {("awaits", "SUCCESS"): 1}
    assert not verdict.delivered_again


def test_run_again_after_the_process_was_lost():
    """Its body ended, its process died, and it was given back: that is no doubled task."""
    record = Record()
    record.publish()
    record.reject(record.run())
    record.deaths.add(1)
    record.ack(record.run())

    verdict = record.check()

    assert verdict.findings == []
    assert verdict.run_again == {PROCESS_LOST: 1}


@pytest.mark.parametrize("acked", [False, True])
def test_run_again_after_a_cut(acked):
    """The acknowledgement could not be sent, or was under way when the connection was cut."""
    record = Record()
    record.publish()
    delivery = record.run()
    if acked:
        record.ack(delivery)
    record.cut()
    record.ack(record.run())

    verdict = record.check()

    assert verdict.findings == []
    assert verdict.run_again == {CONNECTION_LOST: 1}


def test_delivered_again_before_it_had_started():
    """A message that waited in the worker when the connection was cut is no second run."""
    record = Record()
    record.publish()
    record.receive()
    record.cut()
    record.ack(record.run())

    verdict = record.check()

    assert verdict.findings == []
    assert verdict.delivered_again == {CONNECTION_LOST: 1}
    assert not verdict.run_again


def test_acknowledged_on_its_way_and_arrived():
    """An acknowledgement just before a cut may arrive, and then it does not come again."""
    record = Record()
    record.publish()
    record.ack(record.run())
    record.cut()

    assert record.found() == []


def test_retry_that_was_published_twice():
    """The connection was cut before the broker's confirmation: the retry may come twice."""
    record = Record("retries")
    record.publish()
    first = record.run(how="Retry")
    record.publish("n", retries=1, by=first, confirmed=False)
    record.ack(first)
    record.cut()
    record.add("published", id="t", message="n", retries=1)
    record.ack(record.run("n"))
    record.ack(record.run("n"))

    verdict = record.check()

    assert verdict.findings == []
    assert verdict.run_again == {PUBLISHED_AGAIN: 1}


def test_success_that_is_found_when_the_process_of_a_later_run_is_lost():
    """Celery acknowledges then: the task had ended well."""
    record = Record()
    record.publish()
    record.run()
    record.cut()
    delivery = record.receive()
    record.start(delivery, pid=2)
    record.deaths.add(2)
    record.ack(delivery)

    assert record.found() == []


def test_hard_limit_without_a_word_of_the_body():
    """The pool reports it when the process that was blocked is dead."""
    record = Record("meets its hard limit", State("FAILURE", "TimeLimitExceeded"))
    record.publish()
    delivery = record.receive()
    record.start(delivery)
    record.ack(delivery)

    assert record.found() == []


def test_state_that_was_overwritten():
    """The process that published the retry stored RETRY when the retry had failed for good."""
    late, early = Record("retries and fails"), Record("retries and fails")
    for record in (late, early):
        record.states["t"] = State("RETRY")
        record.publish()
        first = record.run(how="Retry")
        record.publish("n", retries=1, by=first)
        if record is early:
            record.ack(first)
        record.ack(record.run("n", how="KeyError"))
        if record is late:
            record.ack(first)

    assert late.found() == []
    assert late.check().overwritten == 1
    assert early.found() == [LOST]


# Lost.


def test_lost_no_outcome():
    """It has no outcome though it was acknowledged."""
    record = Record(state=State("PENDING"))
    record.publish()
    record.ack(record.run())

    assert record.found() == [LOST]


def test_lost_never_delivered():
    """A message that was confirmed and never came."""
    record = Record(state=State("PENDING"))
    record.publish()

    assert record.found() == [LOST, LOST]


def test_lost_retry():
    """A body that asked for a retry, and nobody published it."""
    record = Record("retries", State("RETRY"))
    record.publish()
    record.ack(record.run(how="Retry"))

    assert record.found() == [LOST, LOST]


def test_lost_acknowledged_too_early():
    """Acknowledged though its body had not ended: a crash would have lost it."""
    record = Record()
    record.publish()
    delivery = record.receive()
    record.start(delivery)
    record.ack(delivery)

    assert record.found() == [LOST]


def test_lost_in_the_worker():
    """Delivered and neither acknowledged nor given back."""
    record = Record(state=State("PENDING"))
    record.publish()
    record.receive()

    assert record.found() == [LOST, LOST]


def test_lost_not_delivered_again():
    """Given back, or on a connection that was cut, and not delivered again."""
    given_back, cut = Record(state=State("PENDING")), Record(state=State("PENDING"))
    for record in (given_back, cut):
        record.publish()
        delivery = record.receive()
        record.start(delivery)
        if record is given_back:
            record.deaths.add(1)
            record.reject(delivery)
        else:
            record.cut()

        assert record.found() == [LOST, LOST]


def test_lost_rejected():
    """Rejected for good."""
    record = Record()
    record.publish()
    record.reject(record.run(), requeue=False)

    assert LOST in record.found()


# Doubled.


def test_doubled_one_delivery_runs_twice():
    """In two processes."""
    record = Record()
    record.publish()
    delivery = record.receive()
    for pid in (1, 2):
        record.start(delivery, pid)
        record.end(delivery)
    record.ack(delivery)

    assert record.found() == [DOUBLED, DOUBLED]


def test_doubled_after_its_acknowledgement():
    """Delivered again though it had been acknowledged and nothing was cut."""
    record = Record()
    record.publish()
    record.ack(record.run())
    record.ack(record.run())

    assert record.found() == [DOUBLED]


def test_doubled_long_after_its_acknowledgement():
    """A cut is no reason when the acknowledgement had the time to arrive."""
    record = Record()
    record.publish()
    record.ack(record.run())
    record.now += 60
    record.cut()
    record.ack(record.run())

    assert record.found() == [DOUBLED]


def test_doubled_given_back_by_a_process_that_lives():
    """A body ended, and its message was given back all the same."""
    record = Record()
    record.publish()
    record.reject(record.run())
    record.ack(record.run())

    assert record.found() == [DOUBLED]


def test_doubled_retry():
    """One run published two retries."""
    record = Record("retries")
    record.publish()
    first = record.run(how="Retry")
    for message in ("n", "o"):
        record.publish(message, retries=1, by=first)
    record.ack(first)
    for message in ("n", "o"):
        record.ack(record.run(message))

    assert record.found() == [DOUBLED]


# Wrong.


def test_wrong_end():
    """An outcome that its kind does not allow."""
    record = Record(state=State("FAILURE", "WorkerLostError", "gone"))
    record.publish()
    record.ack(record.run())

    assert record.found() == [WRONG]


def test_wrong_result():
    """The result of another task."""
    record = Record(state=State("SUCCESS", None, 6))
    record.publish()
    record.ack(record.run())

    assert record.found() == [WRONG]


def test_wrong_late_acknowledgement():
    """It had ended for a minute when the connection was cut."""
    record = Record()
    record.publish()
    record.run()
    record.now += 60
    record.cut()
    record.ack(record.run())

    assert record.found() == [WRONG]


def test_wrong_lost_connection():
    """The worker has lost its broker and nobody had cut the connection."""
    record = Record()
    record.publish()
    record.ack(record.run())
    record.add("disconnected", channel=1)
    record.connect()

    assert record.found() == [WRONG]


# The end.


@pytest.mark.parametrize("what", [LOST, DOUBLED, LEAKED, WRONG])
def test_finding_fails_the_soak(what, tmp_path: Path, capsys):
    """It exits with 1, says what is wrong and where the log is, which it keeps."""
    verdict = Verdict()
    verdict.add(what, "task 5 is not as it should be")

    code = conclude(Outcome(verdict, 1, {}, tmp_path), seed=3, keep=False)

    told = capsys.readouterr().out
    assert code == 1
    assert f"{what}: task 5 is not as it should be" in told
    assert f"{what} 1" in told
    assert str(tmp_path) in told
    assert tmp_path.exists()


def test_no_finding_ends_well(tmp_path: Path, capsys):
    """It exits with 0, says so, and leaves no folder."""
    code = conclude(Outcome(Verdict(), 1, {}, tmp_path), seed=3, keep=False)

    assert code == 0
    assert "lost 0, doubled 0, leaked 0, wrong 0\nseed 3\n" in capsys.readouterr().out
    assert not tmp_path.exists()
