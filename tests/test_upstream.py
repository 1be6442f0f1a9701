"""What the package patches, subclasses or reads of others although it is private, or unsaid.

One line each: what must be there, and what of ours breaks without it. When a new
version of Celery, kombu, billiard, redis-py, asgiref, Django or Python takes one away,
this says so within a second, by name, where an integration test would only time out.

- ``Has``: an attribute of a module or class, or one that a class gives its instances.
- ``Calls``: a function that we call, or override, with these arguments.
- ``Sets``: an attribute that a module gives to an object from elsewhere.
- ``Frame``: a function that is looked for by its name on the stack.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from functools import cache
from typing import Any, NamedTuple

import celery
import django
import kombu
import pytest

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))
KOMBU = tuple(map(int, kombu.__version__.split(".")[:2]))
DJANGO = django.VERSION[:2]


class Has(NamedTuple):
    """*path* is ``module:name`` or ``module:Class.name``."""

    path: str
    breaks: str
    #: It is there in these versions; in others we do without.
    where: bool = True


class Calls(NamedTuple):
    """The function *path* takes *args* positional arguments and these keywords."""

    path: str
    args: int
    keywords: tuple[str, ...]
    breaks: str
    where: bool = True


class Sets(NamedTuple):
    """Module *module* assigns an attribute of that *name* to an object of another's."""

    module: str
    name: str
    breaks: str


class Frame(NamedTuple):
    """Module *module* has a function of that *name*, at any depth."""

    module: str
    name: str
    breaks: str


