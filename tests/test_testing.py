"""The pytest plugin, in real runs of pytest, beside those plugins that run async tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

#: Ways to have async tests: pytest's configuration, and what each of them needs.
ASYNC_PLUGINS = {
    "asyncio auto": ("pytest_asyncio.plugin", "asyncio_mode = auto", ""),
    "asyncio strict": ("pytest_asyncio.plugin", "asyncio_mode = strict", "pytest.mark.asyncio"),
    "anyio": ("anyio.pytest_plugin", "", "pytest.mark.anyio"),
}

EAGER_SUITE = """
from celery import Celery

app = Celery(broker="memory://", task_always_eager=True)

@app.task
async def add(a, b):
    return a + b

def test_add():
    assert add.delay(1, 2).get() == 3
"""

FIXTURE_SUITE = """
import asyncio
import threading
import warnings

import pytest
from celery import Celery

app = Celery("first", broker="redis://127.0.0.1:1", task_always_eager=True)

@app.task
async def ident(event=None):
    return threading.get_ident()

later = Celery("second")

@pytest.fixture
def asyncpool_app():
    return app

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture(autouse=True)
def no_thread_is_left(request):
    threads = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - threads
    assert not {thread for thread in left if not thread.name.startswith("asyncio_")}

def test_sync(asyncpool_worker):
    assert asyncpool_worker.app is app
    assert ident.delay().get(timeout=60) != threading.get_ident()

async def test_async(asyncpool_worker):
    loop = asyncio.get_running_loop()
    assert loop is not asyncpool_worker.loop
    results = [ident.delay() for _ in range(20)]
    values = [await asyncio.to_thread(result.get, timeout=60) for result in results]
    assert len(set(values)) == 1

def test_eager_as_before():
    assert ident.delay().get() == threading.get_ident()
"""


def run_pytest(folder, plugin, configuration, *plugins):
    """Run the tests in *folder* with *plugin*, every warning an error; return what it said."""
    (folder / "pytest.ini").write_text(
        f"[pytest]\nfilterwarnings = error\n{configuration}\n",
    )
    options = [option for name in (plugin, *plugins) for option in ("-p", name)]
    return subprocess.run(
        # Plugins that are installed are left out, but for those that a test names.
        [sys.executable, "-m", "pytest", "-q", "-rA", *options],
        cwd=folder,
        env={"PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def outcomes(done):
    """How many tests there were of each outcome."""
    return {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|errors?)", done.stdout)
    }


@pytest.mark.parametrize("option", ["true", "false"])
def test_unmodified_suite_runs_async_tasks_eagerly(tmp_path, option):
    """`delay` under `task_always_eager` gives the body's value, unless that is switched off."""
    (tmp_path / "test_suite.py").write_text(EAGER_SUITE)

    done = run_pytest(tmp_path, "celery_asyncpool.testing", f"asyncpool_eager = {option}")

    expected = "passed" if option == "true" else "failed"
    assert outcomes(done) == {expected: 1}, done.stdout


@pytest.mark.parametrize("how", ASYNC_PLUGINS)
def test_worker_beside_plugins_for_async_tests(tmp_path, how):
    """Sync and async tests get the worker of the app they name; nothing is left of it."""
    plugin, configuration, mark = ASYNC_PLUGINS[how]
    suite = FIXTURE_SUITE
    if mark:
        suite = suite.replace("async def test_", f"@{mark}\nasync def test_")
    (tmp_path / "test_suite.py").write_text(suite)

    if "asyncio" in how:
        configuration += "\nasyncio_default_fixture_loop_scope = function"

    done = run_pytest(tmp_path, plugin, configuration, "celery_asyncpool.testing")

    assert outcomes(done) == {"passed": 3}, done.stdout


def test_worker_needs_an_app(tmp_path):
    """Where no app was made, the test fails with a sentence that says what to do."""
    (tmp_path / "test_suite.py").write_text("def test_it(asyncpool_worker):\n    pass\n")

    done = run_pytest(tmp_path, "celery_asyncpool.testing", "")

    assert outcomes(done) == {"error": 1}, done.stdout
    assert "fixture asyncpool_app" in done.stdout


def test_suite_without_celery_pays_nothing(tmp_path):
    """The plugin imports neither Celery nor the package's other modules."""
    (tmp_path / "test_suite.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    names = {name for name in sys.modules if name.startswith('celery_asyncpool.')}\n"
        "    assert names == {'celery_asyncpool.testing', 'celery_asyncpool.pytest_plugin'}\n"
        "    heavy = {'celery', 'kombu', 'uvloop'}\n"
        "    if sys.version_info < (3, 14):  # whose pdb, which pytest imports, uses asyncio\n"
        "        heavy.add('asyncio')\n"
        "    assert not heavy & sys.modules.keys()\n"
    )

    done = run_pytest(tmp_path, "celery_asyncpool.testing", "")

    assert outcomes(done) == {"passed": 1}, done.stdout


def test_without_pytest():
    """Other test runners import it, and its worker runs, where no pytest is installed."""
    script = (
        "import sys\n"
        "sys.modules['pytest'] = sys.modules['_pytest'] = None\n"
        "from celery import Celery\n"
        "from celery_asyncpool.testing import start_worker\n"
        "app = Celery('alone')\n"
        "@app.task\n"
        "async def double(number):\n"
        "    return 2 * number\n"
        "with start_worker(app):\n"
        "    assert double.delay(3).get(timeout=60) == 6\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr


def test_readme_as_it_is_written(tmp_path):
    """The project and its tests in README.md."""
    for name in ("shop.py", "test_shop.py"):
        [code] = re.findall(rf"```python\n(# {name}\n.*?)```", README.read_text(), re.DOTALL)
        (tmp_path / name).write_text(code)
    configuration = "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function"

    done = run_pytest(tmp_path, "pytest_asyncio.plugin", configuration, "celery_asyncpool.testing")

    assert outcomes(done) == {"passed": 5}, done.stdout
