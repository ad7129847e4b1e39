"""A training that runs a composition."""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.zoo.job import Hook, Job
from tests.zoo.models import IGNORED, LENGTH, VOCAB, Lm, batches, plain, sgd
from tests.zoo.plans import OTHERS, Composition, Feed
from tests.zoo.table import Loop

__all__ = ["loop_of"]

Tensors = dict[str, Tensor]


def loop_of(plan: Composition) -> Loop:
    """The composition as a loop of the zoo."""
    return Loop(name=f"composition {plan.number}", run=_Trainer(plan).train, expect=plan.expect, matched="any")


@dataclass
class TypedBatch:
    """A micro-batch of the structure `dataclass`."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    position_ids: Tensor


class _Trainer:
    """Runs a composition. All that happens follows from the plan, but for the random numbers of its own seed."""

    def __init__(self, plan: Composition) -> None:
        self._plan = plan
        self._rng = random.Random(plan.number)
        self._ahead: deque[Tensors] = deque()
        self._num_fetched = 0
        self._last: Tensors = {}

    def train(self, job: Job) -> None:
        """The loop."""
        torch.manual_seed(self._plan.number)
        self._model, self._job = Lm(), job
        self._hook: Hook = job.attach(self._model, shorter_rows=self._plan.shorter_rows)
        options: dict[str, Any] = {} if self._plan.record == "loader" else {"record": "forward"}
        tokens = 0 if self._plan.structure == "tuple" else "input_ids"
        self._data = iter(self._hook.wrap(self._yielded(), tokens=tokens, **options))
        optimizer = sgd(self._model)
        for number, step in enumerate(self._plan.steps, 1):
            reused = self._last
            if step.discarded is not None:
                self._discard(step.discarded)
            for feed in step.feeds:
                self._train_on(feed)
            if step.reuse:
                self._call(reused).backward()
            for event in step.events:
                self._happen(event)
            optimizer.step()
            optimizer.zero_grad()
            self._hook.commit(number, **({} if step.status is None else {"status": step.status}))

    def _yielded(self) -> Iterator[Any]:
        """Endless data, in the plan's structure."""
        for number in range(1000):
            make = batches if self._plan.documents else plain
            seed = number % 3 if self._plan.repeated_data else number
            (batch,) = make(1, 1000 * self._plan.number + seed, slots=self._plan.slots)
            batch["attention_mask"] = (torch.arange(LENGTH) < LENGTH - seed % 5).long().repeat(self._plan.slots, 1)
            batch["position_ids"] = torch.arange(LENGTH).roll(seed).repeat(self._plan.slots, 1)
            kept = {name: value for name, value in batch.items() if name not in OTHERS or name in self._plan.others}
            if self._plan.structure == "dict":
                yield kept
            else:
                yield tuple(kept.values()) if self._plan.structure == "tuple" else TypedBatch(**kept)

    def _fetch(self, pick: int) -> Tensors:
        """The next micro-batch, or one behind it, by names."""
        while len(self._ahead) < 1 + self._plan.ahead:
            self._num_fetched += 1
            batch = self._named(next(self._data))
            if not self._plan.skip or self._num_fetched % self._plan.skip:
                self._ahead.append(batch)
        pick = min(pick, len(self._ahead) - 1)
        batch = self._ahead[pick]
        del self._ahead[pick]
        return batch

    def _named(self, batch: Any) -> Tensors:
        if isinstance(batch, TypedBatch):
            return dict(vars(batch))
        names = ("input_ids", *self._plan.others)
        return dict(zip(names, batch, strict=True)) if isinstance(batch, tuple) else {n: batch[n] for n in names}

    def _train_on(self, feed: Feed) -> None:
        batch = self._edit(self._fetch(feed.pick), feed)
        parts = self._forms(batch, feed)
        if feed.cast:
            parts = [{**part, "input_ids": part["input_ids"].int()} for part in parts]
        for part in parts:
            self._call(part).backward()
            if feed.declare:
                self._hook.trained_on(labels=torch.full(part["input_ids"].shape, 7))
        if feed.again != "no":
            with self._job.repeating():
                for part in parts:
                    copies = {name: value.clone() for name, value in part.items()}
                    self._call(copies if feed.again == "copies" else part).backward()
        self._last = parts[-1]

    def _discard(self, feed: Feed) -> None:
        """A forward that trains nothing; its micro-batch is fed again, or never."""
        batch = self._fetch(feed.pick)
        self._call(batch)
        self._hook.discard()
        if self._rng.random() < 0.5:
            self._ahead.appendleft(batch)

    def _call(self, part: Mapping[str, Tensor]) -> Any:
        names = [name for name in ("input_ids", *OTHERS) if name in part]
        if self._plan.call == "kwargs":
            out = self._model(**part)
        elif self._plan.call == "mixed":
            out = self._model(part["input_ids"], **{name: part[name] for name in names[1:]})
        else:
            out = self._model(*(part.get(name) for name in ("input_ids", *OTHERS)))
        return out.nan_to_num().mean()

    def _edit(self, batch: Tensors, feed: Feed) -> Tensors:
        if feed.edit == "none":
            return batch
        tensor = batch[feed.edited]
        value = {"labels": IGNORED, "attention_mask": 0, "position_ids": 1}.get(feed.edited, VOCAB - 1)
        column = self._rng.randrange(LENGTH - 2)
        if feed.edit in ("out of place", "assigned data"):
            edited = tensor.clone()
            edited[:, column] = value
            edited[0, 0] = (edited[0, 0] + 1) % LENGTH  # never what it was
            if feed.edit == "out of place":
                return {**batch, feed.edited: edited}
            tensor.data = edited
        elif feed.edit == "numpy":
            tensor.numpy()[:, column] = value
        else:
            (tensor.data if feed.edit == "data" else tensor)[:, column] = value
        return batch

    def _forms(self, batch: Tensors, feed: Feed) -> list[Tensors]:
        """The tensors of each forward."""
        slots, rng = self._plan.slots, self._rng
        if feed.form == "copies":
            return [{name: value.clone() for name, value in batch.items()}]
        if feed.form == "flatten":
            return [{name: value.flatten() for name, value in batch.items()}]
        if feed.form in ("all but the last token", "trimmed"):
            length = LENGTH - 1 if feed.form != "trimmed" else feed.length
            return [{name: value[:, :length] for name, value in batch.items()}]
        if feed.form in ("rows left out", "rows in another order"):
            rows = rng.sample(
                range(slots), slots if feed.form == "rows in another order" else rng.randint(1, slots - 1)
            )
            return [{name: value[rows] for name, value in batch.items()}]
        if feed.form == "concatenated":
            other = self._fetch(0)
            return [{name: torch.cat([value, other[name]]) for name, value in batch.items()}]
        if feed.form == "split":
            at = rng.randint(1, slots - 1)
            return [{name: value[part] for name, value in batch.items()} for part in (slice(0, at), slice(at, slots))]
        return [batch]

    def _happen(self, event: str) -> None:
        other = self._named_plain(90_000 + self._rng.randrange(1000))
        if event == "stranger":
            self._call(other).backward()
        elif event == "generate":
            with torch.no_grad():
                self._call(self._last)
        elif event == "pause":
            with self._hook.paused():
                self._call(other).backward()
        else:
            self._model.eval()
            with torch.set_grad_enabled(event == "gradients in eval"):
                self._call(other)
            self._model.train()

    def _named_plain(self, seed: int) -> Tensors:
        (batch,) = plain(1, seed, slots=self._plan.slots)
        return {"input_ids": batch["input_ids"]}
