"""celery_asyncpool/settings.py: every setting, good and bad."""

from __future__ import annotations

import math
import re
from pathlib import Path

import click
import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_asyncpool import settings as settings_module
from celery_asyncpool.core.timelimits import Limits
from celery_asyncpool.settings import (
    BadSetting,
    Settings,
    check_platform,
    configured_processes,
)

README = Path(__file__).parents[1] / "README.md"

#: The settings that are seconds, and what they are called when they are read.
SECONDS = {
    "asyncpool_cancel_grace": "cancel_grace",
    "asyncpool_drain_timeout": "drain_timeout",
    "asyncpool_block_warning": "block_warning",
    "asyncpool_lifespan_timeout": "lifespan_timeout",
    "worker_proc_alive_timeout": "start_timeout",
}


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    """The machine of these tests."""
    monkeypatch.setattr(settings_module, "usable_cpus", lambda: 8)


@pytest.fixture(autouse=True)
def without_fast_locals(monkeypatch):
    monkeypatch.delenv("USE_FAST_LOCALS", raising=False)


def test_settings_by_default():
    """A project that says nothing gets a process per CPU, 32 threads each, and uvloop."""
    assert Settings.from_conf({}, slots=800) == Settings(
        slots=800,
        max_processes=8,
        threads=32,
        loop="uvloop",
        cancel_grace=5.0,
        drain_timeout=300.0,
        block_warning=1.0,
        blocking_calls="warn",
        lifespan_timeout=30.0,
        max_crashes=3,
        caps=(),
        redis_batching=True,
        gc_threshold=10_000,
        max_tasks=None,
        max_memory=None,
        limits=Limits(None, None),
        start_timeout=4.0,
    )


def test_settings_of_an_app_by_default():
    """The configuration of an untouched Celery app gives the defaults."""
    assert Settings.from_conf(Celery().conf, slots=800) == Settings.from_conf({}, slots=800)


def test_settings_of_a_configured_app():
    """Settings are plain attributes of the app's configuration."""
    app = Celery()
    app.conf.update(
        asyncpool_processes=2,
        asyncpool_threads=4,
        asyncpool_loop="asyncio",
        asyncpool_cancel_grace=2,
        asyncpool_drain_timeout=60,
        asyncpool_block_warning=0.25,
        asyncpool_lifespan_timeout=12,
        asyncpool_max_crashes=5,
        asyncpool_limits={"proj.scrape": 2, "proj.pdf.*": "4"},
        asyncpool_redis_batching=False,
        asyncpool_gc_threshold=50_000,
        worker_proc_alive_timeout=30,
    )

    settings = Settings.from_conf(
        app.conf,
        slots=10,
        soft_time_limit=20,
        time_limit=30,
        max_tasks=1000,
        max_memory=200_000,
    )

    assert settings == Settings(
        slots=10,
        max_processes=2,
        threads=4,
        loop="asyncio",
        cancel_grace=2.0,
        drain_timeout=60.0,
        block_warning=0.25,
        blocking_calls="warn",
        lifespan_timeout=12.0,
        max_crashes=5,
        caps=(("proj.scrape", 2), ("proj.pdf.*", 4)),
        redis_batching=False,
        gc_threshold=50_000,
        max_tasks=1000,
        max_memory=200_000,
        limits=Limits(soft=20, hard=30),
        start_timeout=30.0,
    )


def test_settings_from_a_django_namespace():
    """A setting may come with a prefix, as from Django's settings."""
    app = Celery()
    app.config_from_object(
        {"CELERY_ASYNCPOOL_THREADS": 8, "CELERY_WORKER_PROC_ALIVE_TIMEOUT": 9.5},
        namespace="CELERY",
    )

    settings = Settings.from_conf(app.conf, slots=10)

    assert (settings.threads, settings.start_timeout) == (8, 9.5)


