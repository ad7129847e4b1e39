"""The exporter: nothing is lost silently; errors are final; close is clean."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.example_exports import LENGTH, VOCABULARY
from tests.train_hooks.hook.export.exporters import Make, microbatch, records, rows
from train_hooks.export_format.errors import ExportStopped, InputError, RowError
from train_hooks.export_format.records import StepStatus
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.verify.run import verify
from train_hooks.hook.export.staging import StagedMicrobatch


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


class Deferred:
    """A micro-batch that the writer thread resolves, to one or to none."""

    num_slots, size_bytes, must_resolve = 2, 256, False

    def release(self) -> None:
        pass

    def __init__(self, result: StagedMicrobatch | None) -> None:
        self.result = result

    def resolve(self) -> list[StagedMicrobatch]:
        return [] if self.result is None else [self.result]


def test_deferred_micro_batches_are_numbered_when_they_are_resolved(tmp_path: Path, make: Make) -> None:
    exporter = make()
    for staged in (Deferred(None), Deferred(microbatch(3)), microbatch(4)):
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
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter
from train_hooks.hook.export.staging import StagedMicrobatch
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
