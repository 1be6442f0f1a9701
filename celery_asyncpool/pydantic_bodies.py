"""``pydantic=True`` with an ``async def`` body: its value is dumped, its arguments validated.

Celery's own wrapper validates the arguments when it is called, and dumps what the
function returns. An ``async def`` returns a coroutine, so what that gives in the end is
dumped here, by the same options. Beside that, models in lists, dicts, tuples and unions
are validated and dumped, too, which Celery leaves alone.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from celery.app import base as app_base
from celery.exceptions import ImproperlyConfigured

__all__ = ["is_pydantic_wrapper", "with_models"]

#: What Celery's wrapper keeps of the options of the task.
OPTIONS = ("app", "context", "dump_kwargs", "strict", "task_name")

_make_wrapper: Any = app_base.pydantic_wrapper  # type: ignore[attr-defined]

#: The code of the functions that Celery makes of others.
_WRAPPERS = frozenset(
    constant
    for constant in _make_wrapper.__code__.co_consts
    if isinstance(constant, types.CodeType) and constant.co_name == "wrapper"
)


def is_pydantic_wrapper(function: Any) -> bool:
    """Whether *function* is what Celery makes of the function of a task with ``pydantic=True``."""
    return type(function) is types.FunctionType and function.__code__ in _WRAPPERS


def with_models(function: Any, is_async: Callable[[Any], bool]) -> Any:
    """Return *function*, or what has to be called in its place so that models are dumped.

    *is_async* tells of a function whether it gives a coroutine for certain.
    """
    method: Any = function if inspect.ismethod(function) else None
    wrapper: Any = method.__func__ if method is not None else function
    if not is_pydantic_wrapper(wrapper):
        return function
    body = wrapper.__wrapped__
    if is_async(body):
        wrapper = _awaiting(wrapper, _Models(wrapper))
    elif is_async(inspect.unwrap(body)):
        wrapper = _awaiting_perhaps(wrapper, _Models(wrapper))
    else:
        return function
    return types.MethodType(wrapper, method.__self__) if method is not None else wrapper


def _awaiting(wrapper: Any, models: _Models) -> Any:
    @functools.wraps(wrapper)
    async def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = models.validate(args, kwargs)
        return models.dump(await wrapper(*args, **kwargs))

    return run


def _awaiting_perhaps(wrapper: Any, models: _Models) -> Any:
    async def dump(awaitable: Any) -> Any:
        return models.dump(await awaitable)

    @functools.wraps(wrapper)
    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = models.validate(args, kwargs)
        value = wrapper(*args, **kwargs)
        return dump(value) if inspect.isawaitable(value) else models.dump(value)

    return run


class _Models:
    """The models in the annotations of the function that *wrapper* wraps."""

    def __init__(self, wrapper: Any) -> None:
        from pydantic import BaseModel, TypeAdapter

        function = wrapper.__wrapped__
        options = _options(wrapper)
        context = {
            **(options["context"] or {}),
            "celery_app": options["app"],
            "celery_task_name": options["task_name"],
        }
        self._model = BaseModel
        self._validation = {"strict": options["strict"], "context": context}
        self._dump_kwargs = options["dump_kwargs"]
        self._signature = inspect.signature(function)
        hints = _hints(function, self._signature)
        self._returned = tuple(_models_in(hints.get("return"), BaseModel))
        self._adapters = {
            name: TypeAdapter(hint)
            for name, hint in hints.items()
            if name != "return"
            and not self._is_variadic(name)
            and not isinstance(hint, type)  # a model itself: Celery validates it
            and any(_models_in(hint, BaseModel))
        }

    def validate(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments with the models that their containers should have."""
        if not self._adapters:
            return args, kwargs
        bound = self._signature.bind(*args, **kwargs)
        for name in bound.arguments.keys() & self._adapters.keys():
            value = bound.arguments[name]
            bound.arguments[name] = self._adapters[name].validate_python(value, **self._validation)
        return bound.args, bound.kwargs

    def dump(self, value: Any) -> Any:
        """Return *value* with dicts for the models that the function says it returns."""
        if not self._returned:
            return value
        if isinstance(value, self._returned):
            model: Any = value
            return model.model_dump(**self._dump_kwargs)
        if isinstance(value, dict):
            return {key: self.dump(item) for key, item in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return [self.dump(item) for item in value]
        return value

    def _is_variadic(self, name: str) -> bool:
        parameter = self._signature.parameters[name]
        return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _options(wrapper: Any) -> dict[str, Any]:
    """The options of the task, of which Celery tells nobody else."""
    found = dict(_enclosed(wrapper, set()))
    missing = [name for name in OPTIONS if name not in found]
    if missing:
        raise ImproperlyConfigured(
            f"pydantic=True of {wrapper.__module__}.{wrapper.__qualname__}, an async task, does "
            f"not work with this version of Celery: its wrapper does not tell {missing}"
        )
    return {name: found[name] for name in OPTIONS}


def _enclosed(function: Any, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """Names and values that *function* encloses, and functions of the same maker in it."""
    if type(function) is not types.FunctionType or function in seen:
        return
    seen.add(function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        value = cell.cell_contents
        yield name, value
        if name != "task_fun":
            yield from _enclosed(value, seen)


def _hints(function: Any, signature: inspect.Signature) -> dict[str, Any]:
    """The annotations of *function*; as they are written where they mean nothing here."""
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        hints = {name: p.annotation for name, p in signature.parameters.items()}
        return {**hints, "return": signature.return_annotation}


def _models_in(hint: Any, model: type) -> Iterator[type]:
    """The models that an annotation names, at any depth."""
    if isinstance(hint, type) and not typing.get_args(hint):
        if issubclass(hint, model):
            yield hint
        return
    for argument in typing.get_args(hint):
        yield from _models_in(argument, model)
