"""Tokens that are taken out are nowhere in the export; all else is what it was and stays provable; a crash changes nothing."""

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.example_exports import LENGTH, begin_attempt, begin_run, write_export, write_steps
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import DamageError, IncompleteError
from train_hooks.export_format.filesystem import AppendFile, OsFileSystem
from train_hooks.export_format.leaf import RowLeaf, row_salt
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Evidence, Row, Segment, SequenceAddress, StepStatus, TensorRecord
from train_hooks.export_format.removal import leaf_of_row, merged_ranges, removal_of, without_tokens
from train_hooks.export_format.upkeep.compact import compact, upkeep_lock
from train_hooks.export_format.upkeep.takedown import Takedown, take_out
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.replay import ReplayDataset

Prepare = Callable[[RunReader], object]


def as_it_is(_: RunReader) -> None:
    """Segment files as the writer left them."""


WHAT = Takedown(
    documents=frozenset({("web", "d2-0")}),
    rows=frozenset({SequenceAddress.parse("example/a1/s3/r1/m0/q1")}),
    spans=frozenset({(SequenceAddress.parse("example/a2/s4/r0/m1/q1"), 3, 7)}),
)


def rows_of(run: RunReader) -> dict[SequenceAddress, Row]:
    return {
        row.address: row
        for attempt in run.attempts()
        for log in attempt.writers().values()
        for file in log.files
        for ack in file.acks
        if ack.kind is AckKind.STEP
        for row in attempt.rows(attempt.frame(file, ack))
    }


def ranges_of(row: Row) -> list[tuple[int, int]]:
    """Which tokens of a row WHAT names, written once more."""
    found = [(s.start, s.start + s.length) for s in row.segments if (s.source, s.document_id) in WHAT.documents]
    found += [(0, LENGTH)] if row.address in WHAT.rows else []
    return found + [(start, end) for address, start, end in WHAT.spans if address == row.address]


def expect_taken_out(before: dict[SequenceAddress, Row], after: dict[SequenceAddress, Row]) -> int:
    assert before.keys() == after.keys()
    changed = 0
    for address, row in after.items():
        old, ranges = before[address], ranges_of(before[address])
        keep = np.ones(LENGTH, np.bool_)
        for start, end in ranges:
            keep[start:end] = False
        assert np.array_equal(row.tokens, np.where(keep, old.tokens, 0))
        if ranges:
            changed += 1
            assert [tensor.name for tensor in row.tensors] == ["removed"]
            row = dataclasses.replace(row, tensors=old.tensors)
        assert dataclasses.replace(row, tokens=old.tokens) == dataclasses.replace(old, tokens=old.tokens)
    return changed


@pytest.mark.parametrize("prepare", [as_it_is, compact], ids=["segment files", "compacted"])
def test_tokens_are_gone_and_all_else_holds(tmp_path: Path, prepare: Prepare) -> None:
    run = write_export(tmp_path / "run")
    before = rows_of(run)
    prepare(run)
    looked = take_out(run, WHAT, dry_run=True)
    assert expect_nothing_changed(before, rows_of(run))
    report = take_out(run, WHAT)
    # d2-0 is in slot 0 of both micro-batches of step 2 on both ranks, six tokens each
    assert report == looked
    assert report.num_tokens == 4 * 6 + LENGTH + 4
    assert report.rows == {address: ranges for address, row in before.items() if (ranges := ranges_of(row))}
    assert expect_taken_out(before, rows_of(RunReader(tmp_path / "run"))) == 6
    found = verify(tmp_path / "run")
    assert found.exit_code == 0
    assert sum("have lost tokens" in finding.message for finding in found.of(Severity.NOTE)) >= 3
    gone = before[SequenceAddress.parse("example/a1/s3/r1/m0/q1")].tokens.tobytes()
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or gone not in path.read_bytes()
    assert take_out(run, WHAT) == dataclasses.replace(report, num_tokens=0, num_files=0)


def expect_nothing_changed(before: dict[SequenceAddress, Row], after: dict[SequenceAddress, Row]) -> bool:
    return all(np.array_equal(before[address].tokens, after[address].tokens) for address in before)


def test_a_second_takedown_adds_to_the_first(tmp_path: Path) -> None:
    run = write_export(tmp_path / "run")
    before = rows_of(run)
    for part in (
        Takedown(documents=WHAT.documents), Takedown(rows=WHAT.rows), Takedown(spans=WHAT.spans), Takedown(),
    ):  # fmt: skip
        take_out(run, part)
        compact(run)
    assert expect_taken_out(before, rows_of(RunReader(tmp_path / "run"))) == 6
    assert verify(tmp_path / "run").exit_code == 0
    manifests = list((tmp_path / "run").rglob("*.compacted.json"))
    assert any("-v1.compacted" in path.name for path in manifests)
    stems = [(path.parent, path.name.split("-v")[0].split(".")[0]) for path in manifests]
    assert len(set(stems)) == len(stems)


