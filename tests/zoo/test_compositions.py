"""A twentieth of the random compositions; `python -m tests.zoo.compositions` runs all of them."""

from tests.zoo.compositions import run
from tests.zoo.plans import compose

SEED, NUM, SHARE = 18, 2000, 20


def test_no_composition_is_recorded_wrongly_in_silence() -> None:
    tally = run(SEED, range(0, NUM, SHARE))

    assert not tally.silent, "\n\n".join(tally.silent)
    assert not tally.false_alarms, "\n\n".join(tally.false_alarms)
    assert not tally.passed_over, "\n\n".join(tally.passed_over)
    assert tally.num_compositions == NUM // SHARE
    assert tally.verdicts["exact"] > NUM // SHARE // 2


def test_a_composition_is_the_same_each_time_it_is_drawn() -> None:
    assert compose(SEED, 7) == compose(SEED, 7)
    assert compose(SEED, 7) != compose(SEED, 8)


def test_compositions_are_of_every_kind() -> None:
    plans = [compose(SEED, number) for number in range(NUM)]

    assert {plan.expect for plan in plans} == {"exact", "refused", "either"}
    assert sum(plan.expect == "exact" for plan in plans) > NUM // 3
    feeds = [feed for plan in plans for step in plan.steps for feed in step.feeds]
    assert len({(feed.form, feed.edit) for feed in feeds}) > 40
