"""Transports and workers for the tests with a real `celery worker`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from transports import (
    TRANSPORTS,
    certificate,
    flavour,
    make_transport,
    new_transport,
    redis,
    redis_database,
    redis_transport,
    start_worker,
    transport,
)

__all__ = [
    "TRANSPORTS",
    "certificate",
    "flavour",
    "make_transport",
    "new_transport",
    "redis",
    "redis_database",
    "redis_transport",
    "start_worker",
    "transport",
]
