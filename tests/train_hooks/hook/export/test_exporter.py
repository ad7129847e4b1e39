"""The exporter: nothing is lost silently. A full queue blocks and then stops; errors are final; close is clean."""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.example_exports import LENGTH, VOCABULARY, begin_attempt, begin_run
from train_hooks.export_format.errors import ExportStopped, InputError, RowError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row, RowLoss, Segment, StepRecord, StepStatus
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.writer import Frame, RankWriter
from train_hooks.hook.export.exporter import Exporter, ExporterOptions, StagedMicrobatch

Make = Callable[..., Exporter]


class SlowWriter(RankWriter):
    """A writer that waits for `go` at each append, and fails with `error` where there is one."""

    def __init__(self, *args: object, go: threading.Event, error: BaseException | None) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.go, self.error, self.appends = go, error, list[int]()

    def append(self, frames: Sequence[Frame]) -> None:
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        self.appends.append(len(frames))
        super().append(frames)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    run = begin_run(tmp_path)
    go = threading.Event()
    made: list[Exporter] = []

    def build(*, blocked: bool = False, error: BaseException | None = None, **options: object) -> Exporter:
        attempt = begin_attempt(tmp_path, run)
        directory = ExportPaths(tmp_path).attempt_dir(attempt.attempt)
        if not blocked:
            go.set()
        writer = SlowWriter(OsFileSystem(), directory, run, attempt, 0, go=go, error=error)
        options = {"group_interval_s": 0.01, **options}
        secret = RunReader(tmp_path).secret()
        exporter = Exporter(writer, run, attempt, 0, secret, ExporterOptions(**options))  # type: ignore[arg-type]
        exporter.go = go  # type: ignore[attr-defined]
        made.append(exporter)
        return exporter

    yield build
    go.set()
    for exporter in made:
        try:
            exporter.close()
        except ExportStopped:
            continue


def microbatch(value: int = 1, num_slots: int = 2, **more: object) -> StagedMicrobatch:
    return StagedMicrobatch(tokens=np.full((num_slots, LENGTH), value), **more)  # type: ignore[arg-type]


def go(exporter: Exporter) -> None:
    exporter.go.set()  # type: ignore[attr-defined]


def rows(run_dir: Path, attempt: int = 1) -> list[Row]:
    reader = RunReader(run_dir).attempt(attempt)
    return [row for frame in reader.frames(1, 10**9) for row in reader.rows(frame)]


def records(run_dir: Path) -> list[StepRecord]:
    return [record for _, record in RunReader(run_dir).attempt(1).step_records()]


def test_what_is_staged_and_committed_is_exported(tmp_path: Path, make: Make) -> None:
    exporter = make()
    exporter.stage(microbatch(1))
    exporter.stage(microbatch(2))
    assert exporter.num_staged == 2
    exporter.commit(1, metrics={"loss": 2.0})
    exporter.stage(microbatch(3))
    exporter.discard_staged()
    exporter.stage(microbatch(4))
    exporter.commit(2, status=StepStatus.SKIPPED_UPDATE)
    exporter.stage(microbatch(5))  # of a step that is never committed
    exporter.close()

    found = [
        (row.address.global_step, row.address.microbatch, row.address.slot, int(row.tokens[0]))
        for row in rows(tmp_path)
    ]
    assert found == [(1, 0, 0, 1), (1, 0, 1, 1), (1, 1, 0, 2), (1, 1, 1, 2), (2, 0, 0, 4), (2, 0, 1, 4)]
    assert {row.status for row in rows(tmp_path)} == {StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE}
    assert [(record.global_step, record.values) for record in records(tmp_path)] == [(1, {"loss": 2.0})]
    assert exporter.acknowledged_step == exporter.committed_step == 2
    assert verify(tmp_path).findings == ()


