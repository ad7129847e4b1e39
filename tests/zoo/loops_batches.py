"""What a micro-batch is, and how a model is called with it."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.zoo.job import Job
from tests.zoo.models import (
    IGNORED,
    LENGTH,
    SLOTS,
    KwargsLm,
    Lm,
    Pairs,
    TupleLm,
    VisionLm,
    WholeBatchLm,
    batches,
    next_token_loss,
    plain,
    sgd,
    update,
)
from tests.zoo.table import loop


@dataclass
class Batch:
    """As trainers with typed micro-batches have it."""

    input_ids: Tensor
    labels: Tensor


class Pair(NamedTuple):
    """A micro-batch of two."""

    input_ids: Tensor
    labels: Tensor


def full(batch: dict[str, Any]) -> dict[str, Any]:
    """With the mask and positions of an HF collator."""
    mask = torch.ones(SLOTS, LENGTH, dtype=torch.int64)
    mask[:, -3:] = 0
    return {**batch, "attention_mask": mask, "position_ids": torch.arange(LENGTH).repeat(SLOTS, 1)}


@loop("exact", evidence={"labels": "forward", "attention_mask": "forward", "position_ids": "forward"})
def all_by_keyword(job: Job) -> None:
    """Hugging Face's Trainer calls `model(**inputs)`; the model has no signature to speak of."""
    model = KwargsLm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(map(full, batches(3))), 1):
        update(optimizer, model(**batch)["loss"])
        hook.commit(step)


@loop("exact", evidence={"labels": "forward", "attention_mask": "forward", "position_ids": "forward"})
def all_by_position(job: Job) -> None:
    """Megatron and nanoGPT call `model(tokens, labels, …)`; the signature has the names."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(map(full, batches(3))), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"], batch["attention_mask"], batch["position_ids"]))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward", "position_ids": "forward", "attention_mask": "loader"})
def positions_made_in_the_loop(job: Job) -> None:
    """Loops replace the collator's positions by those of packed documents, and drop its mask."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(map(full, batches(3))), 1):
        positions = torch.cat([torch.arange(10), torch.arange(LENGTH - 10)]).repeat(SLOTS, 1)
        update(optimizer, model(batch["input_ids"], labels=batch["labels"], position_ids=positions))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"})
def a_model_of_star_args(job: Job) -> None:
    """`forward(*inputs)` has no names: tokens are the first integers, labels are known by what they are."""
    model = TupleLm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"})
def a_model_of_whole_batches(job: Job) -> None:
    """Composer and Lightning hand the micro-batch to the model as one argument."""
    model = WholeBatchLm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch))
        hook.commit(step)


@loop("exact", evidence={"1": "forward"})
def tuples(job: Job) -> None:
    """TensorDataset and torchtitan yield tuples, whose tensors have numbers for names."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [(batch["input_ids"], batch["labels"]) for batch in batches(3)]
    for step, (ids, labels) in enumerate(hook.wrap(data, tokens=0), 1):
        update(optimizer, model(ids, labels))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"}, kind=Batch)
@loop("exact", evidence={"labels": "forward"}, kind=Pair)
def typed_batches(job: Job, kind: Any) -> None:
    """Dataclasses and named tuples as micro-batches."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap([kind(**batch) for batch in plain(3)], tokens="input_ids"), 1):
        update(optimizer, model(batch.input_ids, batch.labels))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"})
def a_batch_encoding(job: Job) -> None:
    """Tokenizers of transformers yield a UserDict."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap([UserDict(batch) for batch in batches(3)]), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"0.positions": "loader", "1": "forward"})
def nested_batches(job: Job) -> None:
    """torchtitan yields (dict of inputs, labels)."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [
        ({"input": b["input_ids"], "positions": torch.arange(LENGTH).repeat(SLOTS, 1)}, b["labels"]) for b in plain(3)
    ]
    for step, (inputs, labels) in enumerate(hook.wrap(data, tokens="0.input"), 1):
        update(optimizer, model(inputs["input"], labels))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward", "weights": "loader"}, kind="numpy")
