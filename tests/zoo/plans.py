"""Random compositions of what ordinary training loops do: drawn from a seed, each with what its record must be.

The rules are those that the documentation states; where they leave two answers, both are right, and a record that is
silently wrong never is.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tests.zoo.models import LENGTH
from tests.zoo.table import Expect

__all__ = ["OTHERS", "Composition", "Feed", "StepPlan", "compose"]

Structure = Literal["dict", "tuple", "dataclass"]
OTHERS = ("labels", "attention_mask", "position_ids")
IN_PLACE = ("in place", "numpy", "data", "assigned data")
EVENTS = ("evaluate", "generate", "pause", "gradients in eval")
FORMS = (
    "whole", "whole", "copies", "flatten", "all but the last token", "rows left out", "rows in another order",
    "concatenated", "split",
)  # fmt: skip
VIEWS = ("whole", "flatten", "all but the last token")
"""Forms in which a tensor that was edited in place is known again: they share its memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """What is done with one micro-batch from fetch to backward."""

    form: str = "whole"
    edit: str = "none"
    edited: str = "input_ids"
    cast: bool = False
    again: str = "no"
    declare: bool = False
    pick: int = 0
    length: int = LENGTH


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step. events: what happens beside its forwards, in order; reuse: feed the last step's tokens once more."""

    feeds: Sequence[Feed]
    events: Sequence[str] = ()
    discarded: Feed | None = None
    status: str | None = None
    reuse: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """A random loop. ahead: micro-batches fetched ahead; skip: of how many fetched one is left out."""

    number: int
    structure: Structure
    others: Sequence[str]
    call: str
    record: str
    shorter_rows: bool
    slots: int
    ahead: int
    skip: int
    repeated_data: bool
    documents: bool
    steps: Sequence[StepPlan] = ()

    @property
    def expect(self) -> Expect:
        """What the record must be."""
        found = {expected for step in self.steps for expected in self._of_step(step)}
        return "refused" if "refused" in found else "either" if "either" in found else "exact"

    def _of_step(self, step: StepPlan) -> Iterator[Expect]:
        yield from map(self._of_feed, step.feeds)
        if self.record == "loader" and ("stranger" in step.events or step.reuse):
            yield "refused"

    def _of_feed(self, feed: Feed) -> Expect:
        if feed.form == "trimmed" and not self.shorter_rows:
            return "refused"
        if self.record == "forward":
            return "exact" if _is_whole(feed.form, self.shorter_rows) else "either"
        if feed.edit == "none" or feed.edited != "input_ids":
            return "exact"
        if feed.edit == "out of place":
            return "refused"
        return "exact" if feed.form in VIEWS and not feed.cast and feed.again != "copies" else "either"


def _is_whole(form: str, shorter_rows: bool) -> bool:
    """Whether a row of the forward is a row that the run can hold."""
    return form != "flatten" and (shorter_rows or form != "all but the last token")


def compose(seed: int, number: int) -> Composition:
    """The composition of that number."""
    rng = random.Random(f"{seed}/{number}")
    structure: Structure = rng.choice(("dict", "dict", "tuple", "dataclass"))
    plan = Composition(
        number=number,
        structure=structure,
        others=tuple(name for name in OTHERS if structure == "dataclass" or rng.random() < 0.6),
        call=rng.choice(("kwargs", "positional", "mixed")),
        record=rng.choice(("loader", "loader", "loader", "forward")),
        shorter_rows=rng.random() < 0.5,
        slots=rng.randint(2, 4),
        ahead=rng.choice((0, 0, 1, 2, 5)),
        skip=rng.choice((0, 0, 0, 3, 4)),
        repeated_data=rng.random() < 0.1,
        documents=structure == "dict" and rng.random() < 0.5,
    )
    steps = [_step(rng, plan) for _ in range(rng.randint(2, 5))]
    if rng.random() < 0.3:  # most compositions have nothing to refuse, lest none gets beyond its first steps
        _spoil(rng, plan, steps)
    return replace(plan, steps=tuple(steps))


def _step(rng: random.Random, plan: Composition) -> StepPlan:
    return StepPlan(
        feeds=tuple(_feed(rng, plan) for _ in range(rng.randint(1, 3))),
        events=tuple(name for name in EVENTS if rng.random() < 0.15),
        discarded=Feed() if rng.random() < 0.1 and not plan.repeated_data else None,
        status=rng.choice((None, None, None, "applied", "skipped_update")),
    )


def _feed(rng: random.Random, plan: Composition) -> Feed:
    if plan.repeated_data:  # rows that are equal to others of their step are known by the tensor alone
        return Feed(cast=rng.random() < 0.2)
    feed = Feed(
        form=rng.choice(FORMS),
        cast=rng.random() < 0.15,
        again=rng.choice(("no", "no", "no", "the same", "copies")),
        pick=int(rng.random() < 0.05),
    )
    if plan.record == "forward" and not _is_whole(feed.form, plan.shorter_rows) and rng.random() < 0.9:
        feed = replace(feed, form="whole")
    if rng.random() < 0.4:
        feed = _edited(rng, plan, feed)
    if plan.record == "forward" and feed.again == "copies":  # two forwards, for all that anybody can tell
        feed = replace(feed, again="the same")
    return replace(feed, declare=rng.random() < 0.1 and feed.form not in ("split", "flatten"))


def _edited(rng: random.Random, plan: Composition, feed: Feed) -> Feed:
    edited = rng.choice(("input_ids", *plan.others))
    if edited != "input_ids":
        return replace(feed, edit=rng.choice((*IN_PLACE, "out of place")), edited=edited)
    feed = replace(feed, edit=rng.choice(IN_PLACE), edited=edited)
    if plan.record == "loader" and rng.random() < 0.9:  # a copy of edited tokens is nobody's, as often as not
        feed = replace(feed, form=rng.choice(VIEWS), cast=False, again=rng.choice(("no", "the same")))
    return feed


def _spoil(rng: random.Random, plan: Composition, steps: list[StepPlan]) -> None:
    """One thing in one step that may have to be refused."""
    at = rng.randrange(len(steps))
    step, what = steps[at], rng.choice(("edit", "trim", "trim", "stranger", "reuse"))
    if what == "edit":
        form = rng.choice(("whole", "copies", "split", "rows in another order"))
        step = replace(step, feeds=(*step.feeds[:-1], Feed(edit="out of place", form=form)))
    elif what == "trim":
        trimmed = Feed(form="trimmed", length=rng.randint(4, LENGTH - 2), cast=rng.random() < 0.2)
        step = replace(step, feeds=(*step.feeds[:-1], trimmed))
    elif what == "stranger":
        step = replace(step, events=(*step.events, "stranger"))
    steps[at] = replace(step, reuse=what == "reuse" and at > 0 and not plan.repeated_data)
