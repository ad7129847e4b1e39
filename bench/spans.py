"""The span index against infini-gram, over the same real tokens, in the same run.

    python bench/spans.py [--tokens-millions 20] [--tokens FILE.npy] [--peer-python peer/bin/python]

Prints build rate, bytes a token, peak memory, warm and cold latency of all maximal spans of 512 tokens (new text, new text with
copies, copies, what a language model writes), the cost of filters and of more shards, and ratios. Checks that both engines
give the same spans and counts. Without --peer-python the peer's columns are left out. Machines are noisy: compare ratios
and medians.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import append_figures, bench_options
from bench.support.real_tokens import CACHE, real_tokens
from bench.support.table import Table
from indexer.spans.arrays import SpanArrays, open_span_arrays
from indexer.spans.build import build_span_arrays
from indexer.spans.filters import Filter
from indexer.spans.group import SpanGroup, maximal_spans, span_group, spans_of_group
from indexer.spans.search import count, extent, find, page

LENGTH, QUERY = 2048, 512
ORDER = 4
KINDS = ("held-out", "spliced", "verbatim", "generated")
COLD_KINDS = ("held-out", "spliced", "generated")
Rows = npt.NDArray[np.uint16]


def queries(rows: Rows, held: Rows, num: int) -> dict[str, Rows]:
    """Held-out text; held-out with spliced training text; training text verbatim. u16 [num, QUERY] each."""
    chance = np.random.default_rng(5)
    starts = chance.integers(0, len(held) - QUERY, num)
    plain = np.stack([held[s : s + QUERY] for s in starts])
    spliced = plain.copy()
    for query in spliced:
        at = int(chance.integers(20, 80))
        while at < QUERY - 60:
            length = int(chance.integers(10, 60))
            row, column = int(chance.integers(len(rows))), int(chance.integers(0, LENGTH - 60))
            query[at : at + length] = rows[row, column : column + length]
            at += length + int(chance.integers(20, 120))
    places = zip(chance.integers(0, len(rows), num), chance.integers(0, LENGTH - QUERY, num), strict=True)
    verbatim = np.stack([rows[row, column : column + QUERY] for row, column in places])
    return {"held-out": plain, "spliced": spliced, "verbatim": verbatim}


def generated(arrays: SpanArrays, num: int) -> Rows:
    """What a language model over the same tokens writes, u16 [num, QUERY].

    An interpolated n-gram model, sampled: the next token is the one behind a random place of the last 1 to ORDER tokens, as
    chance has it, or of fewer if those stand nowhere. It has about as many spans as held-out text, spread more evenly.
    """
    chance = np.random.default_rng(6)
    texts = np.empty((num, ORDER + QUERY), np.uint16)
    for text in texts:
        at = int(chance.integers(0, arrays.num_tokens - ORDER))
        text[:ORDER] = arrays.tokens[at : at + ORDER]
        for end in range(ORDER, len(text)):
            for length in range(int(chance.integers(1, ORDER + 1)), -1, -1):
                context = text[end - length : end]
                # Of no tokens: any place but a separator's, which stand last.
                lo, hi = find(arrays, context) if length else (0, arrays.num_tokens - arrays.num_sequences)
                if hi > lo:
                    text[end] = arrays.tokens[int(arrays.suffix_array[int(chance.integers(lo, hi))]) + length]
                    if text[end] != arrays.separator:
                        break
    return texts[:, ORDER:]


def milliseconds(work: Callable[[Any], object], items: Sequence[Any], rounds: int = 5) -> list[float]:
    """Each item's median over rounds, after one that is not counted."""
    times: list[list[float]] = [[] for _ in items]
    for round_ in range(rounds + 1):
        for index, item in enumerate(items):
            started = time.perf_counter()
            work(item)
            if round_:
                times[index].append((time.perf_counter() - started) * 1e3)
    return [statistics.median(values) for values in times]


TABLE = Table()
row = TABLE.row


def _spans(arrays: SpanArrays, min_length: int, chosen: Filter | None, query: Rows) -> object:
    return maximal_spans(arrays, query, min_length, chosen)


def _spans_of_group(shards: SpanGroup, min_length: int, query: Rows) -> object:
    return spans_of_group(shards, query, min_length)


