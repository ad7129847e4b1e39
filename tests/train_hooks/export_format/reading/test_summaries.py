"""Summaries in seals: enough to count, to plan and to resume without the records; and refused where they contradict them."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.support.example_exports import begin_attempt, begin_run, committed_step, write_export, write_steps
from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.reading.summaries import _from_log, summarize
from train_hooks.export_format.records import AttemptInfo, RunInfo, SequenceAddress, StepStatus, TensorScope
from train_hooks.export_format.removal import removal_of
from train_hooks.export_format.seals import StepSpan, read_seal
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.upkeep.takedown import Takedown, take_out
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import ResumeToken, claim_attempt
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import as_gap
from train_hooks.hook.export.row_builder import RowBuilder


class Spy(OsFileSystem):
    """Remembers what was read."""

    def __init__(self) -> None:
        self.read_names: list[str] = []

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        self.read_names.append(path.name)
        return super().read(path, start, end)


def reader_of(run_dir: Path) -> AttemptReader:
    return RunReader(run_dir).attempt(1)


def seal_paths(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "export").rglob("*.seal.json"))


def write_varied(run_dir: Path, run: RunInfo, attempt: AttemptInfo) -> None:
    """Steps of one writer that differ in rows, status and gaps, in several files."""
    writer = RankWriter(
        OsFileSystem(), ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, 0, roll_size_bytes=9000
    )
    builder = RowBuilder(run, attempt, 0, RunReader(run_dir).secret())
    for step in range(1, 13):
        status_of = StepStatus.SKIPPED_UPDATE if step in (4, 5) else StepStatus.APPLIED
        committed = committed_step(step, 0, num_slots=2 if step < 8 else 3, status=status_of)
        writer.append([builder.frame(as_gap(committed, "tried") if step in (9, 10) else committed)])
    writer.close()


def test_a_seal_sums_its_file_up(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    write_varied(tmp_path, run, begin_attempt(tmp_path, run))
    seals = [read_seal(path, path.read_bytes()) for path in seal_paths(tmp_path)]
    spans = [span for seal in seals for span in seal.step_ranges or ()]

    assert len(seals) > 1
    assert [step for span in spans for step in range(span.first_step, span.last_step + 1)] == list(range(1, 13))
    assert sum(seal.num_gaps or 0 for seal in seals) == 2
    assert [seal.last_committed_step for seal in seals] == [seal.last_step for seal in seals]
    assert {(span.status, span.num_rows, span.has_gap) for span in spans} == {
        (StepStatus.APPLIED, 4, False), (StepStatus.SKIPPED_UPDATE, 4, False), (StepStatus.APPLIED, 6, False),
        (StepStatus.APPLIED, 0, True),
    }  # fmt: skip
    assert all(span.evidence == (0, 0, span.num_rows) for span in spans)
    assert verify(tmp_path).exit_code == 3
    assert status(RunReader(tmp_path)).num_gaps == 2


@pytest.mark.parametrize("close", [True, False])
def test_seals_and_records_add_up_to_the_same(tmp_path: Path, close: bool) -> None:
    for attempt in write_export(tmp_path, close=close).attempts():
        summary = summarize(attempt)
        logs = attempt.writers()
        assert list(summary.committed) == list(attempt.committed_steps(logs))
        for dp_rank, log in logs.items():
            assert merged(summary.writers[dp_rank].spans) == merged(_from_log(attempt, log).spans)
            assert summary.writers[dp_rank].closed == log.closed
            assert summary.writers[dp_rank].newest_unix_s == _from_log(attempt, log).newest_unix_s


def merged(spans: tuple[StepSpan, ...]) -> list[tuple[int, StepSpan]]:
    """One span a step."""
    return [
        (step, dataclasses.replace(span, first_step=step, last_step=step))
        for span in spans
        for step in range(span.first_step, span.last_step + 1)
    ]


def test_status_and_resume_read_no_records_of_sealed_files(tmp_path: Path) -> None:
    run = write_export(tmp_path).info
    spy = Spy()
    found = status(RunReader(tmp_path, spy))
    begin_attempt_through(spy, tmp_path, run, ResumeToken(run_id="example", attempt=2, global_step=6))

    assert (found.num_rows, found.newest_committed_step, found.attempts[0].num_superseded) == (64, 6, 2)
    assert any(name.endswith(".seal.json") for name in spy.read_names)
    acks = [name for name in spy.read_names if name.endswith(".acks")]
    assert acks == ["rows-r00000-00000.acks"], "of one frame, what the parent attempt decided of its tensors"


def begin_attempt_through(files: OsFileSystem, run_dir: Path, run: RunInfo, resume: ResumeToken) -> AttemptInfo:
    return claim_attempt(files, run_dir, run, num_writers=1, resume=resume, config={})


def test_a_resume_behind_a_barrier_record_needs_no_records(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run, num_writers=2)
    write_steps(tmp_path, run, attempt, [1, 2, 3], close=False)
    write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 3)
    spy = Spy()
    begin_attempt_through(spy, tmp_path, run, ResumeToken(run_id="example", attempt=1, global_step=3))

    assert [name for name in spy.read_names if ".acks" in name] == ["rows-r00000-00000.acks.inprogress"]


@pytest.mark.parametrize("what", ["evidence", "steps", "status"])
def test_a_summary_that_contradicts_its_file_is_refused(tmp_path: Path, what: str) -> None:
    run = begin_run(tmp_path)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1, 2, 3])
    (path,) = seal_paths(tmp_path)
    seal = read_seal(path, path.read_bytes())
    (span,) = seal.step_ranges or ()
    shorter = dataclasses.replace(span, last_step=2)
    changed = {
        "evidence": dataclasses.replace(seal, step_ranges=(dataclasses.replace(span, evidence=(1, 0, 3)),)),
        "steps": dataclasses.replace(
            seal, num_steps=2, last_step=2, num_rows=8, num_tokens=128, step_ranges=(shorter,)
        ),
        "status": dataclasses.replace(seal, step_ranges=(dataclasses.replace(span, status=StepStatus.RERUN),)),
    }  # fmt: skip
    path.write_bytes(changed[what].encode())

    with pytest.raises(
        DamageError, match="summary in its seal contradicts its acknowledgement records, from step 1 on"
    ):
        RunReader(tmp_path).attempt(1).writers()
    report = verify(tmp_path)
    assert report.exit_code == 1
    assert any("contradicts" in finding.message for finding in report.findings)


def test_a_summary_that_contradicts_its_own_counts_is_no_seal(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1, 2])
    (path,) = seal_paths(tmp_path)
    seal = dataclasses.replace(read_seal(path, path.read_bytes()), num_rows=9)
    with pytest.raises(DamageError, match="its step_ranges add up to"):
        read_seal(path, seal.encode())


def test_repair_seals_as_the_writer_would_have(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    write_steps(tmp_path, run, attempt, [1, 2, 3], close=False)
    before = list(reader_of(tmp_path).committed_steps())
    repair(tmp_path)
    (path,) = seal_paths(tmp_path)
    seal = read_seal(path, path.read_bytes())

    assert (seal.num_steps, seal.last_committed_step, seal.reason) == (3, 3, "repaired")
    assert list(summarize(reader_of(tmp_path)).committed) == before
    assert reader_of(tmp_path).final_step() == 3
    assert verify(tmp_path).findings == ()


def test_files_of_a_writer_that_the_attempt_does_not_have_are_refused(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1])
    (acks,) = (tmp_path / "export").rglob("*.acks")
    acks.with_name(acks.name.replace("r00000", "r00001")).write_bytes(acks.read_bytes())

    for read in (reader_of(tmp_path).writers, lambda: summarize(reader_of(tmp_path))):
        with pytest.raises(DamageError, match="has files of dp_rank 1, and 1 writers"):
            read()
    assert verify(tmp_path).exit_code == 1


def test_a_file_with_its_final_name_and_no_seal_is_refused(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1, 2])
    (path,) = seal_paths(tmp_path)
    path.unlink()
    for read in (reader_of(tmp_path).writers, lambda: status(RunReader(tmp_path))):
        with pytest.raises(DamageError, match=r"seal\.json is missing"):
            read()


def test_a_reader_goes_on_beside_a_takedown(tmp_path: Path) -> None:
    """It opened a compaction of which the next version then came, and the old one went."""
    run = begin_run(tmp_path)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1, 2])
    compact(RunReader(tmp_path))
    reader = reader_of(tmp_path)
    logs = reader.writers()
    address = SequenceAddress.parse("example/a1/s2/r0/m0/q0")
    take_out(RunReader(tmp_path), Takedown(rows=frozenset({address})))
    file = logs[0].files[0]
    rows = [
        row
        for frame in reader.frames_of(file, [ack for ack in file.acks if ack.num_rows])
        for row in reader.rows(frame)
    ]

    assert [str(row.address) for row in rows if removal_of(row) is not None] == [str(address)]
    assert list(reader.writers()[0].step_numbers) == [1, 2]


def test_a_tensors_scope_is_that_of_the_parent_whatever_its_format(tmp_path: Path) -> None:
    for name in ("1-sealed", "2-sealed", "3-sealed", "3-taken-down"):
        shutil.copytree(Path(__file__).parents[3] / "exports" / name, tmp_path / name)
        run_dir = tmp_path / name
        reader = RunReader(run_dir)
        number = reader.attempt_numbers()[-1]
        step = max(reader.attempt(number).committed_steps())
        resume = ResumeToken(run_id=reader.info.run_id, attempt=number, global_step=step)
        scopes = begin_attempt_through(OsFileSystem(), run_dir, reader.info, resume).tensor_scopes
        assert "removed" not in scopes
        if "sealed" in name:
            assert set(scopes.values()) == {TensorScope.ROW, TensorScope.MICROBATCH}
            assert not any("/" in each or ":" in each for each in scopes)
