"""The pure rooms together: whatever happens, every job has exactly one end.

A parent and a few worker processes exchange real frames through real pipes, of
which only the kernel is fake: it takes and gives a few bytes at a time. The
parent asks the ``JobTable`` what follows from each message, the processes answer as
``child/runner.py`` does, and hypothesis decides who moves next, and who dies.
"""

from __future__ import annotations

import itertools
import math
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celery_asyncpool.core import job as jobs
from celery_asyncpool.core import lifecycle
from celery_asyncpool.core.caps import Caps
from celery_asyncpool.core.job import Job
from celery_asyncpool.core.jobs import (
    Ask,
    Cancel,
    Effect,
    Held,
    JobTable,
    Loss,
    Report,
    Send,
    SlotFree,
    Tell,
    Waiting,
)
from celery_asyncpool.core.lifecycle import Exit, Lifecycle
from celery_asyncpool.core.maintenance import plan
from celery_asyncpool.core.protocol import Kind, Message, dumps, encode, encode_time, loads
from celery_asyncpool.core.timelimits import Limits, Verdict
from celery_asyncpool.pipe import Pipe

START_TIMEOUT = 4.0
STOP_TIMEOUT = 2.0
DRAIN_TIMEOUT = 3.0
STACK_TIME = 0.3

#: Results of bodies that were ended: errors, to the parent a result like others.
TERMINATED, TIMED_OUT = b"terminated", b"timed out"

#: Enough for everything that a pipe holds.
ALL = 10_000


class Wire:
    """One direction of a socketpair: what has been sent and not been received."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.data = bytearray()
        self.has_reader = True
        self.has_writer = True
        self.is_reset = False


class StingySocket:
    """One end of a socketpair that takes and gives only as many bytes as allowed."""

    def __init__(self, outgoing: Wire, incoming: Wire) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        #: Bytes that it takes from now on until it is full, and gives with one recv.
        self.takes = 0
        self.gives = ALL

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def send(self, data: bytearray) -> int:
        wire = self.outgoing
        if not wire.has_reader:
            raise BrokenPipeError
        count = min(len(data), self.takes, wire.room - len(wire.data))
        if count <= 0:
            raise BlockingIOError
        wire.data += data[:count]
        self.takes -= count
        return count

    def recv(self, size: int) -> bytes:
        wire = self.incoming
        if wire.data:
            count = min(size, self.gives)
            data = bytes(wire.data[:count])
            del wire.data[:count]
            return data
        if wire.is_reset:
            wire.is_reset = False
            raise ConnectionResetError
        if wire.has_writer:
            raise BlockingIOError
        return b""

    def close(self) -> None:
        self.outgoing.has_writer = False
        self.outgoing.is_reset = bool(self.incoming.data)  # as Linux does
        self.incoming.has_reader = False
        self.incoming.data.clear()


class World:
    """What really happened, as nobody in it can know."""

    def __init__(self) -> None:
        #: The processes in which each job's body was started, and has ended.
        self.started: dict[int, list[int]] = {}
        self.completed: set[int] = set()
        #: What each job was to be given.
        self.payloads: dict[int, bytes] = {}
        #: How each job that the pool has ended was ended, by its process or before it.
        self.verdicts: dict[int, Verdict] = {}


class FakeBody:
    """A body that runs, or was cancelled and cleans up, or refuses to end."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.verdict = Verdict.NONE
        self.refuses = False
        self.is_detached = False


