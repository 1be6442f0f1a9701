"""What users install: the built files, in environments that have nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import celery
import pytest

from .test_readme import BLOCK, slug

ROOT = Path(__file__).parents[1]

#: Seconds for anything on a slow and busy machine.
TIMEOUT = 300

pytestmark = [
    pytest.mark.skipif(celery.VERSION < (5, 6), reason="it installs the newest: once is enough"),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout"),
]

PROJECT = """
import os
from celery import Celery

app = Celery("proj", broker=os.environ["PROJ_BROKER"], backend=os.environ["PROJ_RESULTS"])
if app.conf.broker_url == "filesystem://":
    names = ("data_folder_in", "data_folder_out", "control_folder")
    app.conf.broker_transport_options = {name: name.split("_")[0] for name in names}
    app.conf.broker_transport_options["polling_interval"] = 0.05
app.conf.task_default_queue = "packaging"


@app.task
async def double(x):
    return 2 * x
"""

ASK = "import proj; print(proj.double.delay(21).get(timeout=100))"


def run(*command: object, **options: object) -> str:
    """Run *command*; return what it prints, and fail with all of that."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of the run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packaging"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """One process at a time; yields whether *folder* is still to be made."""
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def built(shared: Path) -> dict[str, Path]:
    """The sdist, and the wheel that was built from it."""
    folder = shared / "dist"
    with made_once(folder) as is_needed:
        if is_needed:
            run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="session")
def installed(shared: Path, built: dict[str, Path]) -> Callable[[str], Path]:
    """Install one of them with its extra for Redis; returns the environment's programs."""

    def install(kind: str) -> Path:
        folder = shared / f"venv-{kind}"
        with made_once(folder) as is_needed:
            if is_needed:
                venv.create(folder, symlinks=True)
                pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
                run(*pip, "install", "--quiet", "--no-compile", f"{built[kind]}[redis]")
                run(*pip, "check")
        return folder / "bin"

    return install


@pytest.fixture(scope="session")
def unpacked(shared: Path, built: dict[str, Path]) -> Path:
    """What is in the sdist."""
    folder = shared / "unpacked"
    with made_once(folder) as is_needed, tarfile.open(built["sdist"]) as archive:
        if is_needed:
            archive.extractall(folder, filter="data")
    [project] = folder.iterdir()
    return project


@pytest.fixture(scope="session")
def metadata(built: dict[str, Path]) -> Message:
    """The wheel's."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(wheel.read(name).decode())


def clean_environment(**variables: str) -> dict[str, str]:
    """What a user has, and *variables*: nothing that leads to the checkout."""
    names = ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {"PATH": os.environ["PATH"], "C_FORCE_ROOT": "1", **kept, **pip, **variables}


# Installed.


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_nothing_of_tests_is_installed(installed: Callable[[str], Path], kind: str) -> None:
    """The environment has what the package asks for: no pytest, and nothing from here."""
    python = installed(kind) / "python"
    script = (
        "import importlib.util as u, celery_asyncpool, sys\n"
        "print(celery_asyncpool.__file__.startswith(sys.prefix))\n"
        "print([name for name in ('pytest', 'tests', 'benchmarks') if u.find_spec(name)])\n"
    )

    said = run(python, "-c", script, cwd=python.parent, env=clean_environment())

    assert said.split("\n")[:2] == ["True", "[]"]


@pytest.mark.parametrize("transport", ["redis", "rabbitmq", "files"])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_worker_runs_a_task(
    request: pytest.FixtureRequest,
    installed: Callable[[str], Path],
    tmp_path: Path,
    kind: str,
    transport: str,
) -> None:
    """A real worker, a client beside it, and its result; then it stops in order."""
    (tmp_path / "proj.py").write_text(PROJECT)
    (tmp_path / "results").mkdir()
    results = f"file://{tmp_path}/results"
    urls = {"files": ("filesystem://", results)}
    if transport == "redis":
        url = request.getfixturevalue("redis_url")
        urls["redis"] = (f"{url}/11", f"{url}/12")
    elif transport == "rabbitmq":
        urls["rabbitmq"] = (request.getfixturevalue("rabbitmq_url"), results)
    broker, backend = urls[transport]
    environment = clean_environment(PROJ_BROKER=broker, PROJ_RESULTS=backend)
    programs = installed(kind)

    with running_worker(programs, tmp_path, environment) as log:
        said = run(programs / "python", "-c", ASK, cwd=tmp_path, env=environment)

    assert said.splitlines()[-1] == "42", log.read_text()


@contextlib.contextmanager
def running_worker(programs: Path, folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A worker that is ready; yields its log, and sees it end with exit code 0."""
    log = folder / "worker.log"
    command = [programs / "celery", "-A", "proj", "worker", "-P", "asyncpool", "-c", "4"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command), "--loglevel", "INFO", "--without-mingle", "--without-gossip"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + TIMEOUT
        while " ready." not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# The source distribution.


