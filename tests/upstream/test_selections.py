"""tests/upstream/selections, tests/upstream/expected: lists that can be read."""

from pathlib import Path

import pytest

from .outcomes import Selection, read_expected

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted((HERE / "selections").glob("*.txt")), ids=lambda p: p.stem)
def test_selection(path):
    """Each name is that of a test of Celery's, once."""
    names = Selection.parse(path.read_text()).names

    assert names
    assert all(name.startswith("t/integration/test_") for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_expected(broker):
    """There is a list for each broker, with a reason for each test."""
    expected = read_expected((HERE / "expected" / f"{broker}.txt").read_text())

    assert expected
    assert all(name.startswith("t/integration/test_") for name in expected)
