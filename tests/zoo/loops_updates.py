"""From gradients to the optimizer's step: accumulation, guards, overflows, optimizers of several forwards."""

from typing import Any

import torch
from torch import Tensor

from tests.zoo.job import Job
from tests.zoo.models import Lm, batches, sgd, update
from tests.zoo.table import loop


@loop("exact")
def accumulation_that_changes(job: Job) -> None:
    """Batch-size ramp-up: more micro-batches a step as the training goes on."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2, 3):
        for _ in range(step):
            model(**next(data)).backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step, metrics={"micro_batches": float(step)})


@loop("exact")
def accumulation_of_batches_fetched_first(job: Job) -> None:
    """Hugging Face's Trainer fetches all micro-batches of a step, then trains on them."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2):
        for batch in [next(data) for _ in range(3)]:
            model(**batch).backward()
        optimizer.step()
        hook.commit(step)


@loop("exact")
def a_loss_that_is_not_finite_discarded(job: Job) -> None:
    """A guard throws a micro-batch away whose loss is not finite, and takes the next."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    step = 0
    for number, batch in enumerate(hook.wrap(batches(5))):
        loss = model(**batch) * (torch.nan if number == 2 else 1)
        if not loss.isfinite():
            hook.discard()
            continue
        update(optimizer, loss)
        step += 1
        hook.commit(step)


@loop("exact")
def a_discarded_micro_batch_trained_after_all(job: Job) -> None:
    """After a spike of the loss, the loop goes back to its last weights and tries the same micro-batch again."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        loss = model(**batch)
        if step == 2:
            hook.discard()
            loss = model(**batch)
        update(optimizer, loss)
        hook.commit(step)


@loop("exact")
def a_loss_that_is_not_finite_committed(job: Job) -> None:
    """The same guard in a loop that counts such a step: consumed, and without an update."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(4)), 1):
        loss = model(**batch) * (torch.nan if step == 2 else 1)
        if loss.isfinite():
            update(optimizer, loss)
            hook.commit(step)
        else:
            hook.commit(step, status="skipped_update")


@loop("exact", warns="step 3 is recorded as skipped_update")
def an_overflow_under_a_gradient_scaler(job: Job) -> None:
    """torch.amp's scaler leaves the optimizer's step out after an overflow, and the loop does not look."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step, batch in enumerate(hook.wrap(batches(4)), 1):
        loss = model(**batch)
        scaler.scale(loss * (torch.inf if step == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        hook.commit(step)
        hook.log.steps[step].status = "skipped_update" if step == 3 else "applied"


@loop("exact")
def an_overflow_that_the_loop_knows_of(job: Job) -> None:
    """A status that the loop gives wins over what the optimizer did."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        model(**batch).backward()
        if step != 2:
            optimizer.step()
        optimizer.zero_grad()
        hook.commit(step, status="skipped_update" if step == 2 else "applied")


@loop("exact", matched="count", evidence={"input_ids": "loader", "labels": "loader"})
def data_skipped_by_count(job: Job) -> None:
    """PaLM's remedy for spikes: some hundred micro-batches are fetched and not trained on."""
    model = Lm()
    hook = job.attach(model)
    data = iter(hook.wrap(batches(4)))
    for step in (1, 2):
        for _ in range(2):
            next(data)
        hook.consume(2)
        hook.commit(step, status="skipped_data")


@loop("exact")
def sharpness_aware_minimization(job: Job) -> None:
    """SAM: a second forward of the same micro-batch, at weights moved along the gradient."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        model(**batch).backward()
        moved = [p.grad * 0.05 for p in model.parameters() if p.grad is not None]
        weights = [p for p in model.parameters() if p.grad is not None]
        torch._foreach_add_([p.data for p in weights], moved)
        optimizer.zero_grad()
        with job.repeating():
            model(**batch).backward()
        torch._foreach_sub_([p.data for p in weights], moved)
        optimizer.step()
        hook.commit(step)


@loop("exact", copies=False)
@loop("exact", copies=True)
def a_closure_called_several_times(job: Job, copies: bool) -> None:
    """L-BFGS calls the forward again and again in one step, maybe with copies of the micro-batch."""
    model = Lm()
    hook = job.attach(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        model(**batch)

        def closure(batch: dict[str, Any] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = model(**{name: value.clone() if copies else value for name, value in batch.items()})
            loss.backward()
            return loss  # type: ignore[no-any-return]

        with job.repeating():
            optimizer.step(closure)  # type: ignore[no-untyped-call,unused-ignore]
        hook.commit(step)


@loop("exact")
def autocast_to_bfloat16(job: Job) -> None:
    """Mixed precision around the forward alone."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch)
        update(optimizer, loss)
        hook.commit(step)


@loop("exact", gaps=(2,), warns="written as a gap")
def a_gap_in_place_of_a_stop(job: Job) -> None:
    """`on_mismatch="gap"`: a step with a strange forward is recorded as absent, and the training goes on."""
    model = Lm()
    hook, optimizer = job.attach(model, on_mismatch="gap"), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(4)), 1):
        ids = batch["input_ids"]
        update(optimizer, model(ids.flip(1) if step == 2 else ids, batch["labels"]))
        hook.commit(step)


@loop("exact")
def several_forwards_before_one_backward(job: Job) -> None:
    """GradCache keeps the graphs of all micro-batches, then goes back through all of them."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2):
        losses = [model(**next(data)) for _ in range(3)]
        update(optimizer, torch.stack(losses).sum())
        hook.commit(step)


@loop("exact")
def no_gradients_first_then_with_them(job: Job) -> None:
    """GradCache's other form: embeddings of all without gradients first, then each again with them."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(4)))
    for step in (1, 2):
        pair = [next(data), next(data)]
        with torch.no_grad():
            mean = torch.stack([model(**batch) for batch in pair]).mean()
        for batch in pair:
            (model(**batch) - mean).square().backward()
        optimizer.step()
        hook.commit(step)
