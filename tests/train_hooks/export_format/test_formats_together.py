"""Runs that an older kiseki began and today's continues: attempts of two formats are one lineage."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from indexer.build.update import update_index
from indexer.importers.llm_jp.exporter import export_dump
from indexer.importers.resolved import Boundaries, resolve_export
from indexer.reader import IndexReader
from indexer.trace.trace import TraceOptions, trace
from tests.support.independent_reader import Refused, read_run
from tests.support.make_kept_exports import (
    END_OF_TEXT,
    EXPORTS,
    LENGTH,
    RUN_ID,
    VOCABULARY,
    committed_step,
    tokenizer_json,
)
from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.errors import DamageError, RowError, RunError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.json_files import encode_document
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, Row, RunInfo, SequenceAddress
from train_hooks.export_format.removal import removal_of
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.upkeep.takedown import Takedown, take_out
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.replay import ReplayDataset

OLD_FORMATS = (1, 2)
OLD_STEPS, LAST_STEP = 4, 6
PLACES = [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6)]
"""(attempt, step) of the canonical lineage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continued:
    """A run of format `version` whose third attempt is of format 3."""

    version: int
    run_dir: Path
    run: RunInfo
    attempt: AttemptInfo

    @property
    def shorter_rows(self) -> bool:
        return self.version == 2


def open_again(run_dir: Path, version: int) -> RunInfo:
    """What a trainer does that attaches to a run of an older format."""
    tokenizer = run_dir.parent / "tokenizer.json"
    tokenizer.write_text(tokenizer_json(), encoding="utf-8")
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=VOCABULARY, tokenizer=tokenizer, config={}, shorter_rows=version == 2
    )
    return open_or_create_run(OsFileSystem(), run_dir, spec)


def continue_run(run_dir: Path, version: int, *, close: bool = True, barrier: bool = True) -> Continued:
    """A copy of the sealed fixture, with two more steps in a new attempt of today's code."""
    shutil.copytree(EXPORTS / f"{version}-sealed", run_dir)
    file_system, run = OsFileSystem(), open_again(run_dir, version)
    token = ResumeToken(run_id=RUN_ID, attempt=2, global_step=OLD_STEPS)
    attempt = claim_attempt(file_system, run_dir, run, num_writers=2, resume=token, config={})
    secret, paths = RunReader(run_dir).secret(), ExportPaths(run_dir)
    for dp_rank in range(2):
        writer = RankWriter(file_system, paths.attempt_dir(3), run, attempt, dp_rank, roll_size_bytes=8000)
        builder = RowBuilder(run, attempt, dp_rank, secret)
        for step in range(OLD_STEPS + 1, LAST_STEP + 1):
            writer.append([builder.frame(new_step(version, step, dp_rank))])
        (writer.close if close else writer.abandon)()
    if barrier:
        write_barrier(file_system, paths, attempt, LAST_STEP)
    return Continued(version=version, run_dir=run_dir, run=run, attempt=attempt)


def new_step(version: int, step: int, dp_rank: int) -> CommittedStep:
    """A step of format 3, made as step `step` - 3 of the fixtures is: it says itself how some rows are known."""
    made = committed_step(3, step - 3, dp_rank, shorter_rows=version == 2)
    return dataclasses.replace(made, global_step=step, records=())


def new_tokens(version: int, step: int, dp_rank: int) -> npt.NDArray[np.integer]:
    """The tokens of the one micro-batch of such a step."""
    (part,) = new_step(version, step, dp_rank).microbatches
    assert isinstance(part, StagedMicrobatch)
    return part.tokens


@pytest.fixture(params=OLD_FORMATS)
def continued(request: pytest.FixtureRequest, tmp_path: Path) -> Continued:
    return continue_run(tmp_path / "run", request.param)


def rows_of(run_dir: Path) -> dict[SequenceAddress, Row]:
    return {
        row.address: row
        for attempt in RunReader(run_dir).attempts()
        for frame in attempt.frames(0, 1 << 40)
        for row in attempt.rows(frame)
    }


def canonical_rows(run_dir: Path) -> list[Row]:
    return [row for row in rows_of(run_dir).values() if (row.address.attempt, row.address.global_step) in PLACES]


def test_run_json_stays_and_new_attempts_are_of_format_3(continued: Continued) -> None:
    original = EXPORTS / f"{continued.version}-sealed" / "export" / "run.json"
    assert (continued.run_dir / "export" / "run.json").read_bytes() == original.read_bytes()
    assert (continued.run.format_version, continued.run.shorter_rows) == (continued.version, continued.version == 2)
    versions = [attempt.info.format_version for attempt in RunReader(continued.run_dir).attempts()]
    assert versions == [continued.version, continued.version, 3]


