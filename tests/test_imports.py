"""The floors of the house: who imports whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import celery_asyncpool

PACKAGE = "celery_asyncpool"
ROOT = Path(celery_asyncpool.__file__).parent

#: All that the pure rooms may import from outside.
PURE = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "fnmatch",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "pickle",
    "struct",
    "typing",
}


#: Modules that know neither parent nor child, nor what is above these.
SHARED = [
    "calls",
    "checkpoints",
    "client",
    "cpus",
    "decorator",
    "files",
    "freethreading",
    "garbage",
    "handover",
    "knownsettings",
    "leftovers",
    "lifespans",
    "loopcode",
    "oncommit",
    "outcomes",
    "pipe",
    "prefetch",
    "pydantic_bodies",
    "redis_close",
    "redis_transport",
    "request",
    "requirements",
    "returned",
    "settings",
    "signals",
    "softlimits",
    "task",
    "tasklimits",
    "taskstate",
    "tasktypes",
    "unawaited",
]

#: What uses all the others.
ABOVE = {"cli", "demo", "eager", "pool", "pytest_plugin", "testing", "testworker"}


class Import(NamedTuple):
    """One imported module, and whether that happens when the importer is imported."""

    module: str
    at_import: bool


class ImportReader(ast.NodeVisitor):
    """Collects the imports of one module, relative names resolved.

    Arguments:
        name: the module's full name.
        is_package: whether it is an ``__init__.py``.
        modules: all modules of the package, to tell them from names in them.
    """

    def __init__(self, name: str, is_package: bool, modules: set[str]) -> None:
        self.package = name if is_package else name.rpartition(".")[0]
        self.modules = modules
        self.imports: list[Import] = []
        self.at_import = True

    def visit_Import(self, node: ast.Import) -> None:
        self.imports += [Import(alias.name, self.at_import) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            parents = parents[: len(parents) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            self.imports.append(Import(full if full in self.modules else base, self.at_import))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_later(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
            return
        self.visit_later(node.body)
        for statement in node.orelse:
            self.visit(statement)

    def visit_later(self, statements: list[ast.stmt]) -> None:
        """Visit what does not run when the module is imported."""
        before, self.at_import = self.at_import, False
        for statement in statements:
            self.visit(statement)
        self.at_import = before


def find_modules() -> dict[str, Path]:
    modules = {}
    for path in ROOT.rglob("*.py"):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def read_imports(source: str, name: str, is_package: bool, modules: set[str]) -> list[Import]:
    reader = ImportReader(name, is_package, modules)
    reader.visit(ast.parse(source))
    return reader.imports


MODULES = find_modules()
IMPORTS = {
    name: read_imports(path.read_text(), name, path.name == "__init__.py", set(MODULES))
    for name, path in MODULES.items()
}


def is_in(module: str, room: str) -> bool:
    full = f"{PACKAGE}.{room}"
    return module == full or module.startswith(full + ".")


def modules_of(room: str) -> list[str]:
    modules = sorted(name for name in MODULES if is_in(name, room))
    assert modules, f"there is no {room} any more"
    return modules


def imported_from(module: str, *rooms: str) -> list[str]:
    """What *module* imports of *rooms*, at whatever time."""
    return [
        imported for imported, _ in IMPORTS[module] if any(is_in(imported, room) for room in rooms)
    ]


def every_import(module: str) -> Iterator[str]:
    return (imported for imported, _ in IMPORTS[module])


def test_import_reader_resolves_names():
    """Relative and absolute imports come out as modules, with the time of the import."""
    source = """
import os.path
from typing import TYPE_CHECKING
from . import hub, NAME
from .hub import Hub
from ..core import job as jobs
from ..core.job import Job
from .. import pool
if TYPE_CHECKING:
    from ..cli import asyncpool
    def later():
        import typed
else:
    import otherwise
try:
    import tried
except ImportError:
    pass
class Thing:
    import in_class
    def method(self):
        import in_method
async def coroutine():
    import in_coroutine
"""
    modules = {f"p.{name}" for name in ("parent", "parent.hub", "core", "core.job", "pool")}

    imports = read_imports(source, "p.parent.process", False, modules)

    assert imports == [
        ("os.path", True),
        ("typing", True),
        ("p.parent.hub", True),
        ("p.parent", True),
        ("p.parent.hub", True),
        ("p.core.job", True),
        ("p.core.job", True),
        ("p.pool", True),
        ("p.cli", False),
        ("typed", False),
        ("otherwise", True),
        ("tried", True),
        ("in_class", True),
        ("in_method", False),
        ("in_coroutine", False),
    ]


def test_import_reader_in_a_package():
    """In an ``__init__.py`` one dot is the package itself."""
    imports = read_imports("from .pool import Pool\nfrom . import cli", "p", True, {"p.cli"})

    assert imports == [("p.pool", True), ("p.cli", True)]


def test_all_rooms_are_read():
    """The house that these tests look at is the one that is there."""
    assert {"core.job", "parent.supervisor", "child.runner", "pool", "cli", "pipe"} <= {
        name.removeprefix(f"{PACKAGE}.") for name in MODULES
    }


@pytest.mark.parametrize("module", modules_of("core"))
def test_core_is_pure(module):
    """The pure rooms import each other and a few modules without any effect, nothing else."""
    others = [name for name in every_import(module) if not is_in(name, "core")]

    assert set(others) <= PURE


@pytest.mark.parametrize(("room", "other"), [("parent", "child"), ("child", "parent")])
def test_parent_and_child_never_see_each_other(room, other):
    """What runs in the worker's main process and in its children shares only lower floors."""
    for module in modules_of(room):
        assert imported_from(module, other) == [], module


@pytest.mark.parametrize("room", ["parent", "child"])
def test_parent_and_child_import_nothing_from_above(room):
    """The rooms do not know the pool and the command line, which use them."""
    for module in modules_of(room):
        assert imported_from(module, "pool", "cli") == [], module


@pytest.mark.parametrize("module", SHARED)
def test_shared_modules_import_nothing_from_above(module):
    """What parent and child share knows neither of them, nor what is above them."""
    for full in modules_of(module):
        assert imported_from(full, "parent", "child", "pool", "cli") == [], full


def test_every_module_is_on_a_floor():
    """A new module has to be put somewhere, so that its imports are looked at."""
    rooms = {name.split(".")[1] for name in MODULES if "." in name}

    assert rooms == {"core", "parent", "child", *SHARED, *ABOVE}


def test_there_is_no_import_cycle():
    """All modules can be put in an order in which each imports only earlier ones."""
    graph = {
        name: {module for module, at_import in imports if at_import and module in MODULES}
        for name, imports in IMPORTS.items()
    }

    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as exc:
        pytest.fail(f"import cycle: {' -> '.join(exc.args[1])}")

    assert set(order) == set(MODULES)


def test_command_line_imports_no_pool():
    """Every `celery` command imports the command line; only a worker needs pool and uvloop."""
    script = (
        "import sys, celery_asyncpool.cli\n"
        "heavy = ('uvloop', 'celery_asyncpool.pool', "
        "'celery_asyncpool.parent', 'celery_asyncpool.child')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
