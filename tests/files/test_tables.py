"""Tables of bindings that can be read, whatever has happened to them."""

import json

import pytest

from celery_asyncpool.files.tables import create_table, mend_table

A, B = ["a", "", "q1"], ["", "", "q2"]


def test_create(tmp_path):
    """An empty table, and its folder; one that is there stays."""
    path = tmp_path / "control" / "x.exchange"

    create_table(str(path))
    assert json.loads(path.read_text()) == []
    path.write_text(json.dumps([A]))
    create_table(str(path))

    assert json.loads(path.read_text()) == [A]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [B]),
        ('[["a", "", "q', [B]),
        ("{}", [B]),
        ("[1]", [B]),
        ('[["a", "", 7]]', [B]),
        (json.dumps([A]) + ', "q0"]]', [A, B]),  # the end of a longer one
        (json.dumps([B]) + "]]", [B]),
    ],
)
def test_mend(tmp_path, text, rows):
    """What can be read is kept, what is known is added, and both are there once."""
    path = tmp_path / "x.exchange"
    path.write_text(text)

    mend_table(str(path), [tuple(B)])

    assert json.loads(path.read_text()) == rows


def test_whole_table_stays(tmp_path, caplog):
    """Somebody else was first: nothing is added, and nothing said."""
    path = tmp_path / "x.exchange"
    path.write_text(json.dumps([A]))

    mend_table(str(path), [B])

    assert json.loads(path.read_text()) == [A]
    assert caplog.messages == []