class FakeProcess:
    """A worker process as ``child/runner.py`` makes one, and the parent's record of it."""

    def __init__(self, pid: int, world: World, now: float, room: int) -> None:
        there, here = Wire(room), Wire(room)
        self.world = world
        self.pid = pid
        # The parent's side.
        self.socket = StingySocket(there, here)
        self.pipe = Pipe(self.socket)
        self.life = Lifecycle(pid, now=now, start_timeout=START_TIMEOUT)
        self.is_watched = True
        self.is_closed_for_jobs = False
        self.is_doomed = False
        #: When it is killed, once it is doomed.
        self.doomed_at = math.inf
        # The child's side.
        self.child_socket = StingySocket(here, there)
        self.child_pipe = Pipe(self.child_socket)
        self.exitcode: int | None = None
        self.is_running = True
        self.has_started = False
        self.accepting: deque[tuple[int, Message]] = deque()
        self.terminating: set[int] = set()
        self.bodies: dict[int, FakeBody] = {}
        self.is_draining = False

    def __repr__(self) -> str:
        return f"<FakeProcess {self.life!r} {self.pipe!r} exitcode={self.exitcode}>"

    # What the child does.

    def start(self) -> None:
        self.has_started = True
        self.child_pipe.write(encode(Kind.WORKER_UP))
        self.child_flush()

    def turn(self) -> None:
        """Come up, or read what there is."""
        if self.is_running and self.has_started:
            self.child_read()
        elif self.is_running:
            self.start()

    def child_read(self) -> None:
        for message in self.child_pipe.read():
            if message.kind is Kind.TASK:
                self.child_pipe.write(encode_time(Kind.ACK, message.job_id, 1.5))
                self.accepting.append((self.child_pipe.written, message))
            elif message.kind is Kind.CANCEL:
                if message.job_id in self.bodies:
                    self.cancel_body(message.job_id, Verdict.TERMINATED)
                elif any(waiting.job_id == message.job_id for _, waiting in self.accepting):
                    self.terminating.add(message.job_id)
            else:
                assert message.kind is Kind.DRAIN
                self.is_draining = True
        self.child_flush()

    def child_flush(self) -> None:
        self.child_pipe.flush()
        while self.accepting and self.accepting[0][0] <= self.child_pipe.sent:
            _, message = self.accepting.popleft()
            job_id = message.job_id
            if job_id in self.terminating:
                self.world.verdicts[job_id] = Verdict.TERMINATED
                self.child_pipe.write(encode(Kind.READY, job_id, TERMINATED))
                continue
            self.world.started.setdefault(job_id, []).append(self.pid)
            self.bodies[job_id] = FakeBody(message.payload)
            self.child_pipe.write(encode_time(Kind.STARTED, job_id, 1.5))
        busy = self.bodies or self.accepting or self.child_pipe.unsent
        if self.is_draining and not busy:
            self.die(0)

    def cancel_body(self, job_id: int, verdict: Verdict, *, refuses: bool = False) -> None:
        """Its hard limit is over, or its job is to be ended; the first verdict stays."""
        body = self.bodies[job_id]
        if body.verdict is Verdict.NONE:
            body.verdict = self.world.verdicts[job_id] = verdict
            self.child_pipe.write(encode(Kind.CANCELLED, job_id))
        body.refuses = body.refuses or refuses

    def detach_body(self, job_id: int) -> None:
        """Its grace time is over, if it was cancelled."""
        body = self.bodies[job_id]
        if body.verdict is not Verdict.NONE and not body.is_detached:
            body.is_detached = True
            stack = dumps((body.verdict.value, "where", None))
            self.child_pipe.write(encode(Kind.STUCK, job_id, stack))
            self.child_flush()

    def end_body(self, job_id: int) -> None:
        body = self.bodies.pop(job_id)
        self.child_pipe.write(encode(Kind.READY, job_id, self.result(job_id, body)))
        self.child_flush()

    def result(self, job_id: int, body: FakeBody) -> bytes:
        if body.is_detached:
            return b""
        if body.verdict is Verdict.TERMINATED:
            return TERMINATED
        if body.verdict is Verdict.HARD_LIMIT:
            return TIMED_OUT
        self.world.completed.add(job_id)
        return b"=" + body.payload[::-1]

    def lose_pipe(self) -> None:
        """Close the pipe and hang."""
        self.is_running = False
        self.child_pipe.close()

    def die(self, exitcode: int, *, end_stays_open: bool = False) -> None:
        """Exit; a descendant may keep the end of the pipe open and never use it."""
        self.is_running = False
        self.exitcode = exitcode
        if not end_stays_open:
            self.child_socket.close()


