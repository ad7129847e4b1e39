"""Documents that are looked up on the writer thread, by sample index."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.train_hooks.hook.toy import LENGTH, SLOTS, Toy, attach, exported, microbatch, train_step
from train_hooks import Segment
from train_hooks.export_format.errors import ExportStopped, InputError


class Numbered:
    """The document of a sequence is its number."""

    def __init__(self) -> None:
        self.asked: dict[int, list[int]] = {}
        self.threads: set[str] = set()

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        if sample_index == 7 * SLOTS:
            raise InputError("expected the tokens of document 14, found others")
        self.asked[sample_index] = tokens.tolist()
        self.threads.add(threading.current_thread().name)
        name = f"d{sample_index}"
        return [Segment(start=1, length=LENGTH - 1, source="web", document_id=name, document_token_offset=sample_index)]


def numbered(seed: int) -> dict[str, Any]:
    """A micro-batch whose loader knows the sample indices and no documents."""
    batch = microbatch(seed, documents=True)
    del batch["segments"]
    return batch


def test_documents_are_found_by_sample_index_on_the_writer_thread(tmp_path: Path) -> None:
    documents, model = Numbered(), Toy()
    batches = [numbered(1), microbatch(2), microbatch(3, documents=True)]
    with attach(model, tmp_path / "run", documents=documents) as hook:
        train_step(model, list(hook.wrap(iter(batches))))
        hook.commit(1)
    first, unnumbered, named = (exported(tmp_path / "run")[1, 0, number] for number in range(3))
    assert documents.asked == {SLOTS + slot: model.seen[0][slot].tolist() for slot in range(SLOTS)}
    assert documents.threads == {"kiseki-writer-r0"}
    assert [[part.document_id for part in slot] for slot in first.segments] == [["d2"], ["d3"]]
    assert first.segments[1][0].document_token_offset == 3
    assert not any(unnumbered.segments)
    assert [slot[0].document_id for slot in named.segments] == ["3-0", "3-1"]


def test_documents_of_other_data_stop_the_export(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path / "run", documents=Numbered())
    train_step(model, list(hook.wrap(iter([numbered(7)]))))
    hook.commit(1)
    with pytest.raises(ExportStopped, match="expected the tokens of document 14"):
        hook.checkpoint_barrier(1)
    with pytest.raises(ExportStopped):
        hook.close()
