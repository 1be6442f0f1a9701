"""The libraries that the pool needs, looked at before anything is started."""

from __future__ import annotations

import importlib

from .settings import BadSetting

__all__ = ["check_greenlet", "check_loop"]


def check_greenlet() -> None:
    """Raise :exc:`BadSetting` where greenlet cannot be imported."""
    _check("greenlet", "")


def check_loop(name: str) -> None:
    """Raise :exc:`BadSetting` where the loop that ``asyncpool_loop`` names cannot be had."""
    if name == "uvloop":
        _check("uvloop", ', or set asyncpool_loop = "asyncio", which needs no uvloop')


def _check(module: str, otherwise: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as exc:  # not installed, or broken in any way
        is_missing = isinstance(exc, ModuleNotFoundError) and exc.name == module
        install = "pip install" if is_missing else "pip install --force-reinstall"
        raise BadSetting(
            f"the pool needs {module}, which cannot be imported ({type(exc).__name__}: {exc}); "
            f"{install} {module}{otherwise}"
        ) from exc
