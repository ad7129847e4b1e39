"""The hook for a torch training loop: FSDP2, FSDP1, DDP, or a single process.

    hook = ExportHook.attach(model, run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…}, resume=token)
    loader = hook.wrap(loader)                   # the same micro-batches, remembered as they are fetched
    loss = model(batch["input_ids"], …)          # staged here, by a pre-hook on the outermost callable
    hook.commit(step, metrics={"loss": …})       # after optimizer.step()
    hook.checkpoint_barrier(step)                # before a model checkpoint; put hook.state_dict() into it
    hook.close()

A micro-batch counts as consumed when the model's forward is called with it, in training mode and with gradients on;
`consumption` has the rules. Micro-batches that no forward sees, evaluation and mock forwards are not exported.

Order: shard or wrap the model (`fully_shard`, `FSDP`, `DDP`), then attach, to what the training loop calls. Compile
before or after: with `compiled = torch.compile(model)` attach to `compiled` or to `model`, with `model.compile()` to
`model`. The hook is hidden from the compiler, which needs no graph break for it; `fullgraph=True` works.

SIGTERM: see `termination`. It needs an `attach` on the main thread.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from train_hooks.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.batches import TokensSelector, name_tensors, without_metadata
from train_hooks.collectives import on_every_rank, on_first_rank, ranks_agree
from train_hooks.consumption import Consumption
from train_hooks.documents import DocumentResolver
from train_hooks.election import elect, mesh_of
from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.errors import ExportStopped, InputError, KisekiError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reader import RunReader
from train_hooks.export_format.records import (
    AttemptInfo,
    Evidence,
    EvidenceDefaults,
    Matched,
    RunInfo,
    StepStatus,
)
from train_hooks.export_format.writer import RankWriter
from train_hooks.exporter import Exporter, ExporterOptions
from train_hooks.narrow_kernels import kernels
from train_hooks.row_builder import unfit_shape
from train_hooks.snapshots import Snapshot
from train_hooks.tagged_loader import TaggedLoader, tagged
from train_hooks.termination import watch_sigterm
from train_hooks.tokenizer_check import check_tokenizer
from train_hooks.writer_rank import WriterRank

__all__ = ["ExportHook"]

_SEEN = EvidenceDefaults(evidence=Evidence.FORWARD, tensor_evidence=Evidence.LOADER, matched=Matched.WHOLE)
"""Of rows that a forward was seen to get. Their other tensors are the loader's, unless the forward got them changed."""
_TRAINED = (StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE)


