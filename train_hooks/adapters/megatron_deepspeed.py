"""Megatron-DeepSpeed, by what `pretrain` is given.

    export = MegatronDeepSpeedExport(run_dir, get_args, config={…})
    pretrain(export.datasets(train_valid_test_datasets_provider), export.model(model_provider),
             ModelType.encoder_or_decoder, export.forward_step(forward_step),
             data_post_process=export.data_post_process(data_post_process), …)

The training dataset's items say their index, which goes through the sampler, loader and collate function into the
micro-batch. Rows are `text`: sequence length + 1 tokens, of which the model is fed the first, and compared with the last.

Two ways lead to the model. Without DeepSpeed's pipeline (`--no-pipeline-parallel`) a forward step in training mode fetches
the micro-batch. With it, the pipeline engine fetches, and gives it to the function in the model's `_megatron_batch_fn`,
which `training.py` passes on to `PipelineEngine.set_batch_fn`; first and last stage both fetch. The writer is tensor,
sequence (Ulysses) and pipeline rank 0. `megatron_iterations` has the rules of steps, skips and model checkpoints.

Curricula of sequence length cut the rows, and what is left of them is recorded. Those of DeepSpeed's data efficiency do it in
`data_post_process`, as the loader gives the micro-batch: `cut_samples` says where each row comes from. The older one does it
in the model, which the engine tells the length with each forward, or, under the pipeline engine, in the function above, which
knows it from Megatron's arguments.

Rows are matched `slice`: the forward of the first stage gets all but the last token of each row. Where parts of rows are
spread over ranks, by Ulysses or `--sequence-parallel`, it gets the first of as many parts as there are ranks. What a
curriculum cuts in the model is compared inside it, where it is cut. FPDT, which gives chunks in another order, is matched
`count`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core import package_info, parallel_state

from train_hooks.adapters.cut_samples import cut_with_places
from train_hooks.adapters.megatron_iterations import MegatronIterations, MegatronLayout, with_train_set
from train_hooks.adapters.versions import require_version
from train_hooks.documents.in_batches import Indexed
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.documents.megatron_deepspeed import as_megatron
from train_hooks.export_format.errors import InputError
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tagged_loader import tagged
from train_hooks.hook.tensors.batches import without_metadata
from train_hooks.hook.tensors.snapshots import Columns

__all__ = ["MegatronDeepSpeedExport"]

_KNOWN_CORE = "0.2.0"  # the megatron.core in its tree; the repository has no other version


class MegatronDeepSpeedExport:
    """Exports what `pretrain` consumes."""

    def __init__(
        self, run_dir: Path | str, get_args: Callable[[], Any], *, unnamed_ok: bool = False, **options: Any
    ) -> None:
        """get_args: Megatron's. unnamed_ok: as of `MegatronDocuments`. options: as of `ExportHook.attach`; sequence_length
        and vocab_size are Megatron's by default.

        Raises InputError for a version of deepspeed or Megatron-DeepSpeed that is not known.
        """
        require_version("deepspeed", "0.17", "0.20")
        found = package_info.__version__
        if found != _KNOWN_CORE or not hasattr(parallel_state, "get_sequence_data_parallel_group"):
            raise InputError(
                f"expected Megatron-DeepSpeed with megatron.core {_KNOWN_CORE} on the Python path, found megatron.core {found}"
                "; this adapter knows only that: check out Megatron-DeepSpeed, or use the adapter for Megatron-LM"
            )
        layout = MegatronLayout(parallel_state, sp="sequence_parallel")
        self._iterations = MegatronIterations(
            run_dir, get_args, tokens="text", mesh=layout, options=options, saves="megatron.training", reruns=False,
            columns=self._columns,
        )  # fmt: skip
        self._unnamed_ok, self._get_args = unnamed_ok, get_args
        self._model: Any = None
        self._knows_cuts = False
        self._to_be_cut: Any = None

    @property
    def hook(self) -> ExportHook | None:
        """The ExportHook, once training has begun."""
        return self._iterations.hook

    def model(self, provider: Callable[..., Any]) -> Callable[..., Any]:
        """A provider of models with which the export begins when they are first put into training mode."""

        @functools.wraps(provider)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._model = model = provider(*args, **kwargs)
            self._iterations.attach_when_training(model, self._options)
            if self._get_args().curriculum_learning_legacy:
                model.forward = self._forward(model.forward)
                if hasattr(model, "language_model"):
                    self._iterations.listens_to = model.language_model
            if hasattr(model, "_megatron_batch_fn"):
                model._megatron_batch_fn = self._batch_fn(model._megatron_batch_fn)
            return model

        return watched

    def datasets(self, provider: Callable[..., Any]) -> Callable[..., Any]:
        """A provider whose training dataset (BlendableDataset, GPTDataset) says the index of each sample."""
        return with_train_set(provider, self._indexed)

    def forward_step(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """A forward step whose micro-batches are remembered."""

        @functools.wraps(forward_step)
        def watched(data_iterator: Any, *args: Any, **kwargs: Any) -> Any:
            if not (self._model and self._model.training):  # the engine's own mode stays what it was
                return forward_step(data_iterator, *args, **kwargs)
            tagging = None if data_iterator is None else tagged(data_iterator, self._fetched)
            result = forward_step(tagging, *args, **kwargs)
            self._iterations.consume()
            return result

        return watched

    def data_post_process(self, post_process: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A `data_post_process` whose rows are remembered with the place in their sample that they were cut from."""
        self._knows_cuts = True

        @functools.wraps(post_process)
        def watched(data: Any, sampler_state: Any) -> Any:
            if not isinstance(data, dict) or "sample_index" not in data:
                return post_process(data, sampler_state)
            return cut_with_places(lambda batch: post_process(batch, sampler_state), data, "text")

        return watched

    def close(self) -> None:
        """Seal the export; otherwise that happens when the process ends."""
        self._iterations.close()

    def _indexed(self, train: Any) -> Indexed:
        self._iterations.documents = MegatronDocuments(as_megatron(train), unnamed_ok=self._unnamed_ok)
        return Indexed(train)

    def _columns(self, length: int) -> Columns:
        """Under the pipeline engine no rank is given a part of the rows. length: that of a sequence, and 1."""
        args = self._get_args()
        num_parts = parallel_state.get_sequence_parallel_world_size()
        if args.sequence_parallel:
            num_parts = parallel_state.get_tensor_model_parallel_world_size()
        if num_parts == 1 or hasattr(self._model, "_megatron_batch_fn"):
            return None
        return slice(0, (length - 1) // num_parts)

    def _batch_fn(self, batch_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What the pipeline engine calls with each micro-batch that it fetched; None where another tensor rank did."""

        @functools.wraps(batch_fn)
        def watched(data: Any) -> Any:
            if not self._model.training:
                return batch_fn(data)
            length = self._get_args().curriculum_seqlen if self._get_args().curriculum_learning_legacy else None
            result = batch_fn(None if data is None else self._remembered(data, length))
            self._iterations.consume()
            return result

        return watched

    def _fetched(self, data: Any) -> Any:
        """What a forward step fetched; the older curriculum cuts it in the model, where it is remembered then."""
        if not self._get_args().curriculum_learning_legacy:
            return self._iterations.tag(data)
        self._to_be_cut = data
        return without_metadata(data)

    def _forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The model's; DeepSpeed adds the length to what it is given, in a hook of its own."""

        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            data, self._to_be_cut = self._to_be_cut, None
            if data is not None:
                self._remembered(data, kwargs.get("curriculum_seqlen"))
            return forward(*args, **kwargs)

        return watched

    def _remembered(self, data: Any, length: int | None) -> Any:
        """The micro-batch for the trainer. length: of what the model gets of each row; None: all."""
        if length is None or length >= data["text"].shape[1] - 1:
            return self._iterations.tag(data)
        self._iterations.tag({**data, "text": data["text"][:, : length + 1].contiguous()})
        return without_metadata(data)

    def _options(self, args: Any) -> dict[str, Any]:
        if args.virtual_pipeline_model_parallel_size is not None:
            raise InputError(
                "expected no virtual pipeline stages, found them; this adapter knows one model chunk a rank"
            )
        metric = _metric_of_lengths(args)
        if metric and not self._knows_cuts:
            raise InputError(
                f"expected data_post_process=export.data_post_process(data_post_process) in pretrain(), since the curriculum "
                f"{metric} of the DeepSpeed configuration cuts the samples there; found none"
            )
        if args.curriculum_learning_legacy and args.no_pipeline_parallel and _cuts_parts_of_rows(args):
            raise InputError(
                "expected every rank to be given whole sequences under the curriculum curriculum_learning of the DeepSpeed "
                "configuration, found sequence parallelism, of which it cuts each rank's part; use "
                "data_efficiency's seqlen_truncate, or train without the export"
            )
        shorter = bool(metric or args.curriculum_learning_legacy)
        return {"sequence_length": args.seq_length + 1, "vocab_size": args.padded_vocab_size, "shorter_rows": shorter}


def _metric_of_lengths(args: Any) -> str | None:
    """The one by which DeepSpeed's loader cuts samples; it has one of two names."""
    if not args.data_efficiency_curriculum_learning:
        return None
    sampling = args.deepspeed_config_dict.get("data_efficiency", {}).get("data_sampling", {})
    metrics = sampling.get("curriculum_learning", {}).get("curriculum_metrics", {})
    return next((name for name in ("seqlen_truncate", "seqlen_reshape") if name in metrics), None)


def _cuts_parts_of_rows(args: Any) -> bool:
    return bool(args.sequence_parallel or args.ds_sequence_parallel_size > 1)