def test_the_barrier_waits_for_the_disk_and_does_not_wait_for_company(make: Make) -> None:
    exporter = make(group_interval_s=60.0)
    exporter.stage(microbatch())
    exporter.commit(1)
    began = time.monotonic()
    exporter.checkpoint_barrier(1)

    assert time.monotonic() - began < 10
    assert exporter.acknowledged_step == 1
    exporter.checkpoint_barrier(0)
    with pytest.raises(InputError, match="step 2 is not committed"):
        exporter.checkpoint_barrier(2)


def test_a_barrier_that_takes_too_long_stops_the_training(make: Make) -> None:
    exporter = make(blocked=True)
    exporter.commit(1)

    with pytest.raises(ExportStopped, match=r"not durable after 0\.05 s"):
        exporter.checkpoint_barrier(1, timeout_s=0.05)


def test_one_sync_serves_the_steps_that_came_meanwhile(make: Make) -> None:
    exporter = make(blocked=True)
    for step in range(1, 11):
        exporter.commit(step)
    go(exporter)
    exporter.checkpoint_barrier(10)

    writer: SlowWriter = exporter._writer  # type: ignore[assignment]
    assert sum(writer.appends) == 10
    assert len(writer.appends) <= 3


def _notifications(exporter: Exporter) -> list[str]:
    """Grows by one whenever this thread wakes the writer thread from now on."""
    found: list[str] = []
    notify_all = exporter._changed.notify_all

    def counted() -> None:
        if threading.current_thread() is threading.main_thread():
            found.append("woken")
        notify_all()

    exporter._changed.notify_all = counted  # type: ignore[method-assign]
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_writer_thread_is_woken_once_a_group(make: Make) -> None:
    exporter = make(group_interval_s=0.3)
    _until(lambda: exporter._idle)
    woken = _notifications(exporter)
    for step in range(1, 21):
        exporter.commit(step)
        time.sleep(0.002)
    assert woken == ["woken"]
    _until(lambda: exporter.acknowledged_step == 20)  # nobody asks for it
    _until(lambda: exporter._idle)
    exporter.commit(21)
    assert len(woken) == 2
    _until(lambda: exporter.acknowledged_step == 21)


def test_a_queue_half_full_does_not_wait_for_company(make: Make) -> None:
    exporter = make(group_interval_s=60.0, max_queue_bytes=10_240)
    woken = _notifications(exporter)
    for step in range(1, 6):
        assert exporter.acknowledged_step == 0
        exporter.commit(step)
    _until(lambda: exporter.acknowledged_step == 5)
    assert len(woken) <= 2


def test_metrics_bear_the_time_of_their_commit(tmp_path: Path, make: Make) -> None:
    exporter = make(blocked=True)
    began = time.time()
    exporter.commit(1, metrics={"loss": 1.0})
    ended = time.time()
    time.sleep(0.05)
    go(exporter)
    exporter.close()

    (record,) = records(tmp_path)
    assert began <= record.unix_time_s <= ended


def test_a_large_group_is_written_in_parts(make: Make) -> None:
    exporter = make(blocked=True, group_bytes=3000)
    for step in range(1, 11):
        exporter.commit(step)
    go(exporter)
    exporter.checkpoint_barrier(10)

    writer: SlowWriter = exporter._writer  # type: ignore[assignment]
    assert max(writer.appends) == 2


def test_a_full_queue_blocks_and_goes_on(tmp_path: Path, make: Make) -> None:
    exporter = make(blocked=True, max_queue_bytes=5000)
    threading.Timer(0.2, lambda: go(exporter)).start()
    began = time.monotonic()
    for step in range(1, 21):
        exporter.stage(microbatch())
        exporter.commit(step)
    waited = time.monotonic() - began
    exporter.close()

    assert waited >= 0.15
    assert len(rows(tmp_path)) == 40


