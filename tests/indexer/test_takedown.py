"""A takedown that is finished leaves the tokens in no file of the run, and every other answer as it was."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.selection.tombstones import TombstoneFile, visibility_of
from indexer.storage.paths import IndexPaths
from indexer.takedown import finish_takedown
from indexer.trace.counts import count_of_ngram
from tests.conftest import TextRun
from tests.support.export_maker import all_rows
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row
from train_hooks.export_format.upkeep.takedown import Takedown, take_out
from train_hooks.export_format.verify.run import verify


@pytest.fixture
def run_dir(text_run: TextRun, tmp_path: Path) -> Path:
    """A copy whose index is built where it stands."""
    shutil.copytree(text_run.run_dir / "export", tmp_path / "run" / "export")
    update_index(tmp_path / "run", IndexOptions(shard_tokens=text_run.num_steps * 20))
    return tmp_path / "run"


def pieces_of(rows: list[Row], document: tuple[str, str]) -> list[bytes]:
    """What the rows hold of a document, as it would stand in any file; pieces of a few tokens could be anywhere."""
    places = [(row, s) for row in rows for s in row.segments if (s.source, s.document_id) == document and s.length > 7]
    return [row.tokens[s.start : s.start + s.length].tobytes() for row, s in places]


def files_with(run_dir: Path, pieces: list[bytes]) -> set[str]:
    found = set()
    for path in run_dir.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if any(piece in data for piece in pieces):
            found.add(path.name)
    return found


def test_nothing_is_left_of_what_was_hidden(text_run: TextRun, run_dir: Path) -> None:
    document, kept = list(text_run.documents)[2], list(text_run.documents)[9]
    before = all_rows(run_dir)
    row = before[-1]
    tombstones = TombstoneFile(IndexPaths(run_dir))
    tombstones.add(reason="asked", source=document[0], document_id=document[1])
    for twin in [each for each in before if np.array_equal(each.tokens, row.tokens)]:
        tombstones.add(reason="a number", address=str(twin.address), start=20, end=40)
    tombstones.lift(tombstones.add(reason="mistaken", source=kept[0], document_id=kept[1]).number, reason="indeed")
    pieces = [*pieces_of(before, document), row.tokens[20:40].tobytes()]
    assert "spans.bin" in files_with(run_dir, pieces)
    reader = IndexReader.open(run_dir)
    ngram = next(
        r.tokens[s.start : s.start + 8].tolist() for r in before for s in r.segments if s.document_id == kept[1]
    )
    count, shards = count_of_ngram(reader, ngram, Selection()).count, len(reader.generation.shards)
    assert count > 0

    looked = finish_takedown(run_dir, dry_run=True)
    assert files_with(run_dir, pieces) and 0 < len(looked.shards) < shards
    done = finish_takedown(run_dir)
    assert dataclasses.replace(done, generation=0) == dataclasses.replace(looked, generation=0)
    assert files_with(run_dir, pieces) == set()
    assert verify(run_dir).exit_code == 0

    reader = IndexReader.open(run_dir)
    assert not reader.failed and len(reader.generation.shards) == shards
    assert count_of_ngram(reader, ngram, Selection()).count == count
    shown = reader.describe(reader.sequence(row.address), tombstones.visibility())
    assert shown["token_ids"] == [*row.tokens[:20].tolist(), *[None] * 20, *row.tokens[40:].tolist()]
    after = all_rows(run_dir)
    assert [r.leaf for r in after] == [r.leaf for r in before]
    assert sum(not np.array_equal(a.tokens, b.tokens) for a, b in zip(after, before, strict=True)) == done.num_rows

    again = finish_takedown(run_dir)
    assert (again.num_tokens, again.shards, again.generation) == (0, (), done.generation)
    with pytest.raises(InputError, match="removed for good"):
        tombstones.lift(1, reason="too late")
    assert [item.removed_unix_s is None for item in tombstones.read()] == [False, False, False, True]
    assert not update_index(run_dir, IndexOptions(shard_tokens=text_run.num_steps * 20, verify=True)).published


def test_the_index_follows_an_export_that_lost_its_tokens_before(text_run: TextRun, run_dir: Path) -> None:
    """As a takedown leaves it that was killed between export and index."""
    document = list(text_run.documents)[2]
    tombstones = TombstoneFile(IndexPaths(run_dir))
    tombstones.add(reason="asked", source=document[0], document_id=document[1])
    pieces = pieces_of(all_rows(run_dir), document)
    hidden = visibility_of(tombstones.in_force())
    take_out(RunReader(run_dir), Takedown(documents=hidden.hidden_documents))
    assert files_with(run_dir, pieces) == {"spans.bin"}
    assert finish_takedown(run_dir).shards
    assert files_with(run_dir, pieces) == set()