EXPECTED: tuple[Has | Calls | Sets | Frame, ...] = (
    # Celery's command line: the way in.
    Has("celery.concurrency:ALIASES", "cli: -P asyncpool"),
    Has("celery.concurrency:get_available_pool_names", "cli: -P asyncpool"),
    Has("celery.bin.worker:WORKERS_POOL.choices", "cli: -P asyncpool"),
    Has("celery.bin.worker:worker.params", "cli: --processes"),
    Calls("celery.bin.base:CeleryOption", 1, ("help_group",), "cli: --processes"),
    Has("celery.signals:celeryd_init", "cli: the default of -c"),
    # The pool: what Celery asks of it.
    Has("celery.concurrency.base:BasePool.on_apply", "pool: jobs"),
    Has("celery.concurrency.base:BasePool.task_join_will_block", "pool, testing: .get() in tasks"),
    Has("celery.concurrency.base:BasePool.uses_semaphore", "pool: slots"),
    Has("celery.concurrency.base:BasePool._get_info", "pool: inspect stats"),
    Has("celery.concurrency.base:BasePool.options", "pool: semaphore, limits, threads"),
    Has("celery.concurrency.base:BasePool.forking_enable", "pool: fork or spawn"),
    Has("kombu.asynchronous.semaphore:LaxBoundedSemaphore.initial_value", "pool: grow"),
    Has("kombu.asynchronous.semaphore:LaxBoundedSemaphore.value", "pool: flush"),
    Calls("kombu.asynchronous.semaphore:LaxBoundedSemaphore.shrink", 1, ("n",), "pool: shrink"),
    Has("celery.worker.state:should_stop", "pool: gives up when no process starts"),
    Has("celery.worker.state:should_terminate", "shutdown: warm or cold"),
    Has("celery.worker.state:active_requests", "request: cancel at the end of a soft shutdown"),
    Has("celery.worker.state:reserved_requests", "prefetch: worker_disable_prefetch with caps"),
    Has("celery.worker.state:task_ready", "request: tasks that have failed for good"),
    Has("celery.worker.state:reset_state", "testing: Celery's state after the worker"),
    Has("celery.app.task:Task.Request", "request: one outcome for a terminated task"),
    Has("celery.worker.request:Request._apply_result", "request: terminate asks the job"),
    Has("celery.worker.request:Request._context", "request: tasks that have failed for good"),
    Has("celery.worker.request:Request.store_errors", "request: tasks that have failed for good"),
    Calls(
        "celery.worker.request:Request.on_failure",
        2,
        ("send_failed_event", "return_ok"),
        "request: handlers of limits that the worker itself enforces",
    ),
    Calls("celery.worker.request:Request.terminate", 2, ("signal",), "request: revoke"),
    Calls("celery.worker.request:Request.cancel", 2, ("signal",), "request: soft shutdown"),
    Calls("celery.worker.request:Request.reject", 1, ("requeue",), "request: poison tasks"),
    Has("celery.canvas:Signature.__call__", "request: async errbacks of the old form"),
    Has("celery.signals:worker_shutting_down", "shutdown: counts cold signals"),
    Frame("celery.apps.worker", "on_cold_shutdown", "shutdown: a second QUIT kills at once"),
    *(
        (Frame("celery.apps.worker", "during_soft_shutdown", "shutdown: QUIT in a soft one"),)
        if CELERY >= (5, 5)
        else ()
    ),
    # The consumer and its hub.
    Has("celery.worker.consumer:Consumer.perform_pending_operations", "shutdown without a hub"),
    Sets("celery.worker.consumer.tasks", "task_consumer", "shutdown: stop consuming"),
    Has("celery.worker.consumer:Consumer.strategies", "testing: tasks that come late"),
    Has("celery.worker.consumer:Consumer.add_task_queue", "testing: all queues are served"),
    Sets("celery.worker.consumer.tasks", "qos", "prefetch: room for tasks that wait for caps"),
    Has("kombu.common:QoS.prev", "prefetch: when the broker is told"),
    Has("kombu.common:QoS.value", "prefetch: what the broker is told"),
    Has("kombu.common:QoS.callback", "prefetch: what the broker is told"),
    Has("kombu.asynchronous.hub:Hub.on_tick", "supervisor: one dispatch a turn"),
    Has("kombu.asynchronous.hub:Hub.readers", "shutdown, child: what the hub watches"),
    Has("kombu.asynchronous.hub:Hub.writers", "child: lets go of the hub's descriptors"),
    Has("kombu.asynchronous.hub:Hub.poller", "child: lets go of the hub's descriptors"),
    Has("kombu.asynchronous.hub:Hub.run_once", "supervisor: a hub of our own"),
    Has("kombu.asynchronous.hub:Hub._waker", "child: the hub's waker", KOMBU >= (5, 7)),
    Calls("kombu.asynchronous.hub:Hub.call_repeatedly", 3, (), "supervisor: maintenance"),
    Has("kombu.utils.eventio:_epoll._epoll", "child: lets go of the hub's epoll"),
    # Processes.
    Has("billiard.popen_fork:Popen._launch", "process: no descriptor leaks when fork fails"),
    Has("billiard.popen_fork:Popen.sentinel", "process: the end of a process"),
    Has("billiard.process:BaseProcess._bootstrap", "process: the child's way out"),
    Has("billiard.process:BaseProcess._Popen", "process: our fork"),
    Has("billiard.process:BaseProcess._config", "forks: multiprocessing in bodies"),
    Has("billiard.context:get_spawning_popen", "forks: multiprocessing in bodies"),
    Has("billiard.process:AuthenticationString", "forks: multiprocessing in bodies"),
    Has("billiard.util:set_pdeathsig", "orphan: the end of the main process"),
    Has("billiard.reduction:DupFd", "handover: spawned processes"),
    Has("billiard.common:human_status", "outcomes: why a process ended"),
    Has("billiard.einfo:ExceptionWithTraceback", "request, outcomes: the real exception"),
    Calls("celery.concurrency.prefork:process_initializer", 2, (), "child: Celery's set-up of it"),
    Calls("celery.concurrency.prefork:process_destructor", 2, (), "child: its last signal"),
    # The tracer.
    Has("celery._state:_task_stack", "current_task follows jobs"),
    Has("celery.utils.threads:_LocalStack.__ident_func__", "current_task, self.request"),
    Has("celery.utils.threads:get_ident", "current_task outside of jobs"),
    Has("celery.app.task:Task.request_stack", "self.request follows jobs"),
    Has("celery.app.task:Task.__trace__", "the tracer of each task"),
    Calls("celery.app.trace:build_tracer", 4, ("app",), "child, testing: the tracer of each task"),
    Calls("celery.app.trace:trace_task_ret", 6, (), "runner: what a job calls"),
    Calls("celery.app.trace:fast_trace_task", 6, (), "runner: what a job calls"),
    Has("celery.app.trace:task_has_custom", "request: handlers"),
    Has("celery.app.task:get_actual_ignore_result", "retries: RETRY is stored", CELERY >= (5, 6)),
    Has("celery.backends.base:Backend.process_cleanup", "offload: it does no I/O"),
    Calls(
        "celery.backends.base:Backend.mark_as_done",
        3,
        ("request", "store_result"),
        "offload: results are stored in threads, or on the loop",
    ),
    Calls(
        "celery.backends.base:Backend.mark_as_retry",
        3,
        ("traceback", "request"),
        "retries: RETRY is stored before the next attempt",
    ),
    Calls(
        "celery.backends.base:Backend.mark_as_failure",
        3,
        ("traceback", "request", "store_result"),
        "request: tasks that have failed for good",
    ),
    Has("celery.app.base:Celery._backend", "child: the backend's calls leave for threads"),
    Has("celery.app.base:Celery.send_task", "offload, guard: all publishing goes through it"),
    Has("celery.canvas:Signature.apply_async", "offload: the canvas publishes in threads"),
    Has("celery.canvas:_chain.apply_async", "offload: the canvas publishes in threads"),
    Has("celery.canvas:_chord.apply_async", "offload: the canvas publishes in threads"),
    Has("celery.canvas:group.apply_async", "offload: the canvas publishes in threads"),
    Has("celery.exceptions:Retry.excs", "limits: what RETRY stores of a soft limit"),
    Has("celery.utils.dispatch.signal:Signal._live_receivers", "signals: async receivers"),
    # Results.
    Has("celery.backends.redis:RedisBackend.client", "results on the loop"),
    Has("celery.backends.redis:SentinelBackend", "results on the loop"),
    Has("celery.backends.redis:RedisBackend._set", "results on the loop: what storing needs"),
    Has("celery.backends.base:KeyValueStoreBackend", "checkpoints"),
    Has("celery.backends.base:BaseKeyValueStoreBackend.get_key_for_task", "checkpoints, waits"),
    Has("celery.result:AsyncResult._cache", "waits: a result that is known"),
    Has("celery.result:AsyncResult._maybe_set_cache", "waits: a result that has come"),
    Has("celery.result:AsyncResult.get", "guard: blocking waits"),
    Has("celery.result:AsyncResult.wait", "guard: blocking waits"),
    Has("celery.result:ResultSet.get", "guard: blocking waits"),
    Has("celery.result:ResultSet.join", "guard: blocking waits"),
    Has("celery.result:ResultSet.join_native", "guard: blocking waits"),
    Has("celery.backends.rpc:RPCBackend.on_task_call", "RPC results: whose queue it is"),
    Has("celery.backends.rpc:RPCBackend.binding", "RPC results: our consumer"),
    Has("celery.backends.asynchronous:AsyncBackendMixin.add_pending_result", "RPC results"),
    Has("celery.app.base:Celery._local", "RPC results: the thread's own queue"),
    # Testing.
    Has("celery.app.base:Celery._pool", "testing: the app has its own broker again"),
    Has("celery.app.base:Celery._backend_cache", "testing: results stay in memory"),
    Has("celery.app.utils:Settings._to_keys", "testing: settings with a namespace"),
    Has("celery.app.utils:Settings.changes", "testing: settings as they were"),
    Has("celery._state:_tls", "testing: the current app"),
    Has("celery._state:default_app", "testing: the current app"),
    Has("celery._state:_set_current_app", "testing: the current app"),
    Has("celery._state:_set_task_join_will_block", "testing: .get() in tasks"),
    Has("celery.backends.cache:DummyClient.cache", "testing: results stay in memory"),
    Has("celery.backends.base:KeyValueStoreBackend._store_result", "testing: RETRY comes late"),
    Has("celery.backends.base:KeyValueStoreBackend._get_task_meta_for", "testing: RETRY"),
    Has("kombu.transport.memory:Channel.queues", "testing: messages stay in memory"),
    # kombu's filesystem transport and Celery's file backend.
    Has("kombu.transport.filesystem:Transport.Channel", "files: our channel"),
    Calls("kombu.transport.filesystem:Channel._get", 2, (), "files: messages"),
    Calls("kombu.transport.filesystem:Channel._put", 3, (), "files: messages"),
    Calls("kombu.transport.filesystem:Channel.get_table", 2, (), "files: bindings"),
    Calls("kombu.transport.filesystem:Channel._queue_bind", 5, (), "files: bindings"),
    Calls("kombu.transport.filesystem:Channel._delete", 5, (), "files: bindings"),
    Has("kombu.transport.filesystem:Channel._exchange_file", "files: bindings", KOMBU >= (5, 7)),
    Has("kombu.transport.filesystem:Channel.data_folder_in", "files: messages"),
    Has("kombu.transport.filesystem:Channel.data_folder_out", "files: messages"),
    Has("kombu.transport.filesystem:Channel.store_processed", "files: messages that are kept"),
    Has("kombu.transport.filesystem:Channel.processed_folder", "files: messages that are kept"),
    Has("kombu.transport.filesystem:Channel.control_folder", "files: bindings"),
    Has("kombu.transport.virtual.base:BrokerState.bindings", "files: tables that are mended"),
    Calls(
        "kombu.transport.virtual.exchange:ExchangeType.prepare_bind",
        5,
        (),
        "files: tables that are mended",
    ),
    Calls("celery.backends.filesystem:FilesystemBackend.set", 3, (), "files: results"),
    Calls("celery.backends.filesystem:FilesystemBackend._filename", 2, (), "files: results"),
    # kombu's Redis transport.
    Has("celery.app.base:Celery.connection_for_read", "redis: whose connections are batched"),
    Has("kombu.connection:Connection.get_transport_cls", "redis: our transport"),
    Has("kombu.transport.redis:Transport.cycle", "redis: our poller"),
    Calls("kombu.transport.redis:Transport.register_with_event_loop", 3, (), "redis: the hub"),
    Has("kombu.transport.redis:SentinelTransport", "redis: Sentinel"),
    Has("kombu.transport.redis:SentinelChannel", "redis: Sentinel"),
    Has("kombu.transport.virtual.base:Transport._deliver", "redis: a message for kombu"),
    Has("kombu.transport.virtual.base:Transport._callbacks", "redis: who consumes a queue"),
    Has("kombu.transport.redis:MultiChannelPoller._channels", "redis: who is to be fed"),
    Has("kombu.transport.redis:MultiChannelPoller._fd_to_chan", "redis: whose socket it is"),
    Has("kombu.transport.redis:MultiChannelPoller._chan_to_sock", "redis: whose socket it is"),
    Calls("kombu.transport.redis:MultiChannelPoller._client_registered", 4, (), "redis: lines"),
    Calls("kombu.transport.redis:MultiChannelPoller._register", 4, (), "redis: lines"),
    Calls("kombu.transport.redis:MultiChannelPoller._register_BRPOP", 2, (), "redis: when to ask"),
    Calls("kombu.transport.redis:MultiChannelPoller.on_poll_start", 1, (), "redis: acks leave"),
    Calls("kombu.transport.redis:MultiChannelPoller.on_readable", 2, (), "redis: what comes"),
    Calls("kombu.transport.redis:MultiChannelPoller.get", 2, ("timeout",), "redis: no hub"),
    Has("kombu.transport.redis:MultiChannelPoller.poller", "redis: lines without a hub"),
    Has(
        "kombu.transport.redis:MultiChannelPoller.maybe_check_brpop_health",
        "redis: connections that are half open",
        KOMBU >= (5, 7),
    ),
    Calls("kombu.transport.redis:Channel._create_client", 1, ("asynchronous",), "redis: a client"),
    Calls("kombu.transport.redis:Channel._update_queue_cycle", 1, (), "redis: other queues"),
    Has("kombu.transport.redis:Channel._queue_cycle", "redis: the order of queues"),
    Calls("kombu.transport.redis:Channel._q_for_pri", 3, (), "redis: priorities"),
    Calls("kombu.transport.redis:Channel._poll_error", 2, (), "redis: a broken socket"),
    Calls("kombu.transport.redis:Channel._put", 3, (), "redis: what is given back at the end"),
    Has("kombu.transport.redis:Channel._connparams", "redis: channels that are closed twice"),
    Has("kombu.transport.redis:Channel.active_queues", "redis: the queues"),
    Has("kombu.transport.redis:Channel.priority_steps", "redis: priorities"),
    Has("kombu.transport.redis:Channel.unacked_key", "redis: kombu's keys"),
    Has("kombu.transport.redis:Channel.unacked_index_key", "redis: kombu's keys"),
    Has("kombu.transport.redis:Channel.global_keyprefix", "redis: kombu's keys"),
    Has("kombu.transport.redis:Channel.ack_emulation", "redis: whether there are acks"),
    Has("kombu.transport.redis:Channel.health_check_interval", "redis: dead connections"),
    Has("kombu.transport.redis:Channel.brpop_timeout", "redis: dead ones", KOMBU >= (5, 7)),
    Calls("kombu.transport.redis:QoS.append", 3, (), "redis: what is unacknowledged"),
    Calls("kombu.transport.redis:QoS.ack", 2, (), "redis: acks"),
    Calls("kombu.transport.redis:QoS.reject", 2, ("requeue",), "redis: rejects"),
    Calls("kombu.transport.redis:QoS.restore_by_tag", 2, (), "redis: what is given back"),
    Calls("kombu.transport.redis:QoS.restore_unacked", 1, ("client",), "redis: the end"),
    Calls("kombu.transport.redis:QoS.restore_unacked_once", 1, ("stderr",), "redis: the end"),
    Calls("kombu.transport.redis:QoS._remove_from_indices", 2, (), "redis: acks in kombu's way"),
    Calls("kombu.transport.virtual.base:QoS.can_consume_max_estimate", 1, (), "redis: batches"),
    Has("kombu.utils.scheduling:round_robin_cycle.rotate", "redis: the order of queues"),
    Has("kombu.utils.scheduling:round_robin_cycle.consume", "redis: the order of queues"),
    Has("kombu.utils.scheduling:priority_cycle", "redis: the order of queues"),
    Has("kombu.utils.scheduling:sorted_cycle", "redis: the order of queues"),
    # redis-py.
    Has("redis.connection:Connection._sock", "redis, waits: the socket"),
    Has("redis.connection:ConnectionPool.max_connections", "redis: room for lines"),
    Calls("redis.connection:Connection.send_command", 2, ("check_health",), "redis: lines"),
    Calls("redis.connection:Connection.can_read", 1, ("timeout",), "redis: lines"),
    Calls("redis.connection:Connection.read_response", 1, (), "redis: lines"),
    Calls("redis.connection:Connection.disconnect", 1, (), "redis: lines"),
    Has("redis.client:PubSub.connection", "waits: the socket of a subscription"),
    Has("redis.client:PubSub.subscribed", "waits: silent connections"),
    # asgiref and Django.
    Has("asgiref.sync:SyncToAsync.context_to_thread_executor", "Django: a thread for each job"),
    Has("asgiref.sync:SyncToAsync.thread_sensitive_context", "Django: a thread for each job"),
    Has("asgiref.sync:ThreadSensitiveContext", "Django: a thread for each job"),
    Has("celery.fixups.django:DjangoWorkerFixup.close_database", "Django: connections"),
    Has("django.db:close_old_connections", "Django: connections"),
    Has(
        "django.db.backends.postgresql.base:DatabaseWrapper._connection_pools",
        "Django: pools",
        DJANGO >= (5, 1),
    ),
    # What Celery makes of a task's function.
    Has("celery.app.task:Task.__call__", "tasktypes: whether a class overrides it"),
    Calls("celery.app.base:pydantic_wrapper", 6, (), "pydantic_bodies: how its wrapper is known"),
    Frame("celery.app.base", "wrapper", "pydantic_bodies: how its wrapper is known"),
    Frame("celery.app.builtins", "xmap", "tasktypes: map calls tasks and wants their values"),
    Frame("celery.app.builtins", "xstarmap", "tasktypes: chunks, too"),
    # Python.
    Has("greenlet:greenlet.gr_context", "the tracer shares the job's context"),
    Has("asyncio:_get_running_loop", "guard, eager calls: whether a loop runs"),
    Has("inspect:markcoroutinefunction", "tasktypes: its mark", sys.version_info >= (3, 12)),
    Has("asyncio.coroutines:_is_coroutine", "tasktypes: marks", sys.version_info < (3, 12)),
    Has("sys:_current_frames", "watchdog, limits: stacks of threads"),
    Has("sys:_getframe", "guard, shutdown: who calls"),
)