@pytest.mark.parametrize("name", ["asyncpool_processes", "asyncpool_threads"])
@pytest.mark.parametrize(("value", "number"), [(1, 1), (7, 7), ("7", 7), (" 12 ", 12)])
def test_whole_number_that_is_good(name, value, number):
    """A whole number may be written as text, as environment variables are."""
    settings = Settings.from_conf({name: value}, slots=100)

    assert getattr(settings, name.removeprefix("asyncpool_")) == number


@pytest.mark.parametrize("name", ["asyncpool_processes", "asyncpool_threads"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-1, "-1"),
        (1.0, "1.0"),
        (2.5, "2.5"),
        (True, "True"),
        (False, "False"),
        ("", "''"),
        ("0", "'0'"),
        ("-1", "'-1'"),
        ("2.5", "'2.5'"),
        ("many", "'many'"),
        ([4], r"\[4\]"),
        (math.nan, "nan"),
    ],
)
def test_whole_number_that_is_bad(name, value, shown):
    """The error names the setting, what is allowed, and what it got."""
    message = f"^celery_asyncpool: {name} must be a whole number of at least 1, got {shown}$"

    with pytest.raises(BadSetting, match=message):
        Settings.from_conf({name: value}, slots=100)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_loop_that_is_good(loop):
    """Both event loops can be chosen."""
    assert Settings.from_conf({"asyncpool_loop": loop}, slots=1).loop == loop


@pytest.mark.parametrize("value", ["", "uvloop2", "UVLOOP", "trio", 1, True, ["uvloop"]])
def test_loop_that_is_bad(value):
    """The error names the setting, its choices, and what it got."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({"asyncpool_loop": value}, slots=1)

    assert str(raised.value) == (
        f"celery_asyncpool: asyncpool_loop must be 'uvloop' or 'asyncio', got {value!r}"
    )


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [(4, 4.0), (0.5, 0.5), (3600, 3600.0), ("4", 4.0), (" 0.5 ", 0.5), ("1e3", 1000.0)],
)
def test_seconds_that_are_good(name, value, seconds):
    """Any positive number of seconds will do, or the text of one."""
    settings = Settings.from_conf({name: value}, slots=1)

    assert getattr(settings, SECONDS[name]) == seconds
    assert type(getattr(settings, SECONDS[name])) is float


@pytest.mark.parametrize("name", [name for name in SECONDS if name != "asyncpool_block_warning"])
@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -0.5, math.nan, math.inf, True, "0", "soon", "inf", "", [4.0]]
)
def test_seconds_that_are_bad(name, value):
    """The error names the setting, what is allowed, and what it got."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({name: value}, slots=1)

    assert str(raised.value) == (
        f"celery_asyncpool: {name} must be a number of seconds above 0, got {value!r}"
    )


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0"])
def test_block_warning_of_zero(value):
    """No seconds of blocking are worth a warning: there is none."""
    settings = Settings.from_conf({"asyncpool_block_warning": value}, slots=1)

    assert settings.block_warning == 0.0


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, True, False, "-1", "nan", [1.0]])
def test_block_warning_that_is_bad(value):
    """The error names the setting, what is allowed, and what it got."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({"asyncpool_block_warning": value}, slots=1)

    assert str(raised.value) == (
        "celery_asyncpool: asyncpool_block_warning must be a number of seconds of at least 0, "
        f"got {value!r}"
    )


@pytest.mark.parametrize(
    ("soft", "hard", "limits"),
    [
        (None, None, Limits()),
        (0, 0, Limits()),
        (5, None, Limits(soft=5)),
        (None, 5, Limits(hard=5)),
        (5, 5.5, Limits(soft=5, hard=5.5)),
        (5, 0, Limits(soft=5)),
        ("5", "5.5", Limits(soft=5, hard=5.5)),
        ("0", None, Limits()),
    ],
)
def test_limits_that_are_good(soft, hard, limits):
    """None and 0 mean no limit; any two numbers will do whose soft one comes first."""
    settings = Settings.from_conf({}, slots=1, soft_time_limit=soft, time_limit=hard)

    assert settings.limits == limits


def test_limit_that_is_bad():
    """The error names the limit, the settings that it may come from, and what it got."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({}, slots=1, soft_time_limit="soon")

    assert str(raised.value) == (
        "celery_asyncpool: soft_time_limit of all tasks (task_soft_time_limit, "
        "task_time_limit) must be a number of seconds above 0, got 'soon'"
    )


