"""Megatron-LM and its forks, by what `pretrain` is given.

    export = MegatronExport(run_dir, get_args, config={…})
    pretrain(export.datasets(train_valid_test_datasets_provider), export.model(model_provider),
             ModelType.encoder_or_decoder, export.forward_step(forward_step), …)

With `--dataloader-type external`, the provider returns micro-batches of `export.indexed(train_dataset)`, and is given to
`pretrain` as it is.

The training dataset's items say their index, which goes through Megatron's sampler, loader and collate function into the
micro-batch, and is taken out before `get_batch` sees it. A micro-batch counts as consumed when a forward step in training
mode has fetched it, on the writer rank (tensor, context and pipeline rank 0). `megatron_iterations` has the rules of steps,
skips and model checkpoints.

Rows are matched `whole`: the forward of the provider's model, on the first pipeline stage, gets the tokens as they were
fetched. Under context parallelism they are matched `slice`: it gets the first and the last of 2n parts of each row. Packed
sequences and hybrid context parallelism, where it gets something else, are matched `count`.

Documents come from the dataset's own indices, on the writer thread (`train_hooks.documents.megatron`).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core import package_info, parallel_state

from train_hooks.adapters.megatron_iterations import (
    MegatronIterations,
    MegatronLayout,
    context_parallel_columns,
    with_train_set,
)
from train_hooks.adapters.versions import require_version
from train_hooks.documents.in_batches import Indexed
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.export_format.errors import InputError
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tensors.snapshots import Columns

__all__ = ["MegatronExport"]


class MegatronExport:
    """Exports what `pretrain` consumes."""

    def __init__(
        self, run_dir: Path | str, get_args: Callable[[], Any], *, unnamed_ok: bool = False, **options: Any
    ) -> None:
        """get_args: Megatron's. unnamed_ok: as of `MegatronDocuments`. options: as of `ExportHook.attach`; sequence_length
        and vocab_size are Megatron's by default.

        Raises InputError for a version of megatron-core that is not known.
        """
        found = package_info.__version__
        if not found.startswith("0.12."):  # that of LLM-jp's fork
            require_version("megatron-core", "0.16", "0.17", found=found)
        layout = MegatronLayout(parallel_state, cp="context_parallel")
        self._iterations = MegatronIterations(
            run_dir, get_args, tokens="tokens", mesh=layout, options=options, saves="megatron.training.training",
            columns=_columns,
        )  # fmt: skip
        self._unnamed_ok = unnamed_ok

    @property
    def hook(self) -> ExportHook | None:
        """The ExportHook, once training has begun."""
        return self._iterations.hook

    def model(self, provider: Callable[..., Any]) -> Callable[..., Any]:
        """A provider of models with which the export begins when they are first put into training mode."""

        @functools.wraps(provider)
        def watched(*args: Any, **kwargs: Any) -> Any:
            model = provider(*args, **kwargs)
            self._iterations.attach_when_training(model, _options)
            return model

        return watched

    def datasets(self, provider: Callable[..., Any]) -> Callable[..., Any]:
        """A provider whose training dataset (BlendedDataset, GPTDataset) says the index of each sample."""
        return with_train_set(provider, self.indexed)

    def indexed(self, train: Any) -> Indexed:
        """The training dataset (BlendedDataset, GPTDataset) for an external loader, whose samples say their index."""
        self._iterations.documents = MegatronDocuments(train, unnamed_ok=self._unnamed_ok)
        return Indexed(train)

    def forward_step(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """A forward step whose micro-batches are remembered."""

        @functools.wraps(forward_step)
        def watched(data_iterator: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            if not model.training:
                return forward_step(data_iterator, model, *args, **kwargs)
            result = forward_step(self._iterations.tagging(data_iterator), model, *args, **kwargs)
            self._iterations.consume()
            return result

        return watched

    def close(self) -> None:
        """Seal the export; otherwise that happens when the process ends."""
        self._iterations.close()


def _columns(length: int) -> Columns:
    return context_parallel_columns(length, parallel_state.get_context_parallel_world_size())


def _options(args: Any) -> dict[str, Any]:
    if (parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1) > 1:
        raise InputError("expected no virtual pipeline stages, found them; this adapter knows one model chunk a rank")
    return {"sequence_length": args.seq_length, "vocab_size": getattr(args, "padded_vocab_size", None)}
