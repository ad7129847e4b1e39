"""What the statistics of sequences cost at index time, on the example corpus.

    python bench/sequence_statistics.py [--length 4096] [--copies 4]

CPU-seconds for a million tokens: of each statistic; of the seen share within a shard, and for each shard before that does
not hold the text, and that holds all of it; beside the suffix array of the same tokens, which a shard is mostly made of.
`--copies` shuffles documents anew and puts them behind one another, so that there is something to see again.
"""

import argparse
import gzip
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import Figures, bench_options, recorded
from indexer.spans.build import build_span_arrays
from indexer.spans.filters import Filter
from indexer.statistics.anchors import anchors, bloom_filter
from indexer.statistics.repetition import repeated_shares
from indexer.statistics.scripts import script_shares
from indexer.statistics.seen import EarlierShard, seen_shares
from indexer.statistics.sequences import compression_ratios
from indexer.tokenizer.token_bytes import bytes_of_tokens
from tests.conftest import CORPUS, byte_level_bpe

VOCABULARY, PER_STEP = 16_000, 8
T = TypeVar("T")


def measured(figures: Figures, name: str, num_tokens: int, work: Callable[[], T]) -> T:
    """Print and keep the CPU-seconds of the second of two runs (the first one may compile)."""
    work()
    started = time.process_time()
    result = work()
    seconds = (time.process_time() - started) / num_tokens * 1e6
    figures.add(name.strip(), seconds, "CPU-s/Mtoken")
    print(f"{name:44s} {seconds:8.4f}")
    return result


def main() -> None:
    """Entry point."""
    parser = bench_options(__doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--copies", type=int, default=4)
    options = parser.parse_args()
    with recorded("sequence_statistics", options) as figures:
        bench(options, figures)


def bench(options: argparse.Namespace, figures: Figures) -> None:
    """Tokenize and measure each statistic."""
    files = sorted(CORPUS.glob("*.jsonl.gz"))
    texts = [json.loads(line)["text"] for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    tokenizer = byte_level_bpe(texts, VOCABULARY)
    documents, rng = (
        [np.array(found.ids, np.uint16) for found in tokenizer.encode_batch(texts)],
        np.random.default_rng(0),
    )
    order = np.concatenate([rng.permutation(len(documents)) for _ in range(options.copies)])
    tokens = np.concatenate([documents[number] for number in order.tolist()])
    num = len(tokens) // options.length
    tokens, starts = tokens[: num * options.length], np.arange(num + 1) * options.length
    bytes_of = bytes_of_tokens(tokenizer, VOCABULARY)
    print(f"{len(tokens):,} tokens in sequences of {options.length}\n\n{'CPU-seconds a million tokens':44s}")
    measured(figures, "repetition", len(tokens), lambda: repeated_shares(tokens, starts))
    measured(figures, "scripts", len(tokens), lambda: script_shares(tokens, starts, bytes_of))
    measured(figures, "compression", len(tokens), lambda: compression_ratios(tokens, starts))
    words = measured(figures, "anchors and their filter", len(tokens), lambda: bloom_filter(anchors(tokens, starts)[0]))
    rows = [tokens[begin:end] for begin, end in itertools.pairwise(starts.tolist())]
    strange = np.random.default_rng(1).permutation(tokens)
    steps, applied = np.arange(num) // PER_STEP, np.ones(num, np.bool_)
    with tempfile.TemporaryDirectory() as name:
        spans = measured(
            figures,
            "(suffix array and its side arrays)",
            len(tokens),
            lambda: build_span_arrays(rows, np.uint16, Path(name)),
        )
        within = measured(
            figures, "seen, within the shard", len(tokens), lambda: seen_shares(spans, steps, applied, 0, ())
        )
        other = EarlierShard(spans=spans, anchors=bloom_filter(anchors(strange, starts)[0]), chosen=Filter(first=0))
        many = [other] * 100
        measured(
            figures,
            "  and 100 shards without the text",
            len(tokens),
            lambda: seen_shares(spans, steps, applied, 0, many),
        )
        same = [EarlierShard(spans=spans, anchors=words, chosen=Filter(first=0))]
        measured(
            figures, "  and one that holds all of it", len(tokens), lambda: seen_shares(spans, steps, applied, 0, same)
        )
    print(
        f"\nseen within the shard: {100 * float(within.mean()):.1f}% of the tokens; "
        f"the filter has {words.nbytes / len(tokens):.2f} bytes a token"
    )


if __name__ == "__main__":
    main()
