"""Importing an LLM-jp dump: tokens a second of one core, and memory, against reading its JSON alone.

    python bench/llm_jp_dump.py [--lines-millions 1] [--length 65] [--dir DIR] [--index]

Makes a dump in LLM-jp's layout of the example corpus's texts (a byte-level BPE tokenizer of 8,000 ids, two folds of two ranks,
8 lines a step and rank), imports it in a process of its own, and prints tokens per CPU-second and peak memory, beside a peer
that decompresses and parses the same lines. With --index it indexes the import and traces one of its lines. With --dir the dump
is kept, and taken as it is when it is there.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.support.history import bench_options, recorded
from indexer.build.update import IndexOptions, update_index
from indexer.corpora.reader import CorpusReader
from indexer.importers.llm_jp.importer import import_dump
from indexer.reader import IndexReader
from indexer.trace.trace import trace

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpus"
RANKS, FOLDS, A_STEP, VOCABULARY = 2, ("00", "01"), 8, 8000


def make_dump(directory: Path, num_lines: int, length: int) -> None:
    """Windows into the tokenized corpus, in an order that repeats none until all were taken."""
    texts = [document.text for document in CorpusReader(CORPUS).documents()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[::8], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = np.concatenate([[*encoding.ids, 0] for encoding in tokenizer.encode_batch_fast(texts)])
    documents = np.cumsum(tokens == 0) - (tokens == 0)
    places = np.random.default_rng(1).permutation(len(tokens) - length)
    steps = num_lines // (RANKS * A_STEP)
    for rank in range(RANKS):
        for number, fold in enumerate(FOLDS):
            path = directory / f"used_data_{fold}/used_data_{rank}.jsonl.gz"
            path.parent.mkdir(exist_ok=True)
            with gzip.open(path, "wt", 1, encoding="utf-8") as file:
                for step in range(number * steps // 2, (number + 1) * steps // 2):
                    for slot in range(A_STEP):
                        begin = int(places[((step * RANKS + rank) * A_STEP + slot) % len(places)])
                        part = tokens[begin : begin + length].tolist()
                        ids = np.unique(documents[begin : begin + length]).tolist()
                        line = {
                            "iteration": step + 1, "dataset_idx": 0, "dataset_name": "/data/ja_wiki_train_0_text_document",
                            "doc_ids": ids, "text": tokenizer.decode(part, skip_special_tokens=False), "token_ids": part,
                        }  # fmt: skip
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def count_lines(path: Path) -> int:
    """Lines of a gzip file."""
    with gzip.open(path) as file:
        return sum(1 for _ in file)


def measured(what: str, directory: Path, run_dir: Path) -> tuple[float, float, float]:
    """(CPU-seconds, seconds, peak MB) of this program with --only, in a process of its own."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--only", what, "--dir", str(directory), "--run", str(run_dir)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu_s, peak_mb = map(float, done.stdout.split()[-2:])
    return cpu_s, time.monotonic() - started, peak_mb


def only(what: str, directory: Path, run_dir: Path) -> None:
    """One measurement; prints CPU-seconds and peak MB."""
    if what == "parse":
        for path in directory.rglob("*.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    json.loads(line)
    else:
        import_dump(directory, run_dir, tokenizer=directory / "tokenizer.json", eos=0)
    print(time.process_time(), peak_mb())


def peak_mb() -> float:
    """The most memory of this process; `getrusage` would count what held the one that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Make the dump if need be, measure, print."""
    parser = bench_options(__doc__)
    parser.add_argument("--lines-millions", type=float, default=1.0)
    parser.add_argument("--length", type=int, default=65)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--index", action="store_true")
    parser.add_argument("--only", choices=["parse", "import"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        only(options.only, options.dir, options.run)
        return
    with tempfile.TemporaryDirectory() as temporary, recorded("llm_jp_dump", options) as figures:
        directory = options.dir or Path(temporary) / "dump"
        if not (directory / "tokenizer.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            make_dump(directory, int(options.lines_millions * 1e6), options.length)
        run_dir = Path(temporary) / "run"
        num_lines = sum(map(count_lines, directory.rglob("*.gz")))
        with gzip.open(next(directory.rglob("*.gz")), "rt", encoding="utf-8") as file:
            first = json.loads(file.readline())
        num_tokens = num_lines * len(first["token_ids"])
        size = sum(path.stat().st_size for path in directory.rglob("*.gz"))
        print(f"{num_lines:,} lines, {num_tokens:,} tokens, {size / 1e6:,.0f} MB compressed")
        results = {what: measured(what, directory, run_dir) for what in ("parse", "import")}
        for what, (cpu_s, wall_s, peak_mb) in results.items():
            figures.add(what, num_tokens / cpu_s, "tokens/CPU-s")
            figures.add(f"{what}, wall time", wall_s, "s")
            figures.add(f"{what}, memory at most", peak_mb, "MB")
            print(f"{what:7} {num_tokens / cpu_s:12,.0f} tokens a CPU-second {wall_s:8.1f} s {peak_mb:8.0f} MB at most")
        print(f"import takes {results['import'][0] / results['parse'][0]:.1f} times the CPU of parsing")
        if options.index:
            started = time.monotonic()
            update_index(run_dir, IndexOptions())
            found = trace(IndexReader.open(run_dir), token_ids=first["token_ids"])
            print(
                f"indexed and traced in {time.monotonic() - started:.1f} s: {found.spans[0].num_tokens} tokens of a line"
            )


if __name__ == "__main__":
    main()
