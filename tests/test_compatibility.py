"""README's table of versions says what is tested, and the package's metadata the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = (ROOT / ".ci" / "run").read_text()

#: Run by hand, as README says: neither Debian 12 nor 13 has it, nor the one to come.
BY_HAND = {"3.12"}


def section() -> str:
    readme = (ROOT / "README.md").read_text()
    return readme.partition("## Compatibility\n")[2].partition("\n## ")[0]


def rows(first_heading: str) -> dict[str, list[str]]:
    """The cells of the table with that heading, by the first one of each row."""
    lines = section().partition(f"| {first_heading} |")[2].splitlines()[2:]
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name] = cells
    return found


def pythons_of_ci() -> set[str]:
    return {"3.11", *re.findall(r"VERSION=(\S+)", CI)}


def test_pythons():
    """The table, the classifiers and what CI runs are the same."""
    classifiers = PYPROJECT["project"]["classifiers"]
    of_package = {c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)}

    assert set(rows("Python")) == of_package == pythons_of_ci() | BY_HAND
    assert min(of_package) == PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert all("by hand" in rows("Python")[version][0] for version in BY_HAND)


def test_oldest_versions():
    """The oldest versions in the table are the lower bounds, with which CI runs."""
    project = PYPROJECT["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["redis"]]
    requirements += [
        one for one in PYPROJECT["dependency-groups"]["tests"] if isinstance(one, str)
    ]
    bounds = {
        match[1].lower(): match[2]
        for match in (re.match(r"([\w-]+)>=([\d.]+)", one) for one in requirements)
        if match is not None
    }

    names = {"redis-py": "redis"}
    table = {names.get(name, name).lower(): cells[0] for name, cells in rows("with").items()}
    assert table == {name: bounds[name] for name in table}
    assert set(table) >= {"celery", "kombu", "billiard", "uvloop", "greenlet", "redis", "django"}
    assert "make test-oldest" in CI
