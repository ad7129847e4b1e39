"""A rank of a training loop of one's own with Accelerate on two ranks: accumulation, loader workers, evaluation, resume."""

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.data import LENGTH, VOCAB, Packed, collate
from tests.adapters.job import ACCUMULATION, MICRO_BATCH, SAVE_EVERY, SEQUENCES, STEPS, WORKERS, kill_at, rank, run_dir
from train_hooks.adapters.accelerate import ExportCheckpoints
from train_hooks.documents.in_batches import CarryingDocuments


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    torch.manual_seed(1)
    run, step = run_dir(), 0
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=ACCUMULATION,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3),
    )  # fmt: skip
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
        )
    )
    checkpoints = ExportCheckpoints(accelerator)
    model, optimizer, loader = accelerator.prepare(
        base,
        torch.optim.AdamW(base.parameters(), lr=1e-3),
        DataLoader(
            Packed(SEQUENCES), MICRO_BATCH, shuffle=True, num_workers=WORKERS, collate_fn=CarryingDocuments(collate)
        ),
    )
    ConsumedLog(base, run / "log", rank(), lambda: step, kill_at=kill_at())
    saved = sorted((run / "checkpoints").glob("*"))
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name)
    hook = checkpoints.attach(model, run, sequence_length=LENGTH, vocab_size=VOCAB, config={"trainer": "accelerate"})
    for batch in hook.wrap(skip_first_batches(loader, step * ACCUMULATION)):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        step += 1
        hook.commit(step, status=checkpoints.status, metrics={"loss": loss.item()})
        if step % SAVE_EVERY == 0:
            accelerator.save_state(str(run / "checkpoints" / f"{step:04}"))
            model.eval()
            with torch.no_grad():
                model(input_ids=batch["input_ids"])
            model.train()
        if step == STEPS:
            break
    hook.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
