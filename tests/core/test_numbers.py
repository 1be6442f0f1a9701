"""celery_asyncpool/core/numbers.py: what is a number, and the text of one."""

import math
from enum import IntEnum

import pytest

from celery_asyncpool.core.numbers import as_number, as_whole_number


class Size(IntEnum):
    LARGE = 9


@pytest.mark.parametrize(
    ("value", "number"),
    [(4, 4), (0, 0), (-1, -1), (2.5, 2.5), ("4", 4), (" 4\n", 4), ("2.5", 2.5), ("1e3", 1000.0)],
)
def test_number(value, number):
    """A number is itself, and its text is the number."""
    assert as_number(value) == number
    assert type(as_number(value)) is type(number)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, math.nan, math.inf, -math.inf, 10**400, "", " ", "many", "nan"),
        *("inf", "-Infinity", "1e999", "9" * 5000, "True", b"4", [4], {}, 4j, object()),
    ],
)
def test_no_number(value):
    """Nothing else is one: no bool, and nothing without an end."""
    assert as_number(value) is None
    assert as_whole_number(value) is None


@pytest.mark.parametrize(("value", "number"), [(4, 4), ("-4", -4), (Size.LARGE, 9)])
def test_whole_number(value, number):
    """Whole numbers are numbers without a fraction."""
    assert as_whole_number(value) == number


@pytest.mark.parametrize("value", [4.0, "4.0", "2.5", 2.5, "1e3"])
def test_no_whole_number(value):
    """One that is written with a fraction is none, even one of 0."""
    assert as_whole_number(value) is None