@pytest.mark.parametrize(
    "value", [["proj.scrape"], "proj.scrape", 2, True, {1: 2}, {"": 2}, {" ": 2}, {None: 1}]
)
def test_caps_that_are_no_dictionary_of_names(value):
    """The error names the setting, what is allowed, and what it got."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({"asyncpool_limits": value}, slots=1)

    assert str(raised.value) == (
        "celery_asyncpool: asyncpool_limits must be a dictionary of task names or patterns, with "
        f"whole numbers of at least 1, got {value!r}"
    )


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        *((text, True) for text in (True, "true", "True", " yes", "ON", "1")),
        *((text, False) for text in (False, "false", "FALSE", "no", "off", "0")),
    ],
)
def test_redis_batching(value, truth):
    """True and False may be written as text, as environment variables are."""
    settings = Settings.from_conf({"asyncpool_redis_batching": value}, slots=10)

    assert settings.redis_batching is truth


@pytest.mark.parametrize("value", ["", "maybe", "2", 1, 0, 1.0, []])
def test_redis_batching_is_true_or_false(value):
    """Nothing else, since a text would be true whatever it says."""
    with pytest.raises(BadSetting, match="asyncpool_redis_batching must be True or False, got"):
        Settings.from_conf({"asyncpool_redis_batching": value}, slots=10)


@pytest.mark.parametrize("value", [0, "0"])
def test_gc_threshold_of_zero(value):
    """It leaves the garbage collector alone."""
    assert Settings.from_conf({"asyncpool_gc_threshold": value}, slots=10).gc_threshold == 0


@pytest.mark.parametrize("value", [-1, 1.5, True, False, "many"])
def test_bad_gc_threshold(value):
    """It is a number of objects."""
    with pytest.raises(BadSetting, match="asyncpool_gc_threshold must be a whole number of at"):
        Settings.from_conf({"asyncpool_gc_threshold": value}, slots=10)


def test_caps_of_the_readme():
    """What README shows is a good setting."""
    [line] = re.findall(r"^app\.conf\.asyncpool_limits = .*$", README.read_text(), re.MULTILINE)
    app = Celery(set_as_current=False)
    exec(line, {"app": app})

    caps = Settings.from_conf(app.conf, slots=1).caps

    assert caps == (("proj.scrape", 2), ("proj.pdf.*", 4))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "many", [2]])
def test_cap_that_is_bad(value):
    """The error names the task, what is allowed, and what it got."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({"asyncpool_limits": {"good": 1, "proj.scrape": value}}, slots=1)

    assert str(raised.value) == (
        "celery_asyncpool: asyncpool_limits['proj.scrape'] must be a whole number of at least 1, "
        f"got {value!r}"
    )


@pytest.mark.parametrize("option", ["max_tasks", "max_memory"])
@pytest.mark.parametrize("value", [-1, 1.5, True, False, "many", "-1", math.nan, ""])
def test_bad_limits_of_a_process(option, value):
    """A limit of a process's life is a whole number."""
    with pytest.raises(BadSetting, match=rf"worker_{option}_per_child must be a whole number"):
        Settings.from_conf({}, slots=1, **{option: value})


@pytest.mark.parametrize("option", ["max_tasks", "max_memory"])
@pytest.mark.parametrize("value", [0, "0", " 0", None])
def test_no_limit_of_a_process(option, value):
    """0 is no limit, as it is for prefork."""
    assert Settings.from_conf({}, slots=1, **{option: value}) == Settings.from_conf({}, slots=1)


