"""Random trainers against a plain account of what their forwards got.

Micro-batches are fetched ahead, left out, used out of order, repeated, moved, edited in place before and after their
forward, evaluated, or equal to others; buffers go round in the pool all the while.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train_hooks.hook.toy import microbatch
from train_hooks.export_format.errors import ExportStopped
from train_hooks.hook.matching.consumption import Consumption
from train_hooks.hook.tensors.batches import name_microbatch
from train_hooks.hook.tensors.snapshots import Snapshot

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["fetch", "fetch", "forward", "forward", "forward", "again", "edit", "commit", "stranger"]),
        st.integers(0, 5),
    ),
    max_size=40,
)


class Trainer:
    """Fetched micro-batches by age, and two accounts: what should be exported, and what is."""

    def __init__(self) -> None:
        self.consumption = Consumption()
        self.fetched: list[dict[str, Any]] = []
        self.used: list[int] = []
        self.staged: list[Any] = []
        self.expected: list[list[Tensor]] = [[]]
        self.found: list[list[Tensor]] = []
        self.strangers = 0
        self.first_usable = 0
        self.gone: set[int] = set()

    def usable(self) -> list[int]:
        return [at for at in range(self.first_usable, len(self.fetched)) if at not in self.gone and at not in self.used]

    def fetch(self, seed: int) -> None:
        batch = microbatch(seed % 3, slots=1) if seed < 3 else microbatch(seed * 1000 + len(self.fetched), slots=1)
        self.consumption.fetched(Snapshot(name_microbatch(batch, "input_ids"), self.consumption.pool))
        self.fetched.append(batch)

    def forward(self, number: int) -> None:
        usable = self.usable()
        if not usable:
            return
        at = usable[number % len(usable)]
        ids = self.fetched[at]["input_ids"]
        (staged,) = self.consumption.forward((), {"x": ids, "labels": self.fetched[at]["labels"]})
        self.staged.append(staged)
        self.used.append(at)
        self.expected[-1].append(ids.clone())

    def again(self, number: int) -> None:
        if self.used:
            ids = self.fetched[self.used[number % len(self.used)]]["input_ids"]
            assert not self.consumption.forward((ids,), {})

    def edit(self, number: int) -> None:
        usable = self.usable()
        if usable:
            self.fetched[usable[number % len(usable)]]["input_ids"][0, number] = 50 + number

    def stranger(self, number: int) -> None:
        """A dry run; allowed until something was fetched."""
        if not self.fetched:
            assert not self.consumption.forward((microbatch(9_000 + number, slots=1)["input_ids"],), {})
            self.strangers += 1

    def commit(self, _: int) -> None:
        self.consumption.end_step(len(self.found) + 1, trained=bool(self.used))
        resolved = [microbatch for staged in self.staged for microbatch in staged.resolve()]
        self.found.append([torch.from_numpy(microbatch.tokens.copy()) for microbatch in resolved])
        for microbatch_ in resolved:
            microbatch_.release()
        if self.used:
            self.first_usable = max(self.first_usable, min(self.used))
        self.gone.update(self.used)
        self.used, self.staged = [], []
        self.expected.append([])


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_what_is_staged_is_what_forwards_got(operations: list[tuple[str, int]]) -> None:
    trainer = Trainer()
    for name, number in operations:
        getattr(trainer, name)(number)
    trainer.commit(0)
    assert [[ids.tolist() for ids in step] for step in trainer.found] == [
        [ids.tolist() for ids in step] for step in trainer.expected[:-1]
    ]


@settings(deadline=None)  # the first call in a process may compile
@given(st.integers(1, 4), st.integers(0, 3))
def test_a_stranger_after_the_first_micro_batch_is_never_passed_over(num_forwards: int, at: int) -> None:
    trainer = Trainer()
    for seed in range(3, 3 + num_forwards):
        trainer.fetch(seed)
    for number in range(num_forwards):
        trainer.forward(0)
        if number == min(at, num_forwards - 1):
            trainer.consumption.forward((microbatch(77, slots=1)["input_ids"],), {})
    with pytest.raises(ExportStopped, match="did not yield"):
        trainer.consumption.end_step(1, trained=True)
