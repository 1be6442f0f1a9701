"""A free-threaded build of Python, with the GIL or without it."""

from __future__ import annotations

import importlib
import sys
import sysconfig

from celery.utils.log import get_logger

__all__ = ["gil_sentence", "tell_of_gil"]

logger = get_logger(__name__)


def tell_of_gil(loop: str) -> None:
    """Say so where what the pool imports has switched the GIL of a free-threaded build on."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return
    modules = ["greenlet", *(["uvloop"] if loop == "uvloop" else [])]
    for name in modules:
        importlib.import_module(name)
    sentence = gil_sentence(is_on=sys._is_gil_enabled(), modules=modules)  # type: ignore[attr-defined]
    if sentence:
        logger.warning(sentence)


def gil_sentence(is_on: bool, modules: list[str]) -> str | None:
    """What there is to say; None without the GIL, where all goes as the build promises."""
    if not is_on:
        return None
    return (
        "this Python is a free-threaded build that runs with its GIL on: "
        f"{' or '.join(modules)}, or another extension that was imported, needs it. The pool "
        "works as with any Python; `def` tasks of a process do not compute at the same time"
    )
