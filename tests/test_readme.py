"""README's examples can be copied: they import what they use, and get in nobody's way."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from celery.bin.celery import celery

README = Path(__file__).parents[1] / "README.md"

#: Code blocks: kind, text.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

#: What README says of all examples: this is the reader's.
READERS = {"app"}


def blocks(*kinds: str) -> Iterator[tuple[int, str]]:
    """The line in which each block of *kinds* begins (of none: all), and the block."""
    text = README.read_text()
    for match in BLOCK.finditer(text):
        if not kinds or match[1] in kinds:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def variables_of(command: click.Command, prefix: str) -> Iterator[str]:
    """The environment variables that *command* and its subcommands read as options."""
    for param in command.params:
        names = param.envvar or []
        yield from [names] if isinstance(names, str) else names
        if isinstance(param, click.Option) and param.allow_from_autoenv and param.name:
            yield f"{prefix}_{param.name.upper()}"
    for name, sub in getattr(command, "commands", {}).items():
        yield from variables_of(sub, f"{prefix}_{name.upper().replace('-', '_')}")


#: As `celery.bin.celery.main` calls it.
OPTIONS = set(variables_of(celery, "CELERY"))


def test_options_of_the_command_line_are_known() -> None:
    """Those with names of their own, those with a prefix, and those of subcommands."""
    assert OPTIONS >= {
        "BROKER_URL",
        "RESULT_BACKEND",
        "CELERY_RESULT_BACKEND",
        "CELERY_WORKER_CONCURRENCY",
        "CELERY_WORKER_PROCESSES",
        "CELERY_ASYNCPOOL_DEMO_TASKS",
    }


def test_no_example_has_a_variable_that_celery_reads() -> None:
    """Whoever sets it for an example would change the options of each `celery` command."""
    used = {
        f"line {line}: {name}"
        for line, block in blocks()
        for name in re.findall(r"\b[A-Z][A-Z_]+\b", block)
        if name in OPTIONS
    }

    assert used == set()


def test_examples_import_what_they_use(tmp_path: Path) -> None:
    """Each compiles, and has no name that it does not define, but for the reader's app."""
    pytest.importorskip("ruff")
    for line, block in blocks("python"):
        (tmp_path / f"line_{line}.py").write_text(block)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--output-format=concise"]
    command += ["--select=F,E9", f"--config=builtins = {sorted(READERS)}", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "All checks passed!\n"), done.stderr


def slug(heading: str) -> str:
    """The anchor of a heading, as README's readers make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_inside_lead_somewhere() -> None:
    """Each anchor is a heading's."""
    text = BLOCK.sub("", README.read_text())
    headings = {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}

    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


def test_links_to_files_lead_somewhere() -> None:
    """Each file that README links to is there, with the heading that is meant."""
    links = re.findall(r"\]\((?!#|https?:)([^)#]+)(?:#([^)]*))?\)", README.read_text())

    assert links
    for path, anchor in links:
        text = (README.parent / path).read_text()
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", text, re.MULTILINE))
