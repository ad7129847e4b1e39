"""A training loop of one's own with Hugging Face Accelerate.

    hook_at = ExportCheckpoints(accelerator)                # before accelerator.load_state
    model, optimizer, loader = accelerator.prepare(…)
    accelerator.load_state(directory)                       # when it resumes
    hook = hook_at.attach(model, run_dir, sequence_length=L, vocab_size=V, config={…})
    loader = hook.wrap(skip_first_batches(loader, …))       # wrapped last
    …  if accelerator.sync_gradients: hook.commit(step, status=hook_at.status)

`accelerator.save_state` waits for the export and puts its state beside the weights; `load_state` reads it.
"""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from train_hooks.adapters.versions import require_version
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook

__all__ = ["ExportCheckpoints"]

_FILE_NAME = "kiseki_export.json"


class ExportCheckpoints:
    """Keeps an Accelerator's checkpoints and the export together."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Raises InputError for a version of accelerate that is not known."""
        require_version("accelerate", "1.15", "2")
        self._accelerator = accelerator
        self._hook: ExportHook | None = None
        self._resume: dict[str, object] | None = None
        accelerator.register_save_state_pre_hook(self._before_save)
        accelerator.register_load_state_pre_hook(self._before_load)

    def attach(self, model: Any, run_dir: Path | str, **options: Any) -> ExportHook:
        """`ExportHook.attach` for a prepared model; it resumes where `load_state` did. Collective."""
        self._hook = ExportHook.attach(model, run_dir, resume=self._resume, **options)
        return self._hook

    @property
    def status(self) -> StepStatus:
        """Of the step that is over."""
        skipped = self._accelerator.optimizer_step_was_skipped
        return StepStatus.SKIPPED_UPDATE if skipped else StepStatus.APPLIED

    def _before_save(self, models: Any, weights: Any, output_dir: str) -> None:
        if self._hook is None:
            return
        self._hook.checkpoint_barrier(self._hook.committed_step)
        if self._accelerator.is_main_process:
            (Path(output_dir) / _FILE_NAME).write_text(json.dumps(self._hook.state_dict()), encoding="utf-8")

    def _before_load(self, models: Any, input_dir: str) -> None:
        file = Path(input_dir) / _FILE_NAME
        if not file.is_file():
            raise InputError(f"expected {file}, written by save_state of a training with the hook; found none")
        self._resume = json.loads(file.read_text(encoding="utf-8"))
