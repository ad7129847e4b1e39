"""Parts of the catalog: what it holds of a range of steps of one attempt, as Parquet, sorted by step.

    steps.parquet      status, sequences and tokens of each step
    records.parquet    step records: metrics and gaps, one row a number
    sequences.parquet  one row a sequence, with its statistics
    segments.parquet   one row a segment
    part.json          the manifest: SHA-256 and size of every other file; written last

Rules:

1. A part is immutable and belongs to no shard: shards are merged and rebuilt by tokens, parts by rows. Its name says which
   steps it holds; it is built under a `.building` name and renamed when it is whole and synced.
2. New steps become parts, small neighbours are joined (`planning`), and no row is worked out twice: joining copies rows. A
   run of any length has few parts, so that a question to the catalog opens few files.
3. Row groups are large and in the order of the steps, so that a range of steps, or the largest losses, are found by the
   statistics of row groups. Those leave NaN out, and DuckDB then believes that there is none: a part with a NaN among its
   losses has no statistics of them, and no part has any of the values of records.
"""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.build.export_rows import RECORD_SCHEMA
from indexer.build.planning import merge_ranges
from indexer.durable import built_directory, sha256_of, sha256_of_file
from indexer.statistics.sequences import STATISTIC_FIELDS
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import Shard, shard_name
from indexer.storage.step_range import StepRange

__all__ = [
    "GROUP_ROWS",
    "PART_ROWS",
    "PART_SCHEMAS",
    "CatalogPart",
    "NewRows",
    "PlannedPart",
    "build_part",
    "new_rows_of",
    "plan_parts",
    "undamaged_parts",
    "write_manifest",
    "write_sorted",
]

