"""torchtitan: a dataloader in place of its own.

    config.dataloader = ExportedTextDataLoader.Config(dataset="c4", run_dir=…, vocab_size=V)

torchtitan's training step fetches all its micro-batches first and trains on each; so what was fetched since the last step
is the step's, and a step is over when an optimizer steps. Rows are matched `whole`: the loader finds the Trainer that has it,
and the forward of its first model part gets the tokens as they were fetched. In a loop of one's own `listen` says which
model that is; without it, and where a forward gets parts of rows (context parallelism) or is replayed from a CUDA graph, rows
are matched `count`. The loader is built on every rank; of the ranks that are fed the
same data (one dp_rank) the first writes. Its state is in torchtitan's checkpoints; there it waits for the export, and
carries its state.
"""

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.trainer import Trainer

from train_hooks.adapters.versions import require_version
from train_hooks.hook.hook import ExportHook
from train_hooks.hook.tagged_loader import tagged

__all__ = ["ExportedTextDataLoader"]

_STATE_KEY = "kiseki_export"


class ExportedTextDataLoader(HuggingFaceTextDataLoader):
    """HuggingFaceTextDataLoader that exports what is trained on. `hook`: the ExportHook, from the first iteration on."""

    @dataclass(kw_only=True, slots=True)
    class Config(HuggingFaceTextDataLoader.Config):
        """run_dir, vocab_size, tokenizer_file: as of `ExportHook.attach`."""

        run_dir: str
        vocab_size: int
        tokenizer_file: str | None = None

    def __init__(self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, **others: Any) -> None:
        """Raises InputError for a version of torchtitan that is not known."""
        require_version("torchtitan", "0.3", "0.4")
        super().__init__(config, dp_world_size=dp_world_size, dp_rank=dp_rank, seq_len=seq_len, **others)
        self.hook: ExportHook | None = None
        self._config, self._seq_len = config, seq_len
        self._resume: dict[str, Any] | None = None
        self._num_fetched = 0
        self._model: nn.Module | None = None

    def listen(self, model: nn.Module) -> None:
        """Whose forward gets the tokens, in a loop that is not torchtitan's Trainer. Call it before the first iteration."""
        self._model = model

    def __iter__(self) -> Iterator[Any]:
        if self.hook is None:
            self.hook = ExportHook.attach(
                nn.Module(), self._config.run_dir, sequence_length=self._seq_len, vocab_size=self._config.vocab_size,
                tokenizer=self._config.tokenizer_file, config={"dataloader": self._config.to_dict()},
                resume=self._resume, mesh=_SharedData(self.dp_rank, self.dp_world_size),
            )  # fmt: skip
            self.hook.listen(self._model or self._model_of_trainer(), counting=True)
            register_optimizer_step_post_hook(self._after_optimizer)
        return tagged(super().__iter__(), self._fetch)

    def state_dict(self) -> dict[str, Any]:
        """Of the loader and of the export, once all that is committed is durable."""
        state = super().state_dict()
        export = self._resume
        if self.hook is not None:
            self.hook.checkpoint_barrier(self.hook.committed_step)
            export = self.hook.state_dict()
        return {**state, _STATE_KEY: json.dumps(export)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where the loader was, and which attempt wrote the checkpoint."""
        if state_dict:
            self._resume = json.loads(state_dict[_STATE_KEY])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != _STATE_KEY})

    def _model_of_trainer(self) -> nn.Module | None:
        """The first part of the model of the Trainer that reads this loader."""
        trainers = [found for found in gc.get_objects() if issubclass(type(found), Trainer)]
        models: list[nn.Module] = [trainer.model_parts[0] for trainer in trainers if trainer.dataloader is self]
        return models[0] if models else None

    def _fetch(self, batch: Any) -> Any:
        assert self.hook is not None
        batch = self.hook.tag(batch, "0.input")
        self.hook.consume()
        self._num_fetched += 1
        return batch

    def _after_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.hook is not None and self._num_fetched:  # none: the next of several optimizers
            self._num_fetched = 0
            self.hook.commit(self.hook.committed_step + 1)


class _SharedData:
    """As a mesh: which data, and the how manieth rank of those that are fed it."""

    mesh_dim_names = ("dp", "model")

    def __init__(self, dp_rank: int, dp_world_size: int) -> None:
        ranks, here = [dp_rank], 0
        if dist.is_initialized():
            ranks = [dp_rank] * dist.get_world_size()
            dist.all_gather_object(ranks, dp_rank)
            here = dist.get_rank()
        self._coordinate = [dp_rank, ranks[:here].count(dp_rank)]
        self._sizes = (dp_world_size, ranks.count(dp_rank))

    def get_coordinate(self) -> list[int]:
        return self._coordinate

    def size(self, axis: int) -> int:
        return self._sizes[axis]