def _id(expected: Has | Calls | Sets | Frame) -> str:
    is_of_module = isinstance(expected, Sets | Frame)
    what = f"{expected.module}:{expected.name}" if is_of_module else expected.path
    return f"{type(expected).__name__} {what}"


@pytest.mark.parametrize("expected", EXPECTED, ids=_id)
def test_is_there(expected: Has | Calls | Sets | Frame) -> None:
    """What we lean on is there, as we use it."""
    if isinstance(expected, Frame):
        there = expected.name in _functions(expected.module)
        assert there, f"{expected.module} has no function {expected.name}: {expected.breaks}"
    elif isinstance(expected, Sets):
        there = expected.name in _assigned(expected.module)
        assert there, f"{expected.module} sets no attribute {expected.name}: {expected.breaks}"
    elif expected.where:
        found = _find(expected.path)
        assert found is not _MISSING, f"{expected.path} is not there any more: {expected.breaks}"
        if isinstance(expected, Calls):
            _check_call(found, expected)


def test_frames_are_found_by_their_name() -> None:
    """The check of names on the stack can fail."""
    assert "no_such_function" not in _functions("celery.apps.worker")
    assert _find("celery.app.base:Celery._no_such_attribute") is _MISSING
    with pytest.raises(AssertionError, match="does not take"):
        _check_call(_find("kombu.transport.redis:QoS.ack"), Calls("", 5, (), "a test"))


