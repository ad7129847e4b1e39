"""The resolver of boundaries on the writer thread: each document is one nameless segment of what is read back."""

from pathlib import Path

import numpy as np

from tests.support.export_maker import all_rows
from train_hooks import Segment
from train_hooks.documents.boundaries import BoundaryDocuments
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter
from train_hooks.hook.export.staging import StagedMicrobatch

LENGTH, EOS = 32, 7


def test_boundaries_are_exported_and_names_stay(tmp_path: Path) -> None:
    tokens = np.random.default_rng(2).integers(0, 12, (6, LENGTH))
    tokens[0, 5:9] = EOS
    named = [
        (Segment(start=0, length=LENGTH, source="s", document_id="d", document_token_offset=3),)
        for _ in range(len(tokens))
    ]
    system, run_dir = OsFileSystem(), tmp_path / "run"
    run = open_or_create_run(system, run_dir, RunSpec(sequence_length=LENGTH, vocab_size=12, config={}))
    attempt = claim_attempt(system, run_dir, run, num_writers=1, resume=None, config={})
    writer = RankWriter(system, ExportPaths(run_dir).attempt_dir(1), run, attempt, 0)
    secret = RunReader(run_dir).secret()
    with Exporter(writer, run, attempt, 0, secret, documents=BoundaryDocuments(eos=EOS)) as exporter:
        exporter.stage(StagedMicrobatch(tokens=tokens, sample_index=range(6)))
        exporter.commit(1)
        exporter.stage(StagedMicrobatch(tokens=tokens, sample_index=range(6), segments=named))
        exporter.commit(2)
    assert verify(run_dir).exit_code == 0
    rows = all_rows(run_dir)
    assert [row.segments for row in rows if row.address.global_step == 2] == named
    for row in rows[:6]:
        inside = np.zeros(LENGTH, np.bool_)
        for segment in row.segments:
            part = row.tokens[segment.start : segment.start + segment.length]
            assert segment.document_id == "" and segment.source == "identity unknown"
            assert not np.any(part[:-1] == EOS) and (part[-1] == EOS or segment.start + segment.length == LENGTH)
            inside[segment.start : segment.start + segment.length] = True
        assert np.all(row.tokens[~inside] == EOS)