def test_it_verifies_and_both_readers_read_the_same(continued: Continued) -> None:
    report = verify(continued.run_dir)
    assert [finding.severity for finding in report.findings] == [Severity.INCOMPLETE]  # the gap of the fixture
    other, rows = read_run(continued.run_dir), rows_of(continued.run_dir)
    assert list(other.canonical) == PLACES
    theirs = {address: row for attempt in other.attempts for address, row in attempt.rows.items()}
    assert theirs.keys() == {str(address) for address in rows}
    for address, row in rows.items():
        assert np.array_equal(theirs[str(address)].tokens, row.tokens)
    assert report.num_tokens == sum(len(row.tokens) for row in rows.values())


def test_its_status(continued: Continued) -> None:
    found = status(RunReader(continued.run_dir))
    assert (found.canonical_attempt, found.newest_committed_step) == (3, LAST_STEP)
    assert [item.format_version for item in found.attempts] == [continued.version, continued.version, 3]
    assert [item.num_superseded for item in found.attempts] == [1, 0, 0]
    assert [item.barrier_step for item in found.attempts] == [None, None, LAST_STEP]
    shares = found.shares
    known = shares.forward + shares.loader + shares.declared
    assert 0 < known == found.attempts[2].num_rows < shares.num_rows == found.num_rows
    assert "not recorded" in shares.sentence()


def test_it_is_replayed_across_the_boundary(continued: Continued) -> None:
    for dp_rank in (0, 1):
        steps = list(ReplayDataset(continued.run_dir, dp_rank=dp_rank).steps())
        assert [(step.attempt, step.global_step) for step in steps] == PLACES
        names = [set(step.microbatches[0].batch) for step in steps]
        assert names == [names[0]] * len(names) and {"row_weight", "cu_seqlens"} <= names[0]
        for step in steps[-2:]:
            expected = new_tokens(continued.version, step.global_step, dp_rank)
            assert np.array_equal(step.microbatches[0].batch["input_ids"].numpy(), expected)


def test_repair_knows_both_formats(tmp_path: Path) -> None:
    for version in OLD_FORMATS:
        made = continue_run(tmp_path / str(version) / "run", version, close=False)
        before = rows_of(made.run_dir)
        actions = repair(made.run_dir)
        assert {action.kind for action in actions} == {"sealed"}
        assert rows_of(made.run_dir).keys() == before.keys()
        assert verify(made.run_dir).of(Severity.DAMAGED) == ()
        read_run(made.run_dir)


def test_a_growing_old_attempt_is_continued(tmp_path: Path) -> None:
    """The old kiseki was killed; its open files stay, and the new attempt resumes from what all writers have."""
    for version in OLD_FORMATS:
        run_dir = tmp_path / str(version) / "run"
        shutil.copytree(EXPORTS / f"{version}-growing", run_dir)
        run = open_again(run_dir, version)
        token = ResumeToken(run_id=RUN_ID, attempt=1, global_step=2)
        attempt = claim_attempt(OsFileSystem(), run_dir, run, num_writers=1, resume=token, config={})
        writer = RankWriter(OsFileSystem(), ExportPaths(run_dir).attempt_dir(2), run, attempt, 0)
        builder = RowBuilder(run, attempt, 0, RunReader(run_dir).secret())
        writer.append([builder.frame(dataclasses.replace(new_step(version, 5, 0), global_step=3))])
        writer.close()
        assert verify(run_dir).exit_code == 0
        assert list(read_run(run_dir).canonical) == [(1, 1), (1, 2), (2, 3)]
        repair(run_dir, assume_dead=True)
        assert verify(run_dir).exit_code == 0
        steps = ReplayDataset(run_dir).steps()
        assert [(step.attempt, step.global_step) for step in steps] == [(1, 1), (1, 2), (2, 3)]


def test_it_is_compacted(continued: Continued) -> None:
    before = rows_of(continued.run_dir)
    assert len(compact(RunReader(continued.run_dir))) == 6  # two writers of three attempts
    expect_the_same_rows(before, rows_of(continued.run_dir))
    assert verify(continued.run_dir).of(Severity.DAMAGED) == ()
    assert {address for attempt in read_run(continued.run_dir).attempts for address in attempt.rows} == set(
        map(str, before)
    )
    assert len(list(ReplayDataset(continued.run_dir).steps())) == LAST_STEP


def expect_the_same_rows(before: dict[SequenceAddress, Row], after: dict[SequenceAddress, Row]) -> None:
    assert before.keys() == after.keys()
    for address, row in before.items():
        other = after[address]
        assert np.array_equal(row.tokens, other.tokens)
        assert (row.leaf, row.segments, row.tensors, row.loss) == (
            other.leaf, other.segments, other.tensors, other.loss,
        )  # fmt: skip


