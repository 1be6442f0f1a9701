"""The transports of these tests, and what they share with the other real workers."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from transports import make_transport, new_transport, redis_database, start_worker

__all__ = ["make_transport", "new_transport", "redis_database", "start_worker", "transport"]


@pytest.fixture(scope="module", params=("redis", "rabbitmq"))
def transport(request, tmp_path_factory):
    """Each broker in turn; results go to Redis."""
    return make_transport(request.param, request, tmp_path_factory.mktemp(request.param))
