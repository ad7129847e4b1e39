"""Fine-tuning, preferences and reinforcement learning: loops that make labels, tokens or pairs themselves."""

import copy

import torch
from torch import Tensor, nn

from tests.zoo.job import Job
from tests.zoo.models import IGNORED, LENGTH, MASK, VOCAB, KwargsLm, Lm, Pairs, batches, next_token_loss, sgd, update
from tests.zoo.table import loop

PROMPT = 5


def masked(labels: Tensor) -> Tensor:
    """The labels without those of the prompt, in memory of their own."""
    labels = labels.clone()
    labels[:, :PROMPT] = IGNORED
    return labels


@loop("exact", evidence={"labels": "forward"})
def sft_masked_by_the_collator(job: Job) -> None:
    """Collators of SFT (TRL, Axolotl) mask the prompt's labels before the loop sees them."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "labels": masked(batch["labels"])} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"}, by="keyword")
@loop("exact", evidence={"labels": "forward"}, by="position")
@loop("exact", evidence={"labels": "forward"}, by="name in **inputs")
def sft_masked_in_the_loop(job: Job, by: str) -> None:
    """Loops of SFT mask the prompt out of place. The record has the masked labels, which the forward got."""
    model: Lm = KwargsLm() if by == "name in **inputs" else Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        ids, labels = batch["input_ids"], masked(batch["labels"])
        out = model(ids, labels) if by == "position" else model(input_ids=ids, labels=labels)
        update(optimizer, out["loss"] if isinstance(out, dict) else out)
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"}, how="torch")
@loop("exact", evidence={"labels": "forward"}, how="numpy")
@loop("exact", evidence={"labels": "forward"}, how="data")
def sft_masked_in_place(job: Job, how: str) -> None:
    """The same in place, by torch, or behind its back through numpy or `.data`."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        labels = batch["labels"]
        (labels.numpy() if how == "numpy" else labels.data if how == "data" else labels)[:, :PROMPT] = IGNORED
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"labels": "loader"})
@loop("exact", evidence={"labels": "declared"}, declared="torch")
@loop("exact", evidence={"labels": "declared"}, declared="numpy")
@loop("exact", evidence={"labels": "declared"}, declared="lists")
def loss_outside_the_model(job: Job, declared: str | None = None) -> None:
    """Plain loops compute the loss from logits, with labels that no forward gets: the loader's, unless they are declared."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        labels = masked(batch["labels"])
        loss = next_token_loss(model(batch["input_ids"]), labels)
        if declared is not None:
            given = {"torch": labels, "numpy": labels.numpy(), "lists": labels.tolist()}[declared]
            hook.trained_on(labels=given)
        update(optimizer, loss)
        hook.commit(step)


@loop("exact", evidence={"weights": "declared", "labels": "forward"})
def loss_weights_that_the_loop_makes(job: Job) -> None:
    """Token weights of the loop's own (unlikelihood, focal loss) are added to each micro-batch of an accumulation."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in range(1, 4):
        for _ in range(2):
            batch = next(data)
            loss = model(**batch)
            hook.trained_on(weights=torch.rand(batch["input_ids"].shape))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step)


@loop("refused")
@loop("exact", record="forward")
def dpo_concatenated(job: Job, record: str = "loader") -> None:
    """TRL's DPO puts chosen and rejected sequences into one forward. Of one micro-batch with two token tensors, half of
    that forward is nobody's tokens; `record="forward"` takes all of it."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [
        {"chosen": one["input_ids"], "rejected": other["input_ids"]}
        for one, other in zip(batches(3), batches(3, 10), strict=True)
    ]
    for step, batch in enumerate(hook.wrap(data, tokens="chosen", record=record), 1):
        chosen, rejected = model(torch.cat([batch["chosen"], batch["rejected"]])).mean((1, 2)).chunk(2)
        update(optimizer, -nn.functional.logsigmoid(chosen - rejected).mean())
        hook.commit(step)


@loop("exact")
def dpo_of_two_loaders(job: Job) -> None:
    """Chosen and rejected come from two loaders, and one call gets both: two micro-batches are consumed."""
    model = Pairs()
    hook, optimizer = job.attach(model, tokens=("chosen", "rejected")), sgd(model)
    loaders = hook.wrap(batches(3)), hook.wrap(batches(3, 10))
    for step, (one, other) in enumerate(zip(*loaders, strict=True), 1):
        update(optimizer, model(chosen=one["input_ids"], rejected=other["input_ids"]))
        hook.commit(step)


@loop("exact")
def dpo_of_two_forwards_with_a_reference(job: Job) -> None:
    """DPO with one forward for chosen, one for rejected, and a frozen reference model beside the policy."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    chosen, rejected = hook.wrap(batches(3)), hook.wrap(batches(3, 10))
    for step, pair in enumerate(zip(chosen, rejected, strict=True), 1):
        with torch.no_grad():
            before = [reference(batch["input_ids"]).mean() for batch in pair]
        better, worse = (model(batch["input_ids"]).mean() - base for batch, base in zip(pair, before, strict=True))
        update(optimizer, -nn.functional.logsigmoid(better - worse))
        hook.commit(step)