_MISSING = object()

#: An attribute that only instances have.
_OF_INSTANCES = object()


def _find(path: str) -> Any:
    module_name, _, names = path.partition(":")
    found: Any = importlib.import_module(module_name)
    for name in names.split("."):
        owner, found = found, getattr(found, name, _MISSING)
        if found is _MISSING and inspect.isclass(owner) and name in _instance_attributes(owner):
            return _OF_INSTANCES
    return found


def _check_call(function: Any, expected: Calls) -> None:
    """Whether the call that we make would be accepted."""
    signature = inspect.signature(function)
    try:
        signature.bind(*[None] * expected.args, **dict.fromkeys(expected.keywords))
    except TypeError as exc:
        raise AssertionError(
            f"{expected.path}{signature} does not take {expected.args} arguments and "
            f"{expected.keywords}: {expected.breaks} ({exc})"
        ) from None


@cache
def _functions(module: str) -> frozenset[str]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@cache
def _assigned(module: str) -> frozenset[str]:
    return _stored(inspect.getsource(importlib.import_module(module)))


@cache
def _instance_attributes(cls: type) -> frozenset[str]:
    """Names that methods of *cls*, or of its bases, assign to an object."""
    names: frozenset[str] = frozenset()
    for base in cls.__mro__:
        try:
            names |= _stored(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue  # a class in C
    return names


def _stored(source: str) -> frozenset[str]:
    return frozenset(
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    )
