"""What is recorded: wrapped models, loaders, edited labels, rows, repetitions; which tokens are refused."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from bench.export_overhead import VOCAB
from bench.gpu_check.checks import DEVICE, HOST, CheckFailed, Found, Setting, check
from bench.gpu_check.trainings import (
    NUM,
    Batch,
    Feed,
    Log,
    Source,
    attach,
    cloned,
    compare,
    fetched,
    microbatches,
    moved,
    train,
)
from train_hooks.export_format.errors import ExportStopped, KisekiError
from train_hooks.export_format.records import Evidence

IGNORED = -100
MOVES = "the wrapper moves it"


@check("wrappers", "a training", [("plain", HOST), ("plain", DEVICE)])
@check("wrappers", "a training", [("on a stream of its own", HOST), ("on a stream of its own", DEVICE)], cuda=True)
@check("wrappers", "a training", [("DDP", DEVICE), ("DDP", MOVES), ("FSDP2", DEVICE), ("FSDP2", MOVES)])
def wrappers(setting: Setting, how: str, where: str) -> None:
    """One rank, of a process group where there is a wrapper."""
    source, feed = fetched(setting, where)
    with torch.cuda.stream(setting.stream()) if "stream" in how else contextlib.nullcontext():
        with _process_group(setting) if where == MOVES or "DP" in how else contextlib.nullcontext():
            wrap = functools.partial(_wrapped, setting, how)
            train(setting, source, feed if where != MOVES else lambda batch: [batch], wrap=wrap)


@contextlib.contextmanager
def _process_group(setting: Setting) -> Iterator[None]:
    backend, device = ("nccl", setting.device) if setting.cuda else ("gloo", None)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _wrapped(setting: Setting, how: str, model: nn.Module) -> nn.Module:
    if how == "DDP":
        return DistributedDataParallel(model, device_ids=[setting.device.index] if setting.cuda else None)
    if how == "FSDP2":
        fully_shard(model)
    return model


@check("loaders", "DataLoader with workers", [("moved in the loop",)])
@check(
    "loaders", "DataLoader with workers", [("wrapped in a prefetcher",), ("wrapped around a prefetcher",)], cuda=True
)
def loaders(setting: Setting, how: str) -> None:
    """Its memory is pinned for a GPU. The prefetcher has a micro-batch in hand before the loop asks for it."""
    slots, length = setting.shape
    [rows] = microbatches(setting, 1, (slots * NUM, length))
    items: Any = [{name: tensor[row] for name, tensor in rows.items()} for row in range(len(rows["labels"]))]
    loader: Any = DataLoader(items, batch_size=slots, num_workers=2, pin_memory=setting.cuda)
    sources: dict[str, Source] = {
        "moved in the loop": lambda hook: hook.wrap(loader),
        "wrapped in a prefetcher": lambda hook: _prefetched(setting, hook.wrap(loader)),
        "wrapped around a prefetcher": lambda hook: hook.wrap(_prefetched(setting, loader)),
    }
    train(setting, sources[how], lambda batch: [batch if "prefetcher" in how else moved(setting, batch)])


def _prefetched(setting: Setting, loader: Iterable[Batch]) -> Iterator[Batch]:
    """The next micro-batch is on its way to the device, on a stream of its own, while this one is trained on."""
    stream, batches = setting.stream(), iter(loader)
    coming: Batch | None = {}
    while coming is not None:
        current = torch.cuda.current_stream(setting.device)
        current.wait_stream(stream)
        for tensor in coming.values():
            tensor.record_stream(current)
        ready, following = coming, next(batches, None)
        with torch.cuda.stream(stream):
            coming = None if following is None else moved(setting, following)
        if ready:
            yield ready


def _ignored(labels: Tensor) -> Tensor:
    return labels % 7 == 0


def _in_place(batch: Batch) -> list[Batch]:
    batch["labels"].masked_fill_(_ignored(batch["labels"]), IGNORED)
    return [batch]


def _through_data(batch: Batch) -> list[Batch]:
    batch["labels"].data.masked_fill_(_ignored(batch["labels"]), IGNORED)
    return [batch]


def _masked(batch: Batch) -> list[Batch]:
    tokens = batch["input_ids"]
    chosen = torch.rand(tokens.shape, device=tokens.device) < 0.15
    return [{"input_ids": tokens.masked_fill(chosen, VOCAB - 1), "labels": tokens.masked_fill(~chosen, IGNORED)}]


EDITS: dict[str, Feed] = {
    "none": lambda batch: [batch],
    "labels out of place": lambda batch: [
        batch | {"labels": batch["labels"].masked_fill(_ignored(batch["labels"]), IGNORED)}
    ],
    "labels in place": _in_place,
    "labels through .data": _through_data,
    "rows split over two forwards": lambda batch: [
        {name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 1), slice(1, None))
    ],
    "rows in another order": lambda batch: [{name: tensor.flip(0) for name, tensor in batch.items()}],
    'tokens masked, record="forward"': _masked,
}


def edited(setting: Setting, edit: str, where: str, num: int = NUM) -> tuple[Source, Feed]:
    """Source and feed of a loop that does one of EDITS to each micro-batch on the device."""
    source, feed = fetched(setting, where, num, record="forward" if "forward" in edit.split('"') else "loader")
    return source, lambda batch: EDITS[edit](*feed(batch))


@check(
    "edits",
    "between the fetch and the forward",
    [(edit, where) for edit in EDITS if edit != "none" for where in (HOST, DEVICE)],
)
def edits(setting: Setting, edit: str, where: str) -> None:
    """The record has what the forward got."""
    train(setting, *edited(setting, edit, where), positional=where == DEVICE)


@check("edits", "activation checkpointing around the model", [("loader", DEVICE), ("forward", HOST)])
def repeated(setting: Setting, record: str, where: str) -> None:
    """The backward does each forward again, which is recorded once."""
    checkpointed = functools.partial(functools.partial, checkpoint, use_reentrant=False)  # of a model
    train(setting, *fetched(setting, where, record=record), times=2, wrap_attached=checkpointed)


@check("edits", "hook.discard, then hook.trained_on")
def declared(setting: Setting) -> None:
    """A forward is thrown away and done again; then the loop says with which labels it computed the loss."""
    model = setting.gpt()
    source, feed = fetched(setting, HOST)
    expected = []
    with attach(setting, model) as hook:
        for step, [fed] in enumerate(map(feed, source(hook)), 1):
            setting.lag()
            model(**fed).backward()
            hook.discard()
            model(**fed).backward()
            [other] = EDITS["labels out of place"](fed)
            hook.trained_on(labels=other["labels"])
            expected.append(cloned(other))
            other["labels"].zero_()
            hook.commit(step)
    compare(setting.directory / "run", expected, labels=Evidence.DECLARED)


@check("tokens", "edited tokens are refused", [("in place", HOST), ("through .data", HOST), ("out of place", DEVICE)])
@check("tokens", "edited in place on the device alone, they are refused too", [("in place", DEVICE)], cuda=True)
def edited_tokens(setting: Setting, how: str, where: str) -> Found:
    """A good step, then an edited one. On a CPU the hook sees what was edited in place after the fetch, and records it."""
    model = setting.gpt()
    hook = attach(setting, model)
    log = Log(model)
    source, feed = fetched(setting, where, 2)
    refusal = None
    try:
        for step, [fed] in enumerate(map(feed, source(hook)), 1):
            setting.lag()
            tokens = fed["input_ids"].clone() if how == "out of place" else fed["input_ids"]
            if step == 2:
                (tokens.data if how == "through .data" else tokens).add_(1).remainder_(VOCAB)
            model(tokens, labels=fed["labels"]).backward()
            hook.commit(step)
            hook.checkpoint_barrier(step)
    except ExportStopped as error:
        refusal = str(error)
    with contextlib.suppress(KisekiError):
        hook.close()
    if refusal is None or hook.acknowledged_step != 1:
        raise CheckFailed(f"expected step 2 to be refused, found step {hook.acknowledged_step} written; {refusal}")
    compare(setting.directory / "run", log.forwards[:1])
    return Found(remark=refusal)


@check("tokens", "one static buffer", [(how, record) for how in ("copy_", ".data") for record in ("loader", "forward")])
def static_buffers(setting: Setting, how: str, record: Any) -> None:
    """The same memory holds what each forward gets, also within a step."""
    batches = microbatches(setting, NUM)
    static = moved(setting, batches[-1])

    def fill(batch: Batch) -> list[Batch]:
        for name, tensor in static.items():
            (tensor.data if how == ".data" else tensor).copy_(batch[name], non_blocking=True)
        return [static]

    train(setting, lambda hook: hook.wrap(batches, record=record), fill)