def test_replay_refuses_a_row_that_was_taken_out(tmp_path: Path) -> None:
    run = write_export(tmp_path / "run")
    take_out(run, Takedown(rows=frozenset({SequenceAddress.parse("example/a2/s5/r0/m0/q0")})))
    batches = iter(ReplayDataset(tmp_path / "run", dp_rank=0, num_ranks=2))
    with pytest.raises(IncompleteError, match=r"example/a2/s5/r0/m0/q0.*cannot be replayed"):
        list(batches)


def test_an_open_file_stops_it_before_anything_is_changed(tmp_path: Path) -> None:
    run_info = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run_info)
    write_steps(tmp_path, run_info, attempt, [1, 2, 3], roll_size_bytes=1, close=False)
    run = RunReader(tmp_path)
    before = rows_of(run)
    everything = Takedown(documents=frozenset({("本", "é")}))
    with pytest.raises(IncompleteError, match=r"is not sealed.*nothing was changed"):
        take_out(run, everything)
    assert expect_nothing_changed(before, rows_of(run))


def test_one_at_a_time(tmp_path: Path) -> None:
    run = write_export(tmp_path / "run")
    with upkeep_lock(run):
        for work in (lambda: take_out(RunReader(tmp_path / "run"), WHAT), lambda: compact(RunReader(tmp_path / "run"))):
            with pytest.raises(IncompleteError, match="another compaction or takedown is at work"):
                work()
    assert take_out(run, WHAT).num_files > 0


class Stopped(BaseException):
    """The process ends here."""


