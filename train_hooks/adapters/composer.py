"""Composer, and llm-foundry, whose trainer it is.

    Trainer(model, callbacks=[ExportCallback(run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…})], …)

A micro-batch is remembered as `before_forward` shows it (`state.batch`, of device_train_microbatch_size sequences). The forward
of `state.model`, which is given that batch, tells that it is consumed: rows are matched `whole`, and a forward that gets
something else makes the step fail. Whatever the loader prefetched beyond, and evaluation, are not seen. `batch_end` is a
step's end; one after which no optimizer had stepped is a `skipped_update`. Checkpoints wait for the export and carry its
state. `segments` and `sample_index` are taken out of the batch;
Composer must be told how to count a batch that has them: `DataSpec(loader, get_num_samples_in_batch=…)`.

Algorithms that change the batch do so before all this. `SeqLengthWarmup` makes it shorter: it wants `shorter_rows=True`, and
batches of tensors alone, so that the documents of such a run are not known.
"""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.algorithms import SeqLengthWarmup

from train_hooks.adapters.versions import require_version
from train_hooks.export_format.errors import InputError
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tensors.batches import METADATA_KEYS, TokensSelector

__all__ = ["ExportCallback"]


class ExportCallback(Callback):
    """Exports what a Trainer consumes. `hook`: the ExportHook, while it trains."""

    def __init__(self, run_dir: Path | str, *, tokens: TokensSelector = "input_ids", **options: Any) -> None:
        """tokens, options: as of `ExportHook.wrap` and `ExportHook.attach`.

        Raises InputError for a version of mosaicml that is not known.
        """
        require_version("mosaicml", "0.32", "0.33")
        self.hook: ExportHook | None = None
        self._run_dir, self._tokens, self._options = run_dir, tokens, options
        self._resume: dict[str, Any] | None = None
        self._metadata: dict[str, list[Any]] = {}
        self._num_seen = 0
        self._lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, on every rank, before anything is written; after the training too, where all is durable."""
        if self.hook is None:
            return dict(self._resume or {})
        self.hook.checkpoint_barrier(self.hook.committed_step)
        return self.hook.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Which attempt wrote the checkpoint."""
        self._resume = state or None

    def fit_start(self, state: State, logger: Logger) -> None:
        """The model is wrapped and the checkpoint loaded: claim an attempt."""
        if state.auto_microbatching:
            raise InputError(
                "device_train_microbatch_size: expected a number, found 'auto', which repeats forwards that ran out of "
                "memory; give the number of sequences"
            )
        warmups = [each for each in state.algorithms if isinstance(each, SeqLengthWarmup)]
        if warmups and not self._options.get("shorter_rows"):
            raise InputError(
                "algorithms: expected ExportCallback(…, shorter_rows=True) with SeqLengthWarmup, which cuts sequences, "
                "found none; give it, and batches without segments and sample_index, which SeqLengthWarmup does not take"
            )
        step = int(state.timestamp.batch)
        if self._resume is None and step:
            raise InputError(
                f"load_path: expected a checkpoint written with this callback, found one of step {step} without its "
                "state; start from step 0, or resume from a checkpoint that has it"
            )
        resume = self._resume if step else None
        self.hook = ExportHook.attach(state.model, self._run_dir, resume=resume, **self._options)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Composer cuts the batch into micro-batches after this, and does not know how to cut the metadata."""
        self._lr = float(state.optimizers[0].param_groups[0]["lr"])  # the scheduler changes it before `batch_end`
        self._num_seen, self._metadata = 0, {}
        if isinstance(state.batch, MutableMapping):
            self._metadata = {key: list(state.batch.pop(key)) for key in METADATA_KEYS if key in state.batch}

    def before_forward(self, state: State, logger: Logger) -> None:
        """Remember the micro-batch."""
        if self.hook:
            batch = state.batch
            first = self._num_seen
            if self._metadata:
                self._num_seen += len(batch[self._tokens])
                batch = {**batch, **{key: all_[first : self._num_seen] for key, all_ in self._metadata.items()}}
            self.hook.tag(batch, self._tokens)

    def batch_end(self, state: State, logger: Logger) -> None:
        """The optimizer stepped, or an overflow kept it from it."""
        if self.hook:
            metrics = {"lr": self._lr}
            loss = state.total_loss_dict.get("loss/train/total")
            if loss is not None:
                metrics["loss"] = float(loss)
            self.hook.commit(int(state.timestamp.batch), metrics=metrics)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Seal the export."""
        if self.hook:
            self._resume = self.hook.state_dict()
            self.hook.close()
            self.hook = None
