"""Metrics and losses: with their step, or later in a note of their own."""

import math
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train_hooks.hook.export.exporters import Make, go, microbatch, records, rows
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import RowLoss, Segment
from train_hooks.export_format.verify.run import verify


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