@pytest.mark.parametrize("first", [lambda _: None, compact], ids=["segment files", "compacted"])
def test_a_document_is_taken_out_of_both_formats(continued: Continued, first: Callable[[RunReader], object]) -> None:
    first(RunReader(continued.run_dir))
    document = ("青空文庫", "草枕")
    before = rows_of(continued.run_dir)
    holding = {
        address
        for address, row in before.items()
        if document in {(segment.source, segment.document_id) for segment in row.segments}
    }
    assert {address.attempt for address in holding} == {1, 2, 3}
    done = take_out(RunReader(continued.run_dir), Takedown(documents=frozenset({document})))
    assert done.rows.keys() == holding
    after = rows_of(continued.run_dir)
    assert {address for address, row in after.items() if removal_of(row) is not None} == holding
    assert verify(continued.run_dir).of(Severity.DAMAGED) == ()
    read_run(continued.run_dir)


def test_it_is_indexed_traced_and_searched(continued: Continued) -> None:
    updated = update_index(continued.run_dir)
    assert updated.last_step == LAST_STEP
    reader = IndexReader.open(continued.run_dir)
    versions = reader.sql("SELECT attempt, count(*) AS n FROM sequences GROUP BY attempt ORDER BY attempt")
    counts: dict[int, int] = {}
    for row in canonical_rows(continued.run_dir):
        counts[row.address.attempt] = counts.get(row.address.attempt, 0) + 1
    assert {item["attempt"]: item["n"] for item in versions}.keys() == counts.keys()
    applied = [row for row in canonical_rows(continued.run_dir) if row.status.value == "applied"]
    wanted = next(row for row in applied if row.address.attempt == 3)
    text = bytes(wanted.tokens[10:55].tolist()).decode(errors="ignore")
    expected = sum(row.tokens.astype(np.uint8).tobytes().count(text.encode()) for row in applied)
    (span,) = trace(reader, text, options=TraceOptions(num_hits=100)).spans
    assert span.count == expected
    assert {hit.address.attempt for hit in span.hits} >= {3}
    for address, row in rows_of(continued.run_dir).items():
        if (address.attempt, address.global_step) in PLACES:
            assert np.array_equal(reader.sequence(address).tokens, row.tokens)


def test_it_is_written_as_a_dump_and_resolved(continued: Continued, tmp_path: Path) -> None:
    rows = canonical_rows(continued.run_dir)
    dumped = export_dump(RunReader(continued.run_dir), tmp_path / "dump")
    assert dumped.num_rows >= len(rows)
    copy = tmp_path / "copy"
    resolve_export(RunReader(continued.run_dir), copy, Boundaries(eos=END_OF_TEXT))
    assert [attempt.info.format_version for attempt in RunReader(copy).attempts()] == [3, 3, 3]
    assert verify(copy).of(Severity.DAMAGED) == ()
    read_run(copy)
    before, after = rows_of(continued.run_dir), rows_of(copy)
    assert before.keys() == after.keys()
    for address, row in before.items():
        assert np.array_equal(row.tokens, after[address].tokens) and row.segments == after[address].segments
    for dp_rank in (0, 1):
        for one, other in zip(
            ReplayDataset(continued.run_dir, dp_rank=dp_rank), ReplayDataset(copy, dp_rank=dp_rank), strict=True
        ):
            assert one.batch.keys() == other.batch.keys()
            for name, tensor in one.batch.items():
                assert tensor.dtype == other.batch[name].dtype and tensor.equal(other.batch[name]), name
    assert [attempt.info.default_evidence for attempt in RunReader(copy).attempts()] == [None, None, "declared"]


def test_a_run_keeps_whether_its_rows_may_be_shorter(continued: Continued) -> None:
    with pytest.raises(RunError, match=f"attach with shorter_rows={continued.shorter_rows}"):
        open_or_create_run(
            OsFileSystem(),
            continued.run_dir,
            RunSpec(
                sequence_length=LENGTH, vocab_size=VOCABULARY, config={}, shorter_rows=not continued.shorter_rows,
                tokenizer=continued.run_dir.parent / "tokenizer.json",
            ),
        )  # fmt: skip
    builder = RowBuilder(continued.run, continued.attempt, 0, RunReader(continued.run_dir).secret())
    short = committed_step(3, 1, 0, shorter_rows=True)
    if continued.shorter_rows:
        assert {len(row.tokens) for row in builder.frame(short).rows} == {LENGTH, 1}
    else:
        with pytest.raises(RowError, match=f"micro-batch, {LENGTH}"):
            builder.frame(short)


def rewrite_json(path: Path, **values: object) -> None:
    """Change keys of a JSON file, with its hash made anew, as another version of the software would write it."""
    document = json.loads(path.read_bytes()) | values
    del document["sha256"]
    path.write_bytes(encode_document(document))


