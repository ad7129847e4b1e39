"""The main path with everything real: a two-rank torchrun job, its export, its index, its model's own output."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.trace import TraceOptions, trace
from tests.conftest import CORPUS
from tests.support.export_maker import all_rows, brute_force_spans
from train_hooks.export_format.records import Row
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.verify.run import verify

EXAMPLES = CORPUS.parent
STEPS, LENGTH = 6, 64
SMALL = [
    "--steps", str(STEPS), "--sequence-length", str(LENGTH), "--micro-batch", "2", "--accumulation", "2",
    "--layers", "1", "--width", "32", "--heads", "2", "--vocab-size", "512", "--checkpoint-every", "3",
    "--mixture", "devils-dictionary=3,tatoeba-ja=0.2", "--num-workers", "1",
]  # fmt: skip


def run(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A real process with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for source in ("devils-dictionary", "tatoeba-ja"):
        shutil.copy(CORPUS / f"{source}.jsonl.gz", directory)
    return directory


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> tuple[Path, Path]:
    """(run directory, directory of the log that each rank's forward wrote by itself)."""
    directory = tmp_path_factory.mktemp("job")
    done = run(
        "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2",
        str(EXAMPLES / "train_fsdp.py"), "--run-dir", str(directory / "run"), "--corpus", str(small_corpus), *SMALL,
        KISEKI_EXAMPLE_CONSUMED_LOG=str(directory / "log"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return directory / "run", directory / "log"


def logged(log: Path) -> dict[tuple[int, int, int, int], tuple[list[int], int]]:
    """(step, rank, micro-batch, slot) → (tokens, last label), as the forwards got them."""
    found: dict[tuple[int, int, int, int], tuple[list[int], int]] = {}
    for path in sorted(log.glob("rank*.jsonl")):
        rank = int(path.stem.removeprefix("rank"))
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            for slot, (tokens, label) in enumerate(zip(entry["input_ids"], entry["last_label"], strict=True)):
                place = (entry["step"], rank, entry["microbatch"], slot)
                assert place not in found
                found[place] = (tokens, label)
    return found


def place_of(row: Row) -> tuple[int, int, int, int]:
    return row.address.global_step, row.address.dp_rank, row.address.microbatch, row.address.slot


@pytest.mark.job
def test_the_export_is_what_the_ranks_consumed(job: tuple[Path, Path]) -> None:
    run_dir, log = job
    consumed, rows = logged(log), all_rows(run_dir)
    assert len(rows) == len(consumed) == STEPS * 2 * 2 * 2
    for row in rows:
        tokens, last_label = consumed[place_of(row)]
        assert row.tokens.tolist() == tokens
        labels = decode_tensor(next(t for t in row.tensors if t.name == "labels"), row.tokens, row.segments)
        assert labels.tolist() == [*tokens[1:], last_label]
        assert sum(segment.length for segment in row.segments) == LENGTH
    assert len({row.sample_index for row in rows}) == len(rows)
    assert verify(run_dir).exit_code == 0


@pytest.mark.job
def test_the_index_answers_as_a_scan_of_the_export(job: tuple[Path, Path]) -> None:
    run_dir, _ = job
    update_index(run_dir, IndexOptions(shard_tokens=LENGTH * 16))
    reader, rows, chance = IndexReader.open(run_dir), all_rows(run_dir), random.Random(0)
    assert len(reader.shards) == 3
    for before in (None, 4, 2):
        seen = [row for row in rows if before is None or row.address.global_step < before]
        first, second = chance.sample(rows, 2)
        query = [*first.tokens.tolist()[10:50], *second.tokens.tolist()[20:40]]
        options = TraceOptions(min_length=3, selection=Selection(before_step=before), num_hits=100, max_spans=1000)
        found = trace(reader, token_ids=query, options=options)
        expected = brute_force_spans(seen, query, 3)
        assert [(s.start, s.end, s.count) for s in found.spans] == [(a, b, len(places)) for a, b, places in expected]
        for span, (_, _, places) in zip(found.spans, expected, strict=True):
            hits = [(hit.address, hit.offset) for hit in span.hits]
            assert hits == sorted((row.address, offset) for row, offset in places)
            assert (span.first_step, span.last_step) == (places[0][0].address.global_step, hits[-1][0].global_step)
            assert span.dp_ranks == tuple(sorted({address.dp_rank for address, _ in hits}))


@pytest.mark.job
def test_what_the_model_writes_is_traced(job: tuple[Path, Path]) -> None:
    run_dir, _ = job
    done = run(str(EXAMPLES / "generate.py"), str(run_dir), "--json", "--max-tokens", "30", "--prompt", "HOPE, n.")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)["text"]
    update_index(run_dir)
    found = trace(IndexReader.open(run_dir), written, options=TraceOptions(min_length=1))
    assert found.spans, "every token it can write was trained on or is part of the text"
    assert all(written[span.char_start : span.char_end] == span.text for span in found.spans)


@pytest.mark.job
@pytest.mark.parametrize(
    ("line", "message"), [("{not json", "corpus/bad.jsonl.gz"), ('{"id": "a"}', "text")], ids=["not JSON", "no text"]
)
def test_a_bad_corpus_line_is_named(tmp_path: Path, small_corpus: Path, line: str, message: str) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(small_corpus, corpus)
    with gzip.open(corpus / "bad.jsonl.gz", "wt") as file:
        file.write('{"id": "b", "text": "fine", "source": "bad"}\n' + line + "\n")
    done = run(str(EXAMPLES / "train_fsdp.py"), "--run-dir", str(tmp_path / "run"), "--corpus", str(corpus), *SMALL)
    assert done.returncode == 2
    assert message in done.stderr and "2" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "export" / "run.json").exists()