@loop("refused")
@loop("exact", record="forward")
def fill_in_the_middle(job: Job, record: str = "loader") -> None:
    """Code models permute prefix, middle and suffix in the loop, and mark them."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3), record=record), 1):
        prefix, middle, suffix = batch["input_ids"].split([6, 4, 6], dim=1)
        ids = torch.cat([prefix, suffix, middle], dim=1)
        ids[:, 0] = MASK
        update(optimizer, model(ids, labels=ids.roll(-1, 1)))
        hook.commit(step)


@loop("refused", how="clone")
@loop("exact", how="clone", record="forward")
@loop("exact", how="torch")
@loop("exact", how="numpy")
@loop("exact", how="data")
@loop("exact", how="assigned data")
@loop("exact", how="torch", record="forward")
@loop("exact", how="numpy", record="forward")
def masked_language_model(job: Job, how: str, record: str = "loader") -> None:
    """BERT's loop hides tokens, and its labels are the tokens that it hid; where it hides them in place, the record has
    what the forward got."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3), record=record), 1):
        ids, hidden = batch["input_ids"], torch.rand(batch["input_ids"].shape) < 0.15
        hidden[:, 3] = True
        labels = ids.clone().masked_fill_(~hidden, IGNORED)
        if how in ("clone", "assigned data"):
            edited = ids.clone().masked_fill_(hidden, MASK)
            if how == "assigned data":
                ids.data = edited
            else:
                ids = edited
        elif how == "numpy":
            ids.numpy()[hidden.numpy()] = MASK
        else:
            (ids.data if how == "data" else ids)[hidden] = MASK
        update(optimizer, model(input_ids=ids, labels=labels))
        hook.commit(step)


@loop("exact")
def teacher_of_averaged_weights(job: Job) -> None:
    """Self-distillation: a copy of the model with averaged weights sees each micro-batch without gradients."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    teacher = copy.deepcopy(model).requires_grad_(False)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        with torch.no_grad():
            target = teacher(batch["input_ids"]).softmax(-1)
        logits = model(batch["input_ids"])
        update(optimizer, nn.functional.kl_div(logits.log_softmax(-1), target, reduction="batchmean"))
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 0.01)
        hook.commit(step)


@torch.no_grad()
def rollout(model: Lm, prompts: Tensor) -> Tensor:
    """The prompts, sampled on to LENGTH tokens."""
    ids = prompts
    while ids.shape[1] < LENGTH:
        ids = torch.cat([ids, torch.multinomial(model(ids)[:, -1].softmax(-1), 1)], dim=1)
    return ids


@loop("refused")
@loop("exact", record="forward")
def reinforcement_on_rollouts(job: Job, record: str = "loader") -> None:
    """REINFORCE trains on sequences that the model sampled behind the loader's prompts."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3), record=record), 1):
        ids = rollout(model, batch["input_ids"][:, :PROMPT])
        update(optimizer, model(ids, labels=ids.roll(-1, 1)))
        hook.commit(step)


@loop("exact")
def ppo_epochs_on_rollouts(job: Job) -> None:
    """PPO makes several updates from one set of sampled sequences: the same rows in steps that follow one another."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    step = 0
    for batch in hook.wrap(batches(2), record="forward"):
        ids = rollout(model, batch["input_ids"][:, :PROMPT])
        for _ in range(3):
            step += 1
            update(optimizer, model(ids, labels=ids.roll(-1, 1)))
            hook.commit(step)


@loop("refused")
@loop("exact", record="forward")
def several_updates_from_one_fetch(job: Job, record: str = "loader") -> None:
    """Loops that reuse a micro-batch train on it in later steps without fetching it again."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    step = 0
    for batch in hook.wrap(batches(2), record=record):
        for _ in range(2):
            step += 1
            update(optimizer, model(**batch))
            hook.commit(step)


@loop("either")
def the_same_rows_twice_in_one_forward(job: Job) -> None:
    """SimCSE and R-Drop put each row into the forward twice, for two dropout masks."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        one, other = model(torch.cat([batch["input_ids"]] * 2)).chunk(2)
        update(optimizer, (one - other).square().mean())
        hook.commit(step)


@loop("exact")
def soft_labels_of_a_teacher(job: Job) -> None:
    """Distillation from another model, whose logits are an argument of the student's own making."""
    model, teacher = Lm(), Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        with torch.no_grad():
            hard = teacher(batch["input_ids"]).argmax(-1).clamp_max(VOCAB - 1)
        update(optimizer, model(batch["input_ids"], hard))
        hook.commit(step)


@loop("refused")
@loop("exact", matched="count", evidence={"input_ids": "loader"}, consume=True)
def embeddings_as_input(job: Job, consume: bool = False) -> None:
    """LLaVA and prompt tuning embed the tokens themselves: the hooked part of the model sees no tokens at all."""
    model, rest = Lm(), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, VOCAB))
    hook, optimizer = job.attach(rest), torch.optim.SGD([*model.parameters(), *rest.parameters()], lr=0.01)
    if consume:
        hook.listen(rest, counting=True)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        hidden = model.embed(batch["input_ids"])
        if consume:
            hook.consume()
        update(optimizer, next_token_loss(rest(hidden), batch["labels"]))
        hook.commit(step)
