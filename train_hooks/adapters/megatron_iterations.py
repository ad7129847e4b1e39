"""The loop that Megatron's `train` and those grown from it have in common, as a hook sees it.

`args.curr_iteration` says which iteration is under way, `args.iteration` from which model checkpoint the job resumes. The
hook is attached when the model is first put into training mode, which `train` does on every rank, after loading and before
the first micro-batch: pipeline stages would wait for one another in the first forward.

The hook counts micro-batches, and listens to the model: where a forward of it gets the tokens of a micro-batch, whole or as
the columns that a trainer gives to the first context-parallel rank, that is recorded as how they are known.

A step is over when an optimizer steps; one that does not (an overflow) is a `skipped_update`, known at the next step or
model checkpoint. Iterations that `train` jumps over are `skipped_data`, without rows. Samples that are fetched again in one
iteration by Megatron-LM's rerun machine count once.

Every model checkpoint is written by a function of the trainer, which looks it up as `save_checkpoint` and calls it on every
rank, whatever the reason (the interval, an own rule, a signal, the end). That name is given to one that first makes the rows
of the steps behind the checkpoint durable on every writer rank, and writes the export's state to SAVE/kiseki_export;
`--load` finds it there.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from train_hooks.documents import DocumentResolver
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tagged_loader import tagged
from train_hooks.hook.tensors.snapshots import Columns

__all__ = ["MegatronIterations", "MegatronLayout", "context_parallel_columns", "with_train_set"]


@functools.lru_cache
def context_parallel_columns(length: int, num_ranks: int) -> Columns:
    """What context-parallel rank 0 is given of a row: of 2 · num_ranks parts, the first and the last."""
    part = length // (2 * num_ranks)
    return None if num_ranks == 1 else [*range(part), *range(length - part, length)]


def with_train_set(provider: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A provider of datasets (training, validation, test) whose training dataset, where there is one, is changed."""

    @functools.wraps(provider)
    def changed(*given: Any, **more: Any) -> Any:
        train, *others = provider(*given, **more)
        return (train if train is None else change(train), *others)

    return changed


class MegatronLayout:
    """The groups of a `megatron.core.parallel_state` as a mesh, for `ExportHook.attach`."""

    def __init__(self, parallel_state: Any, **more: str) -> None:
        """more: an axis beside data, tensor and pipeline → its group's part of the names, as cp="context_parallel"."""
        groups = {"dp": "data_parallel", **more, "tp": "tensor_model_parallel", "pp": "pipeline_model_parallel"}
        self.mesh_dim_names = tuple(groups)
        self._parallel_state, self._groups = parallel_state, tuple(groups.values())

    def get_coordinate(self) -> list[int]:
        return [int(getattr(self._parallel_state, f"get_{group}_rank")()) for group in self._groups]

    def size(self, axis: int) -> int:
        return int(getattr(self._parallel_state, f"get_{self._groups[axis]}_world_size")())


