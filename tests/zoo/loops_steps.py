"""Which forwards belong to the training, and which to something else that goes on around it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.zoo.job import Job
from tests.zoo.models import LENGTH, SLOTS, VOCAB, Lm, batches, plain, sgd, update
from tests.zoo.table import loop


@torch.no_grad()
def evaluate(model: Lm) -> float:
    """Loss on other data, in evaluation mode."""
    model.eval()
    loss = float(sum(model(**batch).item() for batch in plain(2, first=1000)))
    model.train()
    return loss


@loop("exact")
def evaluation_in_between(job: Job) -> None:
    """Every few steps, and also between micro-batches of a step."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2, 3):
        model(**next(data)).backward()
        evaluate(model)
        model(**next(data)).backward()
        optimizer.step()
        hook.commit(step, metrics={"eval_loss": evaluate(model)})


@loop("exact", how="eval")
@loop("exact", how="paused")
@loop("refused", how="train")
def gradients_of_other_data(job: Job, how: str) -> None:
    """Influence functions and sharpness want gradients of other data: in evaluation mode or a pause they are not the
    training's; in training mode nobody can tell."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    probe = next(plain(1, first=1000))
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**batch))
        hook.commit(step)
        if how == "paused":
            with hook.paused():
                model(**probe).backward()
        elif how == "eval":
            model.eval()
            model(**probe).backward()
            model.train()
        else:
            model(**probe).backward()
        optimizer.zero_grad()


@torch.no_grad()
def generate(model: Lm, ids: Tensor, num_tokens: int) -> Tensor:
    """Greedy, with the model as it is."""
    for _ in range(num_tokens):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@loop("exact")
def generation_in_between(job: Job) -> None:
    """Samples for the log, from prompts of the training data, with the model left in training mode."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        generate(model, batch["input_ids"][:1, :4], 12)
        update(optimizer, model(**batch))
        generate(model, batch["input_ids"][:, :4], 12)
        hook.commit(step)


@loop("exact")
def a_dry_run_before_the_first_fetch(job: Job) -> None:
    """Forwards on zeros allocate memory and compile kernels before the training."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = hook.wrap(batches(3))
    model(torch.zeros(SLOTS, LENGTH, dtype=torch.int64)).mean().backward()
    optimizer.zero_grad()
    for step, batch in enumerate(data, 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("refused")
def a_dry_run_after_the_first_fetch(job: Job) -> None:
    """The same, once the first micro-batch has told which shapes to run with."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        if step == 1:
            model(torch.zeros_like(batch["input_ids"])).mean().backward()
            optimizer.zero_grad()
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("refused")
def data_that_is_not_the_loaders_in_a_later_step(job: Job) -> None:
    """Replay buffers: old examples are mixed into a step, past the wrapped loader."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(4)), 1):
        model(**batch).backward()
        if step == 3:
            model(**next(plain(1, first=500))).backward()
        optimizer.step()
        hook.commit(step)


@loop("refused")
def random_tokens_in_a_later_step(job: Job) -> None:
    """A benchmark's mock forward between training steps, of another shape than the micro-batches."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(4)), 1):
        update(optimizer, model(**batch))
        if step == 2:
            model(torch.randint(0, VOCAB, (1, 7))).mean().backward()
        hook.commit(step)


@loop("exact")
def equal_micro_batches_in_one_step(job: Job) -> None:
    """Oversampled data: the same rows are fetched twice, and each time is a training of its own."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batch for _ in range(4) for batch in batches(1)))
    for step in (1, 2):
        for _ in range(2):
            model(**next(data)).backward()
        optimizer.step()
        hook.commit(step)


@loop("exact")
def training_without_dropout(job: Job) -> None:
    """Loops that train in evaluation mode, to be rid of dropout and of batch statistics."""
    model = Lm().eval()
    hook, optimizer = job.attach(model, in_eval=True), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def two_models_trained_in_turn(job: Job) -> None:
    """Generator and discriminator (ELECTRA): each has its hook and its run; one's samples are no business of the other's."""
    one, other = Lm(), Lm()
    hooks = job.attach(one, "generator"), job.attach(other, "discriminator")
    optimizers = sgd(one), sgd(other)
    data = [iter(hook.wrap(batches(4, 10 * number))) for number, hook in enumerate(hooks)]
    for step in range(1, 4):
        for model, hook, optimizer, loader in zip((one, other), hooks, optimizers, data, strict=True):
            batch = next(loader)
            with torch.no_grad():
                one(batch["input_ids"])
            update(optimizer, model(**batch))
            hook.commit(step)


@loop("exact")
def two_trainings_one_after_the_other(job: Job) -> None:
    """A sweep in one process: each training has its own model, hook and run."""
    for number in range(2):
        model = Lm()
        hook, optimizer = job.attach(model, f"trial-{number}"), sgd(model)
        for step, batch in enumerate(hook.wrap(batches(3, 10 * number)), 1):
            update(optimizer, model(**batch))
            hook.commit(step)
        hook.close()


@loop("exact")
def one_model_through_two_stages(job: Job) -> None:
    """Pre-training, then fine-tuning of the same model, each with its own run."""
    model = Lm()
    for stage in ("pretrain", "finetune"):
        hook, optimizer = job.attach(model, stage), sgd(model)
        for step, batch in enumerate(hook.wrap(batches(3, first=50 if stage == "finetune" else 0)), 1):
            update(optimizer, model(**batch))
            hook.commit(step)
        hook.close()


@loop("exact")
def micro_batches_left_out(job: Job) -> None:
    """Loops skip micro-batches (too long, too short, of one label) after they were fetched."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    step = 0
    for number, batch in enumerate(hook.wrap(batches(7))):
        if number % 3 == 1:
            continue
        step += 1
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def micro_batches_out_of_order(job: Job) -> None:
    """A shuffle buffer behind the loader."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(shuffled(hook.wrap(batches(6))), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


def shuffled(data: Any) -> Iterator[dict[str, Tensor]]:
    """The newest of three first."""
    buffer = []
    for batch in data:
        buffer.append(batch)
        if len(buffer) == 3:
            yield buffer.pop()
    yield from buffer
