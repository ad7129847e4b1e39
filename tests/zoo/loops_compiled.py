"""torch.compile around, inside and beside the model."""

import functools
from typing import Any

import torch
from torch import nn

from tests.zoo.job import Job
from tests.zoo.models import Lm, batches, next_token_loss, sgd, update
from tests.zoo.table import loop

compiled: Any = functools.partial(torch.compile, dynamic=False)


def train(hook: Any, model: nn.Module, called: Any, num_steps: int = 3) -> None:
    """Steps with evaluation in between, which makes the compiler's guards change."""
    optimizer = sgd(model)
    for step, batch in enumerate(hook.wrap(batches(num_steps)), 1):
        update(optimizer, called(batch["input_ids"], labels=batch["labels"]))
        hook.commit(step)
        with torch.no_grad():
            called(batch["input_ids"], labels=batch["labels"])


@loop("exact", backend="eager")
@loop("exact", backend="aot_eager")
def compiled_then_attached(job: Job, backend: str) -> None:
    """nanoGPT: `model = torch.compile(model)`, and the loop knows the compiled model alone."""
    torch._dynamo.reset()
    model = Lm()
    fast = compiled(model, backend=backend)
    train(job.attach(fast, like=model), model, fast)


@loop("exact", backend="eager")
@loop("exact", backend="aot_eager")
def attached_then_compiled(job: Job, backend: str) -> None:
    """The hook is on the plain model, and the loop calls a compiled one that was made later."""
    torch._dynamo.reset()
    model = Lm()
    hook = job.attach(model)
    fast = compiled(model, backend=backend)
    hook.log.listen(fast, like=model)
    train(hook, model, fast)


@loop("exact", backend="eager")
@loop("exact", backend="aot_eager")
def compiled_in_place(job: Job, backend: str) -> None:
    """torchtitan: `model.compile()`, which leaves the module what it is."""
    torch._dynamo.reset()
    model = Lm()
    hook = job.attach(model)
    model.compile(backend=backend, dynamic=False)
    train(hook, model, model)


@loop("exact", backend="eager")
@loop("exact", backend="aot_eager")
def blocks_compiled(job: Job, backend: str) -> None:
    """Regional compilation: each block of the model, and not the model."""
    torch._dynamo.reset()
    model = Lm()
    model.inner.compile(backend=backend, dynamic=False)
    train(job.attach(model), model, model)


@loop("exact", backend="eager")
@loop("exact", backend="aot_eager")
def the_loss_function_compiled(job: Job, backend: str) -> None:
    """A compiled loss outside of a model that is not."""
    torch._dynamo.reset()
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    loss_of = compiled(next_token_loss, backend=backend)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, loss_of(model(batch["input_ids"]), batch["labels"]))
        hook.commit(step)


@loop("exact", backend="eager")
@loop("exact", backend="aot_eager")
def the_whole_training_step_compiled(job: Job, backend: str) -> None:
    """A function of model and loss is compiled, and calls the hooked model inside."""
    torch._dynamo.reset()
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)

    @functools.partial(compiled, backend=backend)
    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return next_token_loss(model(ids), labels)

    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, loss_of(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact")
def a_replayed_graph(job: Job) -> None:
    """CUDA graphs are replayed without a call of the module, so that the loop says what ran."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    ids, labels = torch.zeros(2, 16, dtype=torch.int64), torch.zeros(2, 16, dtype=torch.int64)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        ids.copy_(batch["input_ids"])
        labels.copy_(batch["labels"])
        loss = Lm.forward(model, ids, labels)
        hook.forwarded(input_ids=ids, labels=labels)
        update(optimizer, loss)
        hook.commit(step)
