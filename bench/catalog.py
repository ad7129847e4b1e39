"""Questions to the catalog of a run of a trillion tokens: 250 million sequences of 4,096 tokens.

    python bench/catalog.py --rows 250e6 --directory /tmp/catalog-bench

Writes synthetic sequences into parts as `kiseki index` lays them out (schema, row groups, compression, one step of 1,024
sequences after the other, full parts and a tail of small ones as a followed run has), with the views of a real catalog over
them, and measures: one step, a window of 1,000 steps, the largest losses, and a scan of everything. Each is asked in two
processes that open the catalog anew: one after the kernel was told to forget the files ("cold"), one with the files in its
cache ("first" is the first time in that process, "again" the best of three more). About 43 bytes of disk a row: the leaf, 32
random bytes a row that no question reads, is left out unless --leaf. Parts that are there are kept: give --directory again to
measure again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from bench.support.history import Figures, bench_options, recorded
from indexer.build.catalog import TABLES, create_views
from indexer.build.parts import GROUP_ROWS, PART_ROWS, PART_SCHEMAS, write_manifest, write_sorted
from indexer.build.planning import FANOUT
from indexer.storage.shard import shard_name
from indexer.storage.step_range import StepRange
from train_hooks.export_format.lineage import StepInterval

PER_STEP, LENGTH = 1024, 4096
QUERIES = {
    "one step": "SELECT * FROM sequences WHERE global_step = {middle}",
    "one step, canonical, mean of its losses": (
        "SELECT avg(loss), max(seen_share) FROM sequences WHERE canonical AND global_step = {middle}"
    ),
    "window of 1,000 steps, means by step": (
        "SELECT global_step, avg(loss), avg(repeated_share), avg(seen_share) FROM sequences "
        "WHERE global_step BETWEEN {middle} AND {middle} + 999 GROUP BY 1 ORDER BY 1"
    ),
    "top 20 losses": "SELECT address, loss FROM sequences ORDER BY loss DESC LIMIT 20",
    "top 20 losses, canonical, all columns": "SELECT * FROM sequences WHERE canonical ORDER BY loss DESC LIMIT 20",
    "top 20 losses of a window": (
        "SELECT address, loss FROM sequences WHERE global_step BETWEEN {middle} AND {middle} + 999 ORDER BY loss DESC LIMIT 20"
    ),
    "all steps": "SELECT * FROM steps",
    "scan of all rows, 100 bins": (
        "SELECT global_step * 100 // {last} AS bin, avg(loss), avg(compression_ratio) FROM sequences GROUP BY 1 ORDER BY 1"
    ),
}
ASK = """
import json, sys, time, duckdb
path, sql = sys.argv[1:]
connection, times = duckdb.connect(path, read_only=True), []
connection.execute("SET enable_progress_bar = false")
for _ in range(4):
    started = time.perf_counter()
    rows = len(connection.execute(sql).fetchall())
    times.append(time.perf_counter() - started)