class Parent:
    """Wires, fleet and reporter of a ``JobTable``."""

    def __init__(
        self,
        world: World,
        target: int,
        slots: int,
        limit: int,
        room: int,
        caps: Caps | None = None,
    ) -> None:
        self.world = world
        self.target = target
        self.room = room
        self.now = 0.0
        self.table = JobTable(slots, limit, caps, max_crashes=10**6, cancel_grace=1.0)
        self.dispatcher = self.table.dispatcher
        self.processes: dict[int, FakeProcess] = {}
        self.submitted: list[Job] = []
        #: How each job ended, as often as it was told, or as it was discarded.
        self.ends: dict[int, list[str]] = {}
        self.accepted: list[int] = []
        #: The order in which jobs must leave the queue, those of each cap and the
        #: others, kept without the table.
        self.order: dict[str | None, list[int]] = {None: [], "capped": [], "pattern*": []}
        #: Slots that Celery thinks are free, and the messages that wait for one.
        self.free_slots = limit
        self.messages: deque[tuple[str, int]] = deque()
        self.told_waiting = 0
        #: Jobs of which Celery will say that they must not run.
        self.revoked: set[int] = set()
        self.asked: deque[Job] = deque()
        #: What Celery is still to be told.
        self.news: deque[Effect] = deque()
        self.is_telling = False
        self.exits: list[Exit] = []
        self.finishing = False

    @property
    def unfinished(self) -> dict[int, Job]:
        """Jobs whose slot is not free."""
        return {job.id: job for job in self.table.jobs()}

    def held(self, process: FakeProcess) -> Held:
        return self.table.held(process.pid)

    def receive(self, name: str, size: int) -> None:
        """A message has come; it waits for a slot, as in Celery's consumer."""
        self.messages.append((name, size))
        self.submit_next()

    def submit_next(self) -> None:
        if self.messages and self.free_slots:
            name, size = self.messages.popleft()
            self.submit(Job(len(self.submitted) + 1, bytes(range(size)), name=name))

    def submit(self, job: Job) -> None:
        self.submitted.append(job)
        self.world.payloads[job.id] = job.payload
        self.order[cap_of(job)].append(job.id)
        self.free_slots -= 1
        self.apply(self.table.submit(job))

    def apply(self, effects: list[Effect]) -> None:
        """Send frames now; what Celery is told waits for its turn, as in the reporter."""
        for effect in effects:
            if isinstance(effect, Send):
                process = self.processes[effect.job.pid]
                process.pipe.write(encode(Kind.TASK, effect.job.id, effect.job.payload))
            elif isinstance(effect, Cancel):
                self.processes[effect.job.pid].pipe.write(encode(Kind.CANCEL, effect.job.id))
            else:
                self.news.append(effect)
        if self.is_telling:
            return
        self.is_telling = True
        while self.news:
            self.tell(self.news.popleft())
        self.is_telling = False
        for job in self.submitted:
            if job.state is jobs.State.DISCARDED:
                self.ends.setdefault(job.id, [job.state.value])

    def tell(self, news: Effect) -> None:
        if isinstance(news, Tell):
            self.on_told(news)
        elif isinstance(news, SlotFree):
            self.free_slots += 1
            self.submit_next()
        elif isinstance(news, Waiting):
            self.told_waiting = news.jobs
        else:
            assert isinstance(news, Ask)
            self.asked.append(news.job)

    def on_told(self, told: Tell) -> None:
        job = told.job
        if told.report is Report.ACCEPTED:
            self.accepted.append(job.id)
            return
        if told.report is Report.HARD_LIMIT:
            return
        if told.report is Report.RESULT:
            payload = self.world.payloads[job.id]
            assert told.detail in (b"=" + payload[::-1], TERMINATED, TIMED_OUT)
        self.ends.setdefault(job.id, []).append(job.state.value)

    def drop_queued(self) -> None:
        for line in self.order.values():
            line.clear()
        self.messages.clear()
        self.apply(self.table.drop_queued())

    def terminate(self, job: Job, takes: int) -> None:
        process = self.processes.get(job.pid)
        if process is not None:
            process.socket.takes = takes
        self.apply(self.table.terminate(job, 15, self.now))
        if process is not None:
            process.pipe.flush()

    def dispatch(self, revoked: set[int]) -> None:
        """One turn of the hub; what Celery is asked about is answered later."""
        self.table.turn += 1
        self.revoked |= revoked
        effects = self.table.assign()
        for effect in effects:
            assert isinstance(effect, Send | Ask)
            self.check_is_next(effect.job)
            process = self.processes[effect.job.pid]
            assert process.life.state is lifecycle.State.UP
            assert not process.is_closed_for_jobs
        self.apply(effects)
        self.flush()

    def flush(self) -> None:
        for process in self.processes.values():
            process.pipe.flush()

    def answer(self) -> None:
        """Celery says whether the first job of which it was asked must not run."""
        if self.asked:
            job = self.asked.popleft()
            self.apply(self.table.answer(job, job.id in self.revoked))
            self.flush()

    def check_is_next(self, job: Job) -> None:
        line = self.order[cap_of(job)]
        while line[0] in self.ends:
            line.pop(0)
        assert line.pop(0) == job.id

    def read(self, process: FakeProcess) -> None:
        if not process.is_watched:
            return
        for message in process.pipe.read():
            self.handle(process, message)
        if process.pipe.eof:
            process.is_watched = False
            process.is_closed_for_jobs = True
            self.dispatcher.close_process(process.pid)
            process.life.on_eof(now=self.now, timeout=STOP_TIMEOUT)

    def handle(self, process: FakeProcess, message: Message) -> None:
        pid, job_id = process.pid, message.job_id
        if message.kind is Kind.WORKER_UP:
            if process.life.on_up():
                self.table.process_up(pid)
        elif message.kind is Kind.ACK:
            self.apply(self.table.accept(pid, job_id, 1.5))
        elif message.kind in (Kind.STARTED, Kind.CANCELLED):
            assert self.held(process).jobs[job_id].state is jobs.State.ACCEPTED
        elif message.kind is Kind.STUCK:
            self.on_stuck(process, message)
        else:
            assert message.kind is Kind.READY
            assert job_id in self.held(process).jobs
            self.apply(self.table.ready(pid, job_id, message.payload))
            self.kill_if_only_stuck(process)

    def on_stuck(self, process: FakeProcess, message: Message) -> None:
        verdict, stack, outcome = loads(message.payload)
        effects = self.table.stuck(process.pid, message.job_id, verdict, stack, outcome)
        assert any(isinstance(effect, Tell) for effect in effects)
        if process.life.state is lifecycle.State.UP:
            self.drain(process, self.now + DRAIN_TIMEOUT)
        self.replenish()
        self.apply(effects)
        self.kill_if_only_stuck(process)

    def kill_if_only_stuck(self, process: FakeProcess) -> None:
        if self.held(process).has_only_stuck and not process.is_doomed:
            self.doom(process)
            self.kill(process)

    def enforce(self, process: FakeProcess, job: Job) -> None:
        """It is silent although the time of *job* is over."""
        self.table.wait_on(job, self.now)
        job.limits = Limits(hard=1.0)
        self.doom(process)
        process.doomed_at = self.now + STACK_TIME
        self.maintain()

    def doom(self, process: FakeProcess) -> None:
        process.is_doomed = process.is_closed_for_jobs = True
        self.dispatcher.close_process(process.pid)
        if process.life.state is not lifecycle.State.STOPPING:
            process.life.stop(now=self.now, timeout=STOP_TIMEOUT)

    def kill(self, process: FakeProcess) -> None:
        if process.exitcode is None:
            process.die(-9)

    def drain(self, process: FakeProcess, deadline: float | None = None) -> None:
        process.is_closed_for_jobs = True
        self.dispatcher.close_process(process.pid)
        process.life.drain(deadline=deadline)
        process.pipe.write(encode(Kind.DRAIN))
        process.pipe.flush()

    def notice_exit(self, process: FakeProcess) -> None:
        if process.exitcode is None or process.pid not in self.processes:
            return
        if not process.pipe.eof:
            for message in process.pipe.read_to_end():
                self.handle(process, message)
        del self.processes[process.pid]
        self.exits.append(process.life.on_exit(process.exitcode))
        process.pipe.close()
        for job in reversed(self.held(process).jobs.values()):
            if job.state is jobs.State.SENT and job.terminating is None:
                self.order[cap_of(job)].insert(0, job.id)
        self.apply(self.table.process_gone(process.pid, Loss("gone", is_suspect=True)))
        self.maintain()

    def maintain(self) -> None:
        for process in list(self.processes.values()):
            if process.exitcode is not None:
                self.notice_exit(process)
            elif process.life.state is lifecycle.State.STARTING:
                self.read(process)
            elif self.now >= process.doomed_at:
                self.kill(process)
        self.replenish()

    def replenish(self) -> None:
        target = 0 if self.finishing and not self.unfinished else self.target
        to_do = plan(target, [process.life for process in self.processes.values()], self.now)
        for pid in to_do.kill:
            self.kill(self.processes[pid])
        for _ in range(to_do.spawn):
            pid = 100 + len(self.exits) + len(self.processes)
            self.processes[pid] = FakeProcess(pid, self.world, self.now, self.room)