class ExportHook:
    """Exports what one process of a training job consumes. Make it with `attach`, on every rank."""

    def __init__(
        self,
        run: RunInfo,
        attempt: AttemptInfo,
        rank: WriterRank,
        exporter: Exporter | None,
        cross_check_every: int,
        run_dir: Path,
    ) -> None:
        self.run, self.attempt, self.rank = run, attempt, rank
        self._paths = ExportPaths(run_dir)
        self._exporter = exporter
        self._cross_check_every = cross_check_every
        self._consumption = Consumption(attempt.tensor_scopes)
        self._handle: Any = None
        self._paused = False
        self._committed_step = attempt.resume_step
        self._busy = False
        self._sigterm = None
        if exporter is not None:
            self._sigterm = watch_sigterm(flush=self._flush, close=exporter.close, busy=lambda: self._busy)

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
        data_axes: Sequence[str] | None = None,
        options: ExporterOptions | None = None,
        cross_check_every: int = 0,
        documents: DocumentResolver | None = None,
        shorter_rows: bool = False,
        microbatch_tensors: Sequence[str] = (),
    ) -> Self:
        """Claim an attempt of the run in `run_dir` and listen to `model`, the outermost callable. Collective.

        tokenizer: file that turns the tokens into text, copied into the export. resume: what `state_dict` returned
        when the model checkpoint was written, None for a start from step 0. mesh: DeviceMesh with named axes over all
        processes, where ranks share data (tp, cp, pp); by default the mesh of the model's parameters if it has such
        axes, else every rank has its own data. data_axes: axes of the mesh whose ranks have their own data, if the
        names do not tell. cross_check_every: every so many steps, compare every byte of what the forward gets
        (tokens, and tensors given by the loader's name) with what the loader yielded, and stop on a difference.
        documents: finds, on the writer thread, the documents of sequences for which the loader gives a sample_index
        alone. shorter_rows: micro-batches may be shorter than sequence_length, for trainers whose sequences grow;
        otherwise a micro-batch of another length is an error. microbatch_tensors: names of tensors that belong to the
        micro-batch as a whole and not to its rows, such as `cu_seqlens`; of others the first micro-batch decides, and
        all later ones must fit. Raises InputError or ExportStopped on every rank when one of them cannot start.
        """
        spec = RunSpec(
            sequence_length=sequence_length,
            vocab_size=vocab_size,
            run_id=run_id,
            tokenizer=None if tokenizer is None else Path(tokenizer),
            config=config,
            shorter_rows=shorter_rows,
        )
        ranks_agree(
            "sequence_length, vocab_size, run_id, shorter_rows", (sequence_length, vocab_size, run_id, shorter_rows)
        )
        rank = elect(mesh_of(model) if mesh is None else mesh, data_axes)
        run, attempt = on_first_rank(lambda: _claim(Path(run_dir), spec, rank.num_writers, resume, microbatch_tensors))
        exporter = on_every_rank(lambda: _exporter(Path(run_dir), run, attempt, rank, options, documents))
        hook = cls(run, attempt, rank, exporter, cross_check_every, Path(run_dir))
        hook.listen(model)
        return hook

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(KisekiError) if kind is not None else contextlib.nullcontext():
            self.close()

    @property
    def acknowledged_step(self) -> int:
        """The newest step whose rows are durable on this rank."""
        return self._committed_step if self._exporter is None else self._exporter.acknowledged_step

    @property
    def committed_step(self) -> int:
        """The newest step that is over; the resume step before the first."""
        return self._committed_step

    def listen(self, model: nn.Module | None) -> None:
        """Listen to another outermost callable from now on, or to none."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if model is not None and self._exporter is not None:
            listener = _Listener(self._before_forward)
            self._handle = model.register_forward_pre_hook(listener, with_kwargs=True, prepend=True)

    def wrap(self, loader: Any, *, tokens: TokensSelector = "input_ids") -> TaggedLoader:
        """The training loader (or an iterator), watched. Everything but iteration is its own.

        tokens: where a micro-batch has its token ids, integers [num_slots, sequence_length], or shorter with
        `shorter_rows`: a key, an index, or a function of the micro-batch. All other tensors are exported as well
        (labels, masks, positions), by row where their first dimension is num_slots. The keys `segments` (a list of
        `Segment` for each slot), `sample_index` and, where samples are cut into rows, `sample_start` (an integer for
        each slot) are the hook's own: they are taken out of the dicts that the trainer gets.
        """
        return tagged(loader, functools.partial(self.tag, tokens=tokens))

    def commit(
        self,
        global_step: int,
        *,
        metrics: Mapping[str, float] | None = None,
        status: StepStatus | str = StepStatus.APPLIED,
    ) -> None:
        """End a step, after `optimizer.step()`. Returns at once; the rows become durable on the writer thread.

        metrics: numbers that the trainer has; a tensor on a device would be waited for.

        Raises ExportStopped where forwards of this step got something else than fetched micro-batches.
        """
        exporter = self._exporter
        if exporter is not None:
            self._begin_work()
            try:
                if type(status) is not StepStatus:
                    status = StepStatus(status)
                try:
                    rest = self._consumption.end_step(global_step, trained=status in _TRAINED)
                except ExportStopped:  # the step cannot become whole any more
                    exporter.discard_staged()
                    raise
                if rest is not None:
                    exporter.stage(rest)
                metrics_here = metrics if self.rank.dp_rank == 0 else None
                exporter.commit(global_step, status=status, metrics=metrics_here)
            finally:
                self._busy = False
        self._committed_step = global_step

    def consume(self, num_microbatches: int = 1) -> None:
        """The oldest fetched micro-batches belong to the step under way, whatever its forwards get.

        For steps whose data is skipped without training (then commit with status `skipped_data`), and where no forward
        of the writer rank sees whole sequences (context and pipeline parallelism); call it once for each forward.
        """
        if self._exporter is not None:
            for snapshot in self._consumption.oldest(num_microbatches):
                self._exporter.stage(snapshot)

    def forget_fetched(self) -> None:
        """What was fetched and not consumed never will be: the trainer threw it away."""
        if self._exporter is not None:
            self._consumption.forget_pending()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards in here are not the training's: profiling, or evaluation with gradients on."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def record(self, global_step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of an earlier step, for trainers that log every few steps."""
        if self._exporter is not None and self.rank.dp_rank == 0:
            with self._at_work():
                self._exporter.record(global_step, metrics)

    def checkpoint_barrier(self, global_step: int, timeout_s: float | None = None) -> None:
        """Return once the rows of all steps ≤ global_step are durable on every writer rank. Collective.

        Rank 0 says so in a barrier record, which is durable too before any rank returns.
        """
        on_every_rank(lambda: self._barrier_here(global_step, timeout_s))
        if global_step > self.attempt.resume_step:
            on_first_rank(lambda: self._record_barrier(int(global_step)))

    def state_dict(self) -> dict[str, object]:
        """What a model checkpoint must carry, so that the next attempt knows where it comes from."""
        return {"run_id": self.run.run_id, "attempt": self.attempt.attempt, "global_step": self._committed_step}

    def close(self) -> None:
        """Write and seal what is committed; remove the hook."""
        self.listen(None)
        try:
            if self._exporter is not None:
                self._exporter.close()
        finally:
            if self._sigterm is not None:
                self._sigterm.stop()
                self._sigterm = None

    def _barrier_here(self, global_step: int, timeout_s: float | None) -> None:
        if self._exporter is not None:
            with self._at_work():
                self._exporter.checkpoint_barrier(global_step, timeout_s)

    def _record_barrier(self, global_step: int) -> None:
        try:
            write_barrier(OsFileSystem(), self._paths, self.attempt, global_step)
        except OSError as error:
            raise ExportStopped(
                f"the barrier record of step {global_step} could not be made durable: {error}; free or repair "
                "the disk, then resume from the last model checkpoint"
            ) from error

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        self._begin_work()
        try:
            yield
        finally:
            self._busy = False

    def _begin_work(self) -> None:
        """The main thread may hold a lock of the exporter's from now on; a signal handler must not make it wait."""
        if self._sigterm is not None:
            self._sigterm.stop_if_dying()
        self._busy = True

    def _flush(self) -> None:
        if self._exporter is not None:
            self._exporter.checkpoint_barrier(self._exporter.committed_step)

    def tag(self, batch: Any, tokens: TokensSelector = "input_ids") -> Any:
        """Remember a fetched micro-batch, as `wrap` does with each; gives back what the trainer shall see of it."""
        if self._exporter is None or self._paused:
            return without_metadata(batch)
        named = name_tensors(batch, tokens)
        snapshot = Snapshot(named, self._consumption.pool, self._consumption.scopes)
        length, run = snapshot.sequence_length, self.run
        if length != run.sequence_length and not run.may_hold(length):
            shape = (snapshot.num_slots, length)
            raise InputError(unfit_shape(run, f"tokens [num_slots, {{}}] at {named.tokens!r}, found", shape))
        self._busy = True
        self._consumption.fetched(snapshot)
        self._busy = False
        has_metadata = named.segments is not None or named.sample_index is not None or named.sample_start is not None
        return without_metadata(batch) if has_metadata else batch

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._exporter is None or self._paused or not module.training or not torch.is_grad_enabled():
            return
        every = self._cross_check_every
        strict = bool(every) and (self._committed_step + 1) % every == 0
        self._busy = True
        try:
            consumed = self._consumption.forward(args, kwargs, strict=strict)
        finally:
            self._busy = False
        if consumed is not None:
            self._exporter.stage(consumed)


