"""OLMo-core.

    TrainerConfig(…).with_callback("kiseki", ExportCallback(run_dir, corpus=…, sequence_length=L, …))

`pre_step` shows a rank's batch before it goes to the device; it is cut into micro-batches as the train module will cut it,
with the labels that it will make. The forward of the train module's model tells which of them are consumed: rows are
matched `whole`, and a forward that gets something else makes the step fail. `post_train_batch` ends the step: trained on if
`pre_optim_step` came in between, else `skipped_data` (`steps_to_skip`), whose rows are counted. The dry run before the first
step is before all this. Checkpoints wait for the export and carry its state. A batch's `index` is its `sample_index`.
"""

from typing import Any, ClassVar

from olmo_core.data.utils import get_labels, split_batch
from olmo_core.train.callbacks import Callback

from train_hooks.adapters.versions import require_version
from train_hooks.documents.olmo import OlmoDocuments
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook

__all__ = ["ExportCallback"]

_METRICS = {"train/CE loss": "loss", "optim/total grad norm": "grad_norm", "optim/LR (group 0)": "lr"}


class ExportCallback(Callback):
    """Exports what a Trainer consumes. `hook`: the ExportHook, while it trains."""

    priority: ClassVar[int] = 2  # before the checkpointer's

    def __init__(self, run_dir: Any, *, corpus: str | None = None, find_documents: bool = True, **options: Any) -> None:
        """options: as of `ExportHook.attach`. find_documents: by `OlmoDocuments` with `corpus`, if options have no resolver.

        Raises InputError for a version of ai2-olmo-core that is not known, or documents to find without a corpus.
        """
        require_version("ai2-olmo-core", "3.0", "4")
        if find_documents and corpus is None and "documents" not in options:
            raise InputError(
                "corpus: expected where the texts were when they were tokenized, as `src` in the .csv.gz files has it, found "
                "None; documents are named by their place in it. find_documents=False leaves them out"
            )
        self.hook: ExportHook | None = None
        self._run_dir, self._options = run_dir, options
        self._corpus = corpus if find_documents else None
        self._resume: dict[str, Any] | None = None
        self._num_microbatches = 0
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, on every rank, before anything is written."""
        if self.hook is None:
            return {}
        self.hook.checkpoint_barrier(self.hook.committed_step)
        return self.hook.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Which attempt wrote the checkpoint."""
        self._resume = state_dict or None

    def pre_train(self) -> None:
        """The model is wrapped and the checkpoint loaded: claim an attempt."""
        if self._resume is None and self.step:
            raise InputError(
                f"load_path: expected a checkpoint written with this callback, found one of step {self.step} without its "
                "state; start from step 0, or resume from a checkpoint that has it"
            )
        options = {"mesh": self.trainer.train_module.world_mesh, **self._options}
        if self._corpus is not None and "documents" not in options:
            options["documents"] = OlmoDocuments(self.trainer.data_loader.dataset, corpus=self._corpus)
        self.hook = ExportHook.attach(self.trainer.train_module.model, self._run_dir, resume=self._resume, **options)

    def pre_step(self, batch: dict[str, Any]) -> None:
        """Remember the batch, micro-batch by micro-batch."""
        if self.hook is None:
            return
        module = self.trainer.train_module
        if "labels" not in batch:
            batch["labels"] = get_labels(batch, label_ignore_index=module.label_ignore_index)
        parts = split_batch(batch, module.rank_microbatch_size // batch["input_ids"].shape[1])
        self._num_microbatches, self._trained = len(parts), False
        for part in parts:
            self.hook.tag({**{key: part[key] for key in part if key != "index"}, "sample_index": part["index"]})

    def pre_optim_step(self) -> None:
        """All forwards of the step are over."""
        self._trained = True

    def post_train_batch(self) -> None:
        """The step is over."""
        if self.hook and self._trained:
            self.hook.commit(self.step, status=StepStatus.APPLIED)
        elif self.hook:
            self.hook.consume(self._num_microbatches)
            self.hook.commit(self.step, status=StepStatus.SKIPPED_DATA)

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Of this or an earlier step."""
        found = {ours: float(metrics[name]) for name, ours in _METRICS.items() if name in metrics}
        if self.hook and found and self.hook.attempt.resume_step < step <= self.hook.committed_step:
            self.hook.record(step, found)

    def post_train(self) -> None:
        """Seal the export."""
        self._resume = None

    def close(self) -> None:
        """Always called, even on an error."""
        if self.hook:
            self.hook.close()
            self.hook = None
