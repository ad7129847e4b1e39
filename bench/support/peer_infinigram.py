"""Runs in an environment of its own that has infini-gram: builds its index over tokens, or answers queries.

    python -m venv peer && peer/bin/pip install infini-gram numpy
    peer/bin/python bench/support/peer_infinigram.py build ROWS.npy DIR
    peer/bin/python bench/support/peer_infinigram.py query DIR QUERIES.npy MIN_LENGTH

Prints one JSON line. DIR must not hold the words that the engine looks for in paths (tokenized, table, offset, metadata).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def build(rows_path: Path, directory: Path) -> dict[str, float]:
    """Index u16 rows [num_sequences, length] the way its own tokenizer step would lay them out: 0xFFFF before each."""
    rows = np.load(rows_path)
    directory = directory.resolve()
    (directory / "empty").mkdir(parents=True, exist_ok=True)
    separated = np.concatenate([np.full((len(rows), 1), 0xFFFF, np.uint16), rows], axis=1)
    separated.tofile(directory / "tokenized.0")
    (np.arange(len(rows), dtype=np.uint64) * (separated.shape[1] * 2)).tofile(directory / "offset.0")
    ids, counts = np.unique(separated, return_counts=True)
    (directory / "unigram.0").write_text("".join(f"{i} {c}\n" for i, c in zip(ids, counts, strict=True)))
    (directory / "bow.txt").write_text("".join(f"{i}\n" for i in range(65_535)))
    before, started = os.times(), time.perf_counter()
    command = [
        sys.executable, "-m", "infini_gram.indexing", "--data_dir", str(directory / "empty"), "--save_dir", str(directory),
        "--token_dtype", "u16", "--cpus", "2", "--mem", "4", "--shards", "1", "--add_unigram", "--ulimit", "10000",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    size = sum((directory / name).stat().st_size for name in ("tokenized.0", "table.0", "offset.0"))
    return {
        "cpu_s": cpu_s,
        "wall_s": time.perf_counter() - started,
        "mtokens_per_cpu_s": separated.size / cpu_s / 1e6,
        "bytes_per_token": size / separated.size,
    }


def query(directory: Path, queries_path: Path, min_length: int) -> dict[str, object]:
    """Spans and milliseconds of each query, in the engine's fastest setting (no prefetching)."""
    from infini_gram.engine import InfiniGramEngine

    engine = InfiniGramEngine(
        index_dir=str(directory.resolve()), eos_token_id=0, vocab_size=65_535, version=4, token_dtype="u16",
        ds_prefetch_depth=0, sa_prefetch_depth=0, od_prefetch_depth=0, bow_ids_path=str(directory / "bow.txt"),
        attribution_block_size=256, precompute_unigram_logprobs=True,
    )  # fmt: skip
    times, spans = [], []
    for tokens in np.load(queries_path):
        started = time.perf_counter()
        answer = engine.attribute(
            input_ids=[int(t) for t in tokens], delim_ids=[], min_len=min_length, max_cnt=1_000_000, enforce_bow=False
        )
        times.append((time.perf_counter() - started) * 1e3)
        spans.append([[span["l"], span["r"], span["count"]] for span in answer["spans"]])
    return {"ms": times, "spans": spans}


def main() -> None:
    """Entry point."""
    action, *arguments = sys.argv[1:]
    if action == "build":
        print(json.dumps(build(Path(arguments[0]), Path(arguments[1]))))
    else:
        print(json.dumps(query(Path(arguments[0]), Path(arguments[1]), int(arguments[2]))))


if __name__ == "__main__":
    main()
