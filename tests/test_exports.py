"""What others may import, and what Celery expects of a pool."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import celery.worker
import pytest
from celery import concurrency
from celery.concurrency.base import BasePool

import celery_asyncpool
from celery_asyncpool import Pool

#: All that ``celery/worker/**/*.py`` (5.5 to 5.7) reads of a pool or calls on it.
TOUCHED_BY_WORKER = [
    "Timer",
    "apply_async",
    "close",
    "did_start_ok",
    "flush",
    "info",
    "is_green",
    "maintain_pool",
    "num_processes",
    "register_with_event_loop",
    "restart",
    "signal_safe",
    "start",
    "stop",
    "task_join_will_block",
    "terminate",
    "terminate_job",
    "uses_semaphore",
]

#: What ``BasePool`` itself calls or reads; each pool may define its own.
TOUCHED_BY_BASE = [
    "_get_info",
    "active",
    "body_can_be_buffer",
    "on_apply",
    "on_close",
    "on_hard_timeout",
    "on_soft_timeout",
    "on_start",
    "on_stop",
    "on_terminate",
]

#: What pool_grow, pool_shrink and --autoscale call; BasePool has neither.
TOUCHED_TO_SCALE = ["grow", "shrink"]

#: Found by the same look and not the pool's.
NOT_OURS = {
    "__module__",  # of any class
    "__qualname__",
    "Lock",  # of the module billiard.pool
    "spawn_n",  # of green pools only
}


def touched_in(source: str) -> set[str]:
    """The attributes of anything called ``pool`` or ``pool_cls`` in *source*."""
    touched = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "attr", getattr(node.value, "id", None))
            if owner in ("pool", "pool_cls"):
                touched.add(node.attr)
    return touched


def test_all_names_exist():
    """Whatever the package says it exports can be imported."""
    for name in celery_asyncpool.__all__:
        assert getattr(celery_asyncpool, name) is not None


def test_star_import():
    """A star import gives exactly the exported names."""
    names: dict[str, object] = {}

    exec("from celery_asyncpool import *", names)

    assert set(names) - {"__builtins__"} == set(celery_asyncpool.__all__)


def test_unknown_name():
    """The package says what it does not have, as any module does."""
    with pytest.raises(AttributeError, match="'celery_asyncpool' has no attribute 'Pol'"):
        _ = celery_asyncpool.Pol


def test_version():
    """The version is the one that was installed."""
    assert celery_asyncpool.__version__ == importlib.metadata.version("celery-asyncpool")


def test_entry_point():
    """Celery finds the command group, and with it the pool's names, by its entry point."""
    points = importlib.metadata.entry_points(group="celery.commands", name="asyncpool")

    assert [point.value for point in points] == ["celery_asyncpool.cli:asyncpool"]
    assert [point.load().name for point in points] == ["asyncpool"]


@pytest.mark.parametrize("name", ["asyncpool", "celery_asyncpool:Pool"])
def test_pool_names(name):
    """Both ways to name the pool lead to it."""
    from celery_asyncpool import cli  # noqa: F401

    assert concurrency.get_implementation(name) is Pool
    assert name in concurrency.get_available_pool_names()


def test_pool_is_one_of_celerys():
    """The pool is a pool of Celery's, from the module that its command line looks for."""
    from celery_asyncpool import cli

    assert issubclass(Pool, BasePool)
    assert f"{Pool.__module__}:{Pool.__name__}" == cli.POOL_CLASS


@pytest.mark.parametrize("name", [*TOUCHED_BY_WORKER, *TOUCHED_BY_BASE])
def test_pool_has_what_celery_touches(name):
    """Each attribute that Celery reads or calls is there."""
    assert hasattr(Pool, name)


@pytest.mark.parametrize("name", TOUCHED_TO_SCALE)
def test_pool_can_scale(name):
    """The worker can change the number of slots while it runs."""
    assert hasattr(Pool, name)


def test_celery_touches_nothing_else():
    """The list above is complete for the Celery that is installed."""
    found: set[str] = set()
    for path in Path(celery.worker.__file__).parent.rglob("*.py"):
        found |= touched_in(path.read_text())

    assert len(found) > 10
    assert found - NOT_OURS <= {*TOUCHED_BY_WORKER, *TOUCHED_BY_BASE, *TOUCHED_TO_SCALE}


def test_pool_waits_in_celerys_consumer():
    """A task that waits for a slot can still expire or be revoked: Celery holds it back."""
    assert Pool.uses_semaphore is True
    assert Pool.is_green is False
    assert Pool.signal_safe is BasePool.signal_safe
