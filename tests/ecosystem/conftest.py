"""Extensions and tools of others, real, beside a real worker: one file per package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from transports import (
    flavour,
    make_transport,
    new_transport,
    redis_database,
    redis_transport,
    start_worker,
    transport,
)

__all__ = [
    "flavour",
    "make_transport",
    "new_transport",
    "redis_database",
    "redis_transport",
    "start_worker",
    "transport",
]
