"""Finding a document among many segments, against scans of the same segments by DuckDB.

    python bench/documents.py [--segments-millions 10] [--dir DIR]

Builds real shards of synthetic sequences (32 tokens, 8 segments each, so that there are many segments and few tokens), in
which most documents are seen twice and one in every sequence that is a multiple of 50. With --dir the run is kept, and
taken as it is when it is there. Peers: DuckDB over the shards' Parquet files as they are, and over the same rows with Bloom
filters on document_id. Each opens its files anew where it says cold (the page cache is warm everywhere).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import Figures, bench_options, recorded
from indexer.build.export_rows import RECORD_SCHEMA, STATUS_SCHEMA, RangeData
from indexer.build.shard import build_shard
from indexer.documents.history import document_history
from indexer.reader import IndexReader
from indexer.storage.generations import new_generation, publish, write_generation
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import manifest_sha256
from indexer.storage.step_range import StepRange
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run

LENGTH, SEGMENTS, ROWS_A_STEP, STEPS_A_SHARD = 32, 8, 1024, 64
ROWS = ROWS_A_STEP * STEPS_A_SHARD


def build(run_dir: Path, num_segments: int) -> None:
    """Shards of ROWS * SEGMENTS segments each, and a generation of them without a catalog."""
    file_system, num_shards = OsFileSystem(), -(-num_segments // (ROWS * SEGMENTS))
    run = open_or_create_run(
        file_system, run_dir, RunSpec(sequence_length=LENGTH, vocab_size=1000, config={}, run_id="bench")
    )
    attempt = claim_attempt(file_system, run_dir, run, num_writers=1, resume=None, config={})
    reader, paths = RunReader(run_dir), IndexPaths(run_dir)
    reader.paths.secret.unlink()  # there are no leaves to check
    names = {}
    for shard in range(num_shards):
        first = shard * STEPS_A_SHARD + 1
        steps = StepRange(attempt=1, first_step=first, last_step=first + STEPS_A_SHARD - 1, size=ROWS)
        info = build_shard(paths, reader, _data(attempt, steps, shard, num_shards), None)
        names[info.name] = manifest_sha256(paths.shard_dir(info.name))
    generation = new_generation(paths, run.run_id, names, {1: num_shards * STEPS_A_SHARD}, 1, {})
    paths.generation_dir(generation.number).mkdir(parents=True)
    write_generation(paths, generation)
    publish(paths, generation)


def _data(attempt: AttemptInfo, steps: StepRange, shard: int, num_shards: int) -> RangeData:
    chance, count = np.random.default_rng(shard), ROWS * SEGMENTS
    numbers = (np.arange(count) + shard * count) % (num_shards * count // 2)  # each document in two shards, far apart
    ids = np.char.add("doc-", np.char.mod("%012d", numbers * 2654435761 % 10**12))
    ids[:: SEGMENTS * 50] = "everywhere"
    segment = pa.StructArray.from_arrays(
        [
            pa.array(np.tile(np.arange(SEGMENTS, dtype=np.int32) * (LENGTH // SEGMENTS), ROWS)),
            pa.array(np.full(count, LENGTH // SEGMENTS, np.int32)),
            pa.array(np.where(numbers % 3 == 0, "web", "books")),
            pa.array(ids),
            pa.array(numbers % 1000),
            pa.nulls(count, pa.float32()),
        ],
        names=["start", "length", "source", "document_id", "document_token_offset", "loss"],
    )
    tokens = chance.integers(0, 1000, (ROWS, LENGTH)).astype("<u2")
    rows = pa.table(
        {
            "global_step": np.repeat(np.arange(steps.first_step, steps.last_step + 1), ROWS_A_STEP),
            "dp_rank": np.tile(np.repeat(np.arange(4, dtype=np.int32), ROWS_A_STEP // 4), STEPS_A_SHARD),
            "microbatch": np.zeros(ROWS, np.int32),
            "slot": np.tile(np.arange(ROWS_A_STEP // 4, dtype=np.int32), 4 * STEPS_A_SHARD),
            "sample_index": pa.nulls(ROWS, pa.int64()),
            "status": pa.array(["applied"] * ROWS),
            "loss": pa.nulls(ROWS, pa.float32()),
            **{name: pa.nulls(ROWS, pa.string()) for name in ("evidence", "matched", "relation")},
            "leaf": pa.array([bytes(32)] * ROWS, pa.binary(32)),
            "tokens": pa.array([row.tobytes() for row in tokens], pa.binary()),
            "segments": pa.ListArray.from_arrays(np.arange(0, count + 1, SEGMENTS, dtype=np.int32), segment),
        }
    )
    statuses = pa.table(
        {"global_step": np.unique(rows["global_step"].to_numpy()), "status": ["applied"] * STEPS_A_SHARD},
        schema=STATUS_SCHEMA,
    )
    return RangeData(attempt=attempt, steps=steps, rows=rows, records=RECORD_SCHEMA.empty_table(), statuses=statuses)


def with_bloom_filters(reader: IndexReader, directory: Path) -> None:
    """The same segments, with a Bloom filter on document_id for each row group."""
    directory.mkdir(exist_ok=True)
    for shard in reader.shards:
        path = directory / f"{shard.info.name}.parquet"
        if not path.exists():
            table = pq.read_table(shard.directory / "segments.parquet")
            options = {"document_id": {"ndv": 130_000, "fpp": 0.01}}
            pq.write_table(table, path, compression="zstd", row_group_size=131_072, bloom_filter_options=options)


def p50_ms(action: Callable[[str], object], ids: list[str]) -> tuple[float, float]:
    """(p50, most)."""
    taken = []
    for document_id in ids:
        started = time.perf_counter()
        action(document_id)
        taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken), max(taken)


def main() -> None:
    """Print the table."""
    parser = bench_options(__doc__)
    parser.add_argument("--segments-millions", type=float, default=10)
    parser.add_argument("--dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = arguments.dir or Path(temporary) / "run"
        if not (run_dir / "index" / "CURRENT").exists():
            build(run_dir, int(arguments.segments_millions * 1e6))
        with recorded("documents", arguments) as figures:
            measure(run_dir, figures)


def measure(run_dir: Path, figures: Figures) -> None:
    """Print and keep what each way takes."""
    reader = IndexReader.open(run_dir)
    total = sum(shard.info.num_segments for shard in reader.shards)
    size = sum((shard.directory / name).stat().st_size for shard in reader.shards
               for name in ("document_keys.npy", "document_places.npy"))  # fmt: skip
    figures.add("document index, for a segment", size / total, "bytes")
    print(f"{total:,} segments in {len(reader.shards)} shards; document indexes {size / total:.1f} bytes a segment")
    chance = np.random.default_rng(1)
    places = [
        (reader.shards[int(chance.integers(len(reader.shards)))], int(chance.integers(ROWS * SEGMENTS)))
        for _ in range(40)
    ]
    documents = {}
    for shard, row in places:
        segment = shard.segment_at(row)
        documents[segment.document_id] = segment.source
    documents.pop("everywhere", None)
    ids = list(documents)
    expected = {name: document_history(reader, source, name).num_exposures for name, source in documents.items()}

    def ours(document_id: str) -> None:
        found = document_history(reader, documents[document_id], document_id)
        assert found.num_exposures == expected[document_id]

    def ours_cold(document_id: str) -> None:
        found = document_history(IndexReader.open(run_dir), documents[document_id], document_id)
        assert found.num_exposures == expected[document_id]

    def missing(document_id: str) -> None:
        try:
            document_history(reader, documents[document_id], document_id + "x")
        except QueryError:
            return
        raise AssertionError(document_id)

    blooms = run_dir / "bloom"
    with_bloom_filters(reader, blooms)
    files = {"plain Parquet": [str(shard.directory / "segments.parquet") for shard in reader.shards],
             "with Bloom filters": [str(path) for path in blooms.glob("*.parquet")]}  # fmt: skip

    def duck(files: list[str]) -> Callable[[str], object]:
        def ask(document_id: str) -> None:
            with duckdb.connect() as connection:
                sql = "SELECT * FROM read_parquet($files) WHERE source = $source AND document_id = $id"
                values = {"files": files, "source": documents[document_id], "id": document_id}
                assert len(connection.execute(sql, values).fetchall()) == expected[document_id]

        return ask

    rows = [
        ("document_history, reader open", p50_ms(ours, ids)),
        ("document_history, opened anew", p50_ms(ours_cold, ids[:5])),
        ("a document that is not there", p50_ms(missing, ids[:10])),
        *((f"DuckDB, {name}", p50_ms(duck(of), ids[:10])) for name, of in files.items()),
    ]
    base = rows[0][1][0]
    for name, (middle, most) in rows:
        figures.add(f"{name}, p50", middle, "ms")
        print(f"{name:32} p50 {middle:10.2f} ms   most {most:10.2f} ms   {middle / base:8.1f} ×")
    for name, after in (("first page", None), ("a page from the middle", "middle")):
        source = next(shard.segment_at(0).source for shard in reader.shards)
        whole = document_history(reader, source, "everywhere", limit=1)
        middle_shard = reader.shards[len(reader.shards) // 2]
        cursor = None if after is None else f"{middle_shard.address(0)}:0"
        taken, _ = p50_ms(lambda _, s=source, c=cursor: document_history(reader, s, "everywhere", after=c), [""] * 5)  # type: ignore[misc]
        figures.add(f"a document of everywhere, {name}, p50", taken, "ms")
        print(f"a document of {whole.num_exposures:,} exposures, {name}: p50 {taken:.1f} ms")


if __name__ == "__main__":
    main()
