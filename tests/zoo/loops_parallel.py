"""What one process of a parallel job does, in a process alone; `ranks_job` has the loops with ranks of their own."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.zoo.job import Job
from tests.zoo.models import LENGTH, Lm, batches, next_token_loss, sgd, update
from tests.zoo.table import loop


@loop("exact", matched="slice", columns=slice(0, LENGTH // 2))
@loop("exact", matched="slice", columns=[0, 1, 2, 3, 12, 13, 14, 15])
def columns_of_context_parallel_ranks(job: Job, columns: slice | list[int]) -> None:
    """Context parallelism: this rank's forward gets half of the columns, or the outer quarters (zigzag)."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3), columns=columns), 1):
        update(optimizer, model(**{name: value[:, columns] for name, value in batch.items()}))
        hook.commit(step)


@loop("refused")
def columns_that_nobody_declared(job: Job) -> None:
    """The same without a word to the hook."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**{name: value[:, LENGTH // 2 :] for name, value in batch.items()}))
        hook.commit(step)


class Wrapped(nn.Module):
    """What DDP is to the loop: a wrapper with `no_sync`."""

    def __init__(self, module: Lm) -> None:
        super().__init__()
        self.module = module
        self.synced = True

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients stay here."""
        self.synced = False
        yield
        self.synced = True

    def forward(self, *inputs: Tensor, **kwargs: Tensor) -> Tensor:
        return self.module(*inputs, **kwargs)  # type: ignore[no-any-return]


@loop("exact")
def accumulation_without_syncs(job: Job) -> None:
    """DDP's `no_sync` around all micro-batches but the last; the wrapper's own signature has no names."""
    model = Wrapped(Lm())
    hook, optimizer = job.attach(model, like=model.module), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2):
        for number in range(3):
            batch = next(data)
            with contextlib.nullcontext() if number == 2 else model.no_sync():
                model(batch["input_ids"], labels=batch["labels"]).backward()
        optimizer.step()
        hook.commit(step)


@loop("exact")
def the_first_stage_of_a_pipeline(job: Job) -> None:
    """The hook is on the first stage, whose forward gets the tokens of one micro-batch after another."""
    first, rest = nn.Sequential(Lm().embed), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 97))
    hook, optimizer = job.attach(first, tokens=("input",)), sgd(nn.ModuleList([first, rest]))
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        hidden, losses = [first(ids) for ids in batch["input_ids"].chunk(2)], []
        for part, labels in zip(hidden, batch["labels"].chunk(2), strict=True):
            losses.append(next_token_loss(rest(part), labels))
        update(optimizer, sum(losses))
        hook.commit(step)


@loop("exact", evidence={"input_ids": "forward", "labels": "loader"})
def the_first_stage_with_consume(job: Job) -> None:
    """`consume` counts whole micro-batches, and what the stage's forwards got of them is compared."""
    first, rest = nn.Sequential(Lm().embed), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 97))
    hook, optimizer = job.attach(first, tokens=("input",)), sgd(nn.ModuleList([first, rest]))
    hook.listen(first, counting=True)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        hook.consume()
        losses = []
        for ids, labels in zip(batch["input_ids"].chunk(2), batch["labels"].chunk(2), strict=True):
            losses.append(next_token_loss(rest(first(ids)), labels))
        update(optimizer, sum(losses))
        hook.commit(step)


@loop("exact", matched="count", evidence={"input_ids": "loader", "labels": "loader"})
def a_last_stage_that_sees_no_tokens(job: Job) -> None:
    """A rank of a later stage that reads the data for its labels: micro-batches are counted, nothing is seen."""
    stage = nn.Linear(8, 97)
    hook, optimizer = job.attach(stage), sgd(stage)
    hook.listen(stage, counting=True)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        hook.consume()
        update(optimizer, next_token_loss(stage(torch.randn(2, LENGTH, 8)), batch["labels"]))
        hook.commit(step)
