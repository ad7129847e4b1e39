"""In which form the tokens of a micro-batch reach the forward."""

import torch
from torch import Tensor, nn

from tests.zoo.job import Job
from tests.zoo.models import LENGTH, VOCAB, Lm, batches, next_token_loss, plain, sgd, update
from tests.zoo.table import loop


@loop("exact", evidence={"labels": "forward"})
def tokens_cast(job: Job) -> None:
    """Loops cast token ids to what their embedding kernel takes."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch["input_ids"].int(), batch["labels"]))
        hook.commit(step)


@loop("exact")
def tokens_that_the_loader_has_as_uint16(job: Job) -> None:
    """nanoGPT's memory maps have uint16, which the loop casts."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{name: batch[name].numpy().astype("uint16") for name in ("input_ids", "labels")} for batch in plain(3)]
    for step, batch in enumerate(hook.wrap(data), 1):
        ids, labels = (torch.from_numpy(batch[name].astype("int64")) for name in ("input_ids", "labels"))
        update(optimizer, next_token_loss(model(ids), labels))
        hook.commit(step)


@loop("exact")
def tokens_flattened(job: Job) -> None:
    """FlashAttention's packed kernels take all rows as one."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch["input_ids"].flatten(), batch["labels"].flatten()))
        hook.commit(step)


@loop("exact", matched="slice")
def all_but_the_last_token(job: Job) -> None:
    """minGPT: inputs are all but the last token, targets all but the first."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        ids = batch["input_ids"]
        update(optimizer, next_token_loss(model(ids[:, :-1]), ids[:, 1:]))
        hook.commit(step)


@loop("exact", matched="slice", evidence={"labels": "forward"})
def labels_without_their_first_column(job: Job) -> None:
    """The same where the model computes the loss: the labels that it gets are all but the first, by their name."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{"input_ids": batch["input_ids"], "labels": batch["input_ids"].clone()} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(batch["input_ids"][:, :-1], labels=batch["labels"][:, 1:]))
        hook.commit(step)


@loop("refused")
@loop("exact", shorter_rows=True)
def padding_trimmed(job: Job, shorter_rows: bool = False) -> None:
    """Loops cut the columns that are padding in every row."""
    model = Lm()
    hook, optimizer = job.attach(model, shorter_rows=shorter_rows), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        length = 12 + step % 2
        update(optimizer, model(batch["input_ids"][:, :length], labels=batch["labels"][:, :length]))
        hook.commit(step)


@loop("exact", shorter_rows=True)
@loop("refused")
def sequence_length_warm_up(job: Job, shorter_rows: bool = False) -> None:
    """DeepSpeed's curriculum trains on the first columns of each row, more of them each step."""
    model = Lm()
    hook, optimizer = job.attach(model, shorter_rows=shorter_rows), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        short = {name: value[:, : 4 * step].clone() for name, value in batch.items()}
        update(optimizer, model(**short))
        hook.commit(step)


@loop("refused")
@loop("exact", record="forward")
def rows_reshaped_to_shorter_ones(job: Job, record: str = "loader") -> None:
    """Composer's reshaping warm-up makes two rows of half the length of each."""
    model = Lm()
    hook, optimizer = job.attach(model, shorter_rows=True), sgd(model)
    for step, batch in enumerate(hook.wrap(plain(3), record=record), 1):
        half = {name: value[:, 1:9] for name, value in batch.items()}
        update(optimizer, model(**half))
        hook.commit(step)


@loop("exact")
def batch_size_warm_up(job: Job) -> None:
    """Fewer rows of each micro-batch at first; the others are thrown away."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        update(optimizer, model(**{name: value[: step + 1] for name, value in batch.items()}))
        hook.commit(step)


@loop("exact")
def rows_dropped_by_a_mask(job: Job) -> None:
    """Loops drop rows of bad quality (high perplexity, all padding)."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        keep = batch["input_ids"][:, 0] != batch["input_ids"][step % 4, 0]
        update(optimizer, model(batch["input_ids"][keep], labels=batch["labels"][keep]))
        hook.commit(step)


@loop("exact")
def rows_in_another_order(job: Job) -> None:
    """Loops sort the rows of a micro-batch, as packed RNNs and contrastive losses want it."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        order = batch["input_ids"].sum(1).argsort(descending=True)
        update(optimizer, model(**{name: value[order] for name, value in batch.items()}))
        hook.commit(step)


@loop("exact")
def micro_batches_concatenated(job: Job) -> None:
    """Two micro-batches of a slow loader make one forward."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2, 3):
        pair = next(data), next(data)
        update(optimizer, model(**{name: torch.cat([part[name] for part in pair]) for name in pair[0]}))
        hook.commit(step)