def cap_of(job: Job) -> str | None:
    """The cap of *job*, by the names that there are."""
    return {"capped": "capped", "pattern": "pattern*", "free": None}[job.name.rstrip("12")]


some_bytes = st.integers(1, 100)
room_in_pipe = st.integers(0, 200)
which = st.integers(0, 5)
names = st.sampled_from(["capped", "pattern1", "pattern2", "free"])
payloads = st.lists(st.tuples(names, st.integers(0, 30)), max_size=5)
#: So that jobs mostly run, and processes mostly live.
seldom = st.integers(0, 5).map(lambda number: number == 5)


class PoolMachine(RuleBasedStateMachine):
    """Jobs come, bytes move and processes die in any order."""

    @initialize(
        count=st.integers(1, 3),
        slots=st.integers(1, 4),
        limit=st.integers(1, 8),
        room=st.integers(5, 300),
        caps=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    )
    def start(self, count: int, slots: int, limit: int, room: int, caps: tuple[int, int]) -> None:
        self.world = World()
        self.caps = Caps(zip(("capped", "pattern*"), caps, strict=True))
        self.parent = Parent(self.world, count, slots, limit, room, self.caps)
        self.submitted = self.parent.submitted
        self.parent.maintain()

    # Helpers.

    def pick(self, number: int, *, running: bool = False) -> FakeProcess | None:
        processes = list(self.parent.processes.values())
        if running:
            processes = [process for process in processes if process.is_running]
        return processes[number % len(processes)] if processes else None

    # Jobs.

    @rule(sizes=payloads)
    def jobs_arrive(self, sizes: list[tuple[str, int]]) -> None:
        for name, size in sizes:
            self.parent.receive(name, size)

    @rule(takes=room_in_pipe, revoked=st.sets(which, max_size=2))
    def jobs_are_dispatched(self, takes: int, revoked: set[int]) -> None:
        for process in self.parent.processes.values():
            process.socket.takes = takes
        waiting = sorted(itertools.chain(*self.parent.order.values()))
        self.parent.dispatch({waiting[index] for index in revoked if index < len(waiting)})

    @rule(times=st.integers(1, 3))
    def celery_answers(self, times: int) -> None:
        """Whether jobs that have waited may run."""
        for _ in range(times):
            self.parent.answer()

    @rule(number=st.integers(0, 30), takes=room_in_pipe)
    def job_is_terminated(self, number: int, takes: int) -> None:
        """Wherever it is: it may have ended, and nobody knows yet."""
        some = [job for job in self.submitted if not job.has_ended] or self.submitted
        if some:
            self.parent.terminate(some[number % len(some)], takes)

    @rule(happens=seldom)
    def broker_is_lost(self, happens: bool) -> None:
        if happens:
            self.parent.drop_queued()

    # The parent's end of a pipe.

    @rule(number=which, gives=some_bytes)
    def parent_reads(self, number: int, gives: int) -> None:
        process = self.pick(number)
        if process is not None:
            process.socket.gives = gives
            self.parent.read(process)

    @rule(number=which, takes=room_in_pipe)
    def parent_writes(self, number: int, takes: int) -> None:
        process = self.pick(number)
        if process is not None:
            process.socket.takes = takes
            process.pipe.flush()

    # The processes.

    @rule(number=which, gives=some_bytes, takes=room_in_pipe)
    def process_reads(self, number: int, gives: int, takes: int) -> None:
        process = self.pick(number, running=True)
        if process is not None:
            process.child_socket.gives = gives
            process.child_socket.takes = takes
            process.turn()

    @rule(number=which, takes=room_in_pipe)
    def process_writes(self, number: int, takes: int) -> None:
        process = self.pick(number, running=True)
        if process is not None:
            process.child_socket.takes = takes
            process.child_flush()

    @rule(number=which, body=which, takes=room_in_pipe)
    def body_ends(self, number: int, body: int, takes: int) -> None:
        process = self.pick(number, running=True)
        if process is not None and process.bodies:
            process.child_socket.takes = takes
            process.end_body(list(process.bodies)[body % len(process.bodies)])

    @rule(number=which, body=which, then=st.sampled_from(["", "", "refuses", "is stuck"]))
    def hard_limit_is_over(self, number: int, body: int, then: str) -> None:
        process = self.pick(number, running=True)
        if process is not None and process.bodies:
            job_id = list(process.bodies)[body % len(process.bodies)]
            process.cancel_body(job_id, Verdict.HARD_LIMIT, refuses=then != "")
            if then == "is stuck":
                process.detach_body(job_id)
            process.child_flush()

    @rule(number=which, takes=room_in_pipe, ends=st.booleans())
    def grace_time_is_over(self, number: int, takes: int, ends: bool) -> None:
        """Of all cancelled bodies; perhaps they end after all, just too late."""
        process = self.pick(number, running=True)
        if process is None:
            return
        process.child_socket.takes = takes
        for job_id, body in list(process.bodies.items()):
            process.detach_body(job_id)
            if body.is_detached and ends and process.is_running:
                process.end_body(job_id)

    @rule(turns=st.integers(1, 8), takes=st.integers(20, 300), sizes=payloads)
    def bodies_start(self, turns: int, takes: int, sizes: list[tuple[str, int]]) -> None:
        """And run on: makes it likely that there is something to end."""
        self.jobs_arrive(sizes)
        for _ in range(turns):
            self.parent.dispatch(set())
            self.parent.answer()
            for process in list(self.parent.processes.values()):
                process.socket.takes = process.child_socket.takes = takes
                process.socket.gives = process.child_socket.gives = takes
                process.pipe.flush()
                process.turn()
                self.parent.read(process)

    @rule(turns=st.integers(1, 8), takes=st.integers(20, 300), sizes=payloads)
    def all_goes_well_for_some_turns(
        self, turns: int, takes: int, sizes: list[tuple[str, int]]
    ) -> None:
        """Makes it likely that jobs run when something happens to their process."""
        for _ in range(turns):
            self.parent.answer()
            for process in list(self.parent.processes.values()):
                process.socket.takes = process.child_socket.takes = takes
                process.socket.gives = process.child_socket.gives = takes
                process.pipe.flush()
                process.turn()
                if process.is_running and process.bodies:
                    process.end_body(min(process.bodies))
                self.parent.read(process)
            self.parent.dispatch(set())
        self.jobs_arrive(sizes)
        self.parent.dispatch(set())

    # Faults.

    @rule(
        number=which,
        fault=st.sampled_from(["none", "dies", "dies, its pipe stays open", "loses its pipe"]),
        exitcode=st.sampled_from([0, 1, -9, -11]),
        takes=st.none() | room_in_pipe,
        sizes=payloads,
        is_stuck=st.booleans(),
        is_noticed=st.booleans(),
    )
    def process_fails(
        self,
        number: int,
        fault: str,
        exitcode: int,
        takes: int | None,
        sizes: list[tuple[str, int]],
        is_stuck: bool,
        is_noticed: bool,
    ) -> None:
        """Perhaps after a last turn of its own, and before some jobs that still go to it."""
        process = self.pick(number, running=True)
        if process is None or fault == "none":
            return
        if takes is not None:
            process.child_socket.takes = takes
            process.turn()
            if is_stuck:
                for job_id in list(process.bodies)[:2]:
                    process.cancel_body(job_id, Verdict.HARD_LIMIT, refuses=True)
                    process.detach_body(job_id)
                for job_id in list(process.bodies)[2:]:
                    process.end_body(job_id)
        if fault == "loses its pipe":
            process.lose_pipe()
        elif process.is_running:
            process.die(exitcode, end_stays_open="open" in fault)
        self.jobs_arrive(sizes)
        self.jobs_are_dispatched(ALL, set())
        if is_noticed:
            self.parent.notice_exit(process)

    @rule(number=which, index=which, happens=seldom)
    def process_is_silent(self, number: int, index: int, happens: bool) -> None:
        """It blocks its loop, says the parent's own clock, rightly or not."""
        process = self.pick(number)
        if process is None or process.is_doomed or not happens:
            return
        held = self.parent.held(process)
        accepted = [j for j in held.jobs.values() if j.state is jobs.State.ACCEPTED]
        if accepted:
            self.parent.enforce(process, accepted[index % len(accepted)])

    @rule(number=which, gives=some_bytes)
    def exit_is_noticed(self, number: int, gives: int) -> None:
        process = self.pick(number)
        if process is not None:
            process.socket.gives = gives
            self.parent.notice_exit(process)

    # The parent's housekeeping.

    @rule(number=which, takes=room_in_pipe, happens=seldom)
    def process_is_drained(self, number: int, takes: int, happens: bool) -> None:
        process = self.pick(number)
        if happens and process is not None and process.life.state is lifecycle.State.UP:
            process.socket.takes = takes
            self.parent.drain(process)

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.parent.now += seconds
        self.parent.maintain()

    @precondition(lambda self: self.submitted)
    @rule()
    def a_late_event_is_ignored(self) -> None:
        """An end stays as it is, whoever comes too late."""
        for job in self.submitted:
            if job.has_ended:
                late = [job.accept(), job.finish(), job.lose(), job.give_back(), job.discard()]
                assert not any([*late, job.set_terminated(), job.time_out()])

    # What always holds.

    @invariant()
    def every_promise_holds(self) -> None:
        self.no_process_has_more_jobs_than_slots()
        self.no_cap_is_exceeded()
        self.who_waits_for_a_cap_has_no_slot()
        self.celery_knows_the_free_slots()
        self.no_body_starts_twice()
        self.no_job_ends_twice()
        self.a_job_is_in_one_place()
        self.ends_are_true()

    def no_process_has_more_jobs_than_slots(self) -> None:
        dispatcher = self.parent.dispatcher
        for process in self.parent.processes.values():
            held = self.parent.held(process)
            assert dispatcher.load(process.pid) == len(held.jobs) <= dispatcher.slots
            assert len(process.bodies) + len(process.accepting) <= dispatcher.slots
        in_processes = sum(len(self.parent.held(p).jobs) for p in self.parent.processes.values())
        assert dispatcher.in_flight() == in_processes <= dispatcher.limit

    def no_cap_is_exceeded(self) -> None:
        """Not by jobs in processes, nor by bodies; and who waits, waits for one that is full."""
        unfinished = self.parent.unfinished.values()
        for cap in self.caps:
            mine = [job for job in unfinished if cap_of(job) == cap.pattern]
            assert {job.id for job in mine if not job.waits} == cap.running
            assert {job.id for job in mine if job.waits} == cap.waiting.keys()
            assert len(cap.running) == cap.limit if cap.waiting else True
            assert len(cap.running) <= cap.limit
            processes = self.parent.processes.values()
            held = [self.parent.held(process) for process in processes]
            assert sum(job.id in one.jobs for one in held for job in mine) <= cap.limit

    def who_waits_for_a_cap_has_no_slot(self) -> None:
        waiting = [job for job in self.parent.unfinished.values() if job.waits]
        assert all(job.is_queued for job in waiting)
        assert self.caps.waiting == len(waiting)
        assert self.parent.told_waiting == len(waiting)
        table = self.parent.table
        assert table.slots_taken == len(self.parent.unfinished) - len(waiting)

    def celery_knows_the_free_slots(self) -> None:
        """Each slot is taken once and given back once; no message waits while one is free."""
        parent = self.parent
        assert parent.free_slots + parent.table.slots_taken == parent.table.limit
        assert not (parent.free_slots and parent.messages)

    def no_body_starts_twice(self) -> None:
        """A body starts only once its ACK has left; its job never starts again."""
        assert all(len(pids) == 1 for pids in self.world.started.values())
        assert len(self.parent.accepted) == len(set(self.parent.accepted))

    def no_job_ends_twice(self) -> None:
        for job_id, ends in self.parent.ends.items():
            assert len(ends) == 1
            job = self.parent.unfinished.get(job_id)
            if job is not None:  # its slot is taken by a body that refuses to end
                assert job_id in self.parent.table.held(job.pid).stuck

    def a_job_is_in_one_place(self) -> None:
        """Each job waits, or is in one process, or has ended."""
        for job in self.submitted:
            processes = self.parent.processes.values()
            where = [p.pid for p in processes if job.id in self.parent.held(p).jobs]
            if job.has_ended:
                is_stuck = job.id in self.parent.unfinished
                assert where == ([job.pid] if is_stuck else [])
                assert self.parent.ends[job.id] == [job.state.value]
            elif job.is_queued:
                assert where == []
                assert job.pid is None
            else:
                assert where == [job.pid]

    def ends_are_true(self) -> None:
        """A result is of a body that ran or was ended; what was discarded never ran."""
        world = self.world
        for job_id, (end,) in self.parent.ends.items():
            if end == "ready":
                assert (job_id in world.completed) is (job_id not in world.verdicts)
            elif end == "discarded":
                assert job_id not in world.started
            elif end == "terminated":
                assert self.submitted[job_id - 1].terminating is not None

    # The end.

    def teardown(self) -> None:
        """Without further faults every job ends, and then every process."""
        if not hasattr(self, "parent"):
            return
        parent = self.parent
        parent.finishing = True
        for _ in range(10_000):
            parent.now += 0.1
            parent.maintain()
            if not parent.processes:
                break
            self.make_progress()
            for process in list(parent.processes.values()):
                if not parent.unfinished and process.life.state is lifecycle.State.UP:
                    parent.drain(process)

        assert parent.processes == {}
        assert parent.unfinished == {}
        assert sorted(parent.ends) == [job.id for job in self.submitted]
        assert all(job.has_ended for job in self.submitted)
        assert parent.dispatcher.in_flight() == 0
        assert parent.table.slots_taken == 0
        assert not any(cap.running or cap.waiting for cap in self.caps)
        self.every_promise_holds()

    def make_progress(self) -> None:
        for process in list(self.parent.processes.values()):
            process.socket.takes = process.child_socket.takes = ALL
            process.socket.gives = process.child_socket.gives = ALL
            process.pipe.flush()
            process.turn()
            if process.is_running:
                for job_id, body in list(process.bodies.items()):
                    if body.refuses:
                        process.detach_body(job_id)
                    else:
                        process.end_body(job_id)
            self.parent.read(process)
        self.parent.dispatch(set())
        while self.parent.asked:
            self.parent.answer()
        self.every_promise_holds()


def test_pool_in_any_order_of_events():
    """Whatever happens in whatever order, every job runs at most once and ends exactly once."""
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=400,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("room", [1, 7, 13, 14, 100])
def test_pool_without_faults(room):
    """With a kernel that takes a few bytes at a time all jobs run, in order, and end READY."""
    world = World()
    parent = Parent(world, target=2, slots=3, limit=5, room=room)
    parent.maintain()
    for number in range(1, 21):
        parent.receive("free", number)

    while parent.unfinished:
        for process in parent.processes.values():
            process.socket.takes = process.child_socket.takes = ALL
            process.pipe.flush()
            process.turn()
            for job_id in list(process.bodies):
                process.end_body(job_id)
            parent.read(process)
        parent.dispatch(set())
        while parent.asked:
            parent.answer()

    assert {job.state for job in parent.submitted} == {jobs.State.READY}
    assert sorted(world.started) == list(range(1, 21))
    assert parent.dispatcher.in_flight() == 0