def test_a_queue_that_stays_full_stops_the_training_for_good(make: Make) -> None:
    exporter = make(blocked=True, max_queue_bytes=5000, block_timeout_s=0.1)

    def train() -> None:
        for step in range(1, 21):
            exporter.stage(microbatch())
            exporter.commit(step)

    with pytest.raises(ExportStopped, match=r"was full for 0\.1 s"):
        train()
    with pytest.raises(ExportStopped, match="was full"):
        exporter.commit(exporter.committed_step + 1)
    with pytest.raises(ExportStopped, match="was full"):
        exporter.record(1, {})
    go(exporter)
    with pytest.raises(ExportStopped, match="was full"):
        exporter.close()


def test_dropping_is_told_and_leaves_a_gap(tmp_path: Path, make: Make) -> None:
    exporter = make(blocked=True, max_queue_bytes=5000, when_full="drop")
    released = []
    for step in range(1, 21):
        exporter.stage(microbatch(release=lambda: released.append(1)))
        exporter.commit(step, metrics={"loss": 1.0})
    go(exporter)
    exporter.close()

    gaps = [record for record in records(tmp_path) if record.kind == "gap"]
    kept = {row.address.global_step for row in rows(tmp_path)}
    assert gaps
    assert kept.isdisjoint(gap.global_step for gap in gaps)
    assert kept | {gap.global_step for gap in gaps} == set(range(1, 21))
    assert {gap.values["num_rows"] for gap in gaps} == {2}
    assert len([record for record in records(tmp_path) if record.kind == "metrics"]) == 20
    assert len(released) == 20
    assert verify(tmp_path).exit_code == 3


def test_late_metrics_reach_their_step(tmp_path: Path, make: Make) -> None:
    exporter = make()
    for step in (1, 2, 3):
        exporter.commit(step)
    exporter.record(2, {"grad_norm": 1.5})
    with pytest.raises(InputError, match="expected a step that this attempt committed, 1 to 3"):
        exporter.record(4, {})
    exporter.close()

    assert [(record.global_step, record.values) for record in records(tmp_path)] == [(2, {"grad_norm": 1.5})]
    assert list(RunReader(tmp_path).attempt(1).committed_steps()) == [1, 2, 3]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt()])
def test_an_error_of_the_writer_thread_is_final(make: Make, error: BaseException) -> None:
    exporter = make(error=error)
    exporter.commit(1)
    with pytest.raises(ExportStopped, match="stopped after step 0"):
        exporter.checkpoint_barrier(1)
    calls: list[Callable[[], None]] = [
        lambda: exporter.commit(2), lambda: exporter.record(1, {}), exporter.close, exporter.close,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ExportStopped) as caught:
            call()
        assert caught.value.__cause__ is error
    assert ("free or repair the disk" in str(caught.value)) == isinstance(error, OSError)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 70_000])
def test_tokens_outside_the_vocabulary_stop_the_training(make: Make, token: int) -> None:
    exporter = make()
    exporter.stage(microbatch(token))
    exporter.commit(1)

    with pytest.raises(ExportStopped, match=r"expected token ids in \[0, 300\)"):
        exporter.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (StagedMicrobatch(tokens=np.zeros((2, LENGTH + 1), np.int64)), r"\[micro-batch, 16\], found int64 \[2, 17\]"),
        (StagedMicrobatch(tokens=np.zeros(LENGTH, np.int64)), "found int64"),
        (StagedMicrobatch(tokens=np.zeros((2, LENGTH))), "float64"),  # type: ignore[arg-type]
        (microbatch(tensors={"flag": np.array(1)}), "tensor 'flag'"),
        (microbatch(segments=[()]), "segments: expected one for each of 2"),
        (microbatch(sample_index=[1, 2, 3]), "sample_index: expected one for each of 2"),
        (microbatch(loss=[1.0]), "loss: expected one for each of 2"),
        (microbatch(tensors={"mask": np.zeros((3, 4))}), "tensor 'mask'"),
    ],
)
def test_a_micro_batch_of_another_shape_is_refused_at_once(make: Make, wrong: StagedMicrobatch, message: str) -> None:
    exporter = make()

    with pytest.raises(RowError, match=message):
        exporter.stage(wrong)
    assert exporter.num_staged == 0