def test_limits_of_which_the_hard_one_comes_first():
    """A soft limit that could never be told is refused."""
    with pytest.raises(BadSetting) as raised:
        Settings.from_conf({}, slots=1, soft_time_limit=10, time_limit=10)

    assert str(raised.value) == (
        "celery_asyncpool: soft_time_limit of all tasks (task_soft_time_limit, "
        "task_time_limit) must be less than its time_limit, got 10 and 10"
    )


@pytest.mark.parametrize(
    "name",
    [
        "asyncpool_processes",
        "asyncpool_threads",
        "asyncpool_loop",
        "asyncpool_max_crashes",
        "asyncpool_limits",
        "asyncpool_gc_threshold",
        *SECONDS,
    ],
)
def test_setting_of_none(name):
    """None stands for the default, of each setting."""
    assert Settings.from_conf({name: None}, slots=100) == Settings.from_conf({}, slots=100)


@pytest.mark.parametrize(
    ("slots", "configured", "processes"),
    [(100, 4, 4), (4, 4, 4), (3, 4, 3), (1, 4, 1), (2, None, 2), (1000, None, 8), (0, 4, 0)],
)
def test_processes_are_never_more_than_slots(slots, configured, processes):
    """A process without a slot would be of no use; an autoscaler may begin with none."""
    settings = Settings.from_conf({"asyncpool_processes": configured}, slots=slots)

    assert settings.processes == processes


@pytest.mark.parametrize(
    ("slots", "processes", "each"),
    [(100, 4, 25), (101, 4, 26), (103, 4, 26), (104, 4, 26), (3, 2, 2), (1, 1, 1), (5, 5, 1)],
)
def test_slots_per_process_are_rounded_up(slots, processes, each):
    """All processes together have at least the slots that were asked for."""
    settings = Settings.from_conf({"asyncpool_processes": processes}, slots=slots)

    assert settings.slots_per_process == each
    assert settings.slots_per_process * settings.processes >= slots


def test_configured_processes_by_default():
    """By default there is one process for each CPU that may be used."""
    assert configured_processes({}) == 8


def test_configured_processes_that_are_bad():
    """The default of -c, which needs the number first, fails the same way."""
    with pytest.raises(BadSetting, match=r"asyncpool_processes must be .* got 0"):
        configured_processes({"asyncpool_processes": 0})


def test_settings_cannot_be_changed():
    """Settings that were checked stay as they are."""
    settings = Settings.from_conf({}, slots=1)

    with pytest.raises(AttributeError):
        settings.slots = 2


def test_bad_setting_is_what_programs_and_click_expect():
    """It is configuration's error to a program, and one sentence on the command line."""
    error = BadSetting("asyncpool_threads must be large")

    assert isinstance(error, ImproperlyConfigured)
    assert isinstance(error, click.ClickException)
    assert str(error) == error.format_message()
    assert str(error) == "celery_asyncpool: asyncpool_threads must be large"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_platform_that_is_good(platform):
    """Linux and macOS are where the pool runs."""
    check_platform(platform)


def test_platform_of_windows():
    """Windows is refused with the way out."""
    with pytest.raises(BadSetting, match=r"Linux and macOS, not on Windows.*-P threads.*WSL"):
        check_platform("win32")


def test_platform_of_this_machine():
    """Without an argument the platform is the one that Python runs on."""
    check_platform()


def test_fast_locals_are_refused(monkeypatch):
    """USE_FAST_LOCALS ties current_task to threads, so it is refused by name."""
    monkeypatch.setenv("USE_FAST_LOCALS", "1")

    with pytest.raises(BadSetting, match="USE_FAST_LOCALS must not be set, got '1'"):
        check_platform("linux")


def test_fast_locals_that_are_empty(monkeypatch):
    """An empty USE_FAST_LOCALS means nothing to Celery, and nothing here."""
    monkeypatch.setenv("USE_FAST_LOCALS", "")

    check_platform("linux")
