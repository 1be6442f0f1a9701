"""A task's parameters may have any names, on a real worker."""

import pytest

from tests.wrappers import all_names

TIMEOUT = 60


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    with start_worker(redis_transport, "arguments", "-c", 20, "--processes", 1) as worker:
        yield worker


@pytest.fixture
def s(worker, flavour):
    """A signature of the task of this flavour."""
    return lambda task, /, *args, **kwargs: worker.client.s(f"{flavour}_{task}", *args, **kwargs)


@pytest.mark.parametrize("task", ["names", "bound_names", "called_names"])
def test_any_name(s, task):
    """Every name that a parameter of the package has is free for a task's own.

    But for `self`, which Celery's worker claims with every pool.
    """
    kwargs = {name: number for number, name in enumerate(all_names()) if name != "self"}

    assert s(task).apply_async(kwargs=kwargs).get(TIMEOUT) == kwargs


def test_task_and_function(s):
    """Parameters named `task` and `function` may be given by keyword."""
    assert s("assign", task="t", function="f").delay().get(TIMEOUT) == ["t", "f", None]
    assert s("assign", "t", user=3).delay().get(TIMEOUT) == ["t", None, 3]