def test_sdist_has_what_the_checkout_has(unpacked: Path) -> None:
    """Every file that is kept under version control, with its rights."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a clone")
    # Whoever owns it: git asks in a container where that is somebody else.
    names = run("git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "-z").split("\0")
    kept = [Path(name) for name in names if name and (ROOT / name).exists()]

    missing = [str(name) for name in kept if not (unpacked / name).exists()]
    lost = [
        str(n) for n in kept if os.access(ROOT / n, os.X_OK) > os.access(unpacked / n, os.X_OK)
    ]

    assert missing == []
    assert lost == []


def test_demo_of_the_sdist(unpacked: Path) -> None:
    """README's first command, which installs the extra for the demo alone."""
    environment = clean_environment()
    targets = run("make", "help", cwd=unpacked, env=environment)
    assert {"make demo", "make test", "make soak", "make bench"} <= set(
        re.findall(r"^make [a-z-]+", targets, re.MULTILINE)
    )

    said = run(
        *("make", "demo", f"PYTHON={sys.executable}"),
        "ARGS=--tasks 20 --seconds 0.1 --processes 1",
        cwd=unpacked,
        env=environment,
    )

    assert re.search(r"^tasks +20$", said, re.MULTILINE), said


def test_tests_of_the_sdist(unpacked: Path) -> None:
    """They run there, with the configuration that is there."""
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/core/test_job.py",
    )

    said = run(*command, cwd=unpacked, env=clean_environment(PYTHONPATH=str(unpacked)))

    assert re.search(r"^\d+ passed", said, re.MULTILINE), said[-2000:]


# Metadata.


def test_metadata_says_what_an_index_shows(metadata: Message) -> None:
    """Licence, authors, links and Python versions, in the form of today."""
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    urls = [url.split(", ") for url in metadata.get_all("Project-URL", [])]
    assert urls
    assert all(url.startswith("https://") for _, url in urls)
    classifiers = metadata.get_all("Classifier", [])
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert not any(classifier.startswith("License ::") for classifier in classifiers)


def test_extra_for_redis_is_that_of_celery(metadata: Message) -> None:
    """What kombu's transport needs beside the client comes with it."""
    needed = metadata.get_all("Requires-Dist", [])

    assert any(re.fullmatch(r"celery\[redis\].*; extra == 'redis'", line) for line in needed)


def test_readme_of_an_index_leads_nowhere_else(metadata: Message) -> None:
    """No link to a file that is not there, and each anchor is a heading's."""
    text = metadata.get_payload()
    assert isinstance(text, str)
    prose = BLOCK.sub("", text)
    targets = re.findall(r"\]\(([^)]*)\)", prose)
    headings = {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}

    assert targets
    for target in targets:
        assert target.startswith("https://") or target.removeprefix("#") in headings
        assert target.startswith(("https://", "#"))


def test_wheel_has_the_package_and_its_licence(built: dict[str, Path]) -> None:
    """Nothing else, with the mark for type checkers."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = wheel.namelist()

    assert {name.split("/")[0].partition("-")[0] for name in names} == {"celery_asyncpool"}
    assert "celery_asyncpool/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