class _Listener:
    """The forward pre-hook. A copy of the model, or one that was saved and loaded, does not listen: it trains nothing here."""

    def __init__(self, listen: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None] | None) -> None:
        self._listen = listen

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._listen is not None:
            self._listen(module, args, kwargs)

    def __deepcopy__(self, _: dict[int, Any]) -> "_Listener":
        return _Listener(None)

    def __reduce__(self) -> tuple[type["_Listener"], tuple[None]]:
        return _Listener, (None,)


def _claim(
    run_dir: Path,
    spec: RunSpec,
    num_writers: int,
    resume: Mapping[str, object] | None,
    microbatch_tensors: Sequence[str],
) -> tuple[RunInfo, AttemptInfo]:
    file_system = OsFileSystem()
    if spec.tokenizer is not None:
        check_tokenizer(spec.tokenizer, spec.vocab_size)
    run = open_or_create_run(file_system, run_dir, spec)
    token = None if resume is None else ResumeToken.from_state(resume)
    layout = {"num_writers": num_writers, "pid": os.getpid()}
    config = {**spec.config, "layout": layout}
    return run, claim_attempt(
        file_system, run_dir, run, num_writers=num_writers, resume=token, config=config, defaults=_SEEN,
        microbatch_tensors=microbatch_tensors,
    )  # fmt: skip


def _exporter(
    run_dir: Path,
    run: RunInfo,
    attempt: AttemptInfo,
    rank: WriterRank,
    options: ExporterOptions | None,
    documents: DocumentResolver | None,
) -> Exporter | None:
    if not rank.is_writer:
        return None
    kernels()  # compiled now rather than at the first micro-batch
    options = options or ExporterOptions()
    file_system = OsFileSystem()
    directory = ExportPaths(run_dir).attempt_dir(attempt.attempt)
    writer = RankWriter(file_system, directory, run, attempt, rank.dp_rank, roll_size_bytes=options.roll_size_bytes)
    return Exporter(writer, run, attempt, rank.dp_rank, RunReader(run_dir, file_system).secret(), options, documents)