def test_a_refused_commit_changes_nothing(tmp_path: Path, make: Make) -> None:
    exporter = make()
    exporter.stage(microbatch())
    with pytest.raises(InputError, match="expected commit of step 1, found 2"):
        exporter.commit(2)
    with pytest.raises(RowError, match="expected numbers"):
        exporter.commit(1, metrics={"loss": "high"})  # type: ignore[dict-item]
    assert exporter.num_staged == 1
    exporter.commit(np.int64(1))  # type: ignore[arg-type]
    exporter.close()

    assert len(rows(tmp_path)) == 2


def test_close_is_done_once_and_ends_the_exporter(make: Make) -> None:
    exporter = make()
    exporter.close()
    exporter.close()

    with pytest.raises(ExportStopped, match="is closed"):
        exporter.commit(1)


def test_tensors_of_a_slot_and_of_the_whole_micro_batch(tmp_path: Path, make: Make) -> None:
    released = threading.Event()
    exporter = make()
    staged = microbatch(
        7, tensors={"weight": np.array([0.5, 0.25]), "labels": np.full((2, LENGTH), 7)},
        batch_tensors={"cu_seqlens": np.array([0, 16, 32])}, tokens_key="input_ids", release=released.set,
    )  # fmt: skip
    exporter.stage(staged)
    exporter.commit(1)
    exporter.close()

    first, second = rows(tmp_path)
    arrays = {tensor.name: decode_tensor(tensor, first.tokens, ()) for tensor in first.tensors}
    assert released.is_set()
    assert set(arrays) == {"weight", "labels", "input_ids", "cu_seqlens"}
    assert arrays["weight"].shape == ()
    assert arrays["input_ids"].dtype == np.int64
    assert arrays["cu_seqlens"].tolist() == [0, 16, 32]
    assert [tensor.name for tensor in first.tensors if tensor.whole] == ["cu_seqlens"]
    assert {tensor.name for tensor in second.tensors} == {"weight", "labels", "input_ids"}


class Late:
    """A micro-batch that is there later, or not at all."""

    num_slots, size_bytes, late = 2, 256, False

    def release(self) -> None:
        pass

    def __init__(self, result: StagedMicrobatch | None) -> None:
        self.result = result

    def resolve(self) -> list[StagedMicrobatch]:
        return [] if self.result is None else [self.result]


def test_late_micro_batches_are_numbered_when_they_are_there(tmp_path: Path, make: Make) -> None:
    exporter = make()
    for staged in (Late(None), Late(microbatch(3)), microbatch(4)):
        exporter.stage(staged)
    exporter.commit(1)
    exporter.close()

    assert [(row.address.microbatch, int(row.tokens[0])) for row in rows(tmp_path)] == [(0, 3), (0, 3), (1, 4), (1, 4)]


def test_a_micro_batch_without_a_row_has_no_number(tmp_path: Path, make: Make) -> None:
    exporter = make()
    for staged in (microbatch(1), microbatch(2, num_slots=0), microbatch(3)):
        exporter.stage(staged)
    exporter.commit(1)
    exporter.close()

    assert [row.address.microbatch for row in rows(tmp_path)] == [0, 0, 1, 1]
    assert verify(tmp_path).findings == ()


def test_a_fork_does_not_close_its_parents_exporter(tmp_path: Path, make: Make) -> None:
    exporter = make()
    pid = os.fork()
    if pid == 0:
        exporter.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    exporter.stage(microbatch())
    exporter.commit(1)
    exporter.close()

    assert verify(tmp_path).findings == ()


