"""A rank of a real DeepSpeed engine on two ranks: ZeRO, accumulation, loader workers, evaluation, resume."""

import os
from typing import Any

import deepspeed
import torch
from torch.utils.data import DataLoader, DistributedSampler

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.data import LENGTH, VOCAB, Packed, collate
from tests.adapters.data.models import Small
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    RANKS,
    SAVE_EVERY,
    SEQUENCES,
    STEPS,
    WORKERS,
    kill_at,
    rank,
    run_dir,
)
from train_hooks.adapters.deepspeed import attach
from train_hooks.documents.in_batches import CarryingDocuments, Indexed


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    deepspeed.init_distributed("gloo")
    torch.manual_seed(1)
    run, base = run_dir(), Small()
    settings = {
        "train_micro_batch_size_per_gpu": MICRO_BATCH, "gradient_accumulation_steps": ACCUMULATION,
        "zero_optimization": {"stage": int(os.environ.get("ZERO", "1"))},
        "zero_allow_untested_optimizer": True, "steps_per_print": 1000,
    }  # fmt: skip
    engine, _, _, _ = deepspeed.initialize(
        model=base, optimizer=torch.optim.AdamW(base.parameters(), lr=1e-3), config=settings
    )
    client_state = None
    if (run / "checkpoints" / "latest").is_file():
        _, client_state = engine.load_checkpoint(str(run / "checkpoints"))
    hook = attach(
        engine,
        run,
        client_state=client_state,
        sequence_length=LENGTH,
        vocab_size=VOCAB,
        config={"trainer": "deepspeed"},
    )
    ConsumedLog(base, run / "log", rank(), lambda: int(engine.global_steps), kill_at=kill_at())
    items: Any = Indexed(Packed(SEQUENCES))
    order: list[int] = list(DistributedSampler(items, RANKS, rank(), seed=3))
    left = order[engine.global_steps * ACCUMULATION * MICRO_BATCH :]
    loader: DataLoader[Any] = DataLoader(
        items, MICRO_BATCH, sampler=left, num_workers=WORKERS, collate_fn=CarryingDocuments(collate)
    )
    engine.train()
    saved = engine.global_steps
    for batch in hook.wrap(loader):
        engine.backward(engine(**batch))
        engine.step()
        if engine.global_steps > saved and engine.global_steps % SAVE_EVERY == 0:
            saved = engine.global_steps
            engine.save_checkpoint(str(run / "checkpoints"))
            engine.eval()
            with torch.no_grad():
                engine(batch["input_ids"])
            engine.train()
        if engine.global_steps == STEPS:
            break
    hook.close()
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
