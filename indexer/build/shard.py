"""Building one shard (`storage.shard` says what it is): under a `.building` name, renamed when it is whole and synced."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.build.export_rows import RangeData, tensors_commitments, tokens_of
from indexer.durable import built_directory, sha256_of_file
from indexer.fulltext.engine import FullTextUnit, build_full_text
from indexer.spans.build import build_span_arrays
from indexer.statistics.anchors import anchors, bloom_filter
from indexer.statistics.sequences import sequence_statistics
from indexer.storage.document_index import write_document_index
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import (
    ANCHORS,
    MANIFEST,
    RECORDS,
    SEGMENTS,
    SEQUENCES,
    SHARD_FORMAT,
    STATUSES,
    TEXT,
    UNIGRAMS,
    SegmentUnits,
    ShardDamage,
    ShardFile,
    ShardInfo,
    segment_units,
    shard_name,
)
from indexer.tokenizer.tokenizer import RunTokenizer
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo

__all__ = ["build_shard"]

_DECODE_BATCH = 1024


def build_shard(paths: IndexPaths, run: RunReader, data: RangeData, tokenizer: RunTokenizer | None) -> ShardInfo:
    """Build the shard of a step range, or find that it is there. Raises OSError where the disk refuses."""
    final = paths.shard_dir(shard_name(data.steps))
    if final.exists():
        try:
            return ShardInfo.read(final)
        except ShardDamage:  # of another format, by a kiseki that died before it published it
            shutil.rmtree(final)
    with built_directory(final) as building:
        return _write_files(building, final.name, run, data, tokenizer)


def _write_files(
    building: Path, name: str, run: RunReader, data: RangeData, tokenizer: RunTokenizer | None
) -> ShardInfo:
    steps, rows = data.steps, data.rows
    token_dtype = run.info.token_dtype
    tokens, starts = tokens_of(rows, token_dtype)
    build_span_arrays([tokens[a:b] for a, b in itertools.pairwise(starts.tolist())], token_dtype, building)
    np.save(building / UNIGRAMS, np.bincount(tokens).astype(np.int64))
    np.save(building / ANCHORS, bloom_filter(anchors(tokens, starts)[0]))
    segments = _segments(rows)
    for file, table in (
        (SEQUENCES, _with_statistics(_sequences(rows, run, data.attempt), tokenizer, tokens, starts, segments)),
        (SEGMENTS, segments),
        (RECORDS, data.records),
        (STATUSES, data.statuses),
    ):
        pq.write_table(table, building / file, compression="zstd", write_page_checksum=True)
    write_document_index(building, segments)
    units = segment_units(segments, starts + np.arange(len(starts)))
    build_full_text(building / TEXT, _full_text(rows, segments, units, tokens, tokenizer), len(tokens))
    info = ShardInfo(
        name=name,
        run_id=run.info.run_id,
        attempt=steps.attempt,
        first_step=steps.first_step,
        last_step=steps.last_step,
        num_sequences=rows.num_rows,
        num_applied=int(pc.sum(pc.equal(rows.column("status"), "applied")).as_py()),
        num_segments=segments.num_rows,
        num_tokens=len(tokens),
        token_dtype=token_dtype,
        has_text=tokenizer is not None,
        export_version=data.attempt.format_version,
        files=tuple(_listed_files(building)),
    )
    document = {"format": SHARD_FORMAT, **dataclasses.asdict(info)}
    (building / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return info


def _sequences(rows: pa.Table, run: RunReader, attempt: AttemptInfo) -> pa.Table:
    num_tokens = pc.binary_length(rows.column("tokens"))
    ordinal = pa.array(np.arange(rows.num_rows, dtype=np.int64))
    number = pa.array(np.full(rows.num_rows, attempt.attempt, np.int32))
    kept = rows.select(["global_step", "dp_rank", "microbatch", "slot", "sample_index", "status", "loss", "leaf"])
    table = kept.add_column(0, "ordinal", ordinal).add_column(1, "attempt", number)
    table = table.append_column("num_bytes", num_tokens)
    for name, default in (("evidence", attempt.default_evidence), ("matched", attempt.default_matched)):
        own = rows.column(name)
        table = table.append_column(name, own if default is None else pc.fill_null(own, default.value))
    table = table.append_column("relation", rows.column("relation"))
    return table.append_column("tensors_commitment", tensors_commitments(rows, run, attempt))


def _with_statistics(
    sequences: pa.Table,
    tokenizer: RunTokenizer | None,
    tokens: npt.NDArray[np.unsignedinteger],
    starts: npt.NDArray[np.int64],
    segments: pa.Table,
) -> pa.Table:
    statistics = sequence_statistics(tokens, starts, segments, None if tokenizer is None else tokenizer.script_bytes)
    for field, column in zip(statistics.schema, statistics.columns, strict=True):
        sequences = sequences.append_column(field, column)
    return sequences


def _segments(rows: pa.Table) -> pa.Table:
    """Segments flattened; `segment` counts within the sequence."""
    column = rows.column("segments").combine_chunks()
    flat = column.flatten()
    counts = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    ordinals = np.repeat(np.arange(rows.num_rows, dtype=np.int64), counts)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    names = [field.name for field in flat.type]
    arrays = [pa.array(ordinals), pa.array((np.arange(len(ordinals)) - firsts).astype(np.int32))]
    return pa.table([*arrays, *flat.flatten()], names=["ordinal", "segment", *names])


def _full_text(
    rows: pa.Table,
    segments: pa.Table,
    units: SegmentUnits,
    tokens: npt.NDArray[np.unsignedinteger],
    tokenizer: RunTokenizer | None,
) -> Iterator[FullTextUnit]:
    steps, ranks = rows.column("global_step").to_numpy(), rows.column("dp_rank").to_numpy()
    statuses = rows.column("status").combine_chunks()
    sources, documents = (segments.column(name).combine_chunks() for name in ("source", "document_id"))
    begins, ends = (places - units.ordinal for places in units.bounds)  # `tokens` has no separators
    for numbers in np.array_split(np.flatnonzero(begins < ends), max(1, len(begins) // _DECODE_BATCH)):
        texts: Sequence[str | None] = [None] * len(numbers)
        if tokenizer is not None:
            texts = tokenizer.decode_many([tokens[begins[unit] : ends[unit]] for unit in numbers])
        for unit, text in zip(numbers.tolist(), texts, strict=True):
            ordinal, segment = int(units.ordinal[unit]), int(units.segment[unit])
            yield FullTextUnit(
                unit=unit,
                global_step=int(steps[ordinal]),
                dp_rank=int(ranks[ordinal]),
                status=statuses[ordinal].as_py(),
                source=sources[segment].as_py() if segment >= 0 else None,
                document_id=documents[segment].as_py() if segment >= 0 else None,
                text=text,
            )


def _listed_files(directory: Path) -> Iterator[ShardFile]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            name, size_bytes = path.relative_to(directory).as_posix(), path.stat().st_size
            yield ShardFile(name=name, size_bytes=size_bytes, sha256=sha256_of_file(path))
