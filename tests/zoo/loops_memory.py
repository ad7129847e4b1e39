"""Memory: copies, buffers that are used again, checkpoints of activations, and retries after it ran out."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.job import Job
from tests.zoo.models import Lm, batches, next_token_loss, plain, sgd, update
from tests.zoo.table import loop
from train_hooks.hook.export.exporter import ExporterOptions


@loop("exact")
def moved_to_the_device(job: Job) -> None:
    """`batch.to(device, non_blocking=True)`: what the forward gets are copies."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**{name: value.clone() for name, value in batch.items()}))
        hook.commit(step)


def reused_buffers(num: int, through: str) -> Iterator[dict[str, Any]]:
    """Micro-batches that all are in the memory of the first."""
    buffers = next(plain(1))
    for batch in plain(num):
        for name, value in batch.items():
            buffer = buffers[name].numpy() if through == "numpy" else buffers[name]
            buffer[:] = value
        yield buffers


@loop("exact", through="torch")
@loop("exact", through="numpy")
def a_loader_that_reuses_its_buffers(job: Job, through: str) -> None:
    """Shared-memory loaders write each micro-batch over the last one."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(reused_buffers(4, through)), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", through="torch")
@loop("exact", through="numpy")
def copies_kept_of_reused_buffers(job: Job, through: str) -> None:
    """A prefetcher copies each micro-batch out of the loader's buffers, one ahead."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = ({name: value.clone() for name, value in batch.items()} for batch in hook.wrap(reused_buffers(4, through)))
    ahead = next(data)
    for step in (1, 2, 3):
        batch, ahead = ahead, next(data)
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def edited_after_the_backward(job: Job) -> None:
    """Loops that reuse the micro-batch's memory once its backward is over."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**batch))
        batch["input_ids"].zero_()
        batch["labels"].numpy()[:] = 0
        hook.commit(step)


class Checkpointed(Lm):
    """Its hidden layer is computed again in the backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self._reentrant = reentrant

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        hidden = checkpoint(self.inner, self.embed(input_ids), use_reentrant=self._reentrant)
        return next_token_loss(self.head(hidden), labels)


@loop("exact", reentrant=True)
@loop("exact", reentrant=False)
def checkpoints_inside_the_model(job: Job, reentrant: bool) -> None:
    """Activation checkpointing of layers: the model itself is called once."""
    model = Checkpointed(reentrant=reentrant)
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", reentrant=True)
@loop("exact", reentrant=False)
def a_checkpoint_around_the_model(job: Job, reentrant: bool) -> None:
    """The whole model is called again in the backward; reentrant, its first forward has no gradients."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    again = torch.ones(1, requires_grad=True)

    def run(ids: Tensor, labels: Tensor, _: Tensor) -> Any:
        return model(ids, labels=labels)

    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        loss = checkpoint(run, batch["input_ids"], batch["labels"], again, use_reentrant=reentrant)
        with contextlib.nullcontext() if reentrant else job.repeating():
            update(optimizer, loss)
        hook.commit(step)


class OutOfMemory(Lm):
    """Fails for more than `limit` rows, as a device does it."""

    limit = 2

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        if len(input_ids) > self.limit:
            raise torch.OutOfMemoryError("simulated")
        return super().forward(input_ids, labels)


@loop("exact")
@loop("exact", discard=True)
def halves_after_running_out_of_memory(job: Job, discard: bool = False) -> None:
    """Composer's `auto` micro-batches: a forward that ran out of memory is done again in halves. With `discard` the
    record has the halves; without, the rows of the first attempt, which the halves repeat."""
    model = OutOfMemory()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        try:
            model(**batch).backward()
        except torch.OutOfMemoryError:
            if discard:
                hook.discard()
                halve(model, batch)
            else:
                with job.repeating():
                    halve(model, batch)
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step)


def halve(model: nn.Module, batch: dict[str, Any]) -> None:
    """Forward and backward of each half."""
    for ids, labels in zip(batch["input_ids"].split(2), batch["labels"].split(2), strict=True):
        model(ids, labels).backward()


@loop("exact")
def a_retry_of_the_whole_micro_batch(job: Job) -> None:
    """A forward that failed is called again with the same micro-batch, once the cache is emptied."""
    model = OutOfMemory()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=3)), 1):
        model.limit = 2
        try:
            loss = model(**batch)
        except torch.OutOfMemoryError:
            model.limit = 3
            with job.repeating():
                loss = model(**batch)
        update(optimizer, loss)
        hook.commit(step)


@loop("exact")
def everything_fetched_first(job: Job) -> None:
    """Small data sets are read into a list before the training."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(list(hook.wrap(batches(6))), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("refused", max_fetched_bytes=1 << 10)
@loop("exact", max_fetched_bytes=1 << 20)
def more_fetched_than_is_kept(job: Job, max_fetched_bytes: int) -> None:
    """The same with more data than the hook keeps: the oldest are set aside, and their forward is refused."""
    model = Lm()
    hook = job.attach(model, options=ExporterOptions(max_fetched_bytes=max_fetched_bytes))  # type: ignore[call-arg,unused-ignore]
    optimizer = sgd(model)
    for step, batch in enumerate(list(hook.wrap(batches(20))), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def a_micro_batch_emptied_before_its_forward(job: Job) -> None:
    """Loops that pop the tokens out of the micro-batch, so that nobody else holds them."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        ids, labels = batch.pop("input_ids"), batch.pop("labels")
        batch.clear()
        update(optimizer, model(ids, labels))
        hook.commit(step)
