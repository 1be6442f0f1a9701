"""Without uvloop, or greenlet, the worker says so at once, in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from transports import redis_database

HERE = Path(__file__).parent

#: Seconds for a worker that only has to end.
TIMEOUT = 60

MISSING = "raise ModuleNotFoundError(\"No module named 'NAME'\", name='NAME')"
BROKEN = {
    "missing": MISSING,
    "unloadable": "raise ImportError('NAME.so: undefined symbol: _Py_New')",
    "failing": "raise RuntimeError('NAME does not know this Python')",
}

EMBEDDED = """
from apps.configured import app
app.conf.worker_pool = "celery_asyncpool:Pool"
from celery.exceptions import ImproperlyConfigured
try:
    app.Worker(loglevel="INFO", concurrency=2).start()
except ImproperlyConfigured as exc:
    print("refused:", exc)
"""


@pytest.fixture
def shadow(tmp_path):
    """Put something else in the place of a library; return the folder for PYTHONPATH."""

    def put(name, source):
        (tmp_path / f"{name}.py").write_text(source.replace("NAME", name))
        return tmp_path

    return put


@pytest.fixture
def run(request):
    """Run Python with the app of the tests; it is expected to end by itself."""

    def run(folder, *args, **env):
        return subprocess.run(
            [sys.executable, *args],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": f"{folder}:{HERE}",
                "ASYNCPOOL_TEST_BROKER": redis_database(request, 0),
                "ASYNCPOOL_TEST_BACKEND": redis_database(request, 1),
                "ASYNCPOOL_TEST_RECORD": str(folder / "record"),
                "C_FORCE_ROOT": "1",
                **env,
            },
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    return run


WORKER = ("-m", "celery", "-A", "apps.configured", "worker")


@pytest.mark.parametrize("selection", ["option", "setting"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("uvloop", how) for how in BROKEN),
        # Celery itself cannot be imported where greenlet raises anything else.
        *(("greenlet", how) for how in ("missing", "unloadable")),
    ],
)
def test_sentence(shadow, run, name, how, selection):
    """It names the library, the reason and what to type; no process has been started."""
    folder = shadow(name, BROKEN[how])
    env = {"CONFIGURED": "worker_pool='celery_asyncpool:Pool'"}

    if selection == "option":
        done = run(folder, *WORKER, "-P", "asyncpool")
    else:
        done = run(folder, *WORKER, **env)

    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: celery_asyncpool: the pool needs {name}, which cannot be ")
    command = "pip install" if how == "missing" else "pip install --force-reinstall"
    assert f"; {command} {name}" in line
    assert ('asyncpool_loop = "asyncio"' in line) == (name == "uvloop")
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == 1
    assert not (folder / "record").exists()


@pytest.mark.parametrize("name", ["uvloop", "greenlet"])
def test_program_that_runs_a_worker(shadow, run, name):
    """It gets the sentence as Celery's ``ImproperlyConfigured``."""
    done = run(shadow(name, MISSING), "-c", EMBEDDED)

    assert f"refused: celery_asyncpool: the pool needs {name}" in done.stdout, done.stderr


def test_asyncio_needs_no_uvloop(redis_transport, start_worker, shadow):
    """With ``asyncpool_loop = "asyncio"`` nobody imports it."""
    folder = shadow("uvloop", "raise SystemExit('uvloop was imported')")
    env = {"CONFIGURED": "asyncpool_loop='asyncio'", "PYTHONPATH": f"{folder}:{HERE}"}
    with start_worker(redis_transport, "configured", "-c", 2, "--processes", 1, env=env) as worker:
        assert worker.client.send("add", 1, 2).get() == 3
        assert worker.pool()["loop"] == "asyncio"
