"""`python -m tests.support.index_flips --flips 1000`: flip bits in an index's files and trace; no wrong hit, no crash.

Half of the flips are anywhere in a shard, the other half where the question looks: the suffix array and the fingerprints
of the ranks that its grams have, the tokens of its hits, the starts of their sequences. Each trace runs in a process of
its own, so that a crash is seen. What comes back must be right, or an error or a failed shard must name the shard.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.spans.arrays import ARRAYS, SPANS_FILE, file_layout
from indexer.spans.search import find
from indexer.storage.shard import Shard
from indexer.trace.trace import TraceOptions, trace
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks.export_format.errors import KisekiError
from train_hooks.export_format.writing.attempts import RunSpec

LENGTH, STEPS, VOCAB = 128, 80, 400


def make_run(run_dir: Path) -> None:
    """An indexed run of two shards, whose sequences come twice each."""
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(0, VOCAB, (2, LENGTH)) for _ in range(STEPS // 2)]
    steps = [MadeStep(microbatches={0: [tokens]}) for tokens in rows + rows]
    make_attempt(run_dir, RunSpec(sequence_length=LENGTH, vocab_size=VOCAB, config={}), steps)
    update_index(run_dir, IndexOptions(shard_tokens=LENGTH * STEPS))


def bits_that_matter(shard: Shard, query: list[int]) -> list[int]:
    """Offsets in `spans.bin`, in bytes, of what a search for the query looks at."""
    arrays, at = shard.spans, 0
    sections = file_layout(arrays.tokens.dtype, arrays.num_tokens, arrays.num_sequences)
    found: list[int] = []
    for at in range(0, len(query) - 8, 4):
        lo, hi = find(arrays, query[at : at + 8])
        for rank in range(lo, hi):
            position = int(arrays.suffix_array[rank])
            ordinal = int(np.searchsorted(arrays.sequence_starts, position, side="right")) - 1
            places = dict(zip(ARRAYS, (position, ordinal, rank, rank, rank // 256, rank // 256, 0), strict=True))
            for name, section in sections.items():
                width = section.size_bytes // max(1, section.shape[0])
                found += range(section.offset + places[name] * width, section.offset + (places[name] + 1) * width)
    return found


def flip(path: Path, offset: int, bit: int) -> None:
    """One bit, in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def asked(run_dir: Path, query: list[int], name: str, answer: "multiprocessing.Queue[str]") -> None:
    """Trace, and say what came of it: right, named, an error, or what was wrong."""
    rows = {row.address: row.tokens.tolist() for row in all_rows(run_dir)}
    try:
        found = trace(IndexReader.open(run_dir), token_ids=query, options=TraceOptions(min_length=6, num_hits=50))
    except KisekiError as error:
        answer.put("an error names it" if name in str(error) else f"WRONG: {error}")
        return
    for span in found.spans:
        for hit in span.hits:
            if rows[hit.address][hit.offset : hit.offset + span.num_tokens] != list(span.token_ids):
                answer.put(f"WRONG: {hit.address} does not hold the span at {hit.offset}")
                return
    answer.put("the shard is named and left out" if found.shards_failed else "right, or fewer hits")


def play(run_dir: Path, flips: int, seed: int) -> Counter[str]:
    """How often each outcome came."""
    make_run(run_dir)
    chance, outcomes = random.Random(seed), Counter[str]()
    shard = IndexReader.open(run_dir).shards[0]
    query = [*shard.tokens(3)[:60].tolist(), *shard.tokens(7)[20:90].tolist()]
    matter = bits_that_matter(shard, query)
    files = [path for path in shard.directory.glob("*.*") if path.is_file()]
    context = multiprocessing.get_context("fork")
    trace(IndexReader.open(run_dir), token_ids=query)  # compiled before the processes part
    for number in range(flips):
        path = chance.choice(files) if number % 2 else shard.directory / SPANS_FILE
        offset, bit = (
            chance.randrange(path.stat().st_size) if number % 2 else chance.choice(matter),
            chance.randrange(8),
        )
        flip(path, offset, bit)
        answer: multiprocessing.Queue[str] = context.Queue()
        process = context.Process(target=asked, args=(run_dir, query, shard.info.name, answer))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            outcomes[answer.get(timeout=10)] += 1
        else:
            process.kill()
            outcomes[f"WRONG: exit code {process.exitcode} after bit {bit} of byte {offset} of {path.name}"] += 1
        flip(path, offset, bit)
    return outcomes


def main() -> int:
    """Exit code 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        outcomes = play(Path(directory) / "run", options.flips, options.seed)
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    return 1 if any("WRONG" in outcome for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