PART_FORMAT = "kiseki-part-v2"
PART_ROWS = 16_000_000
GROUP_ROWS = 245_760
_MANIFEST = "part.json"
_ADDRESS = (
    pa.field("attempt", pa.int32()), pa.field("global_step", pa.int64()), pa.field("dp_rank", pa.int32()),
    pa.field("microbatch", pa.int32()), pa.field("slot", pa.int32()),
)  # fmt: skip
PART_SCHEMAS: Mapping[str, pa.Schema] = {
    "steps": pa.schema(
        [
            pa.field("attempt", pa.int32()), pa.field("global_step", pa.int64()), pa.field("status", pa.string()),
            pa.field("num_sequences", pa.int64()), pa.field("num_tokens", pa.int64()),
        ]
    ),
    "records": pa.schema([pa.field("attempt", pa.int32()), *RECORD_SCHEMA]),
    "sequences": pa.schema(
        [
            *_ADDRESS, pa.field("sample_index", pa.int64()), pa.field("status", pa.string()),
            pa.field("loss", pa.float32()), pa.field("num_tokens", pa.int32()), *STATISTIC_FIELDS,
            pa.field("seen_share", pa.float32()), pa.field("evidence", pa.string()), pa.field("matched", pa.string()),
            pa.field("relation", pa.string()), pa.field("leaf", pa.binary(32)),
        ]
    ),
    "segments": pa.schema(
        [
            *_ADDRESS, pa.field("segment", pa.int32()), pa.field("start", pa.int32()), pa.field("length", pa.int32()),
            pa.field("source", pa.string()), pa.field("document_id", pa.string()),
            pa.field("document_token_offset", pa.int64()), pa.field("loss", pa.float32()),
        ]
    ),
}  # fmt: skip
_DICTIONARIES = (
    *(field.name for field in _ADDRESS), "status", "kind", "name", "num_tokens", "num_segments", "num_documents", "source",
    "segment", "start", "length", "num_sequences", "evidence", "matched", "relation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogPart:
    """A published part: the steps it covers (their size is their number) and the SHA-256 of its manifest."""

    name: str
    steps: StepRange
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRows:
    """What no part has yet of one shard: its sequences from ordinal `first` on."""

    steps: StepRange
    shard: Shard
    first: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPart:
    """A part to have, and what it is made of, in order: parts that are there, and rows that no part has yet."""

    steps: StepRange
    sources: tuple[CatalogPart | NewRows, ...]


def undamaged_parts(paths: IndexPaths, named: Mapping[str, str], *, verify: bool) -> list[CatalogPart]:
    """The named parts that can be believed; verify reads every byte. An attempt with a bad one has none: all are built."""
    found, bad = [], set()
    for name, sha256 in named.items():
        attempt = int(name[1:].partition("-")[0])
        try:
            found.append(_open_part(paths.part_dir(name), sha256, verify=verify))
        except (OSError, ValueError, KeyError, TypeError):
            bad.add(attempt)
    for name in named:
        if int(name[1:].partition("-")[0]) in bad:
            shutil.rmtree(paths.part_dir(name), ignore_errors=True)
    return [part for part in found if part.steps.attempt not in bad]


def _open_part(directory: Path, sha256: str, *, verify: bool) -> CatalogPart:
    data = (directory / _MANIFEST).read_bytes()
    document = json.loads(data)
    if sha256_of(data) != sha256 or document["format"] != PART_FORMAT:
        raise ValueError("another manifest")
    for file in document["files"]:
        path = directory / file["name"]
        if path.stat().st_size != file["size_bytes"] or (verify and sha256_of_file(path) != file["sha256"]):
            raise ValueError(f"{path} does not match the manifest")
    return CatalogPart(name=directory.name, steps=_steps_of(**document["steps"]), sha256=sha256)


def _steps_of(attempt: int, first_step: int, last_step: int, num_rows: int) -> StepRange:
    return StepRange(attempt=attempt, first_step=first_step, last_step=last_step, size=num_rows)


def new_rows_of(shard: Shard, after_step: int) -> NewRows | None:
    """The steps of a shard after `after_step`, or None where it has none."""
    info = shard.info
    if info.last_step <= after_step:
        return None
    first_step = max(info.first_step, after_step + 1)
    first = int(np.searchsorted(shard.steps, first_step))
    steps = StepRange(
        attempt=info.attempt, first_step=first_step, last_step=info.last_step, size=max(1, len(shard.steps) - first)
    )
    return NewRows(steps=steps, shard=shard, first=first)


def plan_parts(before: Sequence[CatalogPart], new_rows: Sequence[NewRows]) -> list[PlannedPart]:
    """The parts that the next generation should have."""
    sources: list[CatalogPart | NewRows] = sorted([*before, *new_rows], key=lambda source: source.steps)
    planned = []
    for steps in merge_ranges([source.steps for source in sources], PART_ROWS):
        inside = [
            source for source in sources
            if source.steps.attempt == steps.attempt and steps.first_step <= source.steps.first_step <= steps.last_step
        ]  # fmt: skip
        planned.append(PlannedPart(steps=steps, sources=tuple(inside)))
    return planned


def build_part(paths: IndexPaths, planned: PlannedPart, seen: Mapping[str, npt.NDArray[np.float32]]) -> CatalogPart:
    """Build a part, or find that it is there. `seen`: by shard name, the seen share of each sequence among its new rows."""
    final = paths.part_dir(shard_name(planned.steps))
    if len(planned.sources) == 1 and isinstance(planned.sources[0], CatalogPart):
        return planned.sources[0]
    if final.exists():  # left by a process that was killed before it published
        shutil.rmtree(final)
    with built_directory(final) as building:
        for name, schema in PART_SCHEMAS.items():
            tables = itertools.chain.from_iterable(
                _rows_of_part(paths.part_dir(source.name) / f"{name}.parquet")
                if isinstance(source, CatalogPart)
                else _new_rows(name, source, seen[source.shard.info.name])
                for source in planned.sources
            )
            not_a_number = _not_a_number(paths, planned, name)
            write_sorted(building / f"{name}.parquet", schema, tables, without_statistics=not_a_number)
        sha256 = write_manifest(building, planned.steps)
    return CatalogPart(name=final.name, steps=planned.steps, sha256=sha256)


def _not_a_number(paths: IndexPaths, planned: PlannedPart, name: str) -> frozenset[str]:
    """Columns of a file that may hold NaN."""
    if name in ("sequences", "segments"):
        nan = any(_has_nan_loss(paths, source, name) for source in planned.sources)
        return frozenset({"loss"} if nan else ())
    return frozenset({"value"} if name == "records" else ())


def _has_nan_loss(paths: IndexPaths, source: CatalogPart | NewRows, name: str) -> bool:
    if isinstance(source, NewRows):
        table = source.shard.sequences.slice(source.first) if name == "sequences" else source.shard.segments
        return bool(pc.any(pc.is_nan(table.column("loss"))).as_py())
    with pq.ParquetFile(paths.part_dir(source.name) / f"{name}.parquet") as file:
        column = PART_SCHEMAS[name].get_field_index("loss")
        groups = range(file.num_row_groups)
        return any(not file.metadata.row_group(group).column(column).is_stats_set for group in groups)


def write_manifest(directory: Path, steps: StepRange) -> str:
    """Write the manifest of the files that are there; returns its SHA-256."""
    files = [
        {"name": path.name, "size_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in sorted(directory.iterdir())
    ]
    document = {
        "format": PART_FORMAT,
        "steps": {
            "attempt": steps.attempt,
            "first_step": steps.first_step,
            "last_step": steps.last_step,
            "num_rows": steps.size,
        },
        "files": files,
    }
    data = (json.dumps(document, indent=1) + "\n").encode()
    (directory / _MANIFEST).write_bytes(data)
    return sha256_of(data)


def write_sorted(
    path: Path, schema: pa.Schema, tables: Iterable[pa.Table], *, without_statistics: Set[str] = frozenset()
) -> None:
    """Write tables one after the other, in row groups of GROUP_ROWS; some columns without statistics."""
    dictionaries = [name for name in schema.names if name in _DICTIONARIES]
    statistics = [name for name in schema.names if name not in without_statistics]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=dictionaries,
        write_statistics=statistics,
        write_page_checksum=True,
    ) as file:
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(part.num_rows for part in waiting) >= GROUP_ROWS:
                joined = pa.concat_tables(waiting)
                whole = joined.num_rows // GROUP_ROWS * GROUP_ROWS
                file.write_table(joined.slice(0, whole), row_group_size=GROUP_ROWS)
                waiting = [joined.slice(whole)]
        if waiting:
            file.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)


