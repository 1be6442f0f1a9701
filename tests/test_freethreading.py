"""celery_asyncpool/freethreading.py: what is said of a free-threaded Python."""

from __future__ import annotations

import sysconfig

import pytest

from celery_asyncpool.freethreading import gil_sentence, tell_of_gil


def test_gil_that_an_extension_has_switched_on():
    """One sentence names who may need it."""
    sentence = gil_sentence(is_on=True, modules=["greenlet", "uvloop"])

    assert sentence is not None
    assert "free-threaded build that runs with its GIL on" in sentence
    assert "greenlet or uvloop" in sentence


def test_gil_that_is_off():
    """Nothing is to be said."""
    assert gil_sentence(is_on=False, modules=["greenlet"]) is None


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="of other builds")
def test_python_with_a_gil(caplog):
    """Where there always is a GIL, nothing is said."""
    tell_of_gil("uvloop")

    assert caplog.text == ""
