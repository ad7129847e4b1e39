"""Megatron-Bridge (NeMo's trainer of language models since NeMo 3), by what `pretrain` is given.

    export = MegatronBridgeExport(run_dir, config)
    pretrain(config, export.forward_step(forward_step), callbacks=[export])

The training dataset's items say their index, which goes through sampler, loader and collate function into the micro-batch,
and is taken out before `get_batch` sees it. To that end the provider of datasets for `config.dataset` is wrapped, in Bridge's
registry of them, or where `config.dataset` builds its own. A micro-batch counts as consumed when a forward step in training
mode has fetched it, before it is cut for context parallelism; the writer is tensor, context and pipeline rank 0. A step is
over at `on_train_step_end`, which says whether it was skipped. `megatron_iterations` has the rules of skips and model
checkpoints.

Rows are matched `whole`: the forward of the model on the first pipeline stage gets the tokens as they were fetched. Under
context parallelism they are matched `slice`: it gets the first and the last of 2n parts of each row. Packed sequences,
where it gets something else, are matched `count`.

Documents come from the dataset's own indices, on the writer thread (`train_hooks.documents.megatron`).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.bridge.data import utils as providers
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.utils.pg_utils import get_pg_collection
from torch import nn

from train_hooks.adapters.megatron_iterations import MegatronIterations, context_parallel_columns, with_train_set
from train_hooks.adapters.versions import require_version
from train_hooks.documents.in_batches import Indexed
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook

__all__ = ["MegatronBridgeExport"]


class MegatronBridgeExport(Callback):
    """Exports what `pretrain` consumes; one of its callbacks."""

    def __init__(self, run_dir: Path | str, config: Any, *, unnamed_ok: bool = False, **options: Any) -> None:
        """config: Bridge's ConfigContainer, with its dataset. unnamed_ok: as of `MegatronDocuments`. options: as of
        `ExportHook.attach`; sequence_length, vocab_size and config are Bridge's by default.

        Raises InputError for a version of Megatron-Bridge that is not known.
        """
        require_version("megatron-bridge", "0.6", "0.7")
        self._run_dir, self._unnamed_ok, self._options = run_dir, unnamed_ok, options
        self._documents: Any = None
        self._iterations: MegatronIterations | None = None
        self._index(config.dataset)

    @property
    def hook(self) -> ExportHook | None:
        """The ExportHook, once training has begun."""
        return self._iterations.hook if self._iterations else None

    def forward_step(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """A forward step whose micro-batches are remembered; of any signature that Bridge takes."""

        @functools.wraps(forward_step)  # the signature is looked at
        def watched(*given: Any, **more: Any) -> Any:
            place = next(number for number, each in enumerate(given) if isinstance(each, nn.Module))
            if self._iterations is None or not given[place].training:
                return forward_step(*given, **more)
            *before, data_iterator = given[:place]
            result = forward_step(*before, self._iterations.tagging(data_iterator), *given[place:], **more)
            self._iterations.consume()
            return result

        return watched

    def on_train_start(self, context: CallbackContext) -> None:
        """The export begins. Collective."""
        settings = context.state.cfg
        if len(context.model) > 1:
            raise InputError(
                "expected no virtual pipeline stages, found them; this adapter knows one model chunk a rank"
            )
        groups = get_pg_collection(context.model)
        known = {
            "sequence_length": settings.model.seq_length, "vocab_size": settings.model.vocab_size,
            "config": {"megatron-bridge": settings.to_dict()},
        }  # fmt: skip
        self._iterations = MegatronIterations(
            self._run_dir, functools.partial(_Arguments, context.state), tokens="tokens", mesh=_Layout(groups),
            options=self._options, saves="megatron.bridge.training.checkpointing",
            columns=lambda length: context_parallel_columns(length, groups.cp.size()),
        )  # fmt: skip
        self._iterations.documents = self._documents
        self._iterations.attach(context.model[0], known)

    def on_train_step_end(self, context: CallbackContext) -> None:
        """A step is over; the trainer's counter goes up later."""
        assert self._iterations is not None
        step, every = context.state.train_state.step + 1, context.state.cfg.logger.log_interval
        metrics = {}
        if step % every == 0 and context.loss_dict:  # as it is logged, since it is waited for
            metrics["loss"] = float(next(iter(context.loss_dict.values())))
        status = StepStatus.SKIPPED_UPDATE if context.skipped_iter else StepStatus.APPLIED
        self._iterations.end_step(status, metrics)

    def on_train_end(self, context: CallbackContext) -> None:
        """Seal the export; otherwise that happens when the process ends."""
        if self._iterations is not None:
            self._iterations.close()

    def _index(self, dataset: Any) -> None:
        """Wrap what builds the datasets of a configuration."""
        if hasattr(dataset, "build_datasets"):
            dataset.build_datasets = with_train_set(dataset.build_datasets, self._indexed)
            return
        provider = providers.get_dataset_provider(dataset)
        for kind, known in providers._REGISTRY.items():
            if known is provider:
                providers._REGISTRY[kind] = with_train_set(provider, self._indexed)

    def _indexed(self, train: Any) -> Indexed:
        if hasattr(train, "collate_fn"):
            raise InputError(
                f"expected a dataset for pre-training, found {type(train).__name__} with a collate function of its own; this "
                "adapter knows no fine-tuning"
            )
        self._documents = MegatronDocuments(train, unnamed_ok=self._unnamed_ok)
        return Indexed(train)


class _Arguments:
    """What `megatron_iterations` asks Megatron's arguments for."""

    def __init__(self, state: Any) -> None:
        self.curr_iteration = self.iteration = int(state.train_state.step)
        self.load, self.save = state.cfg.checkpoint.load, state.cfg.checkpoint.save


class _Layout:
    """Bridge's groups as a mesh."""

    mesh_dim_names = ("dp", "cp", "tp", "pp")

    def __init__(self, groups: Any) -> None:
        self._groups = (groups.dp, groups.cp, groups.tp, groups.pp)

    def get_coordinate(self) -> list[int]:
        return [group.rank() for group in self._groups]

    def size(self, axis: int) -> int:
        return int(self._groups[axis].size())
