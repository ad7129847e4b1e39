"""What the adapters of Hugging Face Trainer and Lightning cost the training thread, as a share of the step.

    .venv-adapters/hf/bin/python bench/adapter_overhead.py hf
    .venv-adapters/lightning/bin/python bench/adapter_overhead.py lightning

A small model trains on the CPU, in one process, two micro-batches of 4 sequences of 1,024 tokens a step. All that the
trainer calls of ours on its own thread (the callback's methods, and what is called by the wrapped ones: tag, forward
hook, commit) is timed, outermost calls alone, against the time from step to step. The last columns put the same time
against steps of 100 ms, shorter than any real training's of this many tokens.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.export_overhead import Block
from bench.support.history import Figures, bench_options, recorded
from train_hooks import ExportHook

LENGTH, VOCAB, MICRO_BATCH, ACCUMULATION, WIDTH = 1024, 8_192, 4, 2, 128
WARM_UP = 5


class Timed:
    """Time in our calls on this thread, and when steps ended."""

    def __init__(self) -> None:
        self.spent, self.ends = [0.0], [time.perf_counter()]
        self._depth, self._thread = 0, threading.get_ident()

    def watch(self, owner: type, *names: str) -> None:
        """Time these methods from now on."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread or self._depth:
                return method(*args, **kwargs)
            self._depth = 1
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.spent[-1] += time.perf_counter() - start
                self._depth = 0

        return timed

    def step(self) -> None:
        """A step is over."""
        self.ends.append(time.perf_counter())
        self.spent.append(0.0)

    def report(self, name: str, figures: Figures) -> None:
        """Print and keep medians after the warm-up."""
        steps = statistics.median(np.diff(self.ends)[WARM_UP:])
        spent = statistics.median(self.spent[WARM_UP:-1])
        worst = max(self.spent[WARM_UP:-1])
        figures.add("step, median", steps * 1e3, "ms")
        figures.add("our calls in a step, median", spent * 1e6, "µs")
        figures.add("our calls in a step, worst", worst * 1e6, "µs")
        print("adapter       step ms   ours µs (median, worst)   share of step   share of a step of 100 ms")
        print(
            f"{name:10} {steps * 1e3:10.1f} {spent * 1e6:11.0f} {worst * 1e6:11.0f} {spent / steps:20.3%} {spent / 0.1:27.3%}"
        )


class Model(nn.Module):
    """A GPT of two layers that gives the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.Sequential(Block(WIDTH), Block(WIDTH))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.blocks(self.embed(input_ids)))
        return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


class Sequences(Dataset[dict[str, Tensor]]):
    """Random tokens."""

    def __init__(self, num_sequences: int) -> None:
        self._num_sequences = num_sequences

    def __len__(self) -> int:
        return self._num_sequences

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.from_numpy(np.random.default_rng(index).integers(0, VOCAB, LENGTH))
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones(LENGTH, dtype=torch.int64)}


def hugging_face(directory: Path, num_steps: int, timed: Timed) -> None:
    """Train with Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from train_hooks.adapters.hf import ExportCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            timed.step()

    timed.watch(ExportCallback, "on_step_end", "on_log")
    timed.watch(ExportHook, "tag", "_before_forward")
    arguments = TrainingArguments(
        str(directory / "out"), max_steps=num_steps, per_device_train_batch_size=MICRO_BATCH, logging_steps=1,
        gradient_accumulation_steps=ACCUMULATION, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(Model(), arguments, train_dataset=Sequences(num_steps * MICRO_BATCH * ACCUMULATION))
    ExportCallback.attach(trainer, directory / "run", sequence_length=LENGTH, vocab_size=VOCAB, config={})
    trainer.add_callback(Steps())
    trainer.train()


def lightning(directory: Path, num_steps: int, timed: Timed) -> None:
    """Train with Lightning."""
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.utils.data import DataLoader

    from train_hooks.adapters.lightning import ExportCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step > len(timed.ends) - 1:
                timed.step()

    timed.watch(ExportCallback, "on_train_batch_start", "on_train_batch_end")
    export = ExportCallback(directory / "run", sequence_length=LENGTH, vocab_size=VOCAB, config={})
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=num_steps, accumulate_grad_batches=ACCUMULATION, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[export, Steps()],
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(Sequences(num_steps * MICRO_BATCH * ACCUMULATION), MICRO_BATCH))


def main() -> None:
    """Run one and print."""
    parser = bench_options(__doc__)
    parser.add_argument("trainer", choices=["hf", "lightning"])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    timed = Timed()
    with tempfile.TemporaryDirectory() as directory:
        {"hf": hugging_face, "lightning": lightning}[arguments.trainer](Path(directory), arguments.steps, timed)
    with recorded("adapter_overhead", arguments) as figures:
        timed.report(arguments.trainer, figures)


if __name__ == "__main__":
    main()
