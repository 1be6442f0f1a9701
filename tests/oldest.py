"""Print the oldest versions that pyproject.toml allows, as a pip constraints file.

python tests/oldest.py > constraints.txt
pip install -e . --group tests --constraint constraints.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

#: What users bring with them, and the pool works with: test dependencies of ours.
INTEGRATIONS = ("django", "django-celery-results", "sentry-sdk")


def lower_bounds(requirements: Iterable[str]) -> Iterator[str]:
    """Yield ``name==version`` for each requirement ``name>=version``.

    One without a lower bound is an error: it would be tested with the newest.
    """
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        bound = re.search(r">=\s*([\w.]+)", requirement)
        if name is None or bound is None:
            raise ValueError(f"no lower bound in {requirement!r}")
        yield f"{name[0]}=={bound[1]}"


def main() -> None:
    """Print the lower bounds of what users install, extras and integrations included."""
    pyproject = tomllib.loads(PYPROJECT.read_text())
    project = pyproject["project"]
    requirements = [*project["dependencies"]]
    tests = pyproject["dependency-groups"]["tests"]
    requirements += [one for one in tests if re.match(r"[\w.-]+", one)[0] in INTEGRATIONS]
    for extra in project["optional-dependencies"].values():
        requirements += extra
    sys.stdout.writelines(f"{bound}\n" for bound in lower_bounds(requirements))


if __name__ == "__main__":
    main()
