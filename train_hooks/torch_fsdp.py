"""The hook for a torch training loop: FSDP2, FSDP1, DDP, or a single process.

    hook = ExportHook.attach(model, run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…}, resume=token)
    loader = hook.wrap(loader)                   # the same micro-batches, tagged as they are fetched
    loss = model(batch["input_ids"], …)          # staged here, by a pre-hook on the outermost callable
    hook.commit(step, metrics={"loss": …})       # after optimizer.step()
    hook.checkpoint_barrier(step)                # before a model checkpoint; put hook.state_dict() into it
    hook.close()

A micro-batch counts as consumed when the model's forward is called with it, in training mode and with gradients on.
Prefetched micro-batches that no forward sees, evaluation batches and mock forwards are not exported. On the CPU the
forward's tokens are compared with the tagged ones; for tensors on a device the order of fetching decides, so that
nothing waits for the device, and `cross_check_every` compares the bytes every so many steps.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from train_hooks.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.errors import ExportStopped, InputError, KisekiError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, RunInfo, StepStatus
from train_hooks.export_format.writer import RankWriter
from train_hooks.exporter import Exporter, ExporterOptions, StagedMicrobatch
from train_hooks.writer_rank import WriterRank, writer_rank

__all__ = ["ExportHook"]

_METADATA_KEYS = ("segments", "sample_index")


class ExportHook:
    """Exports what one process of a training job consumes. Make it with `attach`, on every rank."""

    def __init__(
        self, run: RunInfo, attempt: AttemptInfo, rank: WriterRank, exporter: Exporter | None, cross_check_every: int
    ) -> None:
        self.run, self.attempt, self.rank = run, attempt, rank
        self._exporter = exporter
        self._cross_check_every = cross_check_every
        self._pending: deque[StagedMicrobatch] = deque()
        self._tokens_key = "input_ids"
        self._handle: Any = None
        self._committed_step = attempt.resume_step

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        run_dir: Path | str,
        *,
        sequence_length: int,
        vocab_size: int,
        config: Mapping[str, object],
        tokenizer: Path | str | None = None,
        run_id: str | None = None,
        resume: Mapping[str, object] | None = None,
        mesh: Any = None,
        options: ExporterOptions | None = None,
        cross_check_every: int = 0,
    ) -> Self:
        """Claim an attempt of the run in `run_dir` and listen to `model`, the outermost callable. Collective.

        tokenizer: file that turns the tokens into text, copied into the export. resume: what `state_dict` returned when
        the model checkpoint was written, None for a start from step 0. mesh: DeviceMesh with named axes where ranks
        share data (tp, cp, pp); by default every rank has its own. Raises InputError or ExportStopped on every rank when
        one of them cannot start.
        """
        spec = RunSpec(
            sequence_length=sequence_length,
            vocab_size=vocab_size,
            run_id=run_id,
            tokenizer=None if tokenizer is None else Path(tokenizer),
            config=config,
        )
        rank = _rank_of(mesh)
        run, attempt = _on_first_rank(lambda: _claim(Path(run_dir), spec, rank.num_writers, resume))
        exporter = _on_every_rank(lambda: _exporter(Path(run_dir), run, attempt, rank, options))
        hook = cls(run, attempt, rank, exporter, cross_check_every)
        hook._handle = model.register_forward_pre_hook(hook._before_forward, with_kwargs=True)
        return hook

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def acknowledged_step(self) -> int:
        """The newest step whose rows are durable on this rank."""
        return self._committed_step if self._exporter is None else self._exporter.acknowledged_step

    def wrap(self, loader: Any, *, tokens: str = "input_ids") -> "TaggedLoader":
        """The training loader, tagged. Its micro-batches are dicts with integers [num_slots, sequence_length] at `tokens`.

        Further tensors whose first dimension is num_slots are exported as well (labels, masks, positions). The keys
        `segments` (a list of `Segment` for each slot) and `sample_index` (an integer for each slot) are the hook's own:
        they are taken out of what the loader yields.
        """
        self._tokens_key = tokens
        return TaggedLoader(loader, self)

    def commit(
        self,
        global_step: int,
        *,
        metrics: Mapping[str, float] | None = None,
        status: StepStatus | str = StepStatus.APPLIED,
    ) -> None:
        """End a step, after `optimizer.step()`. Returns at once; the rows become durable on the writer thread."""
        self._committed_step = global_step
        if self._exporter is not None:
            metrics_here = metrics if self.rank.dp_rank == 0 else None
            self._exporter.commit(global_step, status=StepStatus(status), metrics=metrics_here)

    def record(self, global_step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of an earlier step, for trainers that log every few steps."""
        if self._exporter is not None and self.rank.dp_rank == 0:
            self._exporter.record(global_step, metrics)

    def checkpoint_barrier(self, global_step: int, timeout_s: float | None = None) -> None:
        """Return once the rows of all steps ≤ global_step are durable on every writer rank. Collective."""
        _on_every_rank(lambda: self._barrier_here(global_step, timeout_s))

    def state_dict(self) -> dict[str, object]:
        """What a model checkpoint must carry, so that the next attempt knows where it comes from."""
        return {"run_id": self.run.run_id, "attempt": self.attempt.attempt, "global_step": self._committed_step}

    def close(self) -> None:
        """Write and seal what is committed; remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._exporter is not None:
            self._exporter.close()

    def _barrier_here(self, global_step: int, timeout_s: float | None) -> None:
        if self._exporter is not None:
            self._exporter.checkpoint_barrier(global_step, timeout_s)

    def _tag(self, batch: Any) -> Any:
        """Remember a fetched micro-batch; give back what the trainer shall see of it."""
        if not isinstance(batch, Mapping) or self._tokens_key not in batch:
            raise InputError(
                f"expected micro-batches that are dicts with {self._tokens_key!r}, found {type(batch).__name__}"
                f"{' with ' + ', '.join(map(str, batch)) if isinstance(batch, Mapping) else ''}; name the key of the "
                "token tensor: hook.wrap(loader, tokens=…)"
            )
        if self._exporter is not None:
            self._pending.append(_clone(batch, self._tokens_key))
        return {key: value for key, value in batch.items() if key not in _METADATA_KEYS}

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._exporter is None or not self._pending or not module.training or not torch.is_grad_enabled():
            return
        fed = _token_tensors([*args, *kwargs.values()], self._pending[0].tokens.shape)
        if not fed:
            return
        on_cpu = [tensor for tensor in fed if tensor.device.type == "cpu"]
        if on_cpu:
            self._stage_matching(on_cpu)
            return
        if self._cross_check_every and (self._committed_step + 1) % self._cross_check_every == 0:
            self._stage_matching([tensor.cpu() for tensor in fed], strict=True)
            return
        self._exporter.stage(self._pending.popleft())

    def _stage_matching(self, fed: Sequence[torch.Tensor], *, strict: bool = False) -> None:
        """Stage the tagged micro-batch that the forward got; those fetched before it were never used."""
        assert self._exporter is not None
        arrays = [tensor.detach().numpy() for tensor in fed]
        for index, microbatch in enumerate(self._pending):
            if any(np.array_equal(array, microbatch.tokens) for array in arrays):
                for _ in range(index):
                    self._pending.popleft()
                self._exporter.stage(self._pending.popleft())
                return
            if strict:
                break
        if strict:
            raise ExportStopped(
                f"step {self._committed_step + 1}: the forward got other tokens than the loader's next micro-batch; "
                "something between loader and model reorders or edits them: wrap the loader after it"
            )


class TaggedLoader:
    """A loader whose micro-batches the hook has seen. Everything but iteration is the loader's own."""

    def __init__(self, loader: Any, hook: ExportHook) -> None:
        self._loader, self._hook = loader, hook

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield self._hook._tag(batch)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _clone(batch: Mapping[str, Any], tokens_key: str) -> StagedMicrobatch:
    tokens = batch[tokens_key].detach().to("cpu").numpy().copy()
    tensors = {
        key: value.detach().numpy().copy()
        for key, value in batch.items()
        if key != tokens_key
        and key not in _METADATA_KEYS
        and isinstance(value, torch.Tensor)
        and value.ndim >= 1
        and value.shape[0] == tokens.shape[0]
    }
    sample_index = batch.get("sample_index")
    return StagedMicrobatch(
        tokens=tokens,
        tensors=tensors,
        segments=tuple(tuple(segments) for segments in batch.get("segments", ())),
        sample_index=None if sample_index is None else [int(index) for index in sample_index],
    )


