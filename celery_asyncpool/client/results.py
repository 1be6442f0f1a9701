"""What is in Celery's result objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.result import ResultSet

__all__ = ["is_settled", "leaves_of", "parents_of"]


def leaves_of(result: Any) -> Iterator[Any]:
    """The tasks' results in *result*, which may be one itself."""
    if isinstance(result, ResultSet):
        for member in result.results or ():
            yield from leaves_of(member)
    else:
        yield result


def parents_of(result: Any) -> Iterator[Any]:
    """What has to succeed before *result* can be."""
    node = getattr(result, "parent", None)
    while node:
        yield from leaves_of(node)
        node = node.parent


def is_settled(result: Any) -> bool:
    """Whether reading *result* needs no look into the backend."""
    return bool(result.ignored or result._cache)
