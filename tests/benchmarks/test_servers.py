"""URLs of servers that are far away."""

import pytest

from benchmarks.servers import far_url


@pytest.mark.parametrize(
    ("url", "far"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:7/0"),
        ("redis://:secret@example.org/1", "redis://:secret@127.0.0.1:7/1"),
        ("amqp://guest:guest@127.0.0.1:5672//", "amqp://guest:guest@127.0.0.1:7//"),
    ],
)
def test_a_far_url_leads_to_the_proxy(url, far):
    """User, password, database and vhost stay."""
    assert far_url(url, 7) == far