class MegatronIterations:
    """Attaches a hook and ends its steps. `hook`: the ExportHook, from the first training on."""

    def __init__(
        self,
        run_dir: Path | str,
        get_args: Callable[[], Any],
        *,
        tokens: str,
        mesh: Any,
        options: dict[str, Any],
        saves: str,
        reruns: bool = True,
        columns: Callable[[int], Columns] = lambda _: None,
    ) -> None:
        """tokens: the key of the token ids in micro-batches. mesh, options: as of `ExportHook.attach`. saves: the module in
        which the trainer looks `save_checkpoint` up.

        reruns: whether samples that are fetched again in one iteration are a rerun, rather than trained on twice. columns:
        which tokens of a row, of as many as are given, the forward of the writer rank gets.
        """
        self.hook: ExportHook | None = None
        self.documents: DocumentResolver | None = None
        self.listens_to: nn.Module | None = (
            None  # the part of the model that gets the tokens, where it is not all of it
        )
        self._run_dir, self._get_args, self._mesh, self._options = run_dir, get_args, mesh, options
        self._tokens, self._saves, self._reruns, self._columns = tokens, saves, reruns, columns
        self._step = 0
        self._seen: set[tuple[int, ...]] = set()
        self._num_new = 0

    def attach_when_training(self, model: Any, options: Callable[[Any], dict[str, Any]]) -> None:
        """Attach once `model` is put into training mode. options: further ones, from Megatron's arguments then."""
        train = model.train

        @functools.wraps(train)
        def attached(mode: bool = True) -> Any:
            if mode and self.hook is None:
                self.attach(model, options(self._get_args()))
                register_optimizer_step_post_hook(lambda *_: self.end_step())
            return train(mode)

        model.train = attached

    def attach(self, model: nn.Module, options: dict[str, Any]) -> None:
        """Claim an attempt. Collective. Steps are then over at `end_step`. model: whose forward gets the tokens."""
        _before_saves(self._saves, self._saved_next)
        resume = _resume_state(self._get_args())
        self.hook = ExportHook.attach(
            model, self._run_dir, resume=resume, mesh=self._mesh, documents=self.documents,
            **{**options, **self._options},
        )  # fmt: skip
        self.hook.listen(self.listens_to or model, counting=True)

    def tagging(self, data_iterator: Any) -> Any:
        """What a forward step fetches from, or None on a rank that fetches nothing."""
        return None if data_iterator is None else tagged(data_iterator, self.tag)

    def tag(self, batch: Any) -> Any:
        """A micro-batch that was fetched, as the trainer shall see it."""
        hook = self._at_step()
        if "sample_index" not in batch:
            raise InputError(
                f"expected micro-batches that say their sample_index, found {', '.join(batch)}; let the loader read the "
                "dataset of export.datasets(provider), or of export.indexed(dataset)"
            )
        samples = tuple(batch["sample_index"].tolist())
        if self._reruns and samples in self._seen:
            return {key: value for key, value in batch.items() if key != "sample_index"}
        self._seen.add(samples)
        self._num_new += 1
        return hook.tag(batch, self._tokens, columns=self._columns(batch[self._tokens].shape[-1]))

    def consume(self) -> None:
        """What was fetched since the last call has been trained on."""
        hook = self._at_step()
        hook.consume(self._num_new)
        self._num_new = 0

    def end_step(self, status: StepStatus = StepStatus.APPLIED, metrics: Mapping[str, float] | None = None) -> None:
        """The iteration under way is over, if it is not yet. status, metrics: as of `ExportHook.commit`."""
        hook = self.hook
        if hook is None or hook.committed_step >= self._step:  # closed, or the next of several optimizers
            return
        hook.commit(self._step, status=status, metrics=metrics)

    def close(self) -> None:
        """Seal the export; otherwise that happens when the process ends."""
        if self.hook:
            self.hook.close()
            self.hook = None

    def _at_step(self) -> ExportHook:
        """The hook, in the step that Megatron's counter says."""
        hook = self.hook
        if hook is None:
            raise InputError("expected the model of export.model(model_provider), found another; give that to pretrain")
        step = self._get_args().curr_iteration + 1
        if step != self._step:
            self._end_steps(hook, step - 1)
            self._step = step
            self._seen.clear()
        return hook

    def _end_steps(self, hook: ExportHook, last: int) -> None:
        """The steps up to `last` are over: what no optimizer has ended was skipped."""
        if hook.committed_step < self._step <= last:
            hook.commit(self._step, status=StepStatus.SKIPPED_UPDATE)
        while hook.committed_step < last:
            hook.commit(hook.committed_step + 1, status=StepStatus.SKIPPED_DATA)

    def _saved_next(self, iteration: int | None) -> None:
        """A model checkpoint of the steps up to `iteration` comes, or up to that of Megatron's arguments. Collective."""
        hook, args = self.hook, self._get_args()
        if hook is None:  # no training, or closed
            return
        step = args.iteration if iteration is None else iteration
        self._end_steps(hook, step)
        hook.checkpoint_barrier(step)
        if args.save and hook.rank.is_writer and hook.rank.dp_rank == 0:
            path = _state_path(args.save, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**hook.state_dict(), "global_step": step}), encoding="utf-8")


def _before_saves(module: str, then: Callable[[int | None], None]) -> None:
    """Have `then` called with the iteration, if there is one, before each `save_checkpoint`, wherever that was imported."""
    save = getattr(sys.modules.get(module), "save_checkpoint", None)
    if save is None:
        raise InputError(
            f"expected a trainer that writes model checkpoints by save_checkpoint of {module}, found none there; this "
            "adapter knows no other, and could not make the export durable before them"
        )
    signature = inspect.signature(save)

    @functools.wraps(save)
    def durable_first(*given: Any, **more: Any) -> Any:
        then(signature.bind(*given, **more).arguments.get("iteration"))
        return save(*given, **more)

    for each in list(sys.modules.values()):
        if getattr(each, "__dict__", {}).get("save_checkpoint") is save:
            each.save_checkpoint = durable_first  # type: ignore[attr-defined]


def _state_path(directory: str, step: int) -> Path:
    return Path(directory) / "kiseki_export" / f"iter_{step:07d}.json"


def _resume_state(args: Any) -> dict[str, object] | None:
    if not args.iteration:
        return None
    path = _state_path(args.load, args.iteration)
    if not path.is_file():
        raise InputError(
            f"expected {path}, written before the model checkpoint of iteration {args.iteration}; found none. Load a "
            "checkpoint that was trained with the export, or start from iteration 0"
        )
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found
