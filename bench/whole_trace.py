"""The whole path on real tokens: export, index, and the trace of 512-token texts with documents and contexts.

    python bench/whole_trace.py [--tokens-millions 20] [--queries 60] [--run DIR]

The tokens are those of support/real_tokens.py, written by the real exporter as two data-parallel ranks. With --run the run is
kept, and taken as it is when it is there. Machines are noisy: look at ratios and medians.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import Figures, bench_options, recorded
from bench.support.real_tokens import CACHE, TOKENIZER, VOCAB, real_tokens
from indexer.build.update import update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.trace import TraceOptions, trace
from train_hooks import Segment
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter
from train_hooks.hook.export.staging import StagedMicrobatch

LENGTH, SLOTS, WRITERS, DOCUMENT = 2048, 8, 2, 700


def export(run_dir: Path, num: int) -> None:
    """Write `num` real tokens."""
    training, _ = real_tokens(num, 400_000)
    export_tokens(run_dir, training, TOKENIZER)


def export_tokens(run_dir: Path, tokens: np.ndarray, tokenizer: Path) -> None:
    """Write tokens as steps of two writers, micro-batches of 8; documents of 700 tokens, cut as packing does."""
    rows = tokens.reshape(-1, LENGTH).astype(np.int64)
    file_system = OsFileSystem()
    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCAB, tokenizer=tokenizer, config={}, run_id="bench")
    run = open_or_create_run(file_system, run_dir, spec)
    attempt = claim_attempt(file_system, run_dir, run, num_writers=WRITERS, resume=None, config={})
    secret, per_step = RunReader(run_dir).secret(), SLOTS * WRITERS
    for rank in range(WRITERS):
        writer = RankWriter(file_system, ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, rank)
        with Exporter(writer, run, attempt, rank, secret) as exporter:
            for step in range(len(rows) // per_step):
                first = step * per_step + rank * SLOTS
                segments = [_segments((first + slot) * LENGTH) for slot in range(SLOTS)]
                exporter.stage(StagedMicrobatch(tokens=rows[first : first + SLOTS], segments=segments))
                exporter.commit(step + 1, metrics={"loss": 1.0} if rank == 0 else None)


def _segments(position: int) -> list[Segment]:
    segments, start = [], 0
    while start < LENGTH:
        document, offset = divmod(position + start, DOCUMENT)
        length = min(DOCUMENT - offset, LENGTH - start)
        segments.append(
            Segment(
                start=start, length=length, source="packages", document_id=f"d{document}", document_token_offset=offset
            )
        )
        start += length
    return segments


def texts(reader: IndexReader, held: np.ndarray, num: int) -> dict[str, list[str]]:
    """Texts of about 512 tokens: held-out, held-out with training text spliced in, training text."""
    chance, decode = np.random.default_rng(3), reader.tokenizer.decode
    found: dict[str, list[str]] = {"held-out": [], "spliced": [], "verbatim": []}
    for _ in range(num):
        at = int(chance.integers(0, len(held) - 512))
        shard = reader.shards[int(chance.integers(len(reader.shards)))]
        tokens, start = (
            shard.tokens(int(chance.integers(shard.info.num_sequences))),
            int(chance.integers(0, LENGTH - 512)),
        )
        plain = held[at : at + 512].copy()
        found["held-out"].append(decode(plain))
        plain[100:180], plain[300:350] = tokens[start : start + 80], tokens[start + 200 : start + 250]
        found["spliced"].append(decode(plain))
        found["verbatim"].append(decode(tokens[start : start + 512]))
    return found


def bench(run_dir: Path, num: int, num_queries: int, figures: Figures) -> None:
    """Print the table, and keep its figures."""
    if not (run_dir / "export").exists():
        started = time.perf_counter()
        export(run_dir, num)
        figures.add("export", num / (time.perf_counter() - started), "tokens/s")
        print(f"export: {num / (time.perf_counter() - started) / 1e6:.2f} million tokens a second")
    cpu, started = time.process_time(), time.perf_counter()
    report = update_index(run_dir)
    if report.published:
        cpu, wall = time.process_time() - cpu, time.perf_counter() - started
        figures.add("index with text and catalog", report.num_tokens / cpu, "tokens/CPU-s")
        print(
            f"index with text and catalog: {report.num_tokens / cpu / 1e6:.2f} million tokens a CPU-second, {wall:.0f} s"
        )
    reader = IndexReader.open(run_dir)
    _, held = real_tokens(num, 400_000)
    last = reader.shards[-1].info.last_step
    print(f"{report.num_tokens:,} tokens, {report.num_shards} shards; a whole trace, ms: p50 / p95 / slowest")
    for kind, batch in texts(reader, held, num_queries).items():
        for name, selection in (("all steps", Selection()), ("before half", Selection(before_step=last // 2))):
            options, times, spans, hits = TraceOptions(selection=selection), [], 0, 0
            for text in batch[:3] + batch:
                started = time.perf_counter()
                found = trace(reader, text, options=options)
                times.append((time.perf_counter() - started) * 1e3)
                spans, hits = spans + len(found.spans), hits + sum(len(span.hits) for span in found.spans)
            times = times[3:]
            figures.add(f"{kind}, {name}, p50", statistics.median(times), "ms")
            figures.add(f"{kind}, {name}, p95", float(np.percentile(times, 95)), "ms")
            cells = f"{statistics.median(times):7.1f} / {np.percentile(times, 95):7.1f} / {max(times):7.1f}"
            print(f"  {kind:9} {name:12} {cells}   {spans / len(batch):.0f} spans, {hits / len(batch):.0f} hits")


def main() -> None:
    """Entry point."""
    parser = bench_options(__doc__)
    parser.add_argument("--tokens-millions", type=float, default=20.0)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    num = int(options.tokens_millions * 1e6) // (LENGTH * SLOTS * WRITERS) * LENGTH * SLOTS * WRITERS
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name, recorded("whole_trace", options) as figures:
        bench(options.run or Path(name) / "run", num, options.queries, figures)


if __name__ == "__main__":
    main()