def expect_refused(run_dir: Path, match: str, error: type[Exception] = RunError) -> None:
    """Reading is refused in one line, verification names it, and the independent reader refuses as well."""
    with pytest.raises(error, match=match) as refused:
        RunReader(run_dir).attempts()
    assert "\n" not in str(refused.value)
    report = verify(run_dir)
    assert report.exit_code == 1
    assert any(match in finding.message for finding in report.of(Severity.DAMAGED))
    with pytest.raises(Refused):
        read_run(run_dir)


@pytest.mark.parametrize("version", OLD_FORMATS)
def test_an_old_attempt_after_a_new_one_is_refused(tmp_path: Path, version: int) -> None:
    """Somebody went back to the old kiseki and began an attempt beside that of format 3."""
    run_dir = continue_run(tmp_path / "run", version).run_dir
    attempts = ExportPaths(run_dir).attempts
    shutil.copytree(attempts / "a000002", attempts / "a000004")
    rewrite_json(attempts / "a000004" / "attempt.json", attempt=4)
    expect_refused(
        run_dir, f"attempt 4 of run {RUN_ID} is of an older format than attempt 3 before it, which is of format 3"
    )


def test_an_old_attempt_in_a_run_of_format_3_is_refused(tmp_path: Path) -> None:
    shutil.copytree(EXPORTS / "3-sealed", tmp_path / "run")
    attempts = ExportPaths(tmp_path / "run").attempts
    shutil.rmtree(attempts)
    shutil.copytree(EXPORTS / "1-sealed" / "export" / "attempts", attempts)
    expect_refused(tmp_path / "run", "is of an older format than the run before it, which is of format 3")


def test_an_attempt_of_a_later_format_is_refused(continued: Continued) -> None:
    path = ExportPaths(continued.run_dir).attempt_json(3)
    later = "kiseki-attempt-v4; needs kiseki 9"
    rewrite_json(path, format=later)
    expect_refused(continued.run_dir, later)
    with pytest.raises(RunError, match="newer kiseki"):  # and no attempt of ours is written behind it
        claim_attempt(OsFileSystem(), continued.run_dir, continued.run, num_writers=1, resume=None, config={})
    assert not ExportPaths(continued.run_dir).attempt_dir(4).exists()


def test_a_run_of_a_later_format_is_refused(tmp_path: Path) -> None:
    shutil.copytree(EXPORTS / "3-sealed", tmp_path / "run")
    rewrite_json(tmp_path / "run" / "export" / "run.json", format_version=4)
    with pytest.raises(RunError, match=r"expected export format version 1, 2 or 3, found 4; .*newer kiseki") as refused:
        RunReader(tmp_path / "run")
    assert "\n" not in str(refused.value)
    with pytest.raises(RunError):
        verify(tmp_path / "run")
    with pytest.raises(Refused, match="format_version 4"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("attempt", [2, 3])
def test_a_lost_attempt_json_is_refused(continued: Continued, attempt: int) -> None:
    path = ExportPaths(continued.run_dir).attempt_json(attempt)
    path.unlink()
    expect_refused(continued.run_dir, "is missing, and rows of the attempt are there", DamageError)


def test_a_barrier_record_of_another_attempt_is_named(continued: Continued) -> None:
    paths = ExportPaths(continued.run_dir)
    token = ResumeToken(run_id=RUN_ID, attempt=3, global_step=LAST_STEP)
    claim_attempt(OsFileSystem(), continued.run_dir, continued.run, num_writers=2, resume=token, config={})
    shutil.copy(paths.barrier_json(3, LAST_STEP), paths.barrier_json(4, LAST_STEP))
    report = verify(continued.run_dir)
    assert report.exit_code == 1
    (finding,) = report.of(Severity.DAMAGED)
    assert f"is the barrier record of step {LAST_STEP} of attempt 3" in finding.message
    assert finding.path == str(paths.barrier_json(4, LAST_STEP).relative_to(continued.run_dir))
    with pytest.raises(DamageError, match="of attempt 3"):
        RunReader(continued.run_dir).attempt(4).barrier_step()
    with pytest.raises(Refused, match="barrier"):
        read_run(continued.run_dir)


def test_a_barrier_record_of_lost_steps_is_named(continued: Continued) -> None:
    """The newest file of a writer was lost; seals alone cannot say so, since nothing after them is left."""
    attempt = ExportPaths(continued.run_dir).attempt_dir(3)
    for path in attempt.glob("rows-r00001-00000*"):
        path.unlink()
    report = verify(continued.run_dir)
    assert any("was durable on every writer" in finding.message for finding in report.of(Severity.DAMAGED))
    with pytest.raises(Refused):
        read_run(continued.run_dir)
