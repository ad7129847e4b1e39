"""nanotron: the loaders that its `train` is given.

    trainer = DistributedTrainer(config_file)
    trainer.train(exported(trainer, get_dataloader(trainer), run_dir))

Rows are the dataset's samples: sequence length + 1 tokens, and their `positions` where it has them. The collator makes
inputs, labels, masks and position ids of them: for each pipeline stage what it wants, and for each context-parallel rank its
part. A micro-batch counts as consumed when `train` fetches it, which it does just before its forward; a step is over at
`post_train_step`, behind the optimizer's. The writer is tensor and context rank 0 of the stage that is fed. Its loader is
built again, with the sampler, collator and workers of the one given.

Rows are matched `slice`: the forward of the stage that is fed gets all but the last token of each, or, on the first of n
context-parallel ranks, the first of n parts of that.

`sample_index` counts through the run: what the data stages before had consumed, and the index into the stage's dataset.
The export's state stands in each checkpoint, written before the rest of it.
"""

import json
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nanotron import distributed
from nanotron.serialize.metadata import DataStageMetadata
from torch.utils.data import DataLoader

from train_hooks.documents import DocumentResolver
from train_hooks.documents.boundaries import BoundaryDocuments
from train_hooks.documents.datatrove import DatatroveDocuments
from train_hooks.documents.in_batches import Indexed
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment
from train_hooks.hook.collectives import on_first_rank
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tagged_loader import tagged
from train_hooks.hook.tensors.snapshots import Columns

__all__ = ["exported"]

_STATE_FILE = "kiseki_export.json"
_ROWS = "kiseki_rows"  # beside what the collator made, between a worker and `train`
_PASSED_ON = (
    "batch_sampler", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
    "prefetch_factor", "persistent_workers", "pin_memory_device",
)  # fmt: skip