@loop("exact")
def samples_stacked_in_the_loop(job: Job) -> None:
    """Loaders without a collate function yield single rows, which the loop stacks."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    rows = iter(hook.wrap({name: value[0] for name, value in batch.items()} for batch in plain(9, slots=1)))
    for step in (1, 2, 3):
        samples = [next(rows) for _ in range(3)]
        update(optimizer, model(**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}))
        hook.commit(step)


@loop("exact")
def one_global_batch_split_into_micro_batches(job: Job) -> None:
    """MosaicML and torchtune fetch a large batch, and split it over several forwards."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        for ids, labels in zip(batch["input_ids"].split(2), batch["labels"].split(2), strict=True):
            model(ids, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step)


@loop("exact")
def unequal_parts_of_a_batch(job: Job) -> None:
    """Splitting by tokens leaves parts of unequal size, in which the last row may be alone."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3, slots=4)), 1):
        for part in (slice(0, 3), slice(3, 4)):
            model(batch["input_ids"][part], batch["labels"][part]).backward()
        optimizer.step()
        hook.commit(step)


@loop("exact")
def two_micro_batches_in_one_call(job: Job) -> None:
    """Contrastive and mixed losses give one call the micro-batches of two loaders."""

    class Two(Lm):
        def forward(self, input_ids: Tensor, others: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input_ids).mean() + super().forward(others).mean()

    model = Two()
    hook, optimizer = job.attach(model, tokens=("input_ids", "others")), sgd(model)
    data = iter(hook.wrap(batches(6)))
    for step in (1, 2, 3):
        one, other = next(data), next(data)
        update(optimizer, model(one["input_ids"], other["input_ids"]))
        hook.commit(step)


@loop("exact", evidence={"cu_seqlens": "forward", "position_ids": "forward"})
def packed_with_cumulative_lengths(job: Job) -> None:
    """Packing without padding: one row of one dimension, with positions and `cu_seqlens` of its documents."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [
        {
            "input_ids": batch["input_ids"][0],
            "labels": batch["labels"][0],
            "position_ids": torch.cat([torch.arange(10), torch.arange(6)]),
            "cu_seqlens": torch.tensor([0, 10, LENGTH], dtype=torch.int32),
        }
        for batch in plain(3, slots=1)
    ]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact")
def packed_to_differing_lengths(job: Job) -> None:
    """Packed rows of one dimension that are as long as their documents are."""
    model = Lm()
    hook, optimizer = job.attach(model, shorter_rows=True), sgd(model)
    data = [{name: value[0, : 8 + 2 * n] for name, value in batch.items()} for n, batch in enumerate(plain(4, slots=1))]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(batch["input_ids"], labels=batch["labels"]))
        hook.commit(step)


@loop("exact")
def a_first_dimension_added(job: Job) -> None:
    """A packed row of one dimension gets its batch dimension in the loop."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{name: value[0] for name, value in batch.items()} for batch in plain(3, slots=1)]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(batch["input_ids"][None], labels=batch["labels"][None]))
        hook.commit(step)


@loop("exact")
def padded_to_the_longest_row(job: Job) -> None:
    """Collators that pad to the longest row of a micro-batch, so that each has another length."""
    model = Lm()
    hook, optimizer = job.attach(model, shorter_rows=True), sgd(model)
    data = [{name: value[:, : 10 + n].contiguous() for name, value in b.items()} for n, b in enumerate(plain(4))]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("refused")
def tokens_shifted_in_the_loop(job: Job) -> None:
    """A decoder's inputs are the tokens shifted to the right behind a start token: nobody's rows any more."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        ids = torch.cat([torch.zeros(2, 1, dtype=torch.int64), batch["input_ids"][:, :-1]], dim=1)
        update(optimizer, model(ids, batch["labels"]))
        hook.commit(step)


@loop("refused")
def one_token_changed(job: Job) -> None:
    """Token dropout that hit a single token of a later step, in a copy."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(4)), 1):
        ids = batch["input_ids"].clone()
        if step == 3:
            ids[1, 7] = (ids[1, 7] + 1) % VOCAB
        update(optimizer, model(ids, batch["labels"]))
        hook.commit(step)


@loop("refused")
def one_hot_tokens(job: Job) -> None:
    """Tokens as one-hot floats (gradients of embeddings, relaxed sampling): the forward gets no token ids."""
    soft = nn.Sequential(nn.Linear(VOCAB, 8), nn.Linear(8, VOCAB))
    hook, optimizer = job.attach(soft), sgd(soft)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        hot = nn.functional.one_hot(batch["input_ids"], VOCAB).float()
        update(optimizer, next_token_loss(soft(hot), batch["labels"]))
        hook.commit(step)