def shown(times: Sequence[float]) -> str:
    """Median and 95th percentile."""
    return f"{statistics.median(times):.3f}/{np.percentile(times, 95):.3f}"


def bench_build(rows: Rows, directory: Path) -> None:
    """Build in a process of its own, whose memory has no earlier peak."""
    np.save(directory / "rows.npy", rows)
    command: list[str | Path] = [sys.executable, __file__, "--build", directory]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    built = json.loads(done.stdout)
    size = sum(path.stat().st_size for path in (directory / "ours").iterdir())
    row("build, million tokens a CPU-second", f"{built['num_tokens'] / built['cpu_s'] / 1e6:.2f}")
    row("build, bytes of memory a token at the peak", f"{built['peak_bytes'] / built['num_tokens']:.1f}")
    row("index, bytes a token on disk, tokens and fingerprints included", f"{size / built['num_tokens']:.2f}")


def build_process(directory: Path) -> None:
    """What `bench_build` starts: builds from rows.npy, and prints one JSON line."""
    rows = np.load(directory / "rows.npy")
    build_span_arrays(rows[:8], np.uint16, _fresh(directory / "warm"))
    before, cpu = _reset_peak(), time.process_time()
    built = build_span_arrays(rows, np.uint16, _fresh(directory / "ours"))
    cpu = time.process_time() - cpu
    print(json.dumps({"num_tokens": built.num_tokens, "cpu_s": cpu, "peak_bytes": _memory("VmHWM") - before}))


def _reset_peak() -> int:
    """Forget the peak so far; returns the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def _fresh(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def bench_latency(
    arrays: SpanArrays, asked: dict[str, Rows], peer: Callable[[Rows, int], dict[str, Any]] | None
) -> None:
    """All maximal spans with counts, warm, against the peer's fastest setting; both must agree."""
    row("all maximal spans of 512 tokens, warm, ms p50/p95", "kiseki", "infini-gram", "ratio of p50")
    for min_length in (8, 16, 32):
        for kind, batch in asked.items():
            ours = milliseconds(functools.partial(_spans, arrays, min_length, None), list(batch))
            theirs = peer(batch, min_length) if peer else None
            if theirs:
                _check_equal(arrays, batch, min_length, theirs["spans"])
            ratio = f"{statistics.median(theirs['ms']) / statistics.median(ours):.0f}x" if theirs else "–"
            row(f"  min length {min_length}, {kind}", shown(ours), shown(theirs["ms"]) if theirs else "–", ratio)
            worst = int(np.argmax(ours))
            row(
                f"    slowest: query {worst}, {len(maximal_spans(arrays, batch[worst], min_length))} spans",
                f"{ours[worst]:.3f}",
                kept=False,
            )


def _check_equal(arrays: SpanArrays, batch: Rows, min_length: int, theirs: Sequence[Sequence[Sequence[int]]]) -> None:
    for query, spans in zip(batch, theirs, strict=True):
        found = maximal_spans(arrays, query, min_length)
        ours = [list(span) for span in zip(found.start.tolist(), found.end.tolist(), found.count.tolist(), strict=True)]
        if ours != [list(span) for span in spans]:
            raise SystemExit(
                f"the engines disagree at min length {min_length}: ours {ours[:5]}, theirs {list(spans)[:5]}"
            )


def bench_cold(directory: Path, asked: dict[str, Rows]) -> None:
    """The page cache dropped for the file before each query, in a process of its own: nobody else maps the file."""
    for kind in COLD_KINDS:
        np.save(directory / f"{kind}.npy", asked[kind])
    done = subprocess.run(
        [sys.executable, __file__, "--cold", directory], stdout=subprocess.PIPE, text=True, check=True
    )
    row("cold, ms p50 / MB read p50", *COLD_KINDS)
    for line in done.stdout.splitlines():
        name, *cells = json.loads(line)
        row(name, *cells)


