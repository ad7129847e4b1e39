"""The hook for a torch training loop: FSDP2, FSDP1, DDP, or a single process.

    hook = ExportHook.attach(model, run_dir, sequence_length=L, vocab_size=V, tokenizer=path, config={…}, resume=token)
    loader = hook.wrap(loader)                   # the same micro-batches, remembered as they are fetched
    loss = model(batch["input_ids"], …)          # staged here, by a pre-hook on the outermost callable
    hook.commit(step, metrics={"loss": …})       # after optimizer.step()
    hook.checkpoint_barrier(step)                # before a model checkpoint; put hook.state_dict() into it
    hook.close()

Order: shard or wrap the model (`fully_shard`, `FSDP`, `DDP`), then attach, to what the training loop calls. Compile
before or after: with `compiled = torch.compile(model)` attach to `compiled` or to `model`, with `model.compile()` to
`model`. The hook is hidden from the compiler, which needs no graph break for it; `fullgraph=True` works.

The package docstring says how a micro-batch flows through the modules, and which forwards count.
SIGTERM: see `termination`. It needs an `attach` on the main thread.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import nn

from train_hooks.documents import DocumentResolver
from train_hooks.export_format.errors import ExportStopped, InputError, KisekiError, Mismatch
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.records import StepStatus
from train_hooks.export_format.writing.attempts import RunSpec
from train_hooks.hook.attaching import JoinedRun, join_run
from train_hooks.hook.barrier import record_barrier
from train_hooks.hook.collectives import on_every_rank, on_first_rank
from train_hooks.hook.export.exporter import ExporterOptions
from train_hooks.hook.fetching import RecordModes, copy_fetched
from train_hooks.hook.forward_listener import ForwardListener
from train_hooks.hook.matching.consumption import Consumption
from train_hooks.hook.optimizer_steps import OptimizerSteps
from train_hooks.hook.same_rows import warn_of_same_rows
from train_hooks.hook.tagged_loader import TaggedLoader, tagged
from train_hooks.hook.tensors.batches import TokensSelector, is_recorded, parameter_names, without_metadata
from train_hooks.hook.tensors.snapshots import Columns
from train_hooks.hook.tensors.values import declared_tensor
from train_hooks.hook.termination import watch_sigterm

__all__ = ["ExportHook"]

_TRAINED = (StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE)


class ExportHook:
    """Exports what one process of a training job consumes. Make it with `attach`, on every rank."""

    def __init__(self, joined: JoinedRun, *, options: ExporterOptions, mismatch_as_gap: bool = False) -> None:
        self.run, self.attempt, self.rank = joined.run, joined.attempt, joined.rank
        self._paths = ExportPaths(joined.run_dir)
        self._exporter, self._first_rows = joined.exporter, joined.first_rows
        self._mismatch_as_gap = mismatch_as_gap
        self._consumption = Consumption(
            self.attempt.tensor_scopes,
            max_fetched_bytes=options.max_fetched_bytes,
            accepts_length=self.run.accepts_length,
        )
        self._on_cuda = torch.cuda.is_available()
        self._listener: ForwardListener | None = None
        self._optimizers: OptimizerSteps | None = None
        self._forwarded_by_hand = False
        self._record_modes = RecordModes()
        self._mismatch: Mismatch | None = None
        self._paused = False
        self._committed_step = self.attempt.resume_step
        self._busy = False
        self._sigterm = None
        if self._exporter is not None:
            self._sigterm = watch_sigterm(flush=self._flush, close=self._exporter.close, busy=lambda: self._busy)

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
        joined = join_run(
            model, Path(run_dir), spec, resume=resume, mesh=mesh, data_axes=data_axes, options=options,
            documents=documents, microbatch_tensors=microbatch_tensors, mismatch_as_gap=on_mismatch == "gap",
        )  # fmt: skip
        hook = cls(joined, options=options, mismatch_as_gap=on_mismatch == "gap")
        hook.listen(model)
        if joined.exporter is not None:
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
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        self._consumption.counting = counting
        self._consumption.parameters = () if model is None else parameter_names(model)
        if model is not None and self._exporter is not None:
            self._listener = ForwardListener(model, self._on_forward)

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
        self._record_modes.add(record, include, exclude)
        self._consumption.is_wanted = functools.partial(is_recorded, include=include, exclude=exclude)
        return tagged(
            loader,
            functools.partial(
                self.tag, tokens=tokens, record=record, columns=columns, include=include, exclude=exclude
            ),
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
                values = exporter.check_commit(global_step, metrics if self.rank.dp_rank == 0 else None)
                known = self._step_status(global_step, status)
                gap = None
                try:
                    rest = self._consumption.end_step(global_step, trained=known in _TRAINED)
                    if rest is not None:
                        exporter.stage(rest)
                except Mismatch as error:
                    if not self._mismatch_as_gap:
                        self._mismatch = error  # the step cannot become whole any more
                        exporter.discard_staged()
                        raise
                    gap = str(error)
                    warnings.warn(f"written as a gap, without its rows: {error}", stacklevel=2)
                exporter.commit_checked(int(global_step), known, values, gap)
            finally:
                self._busy = False
        self._committed_step = global_step

    def _step_status(self, global_step: int, status: StepStatus | str | None) -> StepStatus:
        if status is not None and type(status) is not StepStatus:
            try:
                status = StepStatus(status)
            except ValueError:
                raise InputError(f"status: expected one of {', '.join(StepStatus)}, found {status!r}") from None
        by_hand, self._forwarded_by_hand = self._forwarded_by_hand, False
        skipped = self._optimizers is not None and self._optimizers.skipped_step()
        if status is not None:
            return status
        if self._optimizers is None or not skipped or by_hand:
            return StepStatus.APPLIED
        self._optimizers.warn_of_skipped_step(global_step, stacklevel=4)
        return StepStatus.SKIPPED_UPDATE

    def consume(self, num_microbatches: int = 1) -> None:
        """The oldest fetched micro-batches belong to the step under way, whatever its forwards get.

        For steps whose data is skipped without training (then commit with status `skipped_data`), and where no forward
        of the writer rank sees whole sequences (context and pipeline parallelism); call it once for each forward. Where
        the hook listens to a module with `counting`, what its forwards get is compared, before or after.
        """
        if self._exporter is not None:
            for consumed in self._consumption.consume_oldest(num_microbatches):
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
                self._consumption.declare({name: declared_tensor(name, value) for name, value in tensors.items()})

    def forwarded(self, *args: Any, **kwargs: Any) -> None:
        """The model's forward ran on these, in a way that calls no hooks: a replayed CUDA graph.

        Call it with the graph's static inputs, filled, before `replay()`.
        """
        self._forwarded_by_hand = True
        self._on_forward(args, kwargs, training=True)

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
        on_every_rank(lambda: self._wait_until_durable(global_step, timeout_s))
        if global_step > self.attempt.resume_step:
            on_first_rank(lambda: record_barrier(self._paths, self.attempt, int(global_step)))
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

    def _wait_until_durable(self, global_step: int, timeout_s: float | None) -> None:
        if self._exporter is not None:
            with self._at_work():
                self._exporter.checkpoint_barrier(global_step, timeout_s)

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
        snapshot, visible = copy_fetched(
            batch, tokens, self.run, self._consumption.pool, columns=columns, include=include, exclude=exclude,
            documents_only=record == "forward",
        )  # fmt: skip
        self._busy = True
        self._consumption.fetched(snapshot)
        self._busy = False
        return visible

    def _on_forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> None:
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
        try:
            for microbatch in self._consumption.forward(args, kwargs, training=training):
                self._exporter.stage(microbatch)
        except BaseException:
            self._consumption.interrupted()
            raise
        finally:
            self._busy = False
