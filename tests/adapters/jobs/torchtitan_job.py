"""A rank of torchtitan's real data path on two ranks: its dataset, packing, stateful loader with a worker, checkpoint, resume.

Its trainer wants a GPU; the loop here is of its form: all micro-batches of a step first, then forward and backward of each.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.parallel import DistributedDataParallel
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.models import Small
from tests.adapters.job import ACCUMULATION, MICRO_BATCH, RANKS, SAVE_EVERY, STEPS, kill_at, rank, run_dir
from train_hooks.adapters.torchtitan import ExportedTextDataLoader

LENGTH, VOCAB = 32, 258


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    run = run_dir()
    loader: Any = ExportedTextDataLoader.Config(
        # With two workers each would read the same texts: torchtitan splits one that is not streamed over ranks alone.
        dataset="c4_test", dataset_path=str(run.parent / "corpus"), num_workers=1, run_dir=str(run), vocab_size=VOCAB
    ).build(
        dp_world_size=RANKS, dp_rank=rank(), seq_len=LENGTH, local_batch_size=MICRO_BATCH,
        tokenizer=HuggingFaceTokenizer(tokenizer_path=str(run.parent / "tokenizer")),
        snapshot_every_n_steps=SAVE_EVERY * ACCUMULATION,
    )  # fmt: skip
    base = Small(vocabulary=VOCAB, length=LENGTH)
    model, optimizer, step = DistributedDataParallel(base), torch.optim.AdamW(base.parameters(), lr=1e-3), 0
    saved = sorted((run / "checkpoints").glob("*/.metadata"))
    if saved:
        load({"model": base.state_dict(), "dataloader": loader}, checkpoint_id=saved[-1].parent)
        step = int(saved[-1].parent.name)
    ConsumedLog(base, run / "log", rank(), lambda: step, kill_at=kill_at())
    loader.listen(model)
    data = iter(loader)
    while step < STEPS:
        optimizer.zero_grad()
        for inputs, labels in [next(data) for _ in range(ACCUMULATION)]:
            model(input_ids=inputs["input"], position_ids=inputs["positions"], labels=labels).backward()
        optimizer.step()
        step += 1
        if step % SAVE_EVERY == 0:
            save(
                {"model": base.state_dict(), "dataloader": loader},
                checkpoint_id=Path(run / "checkpoints" / f"{step:04}"),
            )
    loader.hook.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
