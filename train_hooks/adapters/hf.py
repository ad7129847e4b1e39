"""Hugging Face Trainer.

    trainer = Trainer(…)
    ExportCallback.attach(trainer, run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…})
    trainer.train(resume_from_checkpoint=…)

The trainer fetches a step's micro-batches in `get_batch_samples`; there each is remembered, after the loader's workers,
its sharding and the skipping of a resume. The forward of the outermost model (`trainer.model_wrapped`) tells which of them
are consumed. `on_step_end` commits. A model checkpoint waits for the export (`_save_checkpoint`), and carries its state in
`trainer_state.json`. Callbacks get no batch, hence the two methods wrapped on the trainer given.
"""

from pathlib import Path
from typing import Any, Self

from transformers import Trainer, TrainerCallback

from train_hooks.adapters.versions import require_version
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tensors.batches import TokensSelector

__all__ = ["ExportCallback"]

_STATE_KEY = "kiseki_export"
_METRICS = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}


class ExportCallback(TrainerCallback):
    """Exports what a Trainer consumes. Make it with `attach`. `hook`: the ExportHook, while the trainer trains."""

    def __init__(self, trainer: Trainer, run_dir: Path | str, tokens: TokensSelector, options: dict[str, Any]) -> None:
        self.hook: ExportHook | None = None
        self._trainer, self._run_dir, self._tokens, self._options = trainer, run_dir, tokens, options

    @classmethod
    def attach(
        cls, trainer: Trainer, run_dir: Path | str, *, tokens: TokensSelector = "input_ids", **options: Any
    ) -> Self:
        """Watch `trainer`, from its next `train` on. tokens, options: as of `ExportHook.wrap` and `ExportHook.attach`.

        Raises InputError for a version of transformers that is not known.
        """
        require_version("transformers", "5.23", "6")
        callback = cls(trainer, run_dir, tokens, options)
        callback._wrap_methods()
        trainer.add_callback(callback)
        return callback

    def _wrap_methods(self) -> None:
        trainer: Any = self._trainer
        fetch, save = trainer.get_batch_samples, trainer._save_checkpoint

        def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
            batches, num_items = fetch(*args, **kwargs)
            return [self.hook.tag(batch, self._tokens) if self.hook else batch for batch in batches], num_items

        def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
            if self.hook:
                self.hook.checkpoint_barrier(trainer.state.global_step)
                trainer.state.stateful_callbacks[_STATE_KEY] = self.hook.state_dict()
            return save(*args, **kwargs)

        trainer.get_batch_samples, trainer._save_checkpoint = get_batch_samples, save_checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is wrapped and the checkpoint loaded: claim an attempt."""
        self._close()
        resume = state.stateful_callbacks.get(_STATE_KEY)
        if resume is None and state.global_step:
            raise InputError(
                f"resume_from_checkpoint: expected a checkpoint written with this callback, found one of step "
                f"{state.global_step} without {_STATE_KEY!r} in its trainer_state.json; start from step 0, or resume "
                "from a checkpoint that has it"
            )
        self.hook = ExportHook.attach(self._trainer.model_wrapped, self._run_dir, resume=resume, **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer stepped, or an overflow kept it from it."""
        if self.hook:
            skipped = self._trainer.accelerator.optimizer_step_was_skipped
            self.hook.commit(state.global_step, status=StepStatus.SKIPPED_UPDATE if skipped else StepStatus.APPLIED)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Numbers of the step, or means over the steps since the last log."""
        if self.hook and logs and "loss" in logs:
            self.hook.record(state.global_step, {_METRICS[name]: logs[name] for name in _METRICS if name in logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the export."""
        self._close()

    def _close(self) -> None:
        if self.hook:
            self.hook.close()
            self.hook = None
