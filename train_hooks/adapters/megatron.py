"""Megatron-LM and its forks, by what `pretrain` is given.

    export = MegatronExport(run_dir, get_args, config={…})
    pretrain(export.datasets(train_valid_test_datasets_provider), model_provider, ModelType.encoder_or_decoder,
             export.forward_step(forward_step), …)

The training dataset's items say their index, which goes through Megatron's sampler, loader and collate function into the
micro-batch, and is taken out before `get_batch` sees it. A micro-batch counts as consumed when a forward step in training
mode has fetched it, on the writer rank (tensor, context and pipeline rank 0). Forward steps that the rerun machine repeats
fetch the same samples again, and count once. A step is over when an optimizer steps; one that does not (an overflow) is a
`skipped_update`, known at the next step. Iterations of `--iterations-to-skip` are `skipped_data`, without rows.

Documents come from the dataset's own indices, on the writer thread (`train_hooks.documents.megatron`).

Every `--save-interval` steps the rows are durable on this rank before its part of the model checkpoint is written, and the
export's state goes to SAVE/kiseki_export; `--load` finds it there.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core import parallel_state
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from train_hooks.adapters.versions import require_version
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.documents_in_batches import Indexed
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.tagged_loader import tagged
from train_hooks.torch_fsdp import ExportHook

__all__ = ["MegatronExport"]


class MegatronExport:
    """Exports what `pretrain` consumes. `hook`: the ExportHook, from the first forward step on."""

    def __init__(
        self, run_dir: Path | str, get_args: Callable[[], Any], *, unnamed_ok: bool = False, **options: Any
    ) -> None:
        """get_args: Megatron's. unnamed_ok: as of `MegatronDocuments`. options: as of `ExportHook.attach`; sequence_length
        and vocab_size are Megatron's by default.

        Raises InputError for a version of megatron-core that is not known.
        """
        require_version("megatron-core", "0.16", "0.17")
        self.hook: ExportHook | None = None
        self._run_dir, self._get_args, self._unnamed_ok, self._options = run_dir, get_args, unnamed_ok, options
        self._documents: MegatronDocuments | None = None
        self._step = 0
        self._seen: set[tuple[int, ...]] = set()
        self._num_new = 0

    def datasets(self, provider: Callable[..., Any]) -> Callable[..., Any]:
        """A provider whose training dataset (BlendedDataset, GPTDataset) says the index of each sample."""

        @functools.wraps(provider)
        def indexed(*args: Any, **kwargs: Any) -> Any:
            train, *others = provider(*args, **kwargs)
            if train is not None:
                self._documents = MegatronDocuments(train, unnamed_ok=self._unnamed_ok)
                train = Indexed(train)
            return (train, *others)

        return indexed

    def forward_step(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """A forward step whose micro-batches are remembered."""

        @functools.wraps(forward_step)
        def watched(data_iterator: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            if not model.training:
                return forward_step(data_iterator, model, *args, **kwargs)
            hook = self._at_step(model)
            tagging = None if data_iterator is None else tagged(data_iterator, self._tag)
            result = forward_step(tagging, model, *args, **kwargs)
            hook.consume(self._num_new)
            self._num_new = 0
            return result

        return watched

    def close(self) -> None:
        """Seal the export; otherwise that happens when the process ends."""
        if self.hook:
            self.hook.close()
            self.hook = None

    def _tag(self, batch: Any) -> Any:
        hook = self.hook
        assert hook is not None
        samples = tuple(batch["sample_index"].tolist())
        if samples in self._seen:  # again, by the rerun machine
            return {key: value for key, value in batch.items() if key != "sample_index"}
        self._seen.add(samples)
        self._num_new += 1
        return hook.tag(batch, "tokens")

    def _at_step(self, model: Any) -> ExportHook:
        """The hook, in the step that Megatron's counter says."""
        args = self._get_args()
        hook = self.hook or self._attach(args, model)
        step = args.curr_iteration + 1
        if step != self._step:
            if hook.committed_step < self._step:
                hook.commit(self._step, status=StepStatus.SKIPPED_UPDATE)
            while hook.committed_step + 1 < step:
                hook.commit(hook.committed_step + 1, status=StepStatus.SKIPPED_DATA)
            self._step = step
            self._seen.clear()
        return hook

    def _attach(self, args: Any, model: Any) -> ExportHook:
        if (parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1) > 1:
            raise InputError(
                "expected no virtual pipeline stages, found them; this adapter knows one model chunk a rank"
            )
        options = {
            "sequence_length": args.seq_length,
            "vocab_size": getattr(args, "padded_vocab_size", None),
            **self._options,
        }
        self.hook = ExportHook.attach(
            model, self._run_dir, resume=_resume_state(args), mesh=_Layout(), documents=self._documents, **options
        )
        self.hook.listen(None)
        register_optimizer_step_post_hook(self._after_optimizer)
        return self.hook

    def _after_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        hook = self.hook
        if hook is None or hook.committed_step >= self._step:  # closed, or the next of several optimizers
            return
        hook.commit(self._step)
        arguments = self._get_args()
        if arguments.save and arguments.save_interval and self._step % arguments.save_interval == 0:
            hook.checkpoint_barrier(self._step, this_rank_only=True)
            if hook.rank.is_writer and hook.rank.dp_rank == 0:
                path = _state_path(arguments.save, self._step)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(hook.state_dict()), encoding="utf-8")


class _Layout:
    """Megatron's groups as a mesh."""

    mesh_dim_names = ("dp", "cp", "tp", "pp")

    def get_coordinate(self) -> list[int]:
        return [
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_context_parallel_rank(),
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
        ]

    def size(self, axis: int) -> int:
        sizes = (
            parallel_state.get_data_parallel_world_size,
            parallel_state.get_context_parallel_world_size,
            parallel_state.get_tensor_model_parallel_world_size,
            parallel_state.get_pipeline_model_parallel_world_size,
        )
        return int(sizes[axis]())


def _state_path(directory: str, step: int) -> Path:
    return Path(directory) / "kiseki_export" / f"iter_{step:07d}.json"


def _resume_state(args: Any) -> dict[str, object] | None:
    if not args.iteration:
        return None
    path = _state_path(args.load, args.iteration)
    if not path.is_file():
        raise InputError(
            f"expected {path}, written when the model checkpoint of iteration {args.iteration} was due; found none. Load a "
            "checkpoint of a multiple of --save-interval that was trained with the export, or start from iteration 0"
        )
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found
