"""The resolver of boundaries: what it says is exported and read back, every token of a document in one nameless segment."""

from pathlib import Path

import numpy as np

from tests.export_maker import MadeStep, all_rows, make_attempt
from train_hooks.attempts import RunSpec
from train_hooks.documents.boundaries import BoundaryDocuments
from train_hooks.export_format.verify import verify


def test_boundaries_are_exported(tmp_path: Path) -> None:
    tokens = np.random.default_rng(2).integers(0, 12, (6, 32))
    tokens[0, 5:9] = 7
    resolver = BoundaryDocuments(eos=7)
    segments = [resolver.segments(index, row) for index, row in enumerate(tokens)]
    spec = RunSpec(sequence_length=32, vocab_size=12, config={})
    make_attempt(tmp_path / "run", spec, [MadeStep(microbatches={0: [tokens]}, segments={0: [segments]})])
    assert verify(tmp_path / "run").exit_code == 0
    for row in all_rows(tmp_path / "run"):
        inside = np.zeros(32, np.bool_)
        for segment in row.segments:
            part = row.tokens[segment.start : segment.start + segment.length]
            assert segment.document_id == "" and segment.source == "identity unknown"
            assert not np.any(part[:-1] == 7) and (part[-1] == 7 or segment.start + segment.length == 32)
            inside[segment.start : segment.start + segment.length] = True
        assert np.all(row.tokens[~inside] == 7)
