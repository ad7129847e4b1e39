"""What stands around the model: modules with the loss inside, functional calls, hooks of others, averaged weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.zoo.job import Job
from tests.zoo.models import MASK, Lm, batches, next_token_loss, sgd, update
from tests.zoo.table import loop


class WithLoss(nn.Module):
    """A model and its loss as one module, as DDP with a loss inside wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        return next_token_loss(self.model(input_ids), labels)


@loop("exact", evidence={"labels": "forward"})
def the_hook_on_a_module_with_the_loss(job: Job) -> None:
    """Where model and loss are one module, labels too are known from its forward."""
    module = WithLoss(Lm())
    hook, optimizer = job.attach(module), sgd(module)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, module(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact", evidence={"labels": "loader"})
def the_hook_on_the_model_inside(job: Job) -> None:
    """The same with the hook on the inner model, which never sees labels."""
    model = Lm()
    module = WithLoss(model)
    hook, optimizer = job.attach(model), sgd(module)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, module(batch["input_ids"], batch["labels"]))
        hook.commit(step)


class MaskingInside(WithLoss):
    """Masks tokens on their way to the model."""

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = input_ids.clone()
        hidden[:, 2] = MASK
        return super().forward(hidden, labels)


@loop("refused")
@loop("exact", record="forward")
def tokens_masked_between_wrapper_and_model(job: Job, record: str = "loader") -> None:
    """A Lightning module makes the masked tokens in its `training_step`; the hook is on the model that gets them."""
    model = Lm()
    module = MaskingInside(model)
    hook, optimizer = job.attach(model), sgd(module)
    for step, batch in enumerate(hook.wrap(batches(3), record=record), 1):
        update(optimizer, module(batch["input_ids"], batch["labels"]))
        hook.commit(step)


def mask_third(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A pre-hook that edits the tokens of a forward."""
    ids = args[0].clone()
    ids[:, 2] = MASK
    return (ids, *args[1:])


@loop("either", before=True)
@loop("either", before=False)
def a_pre_hook_that_edits_tokens(job: Job, before: bool) -> None:
    """Somebody else's forward pre-hook (augmentation, token dropout) changes what the forward gets, whether it was
    registered before the export's hook or after it."""
    model = Lm()
    if before:
        model.register_forward_pre_hook(mask_third)
    hook, optimizer = job.attach(model), sgd(model)
    if not before:
        model.register_forward_pre_hook(mask_third)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact")
def a_pre_hook_that_moves_tensors(job: Job) -> None:
    """accelerate's pre-hooks move arguments to the device, which makes copies of them."""
    model = Lm()
    model.register_forward_pre_hook(lambda _, args: tuple(value.clone() for value in args))
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact")
def a_functional_call(job: Job) -> None:
    """MAML and torch.func call the module with other weights than its own."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        weights = {name: weight * 1.01 for name, weight in model.named_parameters()}
        loss = torch.func.functional_call(model, weights, (batch["input_ids"], batch["labels"]))
        update(optimizer, loss)
        hook.commit(step)


@loop("exact")
def averaged_weights(job: Job) -> None:
    """torch's AveragedModel is a copy of the hooked model; in between it is evaluated on training data."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    averaged = AveragedModel(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**batch))
        averaged.update_parameters(model)
        with torch.no_grad():
            averaged(batch["input_ids"])
        hook.commit(step)


@loop("exact")
def a_copy_that_trains_elsewhere(job: Job) -> None:
    """Population-based training: a copy of the hooked model trains on data of its own, which this record is not about."""
    model = Lm()
    hook = job.attach(model)
    other = copy.deepcopy(model)
    optimizer, other_optimizer = sgd(model), sgd(other)
    for step, (batch, its_own) in enumerate(zip(hook.wrap(batches(3)), batches(3, 50), strict=True), 1):
        update(optimizer, model(**batch))
        update(other_optimizer, other(its_own["input_ids"], its_own["labels"]))
        hook.commit(step)


@loop("exact")
def adapters_on_a_frozen_model(job: Job) -> None:
    """LoRA: only a small part has gradients, and the model under it is frozen."""
    model = Lm()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("head"))
    hook = job.attach(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def a_model_called_by_its_parent_and_by_the_loop(job: Job) -> None:
    """Auxiliary losses: the same module is called for the main loss and once more on the same tokens."""
    model = Lm()
    module = WithLoss(model)
    hook, optimizer = job.attach(model), sgd(module)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        loss = module(batch["input_ids"], batch["labels"])
        with job.repeating():
            loss = loss + model(batch["input_ids"]).square().mean()
        update(optimizer, loss)
        hook.commit(step)
