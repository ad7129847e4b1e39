"""What most checks are made of: micro-batches, a training loop, and the comparison of its export with its forwards."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.export_overhead import VOCAB
from bench.gpu_check.checks import DEVICE, CheckFailed, Setting
from train_hooks import ExportHook
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Evidence
from train_hooks.replay import ReplayDataset

NUM = 6  # micro-batches of most checks
Batch = dict[str, Tensor]
Source = Callable[[ExportHook], Iterable[Batch]]
Feed = Callable[[Batch], list[Batch]]


class Log:
    """What the forwards in training mode got, cloned in the order of the training stream."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards: list[Batch] = []
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: Batch) -> None:
        if module.training and torch.is_grad_enabled():
            got = dict(zip(("input_ids", "labels"), args, strict=False)) | kwargs
            self.forwards.append(cloned(got))


def cloned(batch: Batch) -> Batch:
    """Copies where the tensors are."""
    return {name: tensor.detach().clone() for name, tensor in batch.items()}


def compare(run_dir: Path, forwards: Iterable[Batch], *, labels: Evidence = Evidence.FORWARD) -> None:
    """Raise unless the export holds just these micro-batches, bit for bit, known by their forwards; labels: or so."""
    expected = [{name: tensor.cpu() for name, tensor in batch.items()} for batch in forwards]
    found = [part.batch for part in ReplayDataset(run_dir)]
    if len(found) != len(expected):
        raise CheckFailed(f"expected {len(expected)} micro-batches in the export, found {len(found)}")
    for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if _forms(ours) != _forms(theirs):
            raise CheckFailed(f"micro-batch {number}: expected {_forms(ours)}, found {_forms(theirs)}")
        for name, tensor in ours.items():
            different = int((tensor != theirs[name]).sum())
            if different:
                raise CheckFailed(f"micro-batch {number}, {name}: {different} of {tensor.numel()} values differ")
    attempt = RunReader(run_dir).attempt(1)
    for row in (row for frame in attempt.frames(1, 1 << 40) for row in attempt.rows(frame)):
        default = attempt.info.default_tensor_evidence
        known = {tensor.name: str(tensor.evidence or default) for tensor in row.tensors}
        known["input_ids"] = str(row.evidence or attempt.info.default_evidence)
        if known != {"input_ids": str(Evidence.FORWARD), "labels": str(labels)}:
            raise CheckFailed(f"{row.address}: expected the evidence forward and {labels}, found {known}")


def _forms(batch: Batch) -> dict[str, str]:
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(batch.items())}


def microbatches(setting: Setting, num: int, shape: tuple[int, int] | None = None) -> list[Batch]:
    """`num` different ones, labels shifted by one, in the host's memory, pinned for a GPU."""
    slots, length = shape or setting.shape
    random = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(num):
        tokens = torch.randint(VOCAB, (slots, length + 1), generator=random)
        batch = {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
        batches.append({name: tensor.pin_memory() for name, tensor in batch.items()} if setting.cuda else batch)
    return batches


def moved(setting: Setting, batch: Batch) -> Batch:
    """Copies on the device."""
    return {name: tensor.to(setting.device, non_blocking=True, copy=True) for name, tensor in batch.items()}


def attach(setting: Setting, model: nn.Module, length: int | None = None, **options: Any) -> ExportHook:
    """The hook, with these sizes."""
    run_dir, length = setting.directory / "run", length or setting.shape[1]
    return ExportHook.attach(model, run_dir, sequence_length=length, vocab_size=VOCAB, config={}, **options)


def fetched(setting: Setting, where: str, num: int = NUM, **wrap: Any) -> tuple[Source, Feed]:
    """Source and feed of a loop whose loader yields on the host or on the device; its forwards get device tensors."""
    batches = microbatches(setting, num)
    if where == DEVICE:
        return lambda hook: hook.wrap((moved(setting, batch) for batch in batches), **wrap), lambda batch: [batch]
    return lambda hook: hook.wrap(batches, **wrap), lambda batch: [moved(setting, batch)]


def train(
    setting: Setting,
    source: Source,
    feed: Feed,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    wrap_attached: Callable[[nn.Module], Callable[..., Any]] = lambda model: model,
    positional: bool = False,
    accumulation: int = 2,
    times: int = 1,
) -> None:
    """A training loop; raises unless the export equals the log of its forwards.

    source: the fetched micro-batches. feed: what the forwards get for one of them. wrap, wrap_attached: what the loop
    calls, made of the model before and after the hook is attached to it. times: how often each forward is done.
    """
    model = setting.gpt()
    called: Any = wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with attach(setting, called) as hook:
        called = wrap_attached(called)
        log = Log(model)
        batches = iter(source(hook))
        for step in range(1, NUM // accumulation + 1):
            for fed in itertools.chain.from_iterable(map(feed, itertools.islice(batches, accumulation))):
                setting.lag()
                loss = called(*fed.values()) if positional else called(fed["input_ids"], labels=fed["labels"])
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            hook.commit(step)
    if len(log.forwards) < NUM:
        raise CheckFailed(f"expected a log of {NUM} forwards or more, found {len(log.forwards)}")
    compare(setting.directory / "run", log.forwards[::times])