def exported(
    trainer: Any,
    loaders: Mapping[str, Any],
    run_dir: Path | str,
    *,
    documents: DocumentResolver | None = None,
    unnamed_ok: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """`loaders` (stage → DataLoader, or a function that gives one) to be given to `trainer.train`. Collective.

    documents, unnamed_ok: of the stages' datasets; by default `DatatroveDocuments`, which `unnamed_ok` is of, and for datasets
    that hide what they pack `BoundaryDocuments`, with a warning. options: as of `ExportHook.attach`; sequence_length,
    vocab_size and config are nanotron's by default. Raises InputError for another nanotron, and for other loaders.
    """
    _require_known()
    if not isinstance(loaders, Mapping):
        raise InputError(
            f"expected loaders by data stage, as get_dataloader gives them, found {type(loaders).__name__}"
        )
    for loader in loaders.values():
        _require_map_style(loader)
    export = _Export(trainer, run_dir, documents, options, unnamed_ok=unnamed_ok)
    return {stage: export.watched(loader) for stage, loader in loaders.items()}


def _require_known() -> None:
    """It has had version 0.4 since March 2024."""
    if "sequence_length" not in {field.name for field in fields(DataStageMetadata)}:
        raise InputError(
            "expected nanotron of 2025 or later, whose data stages know their sequence length, found an older one; this "
            "adapter knows only those: pip install git+https://github.com/huggingface/nanotron"
        )


def _require_map_style(loader: Any) -> None:
    if not callable(loader) and (type(loader) is not DataLoader or loader.batch_sampler is None):
        raise InputError(
            "expected a torch DataLoader over a map-style dataset, or a function that gives one, found "
            f"{type(loader).__name__}; dummy data and other loaders are not known: train without the export"
        )


class _Export:
    """The hook, at the places that `DistributedTrainer` has for what is to happen before and after a step."""

    def __init__(
        self,
        trainer: Any,
        run_dir: Path | str,
        documents: DocumentResolver | None,
        options: dict[str, Any],
        *,
        unnamed_ok: bool,
    ) -> None:
        self._trainer, self._documents, self._unnamed_ok = trainer, documents, unnamed_ok
        self._stages = _Stages()
        known = {
            "sequence_length": trainer.sequence_length + 1, "vocab_size": trainer.model_config.vocab_size,
            "config": {"nanotron": trainer.config.as_dict()},
        }  # fmt: skip
        resume = on_first_rank(lambda: _resume_state(trainer))
        self._hook = ExportHook.attach(
            trainer.model, run_dir, resume=resume, mesh=_Layout(trainer), documents=self._stages, **{**known, **options}
        )
        self._hook.listen(trainer.unwrapped_model, counting=True)
        _behind(trainer, "post_train_step", lambda: self._hook.commit(trainer.iteration_step))
        _behind(trainer, "train_step_logs", self._record)
        _behind(trainer, "pre_save_checkpoint", self._save)
        _behind(trainer, "post_training", self._hook.close)

    def watched(self, loader: Any) -> Any:
        """A stage's loader, or a function that gives it, as `train` shall have it on this rank."""
        if not self._hook.rank.is_writer:
            return loader
        if callable(loader):
            return lambda: self.watched(loader())
        _require_map_style(loader)
        dataset: Any = Indexed(loader.dataset)
        settings = {name: getattr(loader, name) for name in _PASSED_ON}
        again: Any = DataLoader(dataset, collate_fn=_WithRows(loader.collate_fn), **settings)
        return tagged(again, partial(self._fetch, _Stage(self._resolver(loader.dataset))))

    def _fetch(self, stage: "_Stage", batch: dict[str, Any]) -> dict[str, Any]:
        if stage.start is None:
            before = self._trainer.metadata.data_stages[: self._trainer.metadata.last_stage_idx]
            stage.start = sum(each.consumed_train_samples for each in before)
            self._stages.begin(stage.start, stage.documents)
        rows = batch.pop(_ROWS)
        rows["sample_index"] = [stage.start + index for index in rows["sample_index"]]
        self._hook.tag(rows, columns=self._columns(rows["input_ids"].shape[1]))
        self._hook.consume()
        return batch

    def _columns(self, length: int) -> Columns:
        """length: that of a sequence, and 1."""
        num_parts = self._trainer.parallel_context.context_parallel_size
        return None if num_parts == 1 else slice(0, (length - 1) // num_parts)

    def _resolver(self, dataset: Any) -> DocumentResolver:
        if self._documents is not None:
            return self._documents
        if any(hasattr(dataset, name) for name in ("dataset_index", "files", "token_size")):
            return DatatroveDocuments(dataset, unnamed_ok=self._unnamed_ok)
        eos = self._trainer.model_config.eos_token_id
        warnings.warn(
            f"{type(dataset).__name__} hides what it packs: documents are told apart by token {eos} (the model's "
            "eos_token_id), identity unknown; exported(documents=…) names them, or another token",
            stacklevel=4,
        )
        return BoundaryDocuments(eos=eos)

    def _record(self, outputs: Any, loss_avg: Any, *_: Any, **__: Any) -> None:
        trainer = self._trainer
        metrics = {"loss": loss_avg, "grad_norm": getattr(trainer, "grad_norm_unclipped", None)}
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        self._hook.record(trainer.iteration_step, {**values, "lr": trainer.lr_scheduler.get_last_lr()[0]})

    def _save(self) -> None:
        hook, trainer = self._hook, self._trainer
        hook.checkpoint_barrier(hook.committed_step)
        if hook.rank.is_writer and hook.rank.dp_rank == 0:
            directory = Path(trainer.config.checkpoints.checkpoints_path, str(trainer.iteration_step))
            directory.mkdir(parents=True, exist_ok=True)
            (directory / _STATE_FILE).write_text(json.dumps(hook.state_dict()), encoding="utf-8")


class _WithRows:
    """The collator given, on samples that say their index; what it made, with the samples themselves."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        indices = [sample.pop("sample_index") for sample in samples]
        rows: dict[str, Any] = {
            name: torch.from_numpy(np.stack([np.asarray(sample[name]) for sample in samples]))
            for name in ("input_ids", "positions")
            if name in samples[0]
        }
        return {**self._collate(list(samples)), _ROWS: {**rows, "sample_index": indices}}


class _Stage:
    """start: how many samples the run had consumed when it began, once that is known."""

    def __init__(self, documents: DocumentResolver) -> None:
        self.start: int | None = None
        self.documents = documents


class _Stages:
    """A DocumentResolver: that of the stage which a sample belongs to."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._documents: list[DocumentResolver] = []

    def begin(self, start: int, documents: DocumentResolver) -> None:
        self._documents.append(documents)
        self._starts.append(start)

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        number = bisect_right(self._starts, sample_index) - 1
        return self._documents[number].segments(sample_index - self._starts[number], tokens)


def _behind(trainer: Any, name: str, then: Callable[..., None]) -> None:
    """Do something after a method of the trainer given, with its arguments."""
    method = getattr(trainer, name)

    @wraps(method)
    def both(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        then(*args, **kwargs)
        return result

    setattr(trainer, name, both)


def _resume_state(trainer: Any) -> dict[str, object] | None:
    if not trainer.metadata.last_train_step:
        return None
    path = Path(trainer.init_checkpoint_path, _STATE_FILE)
    if not path.is_file():
        raise InputError(
            f"expected {path}, found none; load a checkpoint that was trained with the export, or start from step 0"
        )
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


class _Layout:
    """nanotron's groups as a mesh. The pipeline stage that is fed comes first, whichever it is."""

    mesh_dim_names = ("dp", "cp", "tp", "pp")

    def __init__(self, trainer: Any) -> None:
        groups = trainer.parallel_context
        self._groups = (groups.dp_pg, groups.cp_pg, groups.tp_pg, groups.pp_pg)
        self._fed_stage = trainer.unwrapped_model.input_pp_rank

    def get_coordinate(self) -> list[int]:
        *others, stage = (distributed.get_rank(group) for group in self._groups)
        return [*others, (stage - self._fed_stage) % self._groups[-1].size()]

    def size(self, axis: int) -> int:
        return int(self._groups[axis].size())