def test_a_process_that_ends_without_close_seals_at_exit(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
import numpy as np
from tests.support.example_exports import *
from tests.train_hooks.hook.export.test_exporter import *
run_dir = Path({str(tmp_path)!r})
run = begin_run(run_dir)
info = begin_attempt(run_dir, run)
writer = RankWriter(OsFileSystem(), ExportPaths(run_dir).attempt_dir(1), run, info, 0)
exporter = Exporter(writer, run, info, 0, RunReader(run_dir).secret())
exporter.stage(StagedMicrobatch(tokens=np.zeros((2, LENGTH), np.int64)))
exporter.commit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    assert len(rows(tmp_path)) == 2
    assert verify(tmp_path).findings == ()


def test_losses_of_rows_and_segments_are_kept_in_32_bits(tmp_path: Path, make: Make) -> None:
    segment = Segment(start=0, length=5, source="web", document_id="d", document_token_offset=0)
    exporter = make()
    exporter.stage(
        microbatch(loss=[0.1, None], segments=[(segment,), (segment,)], segment_losses=[(0.3,), (math.inf,)])
    )
    exporter.commit(1)
    exporter.close()
    first, second = rows(tmp_path)

    assert (first.loss, second.loss) == (float(np.float32(0.1)), None)
    assert [row.segments[0].loss for row in (first, second)] == [float(np.float32(0.3)), math.inf]
    assert verify(tmp_path).findings == ()


def test_losses_that_come_late_are_a_note_of_their_own(tmp_path: Path, make: Make) -> None:
    exporter = make()
    exporter.stage(microbatch())
    exporter.commit(1)
    exporter.commit(2)
    late = [RowLoss(microbatch=0, slot=slot, loss=value) for slot, value in enumerate((0.5, math.nan))]
    exporter.record_losses(1, late)
    exporter.record_losses(1, [])
    with pytest.raises(InputError, match="losses of step 3: expected a step that this attempt committed, 1 to 2"):
        exporter.record_losses(3, late)
    exporter.close()
    found = list(RunReader(tmp_path).attempt(1).late_losses())

    assert [(str(address), loss.loss) for address, loss in found[:1]] == [("example/a1/s1/r0/m0/q0", 0.5)]
    assert math.isnan(found[1][1].loss or 0.0)
    assert [record.kind for record in records(tmp_path)] == ["losses"]
    assert verify(tmp_path).findings == ()


def test_losses_of_rows_that_were_dropped_are_left_out(tmp_path: Path, make: Make) -> None:
    exporter = make(blocked=True, when_full="drop", max_queue_bytes=3000)
    for step in range(1, 7):
        exporter.stage(microbatch())
        exporter.commit(step)
        exporter.record_losses(step, [RowLoss(microbatch=0, slot=0, loss=float(step))])
    go(exporter)
    exporter.close()
    report = verify(tmp_path)

    assert 0 < report.num_rows < 12
    assert report.exit_code == 3
    assert len(list(RunReader(tmp_path).attempt(1).late_losses())) == report.num_rows // 2


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (RowLoss(microbatch=7, slot=0, loss=1.0), "has no row"),
        (RowLoss(microbatch=0, slot=0, loss=1.0), "is of a row that has one"),
        (RowLoss(microbatch=0, slot=0, loss=None, segments=(1.0,)), "is of 1 segments, the row has 0"),
    ],
)
def test_a_late_loss_that_fits_no_row_is_named(tmp_path: Path, make: Make, late: RowLoss, message: str) -> None:
    exporter = make()
    exporter.stage(microbatch(loss=[0.5, 0.5]))
    exporter.commit(1)
    exporter.record_losses(1, [late])
    exporter.close()
    (finding,) = verify(tmp_path).findings

    assert message in finding.message
    assert finding.step == 1


def test_losses_of_a_row_and_of_its_segments_may_come_apart(tmp_path: Path, make: Make) -> None:
    segment = Segment(start=0, length=5, source="web", document_id="d", document_token_offset=0)
    exporter = make()
    exporter.stage(microbatch(num_slots=1, segments=[(segment,)]))
    exporter.commit(1)
    exporter.record_losses(1, [RowLoss(microbatch=0, slot=0, loss=0.5)])
    exporter.record_losses(1, [RowLoss(microbatch=0, slot=0, loss=None, segments=(0.25,))])
    exporter.close()

    assert verify(tmp_path).findings == ()