def _token_tensors(values: Sequence[Any], shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [
        value
        for value in values
        if isinstance(value, torch.Tensor) and tuple(value.shape) == shape and not value.is_floating_point()
    ]


def _rank_of(mesh: Any) -> WriterRank:
    if mesh is None:
        distributed = dist.is_available() and dist.is_initialized()
        place = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        return writer_rank({"dp": place})
    names = mesh.mesh_dim_names
    if names is None:
        raise InputError("mesh: expected a DeviceMesh with mesh_dim_names, found one without")
    return writer_rank({name: (mesh.get_local_rank(name), mesh.size(axis)) for axis, name in enumerate(names)})


def _claim(
    run_dir: Path, spec: RunSpec, num_writers: int, resume: Mapping[str, object] | None
) -> tuple[RunInfo, AttemptInfo]:
    file_system = OsFileSystem()
    run = open_or_create_run(file_system, run_dir, spec)
    token = None if resume is None else ResumeToken.from_state(resume)
    layout = {"num_writers": num_writers, "pid": os.getpid()}
    config = {**spec.config, "layout": layout}
    return run, claim_attempt(file_system, run_dir, run, num_writers=num_writers, resume=token, config=config)


def _exporter(
    run_dir: Path, run: RunInfo, attempt: AttemptInfo, rank: WriterRank, options: ExporterOptions | None
) -> Exporter | None:
    if not rank.is_writer:
        return None
    options = options or ExporterOptions()
    file_system = OsFileSystem()
    directory = ExportPaths(run_dir).attempt_dir(attempt.attempt)
    writer = RankWriter(file_system, directory, run, attempt, rank.dp_rank, roll_size_bytes=options.roll_size_bytes)
    return Exporter(writer, run, attempt, rank.dp_rank, RunReader(run_dir, file_system).secret(), options)


def _failed(error: BaseException) -> tuple[str, str]:
    kind = type(error).__name__ if isinstance(error, KisekiError) else ""
    return kind, str(error) if isinstance(error, KisekiError) else f"{type(error).__name__}: {error}"


def _raise(failure: tuple[str, str], rank: int) -> None:
    kind, message = failure
    error_type = InputError if kind in ("InputError", "RunError", "RowError") else ExportStopped
    raise error_type(f"rank {rank}: {message}")


def _on_first_rank(work: Any) -> Any:
    """Do `work` on global rank 0 and give every rank its result; where it fails, every rank raises."""
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = work()
        except (KisekiError, OSError) as error:
            box[1] = _failed(error)
            dist.broadcast_object_list(box)
            raise
    dist.broadcast_object_list(box)
    if box[1] is not None:
        _raise(box[1], 0)
    return box[0]


def _on_every_rank(work: Any) -> Any:
    """Do `work` on each rank; where one fails, every rank raises."""
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    result, failure, own = None, None, None
    try:
        result = work()
    except (KisekiError, OSError) as error:
        failure, own = _failed(error), error
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    if own is not None:
        raise own
    for rank, other in enumerate(failures):
        if other is not None:
            _raise(other, rank)
    return result
