"""`python -m tests.support.index_kills --kills 100`: kill -9 an indexer at random moments while readers ask.

The export grows by an attempt each round. A real process indexes it with small shards and is killed after a random time;
four threads open the published generation over and over and count n-grams. Every answer must be what a scan of the rows
gives that the generation it came from says it covers. In the end the index is completed and compared as well.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.counts import count_of_ngram
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks.export_format.errors import IncompleteError, RunError
from train_hooks.export_format.records import Row
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

LENGTH, SHARD_TOKENS, STEPS = 32, 32 * 12, 5
INDEX = f"""
import sys
from indexer.build.update import IndexOptions, update_index
print("ready", flush=True)
update_index(sys.argv[1], IndexOptions(shard_tokens={SHARD_TOKENS}))
"""


class Readers:
    """Threads that ask; `wrong` collects what they got that a scan would not give."""

    def __init__(self, run_dir: Path, num: int = 4) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._grams: list[list[int]] = []
        self._stop = threading.Event()
        self.wrong: list[str] = []
        self.num_answers = 0
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(num)]
        for thread in self._threads:
            thread.start()

    def know(self, rows: list[Row], grams: list[list[int]]) -> None:
        """What the export holds now. An index is never ahead of it."""
        with self._lock:
            self._rows, self._grams = rows, grams

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            try:
                reader = IndexReader.open(self._run_dir)
            except (IncompleteError, RunError):
                time.sleep(0.01)
                continue
            with self._lock:
                rows, grams = self._rows, self._grams
            for gram in chance.sample(grams, min(5, len(grams))):
                found = count_of_ngram(reader, gram, Selection(lineage="all")).count
                expected = scan(rows, gram, reader.generation.covered)
                self.num_answers += 1
                if found != expected or reader.failed:
                    self.wrong.append(
                        f"generation {reader.generation.number}: {found}, not {expected}; {reader.failed}"
                    )


def scan(rows: list[Row], gram: list[int], covered: Mapping[int, int]) -> int:
    """Occurrences in the rows of covered steps."""
    wanted = np.array(gram)
    count = 0
    for row in rows:
        if row.address.global_step <= covered.get(row.address.attempt, 0):
            windows = np.lib.stride_tricks.sliding_window_view(row.tokens, len(gram))
            count += int((windows == wanted).all(axis=1).sum())
    return count


def play(run_dir: Path, kills: int, seed: int) -> tuple[int, int, list[str]]:
    """(kills that hit a living indexer, answers, what was wrong)."""
    chance, numbers = random.Random(seed), np.random.default_rng(seed)
    spec = RunSpec(sequence_length=LENGTH, vocab_size=50, config={})
    readers, last, hit, longest_s = Readers(run_dir), 0, 0, 1.5
    try:
        for number in range(kills):
            steps = [MadeStep(microbatches={0: [numbers.integers(0, 50, (2, LENGTH))]}) for _ in range(STEPS)]
            resume = ResumeToken(run_id="run", attempt=number, global_step=last) if number else None
            make_attempt(run_dir, spec, steps, resume=resume)
            last += STEPS
            rows = all_rows(run_dir)
            readers.know(rows, [row.tokens[:2].tolist() for row in chance.sample(rows, 8)])
            ended_s = _kill_one(run_dir, chance.uniform(0.0, longest_s))
            hit += ended_s is None
            longest_s = longest_s if ended_s is None else ended_s  # one that was too late says how long indexing takes
        update_index(run_dir, IndexOptions(shard_tokens=SHARD_TOKENS))
        reader = IndexReader.open(run_dir)
        for row in chance.sample(rows, 20):
            gram = row.tokens[:3].tolist()
            if count_of_ngram(reader, gram, Selection(lineage="all")).count != scan(
                rows, gram, reader.generation.covered
            ):
                readers.wrong.append("the completed index differs from a scan")
        if max(reader.generation.covered.values()) != last:
            readers.wrong.append(f"the completed index ends at {reader.generation.covered}, the export at {last}")
    finally:
        readers.stop()
    return hit, readers.num_answers, readers.wrong


def _kill_one(run_dir: Path, after_s: float) -> float | None:
    """Start an indexer, kill it `after_s` after its imports. None if it still lived, else when it had ended, in seconds."""
    with subprocess.Popen([sys.executable, "-c", INDEX, run_dir], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
        return time.monotonic() - started


def main() -> int:
    """Exit code 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        hit, answers, wrong = play(Path(directory) / "run", options.kills, options.seed)
    print(f"{options.kills} kills, {hit} of a living indexer; {answers} answers, {len(wrong)} wrong")
    for line in wrong[:10]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