print(json.dumps([rows, times]))
"""


def part_sizes(num_rows: int) -> Iterator[int]:
    """Full parts, and of what is left FANOUT - 1 of each smaller tier, as following leaves them."""
    left, size = num_rows // PER_STEP * PER_STEP, PART_ROWS // PER_STEP * PER_STEP
    while left >= size:
        yield size
        left -= size
    while left:
        size = max(PER_STEP, left // FANOUT // PER_STEP * PER_STEP)
        for _ in range(FANOUT - 1):
            if left >= size:
                yield size
                left -= size


def sequences(first_row: int, num_rows: int, *, leaf: bool) -> Iterator[pa.Table]:
    """Rows with the spread of real ones: losses fall and have a tail, shares are skewed."""
    schema = PART_SCHEMAS["sequences"]
    for begin in range(first_row, first_row + num_rows, GROUP_ROWS):
        rows = np.arange(begin, min(begin + GROUP_ROWS, first_row + num_rows))
        rng, num = np.random.default_rng(begin), len(rows)
        steps, place = 1 + rows // PER_STEP, rows % PER_STEP
        values = {field.name: pa.nulls(num, field.type) for field in schema}
        values |= {
            "attempt": np.ones(num, np.int32), "global_step": steps, "dp_rank": (place // 8).astype(np.int32),
            "microbatch": (place // 4 % 2).astype(np.int32), "slot": (place % 4).astype(np.int32), "sample_index": rows,
            "status": pa.array(["applied"]).take(pa.array(np.zeros(num, np.int32))),
            "loss": (2 + 8 * np.exp(-steps / 20_000) + rng.gamma(2, 0.2, num)).astype(np.float32),
            "num_tokens": np.full(num, LENGTH, np.int32), "num_segments": rng.integers(1, 9, num).astype(np.int32),
            "num_documents": rng.integers(1, 9, num).astype(np.int32),
            "compression_ratio": rng.normal(1.6, 0.1, num).astype(np.float32),
            "seen_share": np.where(rng.random(num) < 0.8, 0, rng.random(num)).astype(np.float32),
        }  # fmt: skip
        for name in schema.names:
            if name.endswith("_share") and name != "seen_share":
                values[name] = (rng.random(num) ** 4).astype(np.float32)
        if leaf:
            values["leaf"] = pa.array([rng.bytes(32) for _ in range(num)], pa.binary(32))
        yield pa.table(values, schema=schema)


def write_part(directory: Path, first_row: int, num_rows: int, *, leaf: bool) -> str:
    """One part; the name of its directory."""
    first, last = 1 + first_row // PER_STEP, (first_row + num_rows) // PER_STEP
    steps = StepRange(attempt=1, first_step=first, last_step=last, size=num_rows)
    final = directory / "parts" / shard_name(steps)
    if final.exists():
        return final.name
    building = directory / "building"
    building.mkdir(parents=True, exist_ok=True)
    write_sorted(building / "sequences.parquet", PART_SCHEMAS["sequences"], sequences(first_row, num_rows, leaf=leaf))
    numbers = np.arange(first, last + 1)
    num = len(numbers)
    of_steps = {
        "attempt": np.ones(num, np.int32), "global_step": numbers, "status": ["applied"] * num,
        "num_sequences": np.full(num, PER_STEP), "num_tokens": np.full(num, PER_STEP * LENGTH),
    }  # fmt: skip
    write_sorted(building / "steps.parquet", PART_SCHEMAS["steps"], [pa.table(of_steps, schema=PART_SCHEMAS["steps"])])
    records = {
        "attempt": np.ones(3 * num, np.int32), "global_step": np.repeat(numbers, 3), "dp_rank": np.zeros(3 * num, np.int32),
        "kind": ["metrics"] * 3 * num, "unix_time_s": np.repeat(numbers * 10.0, 3),
        "name": ["loss", "lr", "grad_norm"] * num, "value": np.random.default_rng(first).random(3 * num),
        "text": pa.nulls(3 * num, pa.string()),
    }  # fmt: skip
    write_sorted(
        building / "records.parquet", PART_SCHEMAS["records"], [pa.table(records, schema=PART_SCHEMAS["records"])]
    )
    write_sorted(building / "segments.parquet", PART_SCHEMAS["segments"], [PART_SCHEMAS["segments"].empty_table()])
    write_manifest(building, steps)
    final.parent.mkdir(parents=True, exist_ok=True)
    building.rename(final)
    return final.name


def ask(path: Path, sql: str) -> tuple[int, list[float]]:
    """(rows, seconds of four times) in a fresh process."""
    done = subprocess.run([sys.executable, "-c", ASK, str(path), sql], capture_output=True, text=True, check=True)
    rows, times = json.loads(done.stdout)
    return rows, times


def forget(directory: Path) -> None:
    """Ask the kernel to drop the files from its cache; they are synced already."""
    for file in directory.rglob("*.parquet"):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def main() -> None:
    """Write, ask, print."""
    parser = bench_options(__doc__)
    parser.add_argument("--rows", type=float, default=25e6)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--leaf", action="store_true", help="write the leaves as well")
    options = parser.parse_args()
    with recorded("catalog", options) as figures:
        bench(options, figures)


def bench(options: argparse.Namespace, figures: Figures) -> None:
    """Write the parts, ask each question, print and keep what it took."""
    directory: Path = options.directory.resolve()
    started, done, parts = time.monotonic(), 0, []
    for size in part_sizes(int(options.rows)):
        parts.append(write_part(directory, done, size, leaf=options.leaf))
        done += size
        rate = done / (time.monotonic() - started)
        print(f"\r{done:,} rows, {rate:,.0f} a second ", end="", file=sys.stderr, flush=True)
    path = directory / "catalog.duckdb"
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    with duckdb.connect(str(path)) as connection:
        connection.execute(TABLES)
        create_views(connection, "run", [StepInterval(attempt=1, first_step=1, last_step=None)], directory, parts)
    publish_s = time.perf_counter() - began
    size_bytes = sum(file.stat().st_size for file in directory.rglob("*.parquet"))
    figures.add("size of a row", size_bytes / done, "bytes")
    figures.add("new catalog file", publish_s, "s")
    print(
        f"\n{done:,} rows in {len(parts)} parts, {size_bytes / done:.1f} bytes a row; new catalog file {publish_s:.2f} s\n"
    )
    print(f"{'question':44s} {'rows':>8s} {'cold':>9s} {'first':>9s} {'again':>9s}")
    last = done // PER_STEP
    for name, template in QUERIES.items():
        sql = template.format(middle=last // 2, last=last)
        forget(directory)
        _, (cold_s, *_) = ask(path, sql)
        rows, (first_s, *again_s) = ask(path, sql)
        figures.add(f"{name}, cold", 1000 * cold_s, "ms")
        figures.add(f"{name}, again", 1000 * min(again_s), "ms")
        print(
            f"{name:44s} {rows:8,d} {1000 * cold_s:6.0f} ms {1000 * first_s:6.0f} ms {1000 * min(again_s):6.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
