"""llm-recipes (llama_recipes), continual pretraining: its loader, given to its `train`.

    train_dataloader = build_pretraining_data_loader(dataset=Indexed(train_dataset), consumed_samples=…)
    train(model=model, train_dataloader=exported(model, train_dataloader, run_dir, args, config={…}), …)

`train` has no callbacks. A micro-batch counts as consumed when the loop fetches it, which it does just before its forward;
of `gradient_accumulation_steps` of them is an iteration. `megatron_iterations` has the rules of steps, skips and model
checkpoints. Every rank has its own data. Rows are `input_ids` and `labels`, which are equal: the model shifts them. They are
matched `whole`: the forward of the wrapped model gets both as they were fetched. Two samples that follow one another in the
data share a token.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_recipes.utils.train_utils import train

from train_hooks.adapters.megatron_iterations import MegatronIterations
from train_hooks.documents.in_batches import Indexed
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.documents.megatron_deepspeed import Blend, IndexedSamples
from train_hooks.export_format.errors import InputError

__all__ = ["ExportedLoader", "exported"]

_KNOWN_TRAIN = (
    "model", "train_dataloader", "eval_dataloader", "optimizer", "lr_scheduler", "gradient_accumulation_steps",
    "local_rank", "rank", "dpo_loss_fn", "reference_model",
)  # fmt: skip


class ExportedLoader:
    """The loader given, watched. `close` seals the export; otherwise that happens when the process ends."""

    def __init__(self, loader: Any, iterations: MegatronIterations, counted: "_Counted") -> None:
        self._loader, self._iterations, self._counted = loader, iterations, counted
        self.close = iterations.close

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            given = self._iterations.tag(batch)
            self._iterations.consume()
            self._counted.num_fetched += 1
            yield given

    @property
    def hook(self) -> Any:
        """The ExportHook, once training has begun."""
        return self._iterations.hook


class _Counted:
    """llm-recipes' arguments, with the iteration that the next micro-batch belongs to."""

    def __init__(self, args: Any) -> None:
        self._args = args
        self.num_fetched = 0

    @property
    def curr_iteration(self) -> int:
        """From 0."""
        return int(self._args.iteration) + self.num_fetched // int(self._args.gradient_accumulation_steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name)


def exported(
    model: Any, loader: Any, run_dir: Path | str, args: Any, *, unnamed_ok: bool = False, **options: Any
) -> ExportedLoader:
    """The loader of an Indexed dataset, whose micro-batches are exported from the first `model.train()` on.

    model: what `train` calls, wrapped in FSDP. args: llm-recipes'. unnamed_ok: as of `MegatronDocuments`. options: as of
    `ExportHook.attach`, with vocab_size. Raises InputError for another version of llm-recipes, another loader, and other
    training than continual pretraining.
    """
    found = tuple(inspect.signature(train).parameters)
    if found != _KNOWN_TRAIN:
        raise InputError(
            f"expected llm-recipes whose train takes {', '.join(_KNOWN_TRAIN)} (v1.0.1), found {', '.join(found)}; this "
            "adapter knows only that"
        )
    if args.instruction_tuning or args.direct_preference_optimization:
        raise InputError("expected continual pretraining, found instruction tuning or DPO, whose loaders are not known")
    if not isinstance(loader.dataset, Indexed):
        raise InputError(
            "expected a loader of sample indices, found another; "
            "build_pretraining_data_loader(dataset=Indexed(train_dataset), …)"
        )
    counted = _Counted(args)
    iterations = MegatronIterations(
        run_dir, lambda: counted, tokens="input_ids", mesh=None, options=options, saves=train.__module__, reruns=False
    )
    iterations.documents = MegatronDocuments(_as_megatron(loader.dataset), unnamed_ok=unnamed_ok)
    iterations.attach_when_training(model, lambda _: {"sequence_length": args.seq_length})
    return ExportedLoader(loader, iterations, counted)


def _as_megatron(dataset: Any) -> Blend | IndexedSamples:
    """The vendored BlendedDataset or GPTDataset under megatron.core's names of today."""
    if hasattr(dataset, "datasets"):
        return Blend(
            datasets=[_samples(each) for each in dataset.datasets],
            dataset_index=dataset.dataset_index,
            dataset_sample_index=dataset.dataset_sample_index,
        )
    return _samples(dataset)


def _samples(dataset: Any) -> IndexedSamples:
    return IndexedSamples(
        document_index=dataset.document_index,
        sample_index=dataset.sample_index,
        shuffle_index=dataset.shuffle_index,
        dataset=dataset.indexed_dataset,
    )
