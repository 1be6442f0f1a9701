"""The way into Celery's command line.

Celery loads this module with its own commands (entry point group
``celery.commands``), which is what makes ``-P asyncpool``, ``--processes`` and
the default of ``-c`` known. It is imported by every ``celery`` command, so it
imports neither the pool nor uvloop.
"""

from __future__ import annotations

import signal
from typing import Any

import click
from celery import concurrency
from celery.bin import worker as worker_command
from celery.bin.base import CeleryOption
from celery.signals import celeryd_after_setup, celeryd_init, worker_init

from .settings import BadSetting, configured_slots

__all__ = ["asyncpool"]

POOL = "celery_asyncpool:Pool"
POOL_CLASS = "celery_asyncpool.pool:Pool"
ALIASES = ("asyncpool", POOL)


@click.group()
def asyncpool() -> None:
    """Commands of the celery_asyncpool worker pool."""


@asyncpool.command()
@click.option("--tasks", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How long each task awaits.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Worker processes.  [default: the CPUs this process may use]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Tasks that run at once.  [default: all]",
)
@click.option("--broker", metavar="URL", help="Use this broker.  [default: files, no server]")
def demo(
    tasks: int,
    seconds: float,
    processes: int | None,
    concurrency: int | None,
    broker: str | None,
) -> None:
    """Start a worker, run many tasks that wait, and show how many did at once.

    Needs no server, and leaves no process, file or queue behind.
    """
    from .demo import Stopped, run

    try:
        run(tasks, seconds, processes, concurrency, broker)
    except Stopped as stop:
        click.echo(f"stopped by {signal.Signals(stop.signum).name}, nothing is left", err=True)
        raise SystemExit(128 + stop.signum) from None


def _add_pool_names() -> None:
    for alias in ALIASES:
        concurrency.ALIASES[alias] = POOL  # type: ignore[attr-defined]
    worker_command.WORKERS_POOL.choices = tuple(concurrency.get_available_pool_names())


def _add_processes_option() -> None:
    params = worker_command.worker.params
    if any(param.name == "processes" for param in params):
        return
    params.append(
        CeleryOption(
            ("--processes",),
            type=click.IntRange(min=1),
            help_group="Pool Options",
            help="asyncpool: worker processes over which --concurrency is spread "
            "(setting asyncpool_processes; default: the CPUs this process may use).",
        )
    )


@celeryd_init.connect(dispatch_uid="celery_asyncpool.worker_options")
def _apply_worker_options(conf: Any, options: dict[str, Any], **kwargs: Any) -> None:
    """Before the worker reads its settings: ``--processes``, and ``-c``'s default."""
    processes = options.get("processes")
    if not _is_asyncpool(options.get("pool_cls") or options.get("pool") or conf.worker_pool):
        if processes is not None:
            raise SystemExit(
                "Error: --processes is an option of the asyncpool pool (-P asyncpool); "
                "other pools know only --concurrency"
            )
        return
    if processes is not None:
        conf.asyncpool_processes = processes
    try:
        conf.worker_concurrency = configured_slots(conf, options.get("concurrency"))
    except BadSetting as exc:
        # Celery logs what a receiver raises and goes on, but for this.
        raise SystemExit(f"Error: {exc}") from None


@worker_init.connect(dispatch_uid="celery_asyncpool.auto_concurrency")
def _apply_auto_concurrency(sender: Any, **kwargs: Any) -> None:
    """Before the worker makes CPUs of ``-c auto``: our default, as without ``-c``."""
    if isinstance(sender.concurrency, str) and _is_asyncpool(sender.pool_cls):
        sender.concurrency = sender.app.conf.worker_concurrency


@celeryd_after_setup.connect(dispatch_uid="celery_asyncpool.unawaited")
def _look_at_pool(sender: str, instance: Any, **kwargs: Any) -> None:
    """A worker is about to start, with whatever pool: this one may have been forgotten."""
    from .unawaited import on_worker

    on_worker(sender, instance)


def _is_asyncpool(pool: Any) -> bool:
    if isinstance(pool, str):
        try:
            pool = concurrency.get_implementation(pool)
        except BadSetting:
            return True  # ours alone; the worker asks again, and ends with the sentence
    bases = getattr(pool, "__mro__", ())
    return any(f"{cls.__module__}:{cls.__name__}" == POOL_CLASS for cls in bases)


_add_pool_names()
_add_processes_option()
