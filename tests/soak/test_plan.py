"""The plan of a soak comes from its seed."""

from .kinds import KINDS
from .plan import FAULTS, make_plan


def test_same_seed_is_the_same_soak():
    """Tasks, faults, their arguments and their moments."""
    assert make_plan(7, 2.0, 60) == make_plan(7, 2.0, 60)
    assert make_plan(7, 2.0, 60) != make_plan(8, 2.0, 60)


def test_two_minutes_have_all_kinds_of_tasks_and_faults():
    """Whatever the seed, so that the short soak of CI leaves none out."""
    for seed in range(20):
        plan = make_plan(seed, 2.0, 60)

        assert {send.kind.name for send in plan.sends} == set(KINDS)
        assert {strike.fault for strike in plan.strikes} == set(FAULTS)
        assert all(0 <= event.at <= plan.seconds for event in (*plan.sends, *plan.strikes))
