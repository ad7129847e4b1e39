"""The hook for a torch training loop: FSDP2, FSDP1, DDP, or a single process.

    hook = ExportHook.attach(model, run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…}, resume=token)
    loader = hook.wrap(loader)                   # the same micro-batches, remembered as they are fetched
    loss = model(batch["input_ids"], …)          # staged here, by a pre-hook on the outermost callable
    hook.commit(step, metrics={"loss": …})       # after optimizer.step()
    hook.checkpoint_barrier(step)                # before a model checkpoint; put hook.state_dict() into it
    hook.close()

A micro-batch counts as consumed when the model's forward is called with it, in training mode and with gradients on. Every
such forward is accounted for, or its step is refused; `consumption` has the rules. Micro-batches that no forward sees,
evaluation, and forwards before the first fetch are not exported.

Order: shard or wrap the model (`fully_shard`, `FSDP`, `DDP`), then attach, to what the training loop calls. Compile
before or after: with `compiled = torch.compile(model)` attach to `compiled` or to `model`, with `model.compile()` to
`model`. The hook is hidden from the compiler, which needs no graph break for it; `fullgraph=True` works.

SIGTERM: see `termination`. It needs an `attach` on the main thread.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from train_hooks.documents import DocumentResolver
from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.errors import ExportStopped, InputError, KisekiError, Mismatch
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import (
    AttemptInfo,
    Evidence,
    EvidenceDefaults,
    Matched,
    RunInfo,
    StepStatus,
)
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.collectives import on_every_rank, on_first_rank, ranks_agree
from train_hooks.hook.election import elect, mesh_of
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.export.row_builder import unfit_shape
from train_hooks.hook.matching.consumption import Consumption
from train_hooks.hook.optimizer_steps import OptimizerSteps
from train_hooks.hook.same_rows import FirstRows, warn_of_same_rows
from train_hooks.hook.tagged_loader import TaggedLoader, tagged
from train_hooks.hook.tensors.batches import (
    TokensSelector,
    is_recorded,
    name_tensors,
    parameter_names,
    without_metadata,
)
from train_hooks.hook.tensors.kernels import kernels
from train_hooks.hook.tensors.snapshots import Columns, Snapshot
from train_hooks.hook.termination import watch_sigterm
from train_hooks.hook.tokenizer_check import check_tokenizer
from train_hooks.hook.writer_rank import WriterRank

__all__ = ["ExportHook"]

_SEEN = EvidenceDefaults(evidence=Evidence.FORWARD, tensor_evidence=Evidence.FORWARD, matched=Matched.WHOLE)
"""Of rows and tensors that a forward was seen to get; of others it is said where they stand."""
_TRAINED = (StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE)


class ExportHook:
    """Exports what one process of a training job consumes. Make it with `attach`, on every rank."""

    def __init__(
        self,
        run: RunInfo,
        attempt: AttemptInfo,
        rank: WriterRank,
        exporter: Exporter | None,
        run_dir: Path,
        first_rows: FirstRows,
        *,
        options: ExporterOptions,
        gaps: bool = False,
    ) -> None:
        self.run, self.attempt, self.rank = run, attempt, rank
        self._paths = ExportPaths(run_dir)
        self._exporter = exporter
        self._gaps, self._first_rows = gaps, first_rows
        self._consumption = Consumption(
            attempt.tensor_scopes, max_fetched_bytes=options.max_fetched_bytes, may_hold=run.may_hold
        )
        self._on_cuda = torch.cuda.is_available()
        self._optimizers: OptimizerSteps | None = None
        self._told_of_skips = False
        self._by_hand = False
        self._records: set[tuple[str, ...]] = set()
        self._mismatch: Mismatch | None = None
        self._handle: Any = None
        self._num_hooks = 0
        self._comes_last = False
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
        on_mismatch: Literal["stop", "gap"] = "stop",
        documents: DocumentResolver | None = None,
        shorter_rows: bool = False,
        microbatch_tensors: Sequence[str] = (),
    ) -> Self:
        """Claim an attempt of the run in `run_dir` and listen to `model`, the outermost callable. Collective.

        tokenizer: file that turns the tokens into text, copied into the export. resume: what `state_dict` returned
        when the model checkpoint was written, None for a start from step 0. mesh: DeviceMesh with named axes over all
        processes, where ranks share data (tp, cp, pp); by default the mesh of the model's parameters if it has such
        axes, else every rank has its own data. data_axes: axes of the mesh whose ranks have their own data, if the
        names do not tell. on_mismatch: what becomes of a step whose forwards got something else than fetched
        micro-batches: `stop` raises Mismatch, `gap` writes it without its rows, says so in the record, and warns.
        documents: finds, on the writer thread, the documents of sequences for which the loader gives a sample_index
        alone. shorter_rows: micro-batches may be shorter than sequence_length, for trainers whose sequences grow;
        otherwise a micro-batch of another length is an error. microbatch_tensors: names of tensors that belong to the
        micro-batch as a whole and not to its rows, such as `cu_seqlens`; of others the first micro-batch decides, and
        all later ones must fit. Raises InputError or ExportStopped on every rank when one of them cannot start.
        """
        if on_mismatch not in ("stop", "gap"):
            raise InputError(f"on_mismatch: expected 'stop' or 'gap', found {on_mismatch!r}")
        options = options or ExporterOptions()
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
        path, gaps, first_rows = Path(run_dir), on_mismatch == "gap", FirstRows()
        run, attempt = on_first_rank(lambda: _claim(path, spec, rank.num_writers, resume, microbatch_tensors), path)
        exporter = on_every_rank(
            lambda: _exporter(path, run, attempt, rank, options, documents, gaps=gaps, seen=first_rows.add), path
        )
        hook = cls(run, attempt, rank, exporter, path, first_rows, options=options, gaps=gaps)
        hook.listen(model)
        if exporter is not None:
            hook._optimizers = OptimizerSteps(model)
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

    def listen(self, model: nn.Module | None, *, counting: bool = False) -> None:
        """Listen to another outermost callable from now on, or to none.

        counting: its forwards consume nothing, `consume` does; what they get is compared with what that takes.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._consumption.counting = counting
        self._num_hooks = 0
        self._consumption.parameters = () if model is None else parameter_names(model)
        if model is not None and self._exporter is not None:
            listener = _Listener(self._before_forward)
            self._handle = model.register_forward_pre_hook(listener, with_kwargs=True, prepend=True)

    def wrap(
        self,
        loader: Any,
        *,
        tokens: TokensSelector = "input_ids",
        record: Literal["loader", "forward"] = "loader",
        columns: Columns = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> TaggedLoader:
        """The training loader (or an iterator), watched. Everything but iteration is its own.

        tokens: where a micro-batch has its token ids, integers [num_slots, sequence_length], or shorter with
        `shorter_rows`: a key, an index, or a function of the micro-batch. All other tensors are exported as well
        (labels, masks, positions), by row where their first dimension is num_slots; include, exclude: patterns
        (`fnmatch`) of the names that are alone exported, or are not. record: `loader` exports what the loader yields, and
        holds the forward to it; `forward` exports what the forward gets, and has documents and sample_index alone from the
        loader, for loops that edit tokens in between. columns: which tokens of each row the forward gets (a slice, or
        their indices), where that is a part, as with context parallelism. The keys `segments` (a list of
        `Segment` for each slot), `sample_index` and, where samples are cut into rows, `sample_start` (an integer for
        each slot) are the hook's own: they are taken out of the dicts that the trainer gets.
        """
        self._expect_one_record(record, include, exclude)
        self._consumption.wanted = functools.partial(is_recorded, include=include, exclude=exclude)
        return tagged(
            loader,
            functools.partial(
                self.tag, tokens=tokens, record=record, columns=columns, include=include, exclude=exclude
            ),
        )

    def _expect_one_record(self, record: str, include: Sequence[str] | None, exclude: Sequence[str]) -> None:
        if record not in ("loader", "forward"):
            raise InputError(f"record: expected 'loader' or 'forward', found {record!r}")
        self._records.add((record, *((repr(include), repr(exclude)) if record == "forward" else ())))
        if len(self._records) > 1:
            raise InputError(
                "record: expected one way for all loaders of a hook, found several; give each the same record, and with "
                "record='forward' the same include and exclude"
            )

    def commit(
        self,
        global_step: int,
        *,
        metrics: Mapping[str, float] | None = None,
        status: StepStatus | str | None = None,
    ) -> None:
        """End a step, after `optimizer.step()`. Returns at once; the rows become durable on the writer thread.

        metrics: numbers that the trainer has; a tensor on a device would be waited for. status: by default `applied`, or
        `skipped_update` where an optimizer of the model is known and made no step since the last commit.

        Raises Mismatch where forwards of this step got something else than fetched micro-batches.
        """
        exporter = self._exporter
        if exporter is not None:
            self._begin_work()
            try:
                if self._mismatch is not None:
                    raise Mismatch(str(self._mismatch)) from self._mismatch
                values = exporter.checked(global_step, metrics if self.rank.dp_rank == 0 else None)
                known = self._status(global_step, status)
                gap = None
                try:
                    rest = self._consumption.end_step(global_step, trained=known in _TRAINED)
                    if rest is not None:
                        exporter.stage(rest)
                except Mismatch as error:
                    if not self._gaps:
                        self._mismatch = error  # the step cannot become whole any more
                        exporter.discard_staged()
                        raise
                    gap = str(error)
                    warnings.warn(f"written as a gap, without its rows: {error}", stacklevel=2)
                exporter.commit_checked(int(global_step), known, values, gap)
            finally:
                self._busy = False
        self._committed_step = global_step

    def _status(self, global_step: int, status: StepStatus | str | None) -> StepStatus:
        if status is not None and type(status) is not StepStatus:
            try:
                status = StepStatus(status)
            except ValueError:
                raise InputError(f"status: expected one of {', '.join(StepStatus)}, found {status!r}") from None
        left_out = self._optimizers is not None and self._optimizers.left_out() and not self._by_hand
        self._by_hand = False
        if status is not None:
            return status
        if not left_out:
            return StepStatus.APPLIED
        if not self._told_of_skips:
            self._told_of_skips = True
            warnings.warn(
                f"step {global_step} is recorded as skipped_update: the optimizer made no step since the commit before. "
                "Call commit after optimizer.step(), or say commit(…, status=…). This is said once",
                stacklevel=3,
            )
        return StepStatus.SKIPPED_UPDATE

    def consume(self, num_microbatches: int = 1) -> None:
        """The oldest fetched micro-batches belong to the step under way, whatever its forwards get.

        For steps whose data is skipped without training (then commit with status `skipped_data`), and where no forward
        of the writer rank sees whole sequences (context and pipeline parallelism); call it once for each forward. Where
        the hook listens to a module with `counting`, what its forwards get is compared, before or after.
        """
        if self._exporter is not None:
            for consumed in self._consumption.oldest(num_microbatches):
                self._exporter.stage(consumed)

    def discard(self) -> None:
        """The forwards since the last commit trained nothing: the loss was not a number, or memory ran out.

        They are not recorded, and their micro-batches may be fed again.
        """
        if self._exporter is not None:
            with self._at_work():
                self._exporter.discard_staged()
                self._consumption.discard()

    def trained_on(self, **tensors: Any) -> None:
        """The loss of the last forward was computed from these: labels, masks that the forward itself did not get.

        tensors: numbers [num_slots, …] of torch, numpy or lists. They are recorded in place of the loader's, as declared.
        Raises InputError where no forward came before, or it had another number of rows.
        """
        if self._exporter is not None:
            with self._at_work():
                self._consumption.declare({name: _as_tensor(name, value) for name, value in tensors.items()})

    def forwarded(self, *args: Any, **kwargs: Any) -> None:
        """The model's forward ran on these, in a way that calls no hooks: a replayed CUDA graph.

        Call it with the graph's static inputs, filled, before `replay()`.
        """
        self._by_hand = True
        self._see(args, kwargs, training=True)

    def forget_fetched(self) -> None:
        """What was fetched and not consumed never will be: the trainer threw it away."""
        if self._exporter is not None:
            self._consumption.forget_pending()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards in here are not the training's: profiling, or evaluation with gradients on."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

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
            warn_of_same_rows(self._first_rows, self.rank, int(global_step))

    def state_dict(self) -> dict[str, object]:
        """What a model checkpoint must carry, so that the next attempt knows where it comes from."""
        return {"run_id": self.run.run_id, "attempt": self.attempt.attempt, "global_step": self._committed_step}

    def close(self) -> None:
        """Write and seal what is committed; remove the hook."""
        self.listen(None)
        if self._optimizers is not None:
            self._optimizers.stop()
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

    def tag(
        self,
        batch: Any,
        tokens: TokensSelector = "input_ids",
        *,
        record: Literal["loader", "forward"] = "loader",
        columns: Columns = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> Any:
        """Remember a fetched micro-batch, as `wrap` does with each; gives back what the trainer shall see of it."""
        if self._exporter is None or self._paused:
            return without_metadata(batch)
        named = name_tensors(batch, tokens, include, exclude)
        snapshot = Snapshot(named, self._consumption.pool, columns, documents_only=record == "forward")
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
        if not torch.is_grad_enabled():
            return
        hooks = module._forward_pre_hooks
        if len(hooks) != self._num_hooks:
            self._num_hooks = len(hooks)
            self._comes_last = any(_may_edit(hook) for hook in hooks.values())
        if self._comes_last and next(reversed(hooks)) != self._handle.id:
            # From now on; this time what the others leave is seen behind the forward.
            hooks[self._handle.id] = hooks.pop(self._handle.id)
            self._see_after(module)
        else:
            self._see(args, kwargs, training=module.training)

    def _see_after(self, module: nn.Module) -> None:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            handle.remove()
            self._see(args, kwargs, training=module.training)

        handle = module.register_forward_hook(
            torch.compiler.disable(see),  # type: ignore[no-untyped-call]
            with_kwargs=True,
            prepend=True,
            always_call=True,  # as a pre-hook is, whatever becomes of the forward
        )

    def _see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool) -> None:
        if self._exporter is None or self._paused:
            return
        if self._on_cuda and torch.cuda.is_current_stream_capturing():
            if self._consumption.counting:
                return  # nothing is claimed of what replays get
            raise ExportStopped(
                "the model's forward is captured into a CUDA graph, whose replays call no hooks; capture it in "
                "`with hook.paused():`, and before each replay() say hook.forwarded(*static_inputs)"
            )
        self._busy = True
        whole = False
        try:
            for each in self._consumption.forward(args, kwargs, training=training):
                self._exporter.stage(each)
            whole = True
        finally:
            self._busy = False
            if not whole:
                self._consumption.interrupted()


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"trained_on: expected numbers [num_slots, …] for {name!r}, found {error}") from error


def _may_edit(hook: Any) -> bool:
    """Whether a pre-hook may change what the forward gets. Ours does not, and those of torch's wrappers move it at most."""
    return not isinstance(hook, _Listener) and not str(getattr(hook, "__module__", "")).startswith("torch.")


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
    options: ExporterOptions,
    documents: DocumentResolver | None,
    *,
    gaps: bool,
    seen: Callable[[int, npt.NDArray[np.integer]], None],
) -> Exporter | None:
    if not rank.is_writer:
        return None
    kernels()  # compiled now rather than at the first micro-batch
    file_system = OsFileSystem()
    directory = ExportPaths(run_dir).attempt_dir(attempt.attempt)
    writer = RankWriter(file_system, directory, run, attempt, rank.dp_rank, roll_size_bytes=options.roll_size_bytes)
    secret = RunReader(run_dir, file_system).secret()
    return Exporter(writer, run, attempt, rank.dp_rank, secret, options, documents, gaps=gaps, seen=seen)
