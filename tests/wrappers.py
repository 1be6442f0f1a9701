"""The functions of the package that pass the arguments of others on, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import celery_asyncpool

ROOT = Path(celery_asyncpool.__file__).parent


class Function(NamedTuple):
    """A function of the package: where it is, and the names that its parameters have."""

    where: str
    #: Those that a keyword may give a value to.
    claimed: frozenset[str]
    names: frozenset[str]
    #: It takes any arguments, to pass them on.
    is_wrapper: bool


def functions() -> Iterator[Function]:
    """All functions and methods of the package, nested ones too."""
    for path in sorted(ROOT.rglob("*.py")):
        module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield _function(module, node)


def _function(module: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    arguments = node.args
    claimed = [a.arg for a in (*arguments.args, *arguments.kwonlyargs)]
    stars = [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    names = [*claimed, *stars, *(a.arg for a in arguments.posonlyargs)]
    return Function(
        f"{module}:{node.name}", frozenset(claimed), frozenset(names), is_wrapper=len(stars) == 2
    )


def all_names() -> list[str]:
    """Every name that a parameter of the package has, and those that all of Python uses."""
    names = {"self", "cls", "args", "kwargs", "task", "function"}
    return sorted(names.union(*(function.names for function in functions())))