def cold_process(directory: Path) -> None:
    """What `bench_cold` starts: one JSON line a minimum length, and one for the opening."""
    asked = {kind: np.load(directory / f"{kind}.npy") for kind in COLD_KINDS}
    opening = []
    for min_length in (8, 16, 32):
        maximal_spans(
            open_span_arrays(directory / "warm"), asked["spliced"][0], min_length
        )  # compiled code is not cold
        cells = []
        for kind in COLD_KINDS:
            found = [_cold_query(directory / "ours" / "spans.bin", query, min_length) for query in asked[kind][:40]]
            open_ms, open_mb, ms, megabytes = (statistics.median(values) for values in zip(*found, strict=True))
            opening.append((open_ms, open_mb))
            cells.append(f"{ms:.1f}/{megabytes:.2f}")
        print(json.dumps([f"  query, min length {min_length}", *cells]), flush=True)
    ms, megabytes = (statistics.median(values) for values in zip(*opening, strict=True))
    print(json.dumps(["  opening: the prefix table is read, once", f"{ms:.1f}/{megabytes:.2f}"]), flush=True)


def _cold_query(path: Path, query: Rows, min_length: int) -> tuple[float, float, float, float]:
    """Milliseconds and MB read from the disk, of opening the index and of one query by it."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    times, read = [time.perf_counter()], [_bytes_read()]
    arrays = open_span_arrays(path.parent)
    arrays.prefix_table.max()
    times, read = [*times, time.perf_counter()], [*read, _bytes_read()]
    maximal_spans(arrays, query, min_length)
    times, read = [*times, time.perf_counter()], [*read, _bytes_read()]
    (opening_s, asking_s), (opening_bytes, asking_bytes) = np.diff(times), np.diff(read)
    return opening_s * 1e3, opening_bytes / 1e6, asking_s * 1e3, asking_bytes / 1e6


def _bytes_read() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _in_memory(directory: Path) -> SpanArrays:
    """The index, read through: the cold queries dropped it from the page cache, where what was just built is, as the peer's.

    Queries alone warm it only after several rounds: one that waits for the disk is searched in pieces, side by side, and
    looks other grams up than one that does not.
    """
    with (directory / "spans.bin").open("rb") as file:
        while file.read(1 << 24):
            pass
    return open_span_arrays(directory)


def bench_filters(arrays: SpanArrays, asked: dict[str, Rows]) -> None:
    """A range of sequences, as a step range is one.

    A copy of training text that the range leaves out is new text under it: its cost is set against that of new text.
    """
    num = arrays.num_sequences
    ranges = {"before half": Filter(last=num // 2), "middle sixth": Filter(first=num // 3, last=num // 2)}
    row("filters, min length 8, ms p50/p95", "none", "filtered", "ratio")
    novel = milliseconds(functools.partial(_spans, arrays, 8, None), list(asked["held-out"]), 3)
    for name, chosen in ranges.items():
        for kind, batch in asked.items():
            whole = [len(maximal_spans(arrays, query, QUERY, chosen)) > 0 for query in batch]
            for passes in sorted(set(whole)):
                some = [query for query, each in zip(batch, whole, strict=True) if each == passes]
                left_out = kind == "verbatim" and not passes
                free = novel if left_out else milliseconds(functools.partial(_spans, arrays, 8, None), some, 3)
                filtered = milliseconds(functools.partial(_spans, arrays, 8, chosen), some, 3)
                ratio = statistics.median(filtered) / statistics.median(free)
                note = ", left out; against held-out" if left_out else ""
                row(f"  {name}, {len(some)} {kind}{note}", shown(free), shown(filtered), f"{ratio:.2f}x")


def bench_frequent(arrays: SpanArrays) -> None:
    """The most frequent token: count, first and last sequence, first page of hits."""
    token = int(np.bincount(arrays.tokens[arrays.tokens != arrays.separator]).argmax())
    half = Filter(last=arrays.num_sequences // 2)

    def ask(chosen: Filter | None) -> object:
        lo, hi = find(arrays, [token])
        return count(arrays, lo, hi, chosen), extent(arrays, lo, hi, chosen), page(arrays, lo, hi, chosen, limit=10)

    lo, hi = find(arrays, [token])
    row(
        f"a span with {hi - lo:,} hits: count, extent, page, ms",
        *[shown(milliseconds(ask, [f] * 5)) for f in (None, half)],
    )


def bench_shards(rows: Rows, directory: Path, asked: dict[str, Rows]) -> None:
    """The same tokens in more shards, which are searched together."""
    groups = {
        num: span_group(
            [
                build_span_arrays(part, np.uint16, _fresh(directory / f"shards-{num}" / str(index)))
                for index, part in enumerate(np.array_split(rows, num))
            ]
        )
        for num in (1, 8, 32)
    }
    for min_length in (8, 16):
        row(f"shards, min length {min_length}, ms p50/p95", *asked, "ratio to 1")
        single = 0.0
        for num, group in groups.items():
            times = [
                milliseconds(functools.partial(_spans_of_group, group, min_length), list(b), 3) for b in asked.values()
            ]
            mean = statistics.fmean(statistics.median(t) for t in times)
            single = single or mean
            row(f"  {num}", *map(shown, times), f"{mean / single:.1f}x")
    simulate_large(groups[32], asked)


def simulate_large(group: SpanGroup, asked: dict[str, Rows]) -> None:
    """What a run of 1T tokens in 2,000 shards of 500M would read for one query, from the look-ups counted here.

    In a shard where the text does not occur, a gram that is looked up costs one page of fingerprints, and one page of the
    shard's prefix table where those (125 GB) are not in memory: the merged table then holds a key a page.
    """
    num = 1_000_000_000_000 // 500_000_000
    row("simulated: 1T tokens in 2,000 shards of 500M, thousand reads a query", *asked, "s at 500k reads/s")
    for min_length in (8, 16, 32):
        grams = [
            statistics.median(spans_of_group(group, query, min_length).work[0] / len(group.shards) for query in batch)
            for batch in asked.values()
        ]
        for where, pages in (("tables in memory", 1), ("tables on disk", 2)):
            reads = [num * count * pages for count in grams]
            seconds = max(reads) / 500_000
            row(f"  min length {min_length}, {where}", *(f"{each / 1e3:,.0f}" for each in reads), f"{seconds:.2f}")


def peer_engine(python: Path, directory: Path) -> Callable[[Rows, int], dict[str, Any]]:
    """Build the peer's index from rows.npy; returns a function that asks it."""
    script = Path(__file__).parent / "support" / "peer_infinigram.py"

    def run(*arguments: object) -> dict[str, Any]:
        done = subprocess.run([python, script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    built = run("build", directory / "rows.npy", directory / "peer")
    row("peer: build, million tokens a CPU-second", f"{built['mtokens_per_cpu_s']:.2f}")
    row("peer: bytes a token on disk, without our fingerprints' like", f"{built['bytes_per_token']:.2f}")

    def ask(batch: Rows, min_length: int) -> dict[str, Any]:
        np.save(directory / "queries.npy", batch)
        return run("query", directory / "peer", directory / "queries.npy", min_length)

    return ask


def main() -> None:
    """Entry point."""
    parser = bench_options(__doc__)
    parser.add_argument("--tokens-millions", type=float, default=20.0)
    parser.add_argument("--tokens", type=Path, help="u16 [n] token ids of your own")
    parser.add_argument("--peer-python", type=Path, help="python of an environment that has infini-gram")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--cold", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build is not None:
        build_process(options.build)
        return
    if options.cold is not None:
        cold_process(options.cold)
        return
    num = int(options.tokens_millions * 1e6) // LENGTH * LENGTH
    training, held = real_tokens(num, 400_000, options.tokens)
    rows = training.reshape(-1, LENGTH)
    print(f"{num:,} tokens in sequences of {LENGTH}, {options.queries} queries of {QUERY} of each kind")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        directory = Path(name)
        bench_build(rows, directory)
        found = queries(rows, held, options.queries)
        found["generated"] = generated(open_span_arrays(directory / "ours"), options.queries)
        asked = {kind: found[kind] for kind in KINDS}
        bench_cold(directory, asked)
        arrays = _in_memory(directory / "ours")
        peer = peer_engine(options.peer_python, directory) if options.peer_python else None
        bench_latency(arrays, asked, peer)
        bench_filters(arrays, asked)
        bench_frequent(arrays)
        bench_shards(rows, directory, asked)
    append_figures("spans", TABLE.figures, options)


if __name__ == "__main__":
    main()
