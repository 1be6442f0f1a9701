"""One soak: start everything, send and strike, let it end, and judge."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from apps import deliveries
from worker import Client, Transport, Worker, wait_for

from .brokers import start_brokers
from .check import LEAKED, WRONG, Sent, State, Verdict, check
from .deaths import read_deaths, unexpected
from .faults import Faults
from .history import Line, read_history
from .kinds import KINDS, Kind
from .leaks import Leaks
from .plan import CUT, FAULTS, Plan, Strike, make_plan

SLOTS = 60
PROCESSES = 3

#: Jobs after which a process is replaced: a recycle every now and then.
MAX_TASKS = 400

#: With Redis: kombu takes a message from it with BRPOP, and one that is on its
#: way when the connection is cut is lost, whatever the pool.
NO_CUTS = tuple(fault for fault in FAULTS if fault != CUT)

RECONNECTED = "Connected to "

PROGRESS_EVERY = 10.0

#: What the worker must not say: it would be a mistake of ours.
MISTAKE = re.compile(
    r"AssertionError|could not start|cannot go on|the pipe .* is broken|callback raised (\w+)"
)

#: What Celery's callbacks may raise when the connection has just been cut.
CONNECTION_ERRORS = (
    "BrokenPipeError",
    "ConnectionResetError",
    "OSError",
    "RecoverableConnectionError",
)


@dataclass
class Outcome:
    """What a soak has come to."""

    verdict: Verdict
    sent: int
    faults: dict[str, int]
    #: Where the worker's log and record are.
    folder: Path
    #: What happened besides, from the worker's log.
    events: dict[str, int] = field(default_factory=dict)


class Soak:
    """A worker under random tasks and random faults.

    Arguments:
        seed: of all that is random.
        minutes: how long tasks are sent and faults strike.
        broker: "rabbitmq" or "redis".
        folder: for the worker's log and its record.
        tell: called with a line now and then.
    """

    def __init__(
        self, seed: int, minutes: float, broker: str, folder: Path, tell: Callable[[str], None]
    ) -> None:
        faults = FAULTS if broker == "rabbitmq" else NO_CUTS
        self._plan: Plan = make_plan(seed, minutes, SLOTS, faults)
        self._broker = broker
        self._folder = folder
        self._tell = tell
        self._sent: dict[str, Sent] = {}
        self._lines: list[Line] = []
        self._give_up = threading.Event()
        self._errors: list[BaseException] = []

    def run(self) -> Outcome:
        with start_brokers(self._broker, Transport) as brokers:
            worker = Worker(
                *(brokers.near, "soak", self._folder),
                *("-c", SLOTS, "--processes", PROCESSES, "--max-tasks-per-child", MAX_TASKS),
                *("--without-gossip",),
            )
            worker.client = Client(brokers.direct, worker.module)
            worker.client.app.conf.broker_transport_options = {"confirm_publish": True}
            try:
                worker.start()
                worker.wait_ready()
                with Faults(worker, brokers.proxy) as faults:
                    return self._soak(worker, faults, brokers.count_messages)
            finally:
                worker.kill_everything()
                worker.client.close()

    def _soak(
        self, worker: Any, faults: Faults, count_messages: Callable[[], tuple[int, int]]
    ) -> Outcome:
        self._serve(worker)
        self._serve(worker)
        leaks = Leaks(worker, SLOTS, count_messages)
        self._tell(f"the worker is up, pid {worker.process.pid}; log: {worker.log_path}")
        self._storm(worker, faults)
        self._tell("no more tasks and no more faults; waiting for the ends")
        faults.heal()
        wait_for(lambda: faults.resize(SLOTS), "an answer of the worker")
        leaked = self._let_end(worker, faults, leaks)
        leaked += leaks.find()
        leaked += leaks.after_exit()
        self._tell("judging")
        return self._judge(worker, faults, leaked)

    # Sending.

    def _send(self, worker: Any, kind: Kind, token: int, arguments: dict[str, Any]) -> Any:
        name, task_id = uuid.uuid4().hex, str(uuid.uuid4())
        line = {"id": task_id, "message": name, "retries": 0}
        self._sent[task_id] = Sent(kind, token, arguments)
        self._lines.append({"what": "publishing", "at": time.monotonic(), **line})
        signature = worker.client.s(kind.task, token, **arguments)
        result = signature.apply_async(
            task_id=task_id, headers={deliveries.MESSAGE_HEADER: name}, **kind.options
        )
        self._lines.append({"what": "published", "at": time.monotonic(), **line})
        return result

    def _serve(self, worker: Any) -> None:
        """Run more tasks than there are slots, some of them in threads, and wait for them."""
        results = []
        for kind in (KINDS["awaits"], KINDS["sleeps, def"], KINDS["fails"]):
            results += [self._send(worker, kind, 0, {"seconds": 0.5}) for _ in range(SLOTS)]
        for result in results:
            wait_for(result.ready, lambda result=result: f"{result.id}:\n{worker.tail()}")

    def _send_all(self, worker: Any, started: float) -> None:
        for send in self._plan.sends:
            if self._give_up.wait(max(0.0, started + send.at - time.monotonic())):
                return
            self._send(worker, send.kind, send.token, send.arguments)

    def _storm(self, worker: Any, faults: Faults) -> None:
        """Send all tasks and let all faults strike; raises what goes wrong with that."""
        started = time.monotonic()
        threads = [
            threading.Thread(target=self._guard, args=arguments, daemon=True)
            for arguments in (
                (self._send_all, worker, started),
                (faults.run, self._plan.strikes, self._plan.seconds, started, self._give_up),
            )
        ]
        for thread in threads:
            thread.start()
        told = started
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.5) if threads[0].is_alive() else threads[1].join(0.5)
                if worker.process.poll() is not None:
                    raise RuntimeError(f"the worker has exited:\n{worker.tail()}")
                if time.monotonic() > told + PROGRESS_EVERY:
                    told = time.monotonic()
                    self._tell_progress(worker, faults, told - started)
        finally:
            self._give_up.set()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _guard(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except BaseException as exc:
            self._errors.append(exc)
            self._give_up.set()

    def _tell_progress(self, worker: Any, faults: Faults, seconds: float) -> None:
        minutes, seconds = divmod(round(seconds), 60)
        self._tell(
            f"{minutes:3d}:{seconds:02d}  {len(self._sent)} sent, "
            f"{_count(worker.record_path, 'acked')} acknowledged, "
            f"{faults.counts.total()} faults"
        )

    # The end.

    def _let_end(self, worker: Any, faults: Faults, leaks: Leaks) -> list[str]:
        """Wait until all has ended, and see that the worker still serves."""

        def ended() -> int:
            return _count(worker.record_path, "acked")

        if left := leaks.wait_idle(ended):
            return [left]
        # Celery counts wrong what it prefetches when tasks with a countdown wait
        # while it recovers from a cut. After one with nothing to do it is right.
        reconnects = worker.log().count(RECONNECTED)
        faults.strike(Strike(0.0, CUT, {"seconds": 0.1}))
        time.sleep(0.1)
        faults.heal()
        worker.wait_log(RECONNECTED, reconnects + 1)
        try:
            self._serve(worker)
        except AssertionError as exc:
            return [f"the worker does not serve any more: {exc}"]
        left = leaks.wait_idle(ended)
        return [left] if left else []

    def _judge(self, worker: Any, faults: Faults, leaked: list[str]) -> Outcome:
        log = worker.log()
        deaths = read_deaths(log)
        history = read_history([*self._lines, *worker.records()])
        (self._folder / "client.jsonl").write_text(
            "".join(f"{json.dumps(line)}\n" for line in self._lines)
        )
        (self._folder / "faults.txt").write_text("\n".join(faults.told) + "\n")
        verdict = check(self._sent, self._states(worker), history, faults.cuts, deaths.pids)
        epoch = time.time() - time.monotonic()
        for text in unexpected(deaths, faults.killed, faults.stopped, self._sent, history, epoch):
            verdict.add(WRONG, text)
        for text in leaked:
            verdict.add(LEAKED, text)
        for line in log.splitlines():
            mistake = MISTAKE.search(line)
            if mistake and mistake[1] not in CONNECTION_ERRORS:
                verdict.add(WRONG, f"the worker's log: {line}")
        counts = {fault: faults.counts[fault] for fault in FAULTS}
        events = {
            "worker processes that died": len(deaths.gone),
            "worker processes killed by the pool": len(deaths.killed),
            "recycled (worker_max_tasks_per_child)": log.count("goes (it has had"),
            "reconnects": log.count(RECONNECTED) - 1,
        }
        return Outcome(verdict, len(self._sent), counts, self._folder, events)

    def _states(self, worker: Any) -> dict[str, State]:
        """What the result backend says."""
        backend = worker.client.app.backend
        return {task_id: _state(backend.get_task_meta(task_id)) for task_id in self._sent}


def _state(meta: dict[str, Any]) -> State:
    result = meta["result"]
    if isinstance(result, BaseException):
        return State(meta["status"], type(result).__name__, str(result))
    return State(meta["status"], None, result)


def _count(record: Path, what: str) -> int:
    """How many lines of *record* are of that kind, without a look into them."""
    if not record.exists():
        return 0
    return record.read_bytes().count(f'"what": "{what}"'.encode())
