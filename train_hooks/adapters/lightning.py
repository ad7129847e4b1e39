"""Lightning.

    export = ExportCallback(run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…})
    trainer = Trainer(callbacks=[export], …)
    trainer.fit(module, loader, ckpt_path=…)

A micro-batch is remembered as `on_train_batch_start` shows it, and counts as consumed at `on_train_batch_end`: what
`training_step` was given. Whatever the loader prefetched beyond, sanity checks, validation and skipped batches are not
seen. A step is an advance of `trainer.global_step`, the optimizer's steps; one after which no optimizer had stepped, as with
an fp16 overflow, is a `skipped_update`. Checkpoints wait for the export and carry its state. `segments` and `sample_index`
are taken out of the batch before `training_step` gets it.

Rows are matched `whole` (or `slice`) where the model that `training_step` calls gets the tokens of the batch, or all but the
last of each row. The model is the one child of the LightningModule that has parameters; where there are several, or none,
`listen_to` says which module it is. Without it, and where `training_step` makes other tokens, rows are matched `count`. The
forward of the LightningModule itself tells nothing: strategies call it with what `training_step` is given.
"""

from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from train_hooks.adapters.versions import require_version
from train_hooks.export_format.errors import InputError
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tensors.batches import METADATA_KEYS, TokensSelector

__all__ = ["ExportCallback"]

_STATE_KEY = "kiseki_export"
_METRICS = {"loss": "train_loss", "grad_norm": "grad_norm"}


class ExportCallback(Callback):
    """Exports what a Trainer consumes. `hook`: the ExportHook, while it trains."""

    def __init__(
        self,
        run_dir: Path | str,
        *,
        tokens: TokensSelector = "input_ids",
        metrics: Mapping[str, str] = _METRICS,
        listen_to: Callable[[LightningModule], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        """tokens, options: as of `ExportHook.wrap` and `ExportHook.attach`.

        metrics: kiseki's name → the name that the module logs it by; read every `log_every_n_steps` steps. listen_to: gives
        the module whose forward gets the tokens.

        Raises InputError for a version of lightning that is not known.
        """
        require_version("lightning", "2.6", "3")
        self.hook: ExportHook | None = None
        self._run_dir, self._tokens, self._metrics, self._options = run_dir, tokens, metrics, options
        self._listen_to = listen_to or _only_model
        self._resume: Mapping[str, object] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before training: which attempt wrote the checkpoint."""
        self._resume = checkpoint.get(_STATE_KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model is wrapped and the checkpoint loaded: claim an attempt."""
        if self._resume is None and trainer.global_step:
            raise InputError(
                f"ckpt_path: expected a checkpoint written with this callback, found one of step {trainer.global_step} "
                f"without {_STATE_KEY!r}; start from step 0, or resume from a checkpoint that has it"
            )
        resume = self._resume if trainer.global_step else None
        self.hook = ExportHook.attach(trainer.strategy.model, self._run_dir, resume=resume, **self._options)
        self.hook.listen(self._listen_to(pl_module), counting=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the micro-batch; one whose batch was skipped is forgotten."""
        if self.hook:
            self.hook.forget_fetched()
            self.hook.tag(batch, self._tokens)
        if isinstance(batch, MutableMapping):
            for key in METADATA_KEYS:
                batch.pop(key, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The micro-batch is consumed, and maybe the step is over."""
        if self.hook:
            self.hook.consume()
            if trainer.global_step > self.hook.committed_step:
                self.hook.commit(trainer.global_step, metrics=self._metrics_of(trainer))

    def _metrics_of(self, trainer: Trainer) -> dict[str, float]:
        found = {"lr": float(trainer.optimizers[0].param_groups[0]["lr"])}
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            logged = trainer.callback_metrics
            found.update({name: float(logged[of]) for name, of in self._metrics.items() if of in logged})
        return found

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """On every rank, before anything is written; after the training too, where all is durable."""
        if self.hook:
            self.hook.checkpoint_barrier(self.hook.committed_step)
            self._resume = self.hook.state_dict()
        if self._resume is not None:
            checkpoint[_STATE_KEY] = self._resume

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Seal the export, after the last model checkpoint, and where the training failed."""
        if self.hook:
            self._resume = self.hook.state_dict()
            self.hook.close()
            self.hook = None


def _only_model(module: LightningModule) -> nn.Module | None:
    """The one child that has parameters, if there is one."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return children[0] if len(children) == 1 else None
