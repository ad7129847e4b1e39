"""NeMo 2 (`nemo.collections.llm`, on Lightning with MegatronStrategy).

    export = NemoExport(run_dir, config={…})
    trainer = nl.Trainer(strategy=nl.MegatronStrategy(…), callbacks=[export], …)
    llm.pretrain(model, PreTrainingDataModule(…), trainer, …)

The training dataset of the data module, once that has built it, says the index of each sample, which goes through NeMo's
sampler, loader and collate function into the micro-batch. A training step fetches its micro-batches itself: its iterator is
put in the place of the loader's at `on_megatron_step_start`, takes the index out, and has each on the CPU, whole, before
NeMo's data step cuts it for context parallelism and leaves out what a pipeline stage does not need. It is consumed when its
forward is over. Steps that are forwards alone are evaluation. The writer is tensor, context and pipeline rank 0.

Rows are matched `whole`: the forward of Megatron's model in the LightningModule, on the first pipeline stage, gets the tokens
as they were fetched. Under context parallelism they are matched `slice`: it gets the first and the last of 2n parts of each
row. Packed sequences, where it gets something else, are matched `count`.

A step is over at `on_train_batch_end`, and was skipped where no optimizer stepped (an overflow). Every model checkpoint,
of weights alone too, is written by the strategy's `save_checkpoint`; in its place is one that first makes the rows of all
steps durable and puts the export's state into the checkpoint.

Documents come from the dataset's own indices, on the writer thread (`train_hooks.documents.megatron`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronStep
from nemo.lightning.pytorch.strategies import MegatronStrategy
from torch.optim.optimizer import register_optimizer_step_post_hook

from train_hooks.adapters.megatron_iterations import MegatronLayout, context_parallel_columns
from train_hooks.adapters.versions import require_version
from train_hooks.documents.in_batches import Indexed
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tagged_loader import tagged

__all__ = ["NemoExport"]

_STATE_KEY = "kiseki_export"
_METRICS = {"loss": "reduced_train_loss", "grad_norm": "grad_norm"}


class NemoExport(Callback):
    """Exports what a Trainer with MegatronStrategy consumes. `hook`: the ExportHook, while it trains."""

    def __init__(self, run_dir: Path | str, *, unnamed_ok: bool = False, **options: Any) -> None:
        """unnamed_ok: as of `MegatronDocuments`. options: as of `ExportHook.attach`; sequence_length and vocab_size are the
        data module's by default.

        Raises InputError for a version of NeMo that is not known.
        """
        require_version("nemo_toolkit", "2.7", "2.8")
        self.hook: ExportHook | None = None
        self._run_dir, self._unnamed_ok, self._options = run_dir, unnamed_ok, options
        self._documents: Any = None
        self._resume: Mapping[str, object] | None = None
        self._stepped: Any = None
        self._updated = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The data module has built its datasets, and the strategy has not yet looked at them."""
        if stage != "fit":
            return
        train = _train_set(trainer)
        self._documents = MegatronDocuments(train, unnamed_ok=self._unnamed_ok)
        trainer.datamodule._train_ds = Indexed(train)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before training: which attempt wrote the checkpoint."""
        self._resume = checkpoint.get(_STATE_KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint is loaded: claim an attempt. Collective."""
        if self._resume is None and trainer.global_step:
            raise InputError(
                f"expected a checkpoint written with this callback, found one of step {trainer.global_step} without "
                f"{_STATE_KEY!r}; start from step 0, or resume from a checkpoint that has it"
            )
        data: Any = trainer.datamodule
        known = {"sequence_length": data.seq_length, "vocab_size": data.tokenizer.vocab_size}
        self.hook = ExportHook.attach(
            trainer.strategy.model, self._run_dir, resume=self._resume, documents=self._documents,
            mesh=MegatronLayout(parallel_state, cp="context_parallel"), **{**known, **self._options},
        )  # fmt: skip
        self.hook.listen(getattr(pl_module, "module", None), counting=True)
        self._stepped = register_optimizer_step_post_hook(self._optimizer_stepped)
        trainer.strategy.save_checkpoint = self._durable_first(trainer.strategy.save_checkpoint)

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        """A step of training fetches its micro-batches through the hook."""
        if self.hook is None or step.forward_only:
            return step
        return dataclasses.replace(step, data=tagged(step.data, self._tag))

    def on_megatron_microbatch_end(self, step: MegatronStep) -> None:
        """The micro-batch fetched last is consumed."""
        if self.hook and not step.forward_only:
            self.hook.consume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over, whether it changed the weights or not."""
        if self.hook and trainer.global_step > self.hook.committed_step:
            status = StepStatus.APPLIED if self._updated else StepStatus.SKIPPED_UPDATE
            self.hook.commit(trainer.global_step, status=status, metrics=self._metrics_of(trainer))
        self._updated = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Seal the export, after the last model checkpoint."""
        self._resume = None
        if self.hook:
            self._stepped.remove()
            del trainer.strategy.save_checkpoint
            self.hook.close()
            self.hook = None

    def _tag(self, fetched: tuple[dict[str, Any], int, int]) -> tuple[dict[str, Any], int, int]:
        """What Lightning's fetcher gives: the micro-batch, its number, and that of its loader."""
        assert self.hook is not None
        batch, *numbers = fetched
        length, num_ranks = batch["tokens"].shape[-1], parallel_state.get_context_parallel_world_size()
        return (self.hook.tag(batch, "tokens", columns=context_parallel_columns(length, num_ranks)), *numbers)

    def _optimizer_stepped(self, *_: Any) -> None:
        self._updated = True

    def _durable_first(self, save: Any) -> Any:
        @functools.wraps(save)
        def saved(checkpoint: dict[str, Any], *given: Any, **more: Any) -> Any:
            assert self.hook is not None
            self.hook.checkpoint_barrier(self.hook.committed_step)
            checkpoint[_STATE_KEY] = self.hook.state_dict()
            return save(checkpoint, *given, **more)

        return saved

    def _metrics_of(self, trainer: Trainer) -> dict[str, float]:
        if trainer.global_step % max(1, trainer.log_every_n_steps) or self.hook is None or not self.hook.rank.is_writer:
            return {}
        logged = trainer.callback_metrics
        return {name: float(logged[of]) for name, of in _METRICS.items() if of in logged}


def _train_set(trainer: Trainer) -> Any:
    """The dataset that a training reads. Raises InputError where the trainer is none that this adapter knows."""
    strategy: Any = trainer.strategy
    if not isinstance(strategy, MegatronStrategy):
        raise InputError(
            f"expected MegatronStrategy, found {type(strategy).__name__}; this adapter knows no other: use "
            "adapters.lightning where a training step is given its micro-batch"
        )
    if strategy.virtual_pipeline_model_parallel_size is not None:
        raise InputError("expected no virtual pipeline stages, found them; this adapter knows one model chunk a rank")
    data: Any = trainer.datamodule
    train = getattr(data, "_train_ds", None)
    if train is None or hasattr(train, "collate_fn") or data.data_sampler.dataloader_type == "batch":
        raise InputError(
            f"expected a PreTrainingDataModule with dataloader_type 'single' or 'cyclic', found {type(data).__name__}; this "
            "adapter knows no fine-tuning and no made-up data"
        )
    return train