@loop("exact", evidence={"labels": "forward", "weights": "loader"}, kind="read-only numpy")
@loop("exact", evidence={"labels": "forward", "weights": "loader"}, kind="lists")
def labels_that_are_no_tensors(job: Job, kind: str) -> None:
    """Collators that leave numpy arrays or lists; the loop makes tensors of those that it needs."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "weights": torch.full((SLOTS,), 0.5)} for batch in batches(3)]
    for batch in data:
        for name in ("labels", "weights"):
            array = batch[name].numpy().copy()
            array.setflags(write=kind == "numpy")
            batch[name] = array.tolist() if kind == "lists" else array
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(batch["input_ids"], torch.tensor(batch["labels"])))
        hook.commit(step)


@loop("exact", evidence={"labels": "loader"}, kind="numpy")
@loop("exact", evidence={"labels": "loader"}, kind="lists")
def tokens_that_are_no_tensors(job: Job, kind: str) -> None:
    """Loaders of numpy (Grain, memory maps): the loop makes the tensors that the forward gets."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{name: batch[name].numpy() for name in ("input_ids", "labels")} for batch in plain(3)]
    if kind == "lists":
        data = [{name: array.tolist() for name, array in batch.items()} for batch in data]
    for step, batch in enumerate(hook.wrap(data), 1):
        logits = model(torch.tensor(batch["input_ids"]))
        update(optimizer, next_token_loss(logits, torch.tensor(batch["labels"])))
        hook.commit(step)


@loop("refused")
@loop("exact", exclude=("spans",))
def ragged_lists(job: Job, exclude: tuple[str, ...] = ()) -> None:
    """Spans of entities, of another number in each row, beside the tokens."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "spans": [[1, 2, 3], [4]]} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data, exclude=exclude), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("refused")
@loop("exact", exclude=("nested",))
def nested_tensors(job: Job, exclude: tuple[str, ...] = ()) -> None:
    """A jagged nested tensor of documents beside the packed tokens."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [
        {**batch, "nested": torch.nested.nested_tensor([torch.arange(3), torch.arange(5)], layout=torch.jagged)}
        for batch in batches(3)
    ]
    for step, batch in enumerate(hook.wrap(data, exclude=exclude), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact")
def texts_and_scalars(job: Job) -> None:
    """Prompts, ids and scalars that ride along in the micro-batch are not recorded."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "texts": ["a", "b"], "epoch": 1, "name": "web", "weight": 0.5} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(batch["input_ids"], batch["labels"]))
        hook.commit(step)


@loop("exact", evidence={"decoder_input_ids": "forward"})
def encoder_and_decoder(job: Job) -> None:
    """T5 has two tensors of token ids; the hook is told which are the tokens, and the other is a tensor like labels."""

    class Translator(Pairs):
        def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input_ids, decoder_input_ids)

    model = Translator()
    hook, optimizer = job.attach(model), sgd(model)
    data = [
        {"input_ids": one["input_ids"], "decoder_input_ids": other["input_ids"][:, :9].contiguous()}
        for one, other in zip(batches(3), batches(3, 10), strict=True)
    ]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"pixel_values": "forward"})
@loop("exact", exclude=("pixel_*",))
@loop("exact", include=("labels",))
def images_beside_tokens(job: Job, **options: Any) -> None:
    """Vision models get floats of any size, which may be left out of the record."""
    model = VisionLm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "pixel_values": torch.randn(SLOTS, 3, 2, 2)} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data, **options), 1):
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward", "weights": "loader"})
def a_micro_batch_of_one_tensor_more_each_step(job: Job) -> None:
    """Mixtures of tasks: some micro-batches have a tensor that others lack."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "weights": torch.rand(SLOTS, LENGTH)} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data), 1):
        batch.pop("weights")
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"})
def extra_arguments_that_are_no_tensors(job: Job) -> None:
    """Calls with flags, caches and None beside the tensors."""

    class Flags(Lm):
        def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool = False, past: Any = None) -> Tensor:  # type: ignore[override]
            assert not use_cache and past in (None, ())
            return super().forward(input_ids, labels)

    model = Flags()
    hook, optimizer = job.attach(model), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(3)), 1):
        update(optimizer, model(batch["input_ids"], use_cache=False, labels=batch["labels"], past=()))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"})
def labels_that_are_the_tokens(job: Job) -> None:
    """Hugging Face's causal models shift labels themselves: loaders yield the very tensor of the tokens as labels."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{"input_ids": batch["input_ids"], "labels": batch["input_ids"]} for batch in batches(3)]
    for step, batch in enumerate(hook.wrap(data), 1):
        batch["labels"] = batch["labels"].clone()
        batch["labels"][0, 0] = IGNORED
        update(optimizer, model(**batch))
        hook.commit(step)


@loop("exact", evidence={"labels": "forward"})
def ignored_tokens_everywhere(job: Job) -> None:
    """A micro-batch whose labels are all ignored, as long prompts leave it."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = [{**batch, "labels": torch.full_like(batch["labels"], IGNORED)} for batch in batches(2)]
    for step, batch in enumerate(hook.wrap(data), 1):
        update(optimizer, nn.functional.relu(model(**batch).nan_to_num()))
        hook.commit(step)
