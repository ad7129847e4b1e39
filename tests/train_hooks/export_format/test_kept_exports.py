"""Exports of every format, as their own version of kiseki wrote them, are read by today's code, for ever.

`tests/support/make_kept_exports.py` says what is in them. What must be found is in `tests/exports/expected.json`, as
the code found it that wrote the export.
"""

import hashlib
import json
import shutil
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.build.update import update_index
from indexer.reader import IndexReader
from indexer.trace.trace import trace
from tests.support.independent_reader import read_run
from tests.support.make_kept_exports import EXPORTS, STATES, committed_step
from train_hooks.export_format.errors import IncompleteError
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.records import Evidence, Matched, Row, StepStatus
from train_hooks.export_format.removal import removal_of
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.replay import ReplayDataset

FORMATS = (1, 2, 3)
EXPECTED: dict[str, Any] = json.loads((EXPORTS / "expected.json").read_bytes())


def short_rows(version: int, state: str) -> bool:
    """Whether the generator made a run of rows of several lengths."""
    return version == 2 or (version == 3 and state == "growing")


@pytest.fixture(params=[f"{version}-{state}" for version in FORMATS for state in STATES])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a kept export, and a copy of it."""
    name: str = request.param
    shutil.copytree(EXPORTS / name, tmp_path / name)
    return name, tmp_path / name


def believed_rows(attempt: AttemptReader) -> dict[str, Row]:
    """All acknowledged rows of an attempt, also those of steps that are not committed."""
    return {str(row.address): row for frame in attempt.frames(0, 1 << 40) for row in attempt.rows(frame)}


def rows_of(run_dir: Path) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for attempt in RunReader(run_dir).attempts():
        found |= believed_rows(attempt)
    return found


def test_there_is_an_export_of_each_format_in_each_state() -> None:
    directories = {path.name for path in EXPORTS.iterdir() if path.is_dir()}
    assert directories == EXPECTED.keys() == {f"{version}-{state}" for version in FORMATS for state in STATES}


def test_they_say_nothing_of_the_machine_and_are_small() -> None:
    size = 0
    for path in EXPORTS.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            size += len(zlib.compress(data))
            for name in (str(EXPORTS.parents[1]), str(Path.home()), "/tmp/"):
                assert name.encode() not in data or len(name) < 4, f"{path} names {name}"
            if path.name == "attempt.json":
                assert json.loads(data)["host"] == "host:1" != f"{socket.gethostname()}:1"
    assert size < 300_000


def test_the_rows_are_those_that_were_written(kept: tuple[str, Path]) -> None:
    name, run_dir = kept
    rows = rows_of(run_dir)
    found = {
        address: f"{hashlib.sha256(row.tokens.tobytes()).hexdigest()} {row.leaf.hex()}" for address, row in rows.items()
    }
    assert found == EXPECTED[name]["rows"]
    attempts = RunReader(run_dir).attempts()
    assert [len(attempt.committed_steps()) for attempt in attempts] == EXPECTED[name]["num_committed_steps"]
    assert {attempt.info.format_version for attempt in attempts} == {int(name[0])}


def test_the_rows_are_what_the_trainer_gave(kept: tuple[str, Path]) -> None:
    """Tokens, documents, losses and statuses, made once more."""
    name, run_dir = kept
    version, state = int(name[0]), name[2:]
    for address, row in rows_of(run_dir).items():
        if removal_of(row) is not None:
            continue
        place = row.address
        step = committed_step(version, place.global_step, place.dp_rank, shorter_rows=short_rows(version, state))
        part = step.microbatches[place.microbatch]
        assert isinstance(part, StagedMicrobatch)
        assert np.array_equal(row.tokens, part.tokens[place.slot]), address
        assert [(s.start, s.length, s.source, s.document_id, s.document_token_offset) for s in row.segments] == [
            (s.start, s.length, s.source, s.document_id, s.document_token_offset) for s in part.segments[place.slot]
        ]
        assert row.sample_index == (None if part.sample_index is None else part.sample_index[place.slot])
        assert row.loss == (None if part.loss is None else np.float32(part.loss[place.slot] or 0))
        assert row.status is step.status


def test_the_independent_reader_reads_the_same(kept: tuple[str, Path]) -> None:
    _, run_dir = kept
    other = read_run(run_dir)
    attempts = RunReader(run_dir).attempts()
    assert [attempt.number for attempt in other.attempts] == [attempt.info.attempt for attempt in attempts]
    for theirs, attempt in zip(other.attempts, attempts, strict=True):
        ours = believed_rows(attempt)
        assert theirs.version == attempt.info.format_version
        assert list(theirs.committed_steps) == list(attempt.committed_steps())
        assert theirs.final_step == attempt.final_step()
        assert theirs.rows.keys() == ours.keys()
        for address, row in ours.items():
            read = theirs.rows[address]
            assert np.array_equal(read.tokens, row.tokens) and read.leaf == row.leaf


def test_it_verifies_as_it_did(kept: tuple[str, Path]) -> None:
    name, run_dir = kept
    report = verify(run_dir)
    assert report.exit_code == EXPECTED[name]["exit_code"] == (0 if "growing" in name else 3)
    assert report.of(Severity.DAMAGED) == ()
    assert ["recorded" in finding.message for finding in report.of(Severity.INCOMPLETE)] == [True] * (
        "growing" not in name
    )
    assert report.num_rows == len(EXPECTED[name]["rows"])
    lost = sum(finding.message.startswith("2 of its rows have lost tokens") for finding in report.findings)
    assert lost == ("taken-down" in name)


def test_its_status(kept: tuple[str, Path]) -> None:
    name, run_dir = kept
    found = status(RunReader(run_dir))
    growing = "growing" in name
    assert [item.state for item in found.attempts] == (["open"] if growing else ["closed", "closed"])
    assert [item.format_version for item in found.attempts] == [int(name[0])] * len(found.attempts)
    assert [item.num_steps for item in found.attempts] == EXPECTED[name]["num_committed_steps"]
    assert (found.num_gaps, found.num_unsealed > 0) == ((0, True) if growing else (1, False))
    barriers = [item.barrier_step for item in found.attempts]
    assert barriers == ([None] * len(barriers) if name[0] != "3" else [1] if growing else [2, 4])
    assert (found.shares.forward > 0) == (name[0] == "3")


def test_late_metrics_are_of_their_step(kept: tuple[str, Path]) -> None:
    _, run_dir = kept
    attempt = RunReader(run_dir).attempt(1)
    metrics = [record for _, record in attempt.step_records() if record.kind == "metrics" and record.global_step == 1]
    assert [dict(record.values) for record in metrics] == [{"loss": 2.5, "grad_norm": 1.0}, {"grad_norm": 0.5}]


def test_it_is_replayed(kept: tuple[str, Path]) -> None:
    """Every tensor as the trainer gave it, with its name and dtype, for each rank."""
    name, run_dir = kept
    version, state = int(name[0]), name[2:]
    if state == "taken-down":
        with pytest.raises(IncompleteError, match="removed from the export"):
            list(ReplayDataset(run_dir).steps())
        return
    for dp_rank in (0, 1):
        steps = list(ReplayDataset(run_dir, dp_rank=dp_rank).steps())
        assert [step.global_step for step in steps] == ([1, 2] if state == "growing" else [1, 2, 3, 4])
        for step in steps:
            made = committed_step(version, step.global_step, dp_rank, shorter_rows=short_rows(version, state))
            for got, given in zip(step.microbatches, made.microbatches, strict=True):
                assert isinstance(given, StagedMicrobatch)
                expect_the_same_tensors(got.batch, given)
    assert steps[-1].status is (StepStatus.APPLIED if state == "growing" else StepStatus.SKIPPED_UPDATE)


def expect_the_same_tensors(got: dict[str, torch.Tensor], given: StagedMicrobatch) -> None:
    expected = {"input_ids": given.tokens, **given.tensors, **given.batch_tensors}
    names = {name.removesuffix(":bfloat16"): value for name, value in expected.items()}
    assert got.keys() == names.keys()
    for name, value in names.items():
        if name == "row_weight":
            assert got[name].dtype is torch.bfloat16
            assert np.array_equal(got[name].view(torch.uint16).numpy(), value)
        else:
            assert got[name].numpy().dtype == value.dtype and np.array_equal(got[name].numpy(), value), name


@pytest.mark.parametrize("version", FORMATS)
def test_a_gap_is_not_replayed(version: int) -> None:
    with pytest.raises(IncompleteError, match="has a gap"):
        list(ReplayDataset(EXPORTS / f"{version}-sealed", attempt=1, dp_rank=1).steps())


def test_it_is_indexed_and_traced(kept: tuple[str, Path]) -> None:
    name, run_dir = kept
    updated = update_index(run_dir)
    committed = [
        row
        for attempt in RunReader(run_dir).attempts()
        for row in believed_rows(attempt).values()
        if row.address.global_step in set(attempt.committed_steps())
    ]
    assert (updated.num_sequences, updated.num_tokens) == (len(committed), sum(len(row.tokens) for row in committed))
    reader = IndexReader.open(run_dir)
    canonical = [
        row
        for row in committed
        if row.status is StepStatus.APPLIED and (row.address.attempt == 2 or row.address.global_step <= 2)
    ]
    wanted = next(row for row in canonical if row.segments[0].source == "青空文庫" and removal_of(row) is None)
    text = bytes(wanted.tokens[10:55].tolist()).decode(errors="ignore")
    # the end-of-text token becomes byte 0, which the text does not hold
    expected = sum(row.tokens.astype(np.uint8).tobytes().count(text.encode()) for row in canonical)
    (span,) = trace(reader, text).spans
    assert (span.text, span.count) == (text, expected), name
    assert {hit.segments[0].document_id for hit in span.hits} == {wanted.segments[0].document_id}
    for row in committed:
        assert np.array_equal(reader.sequence(row.address).tokens, row.tokens)


@pytest.mark.parametrize("version", FORMATS)
def test_repair_seals_what_a_killed_writer_left(tmp_path: Path, version: int) -> None:
    name, run_dir = f"{version}-growing", tmp_path / "run"
    shutil.copytree(EXPORTS / name, run_dir)
    assert {action.kind for action in repair(run_dir)} == {"left"}
    actions = repair(run_dir, assume_dead=True)
    assert sorted(action.kind for action in actions) == ["cut", "cut", "sealed", "sealed"]
    assert rows_of(run_dir).keys() == read_run(run_dir).attempts[0].rows.keys() == EXPECTED[name]["rows"].keys()
    assert {finding.severity for finding in verify(run_dir).findings} == {Severity.NOTE}


def test_only_format_3_knows_how_its_rows_are_known(kept: tuple[str, Path]) -> None:
    name, run_dir = kept
    attempt = RunReader(run_dir).attempt(1)
    rows = believed_rows(attempt)
    known = {(row.evidence, row.matched, row.relation) for row in rows.values()}
    if name[0] != "3":
        assert known == {(None, None, None)} and attempt.info.default_evidence is None
        return
    assert (attempt.info.default_evidence, attempt.info.default_matched) == (Evidence.FORWARD, Matched.WHOLE)
    assert known == {
        (None, None, None),
        (Evidence.LOADER, Matched.COUNT, None),
        (None, Matched.SLICE, "dtype input_ids; [:, :-1]"),
    }
    losses = {str(address): (loss.loss, loss.segments) for address, loss in attempt.late_losses()}
    assert losses["kept/a1/s1/r1/m0/q0"] == (3.25, None)
    other = read_run(run_dir).attempts[0].rows
    for address, (loss, _) in losses.items():
        assert other[address].loss == loss