class StoppingFiles(OsFileSystem):
    """Ends the process at the nth change of the disk."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        self._count()
        return super().create(path, mode)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


@pytest.mark.parametrize("prepare", [as_it_is, compact], ids=["segment files", "compacted"])
def test_killed_at_any_change_of_the_disk_it_goes_on(tmp_path: Path, prepare: Prepare) -> None:
    run = write_export(tmp_path / "run")
    before = rows_of(run)
    prepare(run)
    for after in range(1000):
        copy = tmp_path / f"copy-{after}"
        shutil.copytree(tmp_path / "run", copy)
        try:
            take_out(RunReader(copy, StoppingFiles(after)), WHAT)
        except Stopped:
            pass
        else:
            break
        half = rows_of(RunReader(copy))
        for address, row in half.items():
            assert np.array_equal(row.tokens, before[address].tokens) or removal_of(row) is not None
        assert verify(copy).exit_code == 0
        if after % 2:
            compact(RunReader(copy))
        take_out(RunReader(copy), WHAT)
        assert expect_taken_out(before, rows_of(RunReader(copy))) == 6
        report = verify(copy)
        assert report.exit_code == 0
        assert all("have lost tokens" in finding.message for finding in report.of(Severity.NOTE))
    assert after > 20


def made_row(tokens: np.ndarray, secret: bytes, segments: tuple[Segment, ...] = (), format_version: int = 3) -> Row:
    run = "example/a1/s1/r0/m0/q0"
    tensors = (
        TensorRecord(
            name="labels", dtype="<i8", shape=(1,), encoding="zlib", data=b"private", evidence=Evidence.DECLARED
        ),
    )
    leaf = RowLeaf(row_salt(secret, run), run, tokens, segments, format_version).hash(5, tensors)
    return Row(
        address=SequenceAddress.parse(run), tokens=tokens, segments=segments, tensors=tensors, sample_index=5,
        status=StepStatus.APPLIED, loss=None, leaf=leaf, format_version=format_version,
    )  # fmt: skip


@pytest.mark.parametrize("format_version", [1, 2, 3])
def test_chunks_that_no_range_touches_stay_provable(format_version: int) -> None:
    secret, rng = b"s" * 32, np.random.default_rng(3)
    row = made_row(rng.integers(1, 60_000, 1000).astype("<u2"), secret, format_version=format_version)
    cut = without_tokens(secret, without_tokens(secret, row, [(300, 310)]), [(308, 520), (0, 0)])
    removal = removal_of(cut)
    assert removal is not None
    assert (removal.ranges, sorted(removal.chunks)) == (((300, 520),), [1, 2])
    assert not cut.tokens[300:520].any()
    assert leaf_of_row(secret, cut) == row.leaf
    assert without_tokens(secret, cut, [(400, 500)]) is cut
    for at, holds in ((299, True), (255, False), (768, False), (999, False)):
        tokens = cut.tokens.copy()
        tokens[at] ^= 1
        changed = dataclasses.replace(cut, tokens=tokens)
        assert (leaf_of_row(secret, changed) == row.leaf) is holds, at
    tokens = cut.tokens.copy()
    tokens[310] = 7
    with pytest.raises(DamageError, match="does not fit its tokens"):
        leaf_of_row(secret, dataclasses.replace(cut, tokens=tokens))


def test_chunks_of_a_segment_begin_with_it() -> None:
    """A range that ends with a document touches no chunk of the next."""
    secret = b"s" * 32
    segments = tuple(
        Segment(start=start, length=length, source="web", document_id=f"d{start}", document_token_offset=0)
        for start, length in ((0, 100), (100, 300), (450, 50))
    )
    row = made_row(np.arange(1, 601, dtype="<u2"), secret, segments)
    removal = removal_of(without_tokens(secret, row, [(100, 400)]))

    assert removal is not None
    assert (removal.ranges, sorted(removal.chunks)) == (((100, 400),), [1, 2])
    assert removal.evidence == (Evidence.DECLARED,)


def test_a_record_that_fits_nothing_is_damage() -> None:
    secret = b"s" * 32
    cut = without_tokens(secret, made_row(np.arange(1, 600, dtype="<u2"), secret), [(5, 9)])
    (record,) = cut.tensors
    for data in (
        b"", b"{}", b"[]", b"null", record.data.replace(b"[[5, 9]]", b"[]"), record.data.replace(b"[[5, 9]]", b"[[5, 900]]"),
        record.data.replace(b"[[5, 9]]", b"[[-5, 9]]"), record.data.replace(b'"0"', b'"1"'),
        record.data.replace(b"[[5, 9]]", b"[[7, 9], [5, 6]]"),
    ):  # fmt: skip
        with pytest.raises(DamageError, match="removed tokens"):
            removal_of(dataclasses.replace(cut, tensors=(dataclasses.replace(record, data=data),)))
    with pytest.raises(DamageError, match="removed tokens"):
        removal_of(dataclasses.replace(cut, tensors=(record, record)))


def test_joined_ranges() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        ranges = [tuple(sorted(rng.integers(0, 30, 2).tolist())) for _ in range(rng.integers(0, 6))]
        covered = {position for start, end in ranges for position in range(start, end)}
        found = merged_ranges(ranges)
        assert {position for start, end in found for position in range(start, end)} == covered
        assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def test_a_tensor_of_the_whole_micro_batch_goes_with_the_tokens_of_any_of_its_rows(tmp_path: Path) -> None:
    """Labels that a trainer flattens are kept in slot 0, and repeat the tokens of every slot."""
    tokens = np.arange(100, 100 + 2 * LENGTH).reshape(2, LENGTH)
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    writer = RankWriter(OsFileSystem(), RunReader(tmp_path).paths.attempt_dir(1), run, attempt, 0)
    builder = RowBuilder(run, attempt, 0, RunReader(tmp_path).secret())
    staged = StagedMicrobatch(tokens=tokens, batch_tensors={"labels": tokens.reshape(-1)}, tokens_key="input_ids")
    untouched = StagedMicrobatch(tokens=tokens + 1, batch_tensors={"labels": tokens.reshape(-1) + 1})
    writer.append(
        [
            builder.frame(
                CommittedStep(
                    kind=AckKind.STEP, global_step=1, status=StepStatus.APPLIED, microbatches=(staged, untouched),
                    records=(), size_bytes=0,
                )
            )
        ]
    )  # fmt: skip
    writer.close()
    second = SequenceAddress.parse("example/a1/s1/r0/m0/q1")
    what = Takedown(spans=frozenset({(second, 2, 5)}))
    done = take_out(RunReader(tmp_path), what)
    rows = rows_of(RunReader(tmp_path))
    removals = {str(address): removal_of(row) for address, row in rows.items()}

    assert (done.num_tokens, done.num_files, dict(done.rows)) == (3, 1, {second: [(2, 5)]})
    first = removals["example/a1/s1/r0/m0/q0"]
    assert first is not None
    assert (first.ranges, dict(first.chunks)) == ((), {})
    assert rows[SequenceAddress.parse("example/a1/s1/r0/m0/q0")].tokens.tolist() == tokens[0].tolist()
    assert [name for name, removal in removals.items() if removal is None] == [
        "example/a1/s1/r0/m1/q0", "example/a1/s1/r0/m1/q1",
    ]  # fmt: skip
    assert verify(tmp_path).exit_code == 0
    assert take_out(RunReader(tmp_path), what).num_tokens == 0
    assert verify(tmp_path).exit_code == 0
