"""A rank of Megatron-LM's loop as far as it runs without a GPU, on two ranks.

Real, of megatron-core: the blend of three datasets and its builder, process groups, the calculator of micro-batches with
batch-size ramp-up, the iterator of the rerun machine. Written here after Megatron-LM's `train`, `get_batch` and
`MegatronPretrainingSampler`, which are not in the package or want a GPU: the loop, the sampler, the model, saving, which is
looked up where Megatron-LM's loop does.
"""

import argparse
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import (
    get_current_global_batch_size,
    get_num_microbatches,
    init_num_microbatches_calculator,
    update_num_microbatches,
)
from megatron.core.rerun_state_machine import RerunDataIterator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.megatron_data import train_dataset
from tests.adapters.data.models import Small
from tests.adapters.data.texts import LENGTH, SOURCES, VOCAB
from tests.adapters.job import MICRO_BATCH, SAVE_EVERY, STEPS, WORKERS, kill_at, rank, run_dir
from train_hooks.adapters.megatron import MegatronExport

NUM_SAMPLES = 400
RERUN_STEP, OVERFLOW_STEP, SKIPPED_STEP = 2, 3, 7
training: Any = ModuleType("megatron.training.training")


def sampler(consumed: int, total: int) -> Iterator[list[int]]:
    """As MegatronPretrainingSampler: each rank takes its part of each MICRO_BATCH · ranks samples."""
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    batch: list[int] = []
    for index in range(consumed, total):
        batch.append(index)
        if len(batch) == MICRO_BATCH * dp_size:
            yield batch[dp_rank * MICRO_BATCH : (dp_rank + 1) * MICRO_BATCH]
            batch = []


def forward_step(data_iterator: Any, model: nn.Module) -> Tensor:
    """As pretrain_gpt.py's: keys that it does not know stay out of the model."""
    batch = next(data_iterator)
    assert "sample_index" not in batch
    loss: Tensor = model(input_ids=batch["tokens"], labels=batch["labels"], position_ids=batch["position_ids"])
    return loss


def provider(num_samples: list[int]) -> tuple[Any, Any, Any]:
    """The three files of the test."""
    data = run_dir().parent / "data"
    blend = train_dataset([str(data / source) for source in SOURCES], num_samples[0], run_dir().parent / "cache")
    return blend, None, None


provider.is_distributed = True  # type: ignore[attr-defined]


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    training.save_checkpoint = save
    sys.modules[training.__name__] = training
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    torch.manual_seed(1)
    run, checkpoints = run_dir(), run_dir() / "checkpoints"
    args = argparse.Namespace(
        seq_length=LENGTH, padded_vocab_size=VOCAB, iteration=0, curr_iteration=0, consumed_train_samples=0,
        save=str(checkpoints), load=str(checkpoints), save_interval=SAVE_EVERY,
    )  # fmt: skip
    init_num_microbatches_calculator(rank(), [8, 4, 24], 16, MICRO_BATCH, 2, decrease_batch_size_if_needed=False)
    export = MegatronExport(run, lambda: args, config={"trainer": "megatron"})
    base = export.model(Small)(vocabulary=VOCAB, length=LENGTH)
    saved = sorted(checkpoints.glob("*.pt"))
    if saved:
        state = torch.load(saved[-1])
        base.load_state_dict(state["model"])
        args.iteration, args.consumed_train_samples = state["iteration"], state["consumed"]
    model, optimizer = DistributedDataParallel(base), torch.optim.AdamW(base.parameters(), lr=1e-3)
    ConsumedLog(base, run / "log", rank(), lambda: args.curr_iteration, kill_at=kill_at())

    wrapped = export.datasets(provider)
    assert wrapped.is_distributed  # type: ignore[attr-defined]
    dataset, _, _ = wrapped([NUM_SAMPLES, 0, 0])
    assert dataset.split.name == "train"
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_sampler=list(sampler(args.consumed_train_samples, len(dataset))), num_workers=WORKERS
    )
    train(args, RerunDataIterator(iter(loader)), model, optimizer, export.forward_step(forward_step))
    export.close()
    dist.destroy_process_group()


def train(args: Any, data: Any, model: nn.Module, optimizer: torch.optim.Optimizer, step: Any) -> None:
    """As Megatron-LM's `train`."""
    model.train()
    for iteration in range(args.iteration, STEPS):
        update_num_microbatches(args.consumed_train_samples, consistency_check=False, verbose=False)
        args.curr_iteration = iteration
        if iteration + 1 == SKIPPED_STEP:  # --iterations-to-skip
            for _ in range(get_num_microbatches()):
                next(data)
            data.advance()
        else:
            train_step(iteration + 1, data, model, optimizer, step)
        args.consumed_train_samples += get_current_global_batch_size()
        if (iteration + 1) % SAVE_EVERY == 0:
            training.save_checkpoint(iteration + 1, model, args.consumed_train_samples)
            model.eval()
            with torch.no_grad():
                step(
                    iter([{"tokens": torch.zeros(1, LENGTH, dtype=torch.int64), "labels": None, "position_ids": None}]),
                    model,
                )
            model.train()


def train_step(number: int, data: Any, model: nn.Module, optimizer: torch.optim.Optimizer, step: Any) -> None:
    """Forward and backward of the micro-batches, for one step twice as the rerun machine does; then the optimizer."""
    fetched: list[Any] = []
    for again in range(2 if number == RERUN_STEP else 1):
        optimizer.zero_grad()
        source = iter(fetched) if again else Recording(data, fetched)
        for _ in range(get_num_microbatches()):
            step(source, model).backward()
    data.advance()
    if number != OVERFLOW_STEP:
        optimizer.step()


class Recording:
    """What RerunDataIterator does where its machine is on: keep the micro-batches of the iteration."""

    def __init__(self, data: Any, fetched: list[Any]) -> None:
        self._data, self._fetched = data, fetched

    def __next__(self) -> Any:
        self._fetched.append(next(self._data))
        return self._fetched[-1]


def save(iteration: int, model: Any, consumed: int) -> None:
    """Rank 0 writes all of it."""
    dist.barrier()
    if rank() == 0:
        directory = run_dir() / "checkpoints"
        directory.mkdir(exist_ok=True)
        state = {"model": model.module.state_dict(), "iteration": iteration, "consumed": consumed}
        half = directory / f"{iteration:04}.half"
        torch.save(state, half)
        half.rename(directory / f"{iteration:04}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