def _rows_of_part(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _new_rows(name: str, new: NewRows, seen: npt.NDArray[np.float32]) -> Iterator[pa.Table]:
    table = {"steps": _steps, "records": _records, "segments": _segments}.get(name)
    found = _sequences(new, seen) if table is None else table(new)
    yield found.select(PART_SCHEMAS[name].names).cast(PART_SCHEMAS[name])


def _sequences(new: NewRows, seen: npt.NDArray[np.float32]) -> pa.Table:
    table = new.shard.sequences.slice(new.first)
    width = np.dtype(new.shard.info.token_dtype).itemsize
    table = table.append_column("num_tokens", pa.array(table.column("num_bytes").to_numpy() // width))
    return table.append_column("seen_share", pa.array(seen))


def _segments(new: NewRows) -> pa.Table:
    segments = new.shard.segments
    ordinals = segments.column("ordinal").to_numpy()
    begin = int(np.searchsorted(ordinals, new.first))
    addresses = new.shard.sequences.select([field.name for field in _ADDRESS]).take(pa.array(ordinals[begin:]))
    for field in segments.schema:
        if field.name != "ordinal":
            addresses = addresses.append_column(field, segments.column(field.name).slice(begin))
    return addresses


def _records(new: NewRows) -> pa.Table:
    return _only_new_steps(new, new.shard.records())


def _steps(new: NewRows) -> pa.Table:
    table = _only_new_steps(new, new.shard.statuses())
    steps = table.column("global_step").to_numpy()
    sequences = new.shard.sequences.slice(new.first)
    width = np.dtype(new.shard.info.token_dtype).itemsize
    sizes = np.append(0, np.cumsum(sequences.column("num_bytes").to_numpy() // width))
    begins, ends = (
        np.searchsorted(sequences.column("global_step").to_numpy(), steps, side) for side in ("left", "right")
    )
    table = table.append_column("num_sequences", pa.array(ends - begins))
    return table.append_column("num_tokens", pa.array(sizes[ends] - sizes[begins]))


def _only_new_steps(new: NewRows, table: pa.Table) -> pa.Table:
    kept = table.filter(pc.greater_equal(table.column("global_step"), new.steps.first_step))
    attempts = pa.array(np.full(kept.num_rows, new.steps.attempt, np.int32))
    return kept.append_column("attempt", attempts).sort_by("global_step")
