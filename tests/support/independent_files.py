"""The files of a writer of an export, written from docs/export_format.md alone.

They are acknowledgement records, frames, seals and compactions.
It shares no code with the software that writes exports.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.independent_rows import (
    END,
    GAP_FLAG,
    NOTE,
    NOTHING,
    SCHEMA,
    STATUS,
    STEP,
    Attempt,
    Frame,
    Record,
    Refused,
    need,
    sha,
    u32,
)

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
NULLABLE = {"sample_index", "loss", "evidence", "matched", "relation"}
RECORD = {3: struct.Struct("<4sBBBBQqqIII3I3I32s32s32s32sI"), 1: struct.Struct("<4sHHQQQqIB3sI32s32s32sqI")}
COLUMNS_START = (
    "global_step int64|microbatch int32|slot int32|sample_index int64|status string|tokens binary|"
    "segments [start int32,length int32,source string,document_id string,document_token_offset int64"
)
TENSORS_START = "]|tensors [name string,dtype string,shape [int32],encoding string,data binary"
COLUMNS = {
    1: COLUMNS_START + TENSORS_START + "]|loss float|leaf fixed_size_binary[32]",
    3: COLUMNS_START + ",loss float" + TENSORS_START + ",whole bool,evidence string]"
    "|loss float|evidence string|matched string|relation string|leaf fixed_size_binary[32]",
}
FRAME_COLUMNS = (
    "file_number int32|frame_number int64|row_group int32|first_row int32|num_rows int32|step_records string"
)
FIVE = r"(\d{5}|[1-9]\d{5,})"
SEGMENT_NAME = re.compile(rf"rows-r{FIVE}-{FIVE}\.(arrows|acks|seal\.json)(\.inprogress)?", re.ASCII)
MANIFEST_NAME = re.compile(rf"(rows-r{FIVE}-{FIVE}-{FIVE}(?:-v([1-9]\d*))?)\.compacted\.json", re.ASCII)
JSON_END = re.compile(rb'"sha256": "([0-9a-f]{64})"\n\}\n\Z')


@dataclass(frozen=True)
class SegmentFile:
    """A segment file with the records that its own bytes allow."""

    number: int
    paths: dict[str, Path]
    acks: bytes
    records: tuple[Record, ...]
    seal: dict[str, Any] | None
    seal_sha256: str


@dataclass(frozen=True)
class Writer:
    """What is believed of one writer; `steps` says of each step whether its file is sealed."""

    rank: int
    frames: list[Frame]
    steps: dict[int, bool]


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file whose own hash holds, and the hash of the file."""
    raw = path.read_bytes()
    end = JSON_END.search(raw)
    if end is None or sha(raw[: end.start(1)], b"0" * 64, raw[end.end(1) :]).hex().encode() != end[1]:
        raise Refused(f"{path.name}: its own hash does not hold")
    return json.loads(raw), sha(raw).hex()


def expect(name: str, info: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a JSON object that says something else than its place does."""
    for key, value in expected.items():
        need(key in info and info[key] == value, f"{name}: {key} is {info.get(key)!r}, not {value!r}")


def parse_record(raw: bytes, layout: int, start: int) -> Record:
    """The fields of one record, which begins where the frame before it ended."""
    fields = RECORD[layout].unpack(raw)
    if layout == 3:
        magic, version, flags, kind, status, end, step, time_us, number, rows, tokens, *counts = fields[:17]
        frame, root, commitment, before = fields[17:21]
        formed = magic == b"KACK" and version == 3 and flags < 4
    else:
        magic, version, kind, number, begin, end, step, rows, status, zero, tokens = fields[:11]
        frame, root, before, time_us = fields[11:15]
        flags, counts, commitment = 0, [0] * 6, b""
        formed = magic == b"KACK" and version in (1, 2) and begin == start and zero == bytes(3)
    formed = formed and kind <= END and status < len(STATUS) and (kind == SCHEMA) == (number == 0)
    return Record(
        *(number, kind, status, flags, start, end, step, time_us, rows, tokens, tuple(counts[:3]), tuple(counts[3:])),
        *(frame, root, commitment, before, sha(raw), formed),
    )


def parse_records(raw: bytes, layout: int) -> Iterator[Record]:
    """The records of a file, up to the first that is torn or does not follow the one before it."""
    size, start, own = RECORD[layout].size, 0, b""
    for number in range(len(raw) // size):
        one = raw[number * size : (number + 1) * size]
        if zlib.crc32(one[:-4]) != int.from_bytes(one[-4:], "little"):
            return
        record = parse_record(one, layout, start)
        if record.number != number or record.end < start or (number and record.before != own):
            return
        yield record
        start, own = record.end, record.own


def believe(attempt: Attempt, rank: int, files: list[SegmentFile]) -> dict[int, list[Record]]:
    """The believed records of each file of a writer."""
    believed: list[tuple[int, Record]] = []
    place = f"{attempt.run.info['run_id']}\n{attempt.number}\n{attempt.info['claim']}\n{rank}\n"
    for file in files:
        for keep in range(len(believed), -1, -1) if file.records else ():
            previous = believed[keep - 1][1].own.hex() if keep else "-"
            identity = sha(f"kiseki-segment-file-v1\n{place}{file.number}\n{previous}\n".encode())
            if identity == file.records[0].before:
                believed[keep:] = [(file.number, record) for record in file.records]
                break
    result = {file.number: [record for number, record in believed if number == file.number] for file in files}
    for records in result.values():
        need(all(record.well_formed for record in records), "a record has a field that this version does not have")
        rest = [record for record in records if record.kind in (SCHEMA, END)]
        bare = all(record.root == NOTHING and record.commitment in (b"", NOTHING) for record in rest)
        need(bare, "a schema or an end has a root hash or a record commitment")
        need(not any(record.rows for record in records if record.kind != STEP), "a record that is no step has rows")
        need(all(record.kind != END for record in records[:-1]), "a record follows the end of the file")
    return result


def step_ranges(steps: list[Record]) -> list[list[Any]]:
    """The summary that a seal of version 3 has of its steps."""
    ranges: list[list[Any]] = []
    for one in steps:
        counts = [one.rows, one.tokens, *one.evidence, *one.matched, one.flags & GAP_FLAG]
        rest = [STATUS[one.status], *counts]
        if ranges and ranges[-1][1] + 1 == one.step and ranges[-1][2:] == rest:
            ranges[-1][1] = one.step
        else:
            ranges.append([one.step, one.step, *rest])
    return ranges


UNKNOWN = object()


def check_seal(attempt: Attempt, rank: int, file: SegmentFile, believed: dict[int, list[Record]], before: Any) -> None:
    """Refuse a seal that does not agree with its place, its records, or the seal before it."""
    seal, records, name = file.seal or {}, believed[file.number], f"rows-r{rank:05}-{file.number:05}"
    whole = len(records) * RECORD[attempt.layout].size == len(file.acks)
    need(whole and len(records) == len(file.records), f"{name}: it is sealed, and not all of its records are believed")
    steps = [record for record in records if record.kind == STEP]
    rows, tokens = sum(step.rows for step in steps), sum(step.tokens for step in steps)
    acks = {"name": f"{name}.acks", "size_bytes": len(file.acks), "sha256": sha(file.acks).hex()}
    place = {"run_id": attempt.run.info["run_id"], "attempt": attempt.number, "attempt_sha256": attempt.sha256}
    counts = {
        "num_tokens": rows * attempt.run.info["sequence_length"] if attempt.version == 1 else tokens,
        "num_rows": rows,
        "num_steps": len(steps),
        "first_step": steps[0].step if steps else None,
        "last_step": steps[-1].step if steps else None,
    }
    if attempt.version == 3:
        earlier = [r.step for number in range(file.number + 1) for r in believed[number] if r.kind == STEP]
        counts["num_gaps"] = sum(step.flags & GAP_FLAG for step in steps)
        counts["last_committed_step"] = earlier[-1] if earlier else None
        expect(name, seal, {"step_ranges": step_ranges(steps)})
    if attempt.version == 3 and records:
        expect(name, seal, {"last_record_sha256": records[-1].own.hex(), "last_unix_time_us": records[-1].time_us})
    expect(
        name, seal, place | {"dp_rank": rank, "file_number": file.number, "format": f"kiseki-seal-v{attempt.layout}"}
    )
    expect(name, seal, counts | {"acks": acks} | ({} if before is UNKNOWN else {"previous_seal_sha256": before}))
    expect(name, seal["data"], {"name": f"{name}.arrows", "size_bytes": records[-1].end if records else 0})
    need(seal["reason"] in ("rolled", "closed", "repaired"), f"{name}: unknown reason {seal['reason']!r}")
    if records and records[-1].kind == END and seal["reason"] != "repaired":
        need(
            seal["last"] == (records[-1].step == 1),
            f"{name}: its end and its seal say different things of what follows",
        )
    need(
        not seal["last"] or not any(believed[number] for number in believed if number > file.number), f"{name} is last"
    )


def check_seals(attempt: Attempt, rank: int, files: list[SegmentFile], believed: dict[int, list[Record]]) -> None:
    before: Any = None
    for file in files:
        if file.seal is not None:
            check_seal(attempt, rank, file, believed, before)
            before = before if file.seal["reason"] == "repaired" else file.seal_sha256
        elif believed[file.number] and believed[file.number][-1].kind == END:
            before = UNKNOWN  # it ended, and sealing it failed: a later seal may name the seal that a repair will make


def open_file(attempt: Attempt, name: str, number: int, found: dict[str, Path]) -> SegmentFile:
    """A segment file by the names that are there, keyed by what they are."""
    final = [kind for kind in ("arrows", "acks") if kind in found]
    sealed = "seal.json" in found
    need(not final or sealed or "seal.json.inprogress" in found, f"{name}: its seal was lost")
    paths = {kind: found.get(kind, found.get(f"{kind}.inprogress")) for kind in ("arrows", "acks")}
    need(not sealed or "acks" in found, f"{name}: it is sealed, and its records are missing")
    seal, seal_sha256 = read_json(found["seal.json"]) if sealed else (None, "")
    acks = paths["acks"].read_bytes() if paths["acks"] else b""
    existing = {kind: path for kind, path in paths.items() if path}
    return SegmentFile(number, existing, acks, tuple(parse_records(acks, attempt.layout)), seal, seal_sha256)


def describe(kind: Any) -> str:
    """The type of a column without the names of list items."""
    if pa.types.is_list(kind):
        return f"[{describe(kind.value_type)}]"
    if pa.types.is_struct(kind):
        return ",".join(f"{field.name} {describe(field.type)}" for field in kind)
    return str(kind)


def check_columns(schema: Any, expected: str) -> None:
    found = "|".join(f"{field.name} {describe(field.type)}" for field in schema)
    need(found == expected, f"other columns than this version has: {found}")


def rows_of(table: Any) -> list[dict[str, Any]]:
    """The rows of a table; each loss is the bytes of its float32, so that no bit is lost."""
    rows: list[dict[str, Any]] = table.to_pylist()
    need(all(v is not None or k in NULLABLE for row in rows for k, v in row.items()), "null in a column without nulls")
    parts = [part for row in rows for part in row["segments"]]
    targets = [(rows, table.column("loss").combine_chunks())]
    if parts and "loss" in parts[0]:
        targets.append((parts, table.column("segments").combine_chunks().flatten().field("loss")))
    for owners, losses in targets:
        for owner, bits in zip(owners, losses.view(pa.uint32()).to_pylist(), strict=True):
            owner["loss"] = None if bits is None else u32(bits)
    inner = [item for row in rows for item in (*row["segments"], *row["tensors"])]
    need(all(v is not None or k in NULLABLE for item in inner for k, v in item.items()), "null inside of a list")
    return rows


def read_frame(attempt: Attempt, rank: int, number: int, schema: bytes, record: Record, raw: bytes) -> Frame:
    """The content of a frame whose hash was checked."""
    source = pa.BufferReader(schema + raw + END_OF_STREAM)
    reader = pa.ipc.open_stream(source)
    check_columns(reader.schema, COLUMNS[attempt.layout])
    info = attempt.run.info
    values = {"format_version": attempt.version, "attempt": attempt.number, "dp_rank": rank, "file_number": number}
    values |= {key: info[key] for key in ("run_id", "sequence_length", "token_dtype")}
    metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
    expect("schema", metadata, {f"kiseki.{key}": str(value) for key, value in values.items()})
    one = reader.read_next_batch_with_custom_metadata()
    one.batch.validate(full=True)
    need(next(reader, None) is None and source.tell() == source.size(), "a frame holds more than one batch")
    stored = (one.custom_metadata or {}).get("kiseki.step_records", b"")
    return Frame(record, rows_of(pa.Table.from_batches([one.batch])), stored)


def read_data(attempt: Attempt, rank: int, file: SegmentFile, records: list[Record]) -> list[Frame]:
    """The step and note frames of a segment file, from its own data."""
    name = f"rows-r{rank:05}-{file.number:05}"
    need(not records or "arrows" in file.paths, f"{name}: its data is missing")
    raw = file.paths["arrows"].read_bytes() if "arrows" in file.paths else b""
    if file.seal is not None:
        expect(name, file.seal["data"], {"size_bytes": len(raw), "sha256": sha(raw).hex()})
    pieces = [raw[record.start : record.end] for record in records]
    for record, piece in zip(records, pieces, strict=True):
        need(sha(piece) == record.frame, f"{name}: the hash of frame {record.number} does not hold")
        need(record.kind != END or piece == END_OF_STREAM, f"{name}: its end is not the end of a stream")
    both = zip(records, pieces, strict=True)
    return [read_frame(attempt, rank, file.number, pieces[0], r, p) for r, p in both if r.kind in (STEP, NOTE)]


def read_pieces(path: Path, info: dict[str, Any]) -> Any:
    """A Parquet file, after the hash of each of its pieces was checked."""
    need(info["name"] == path.name and path.exists(), f"{path.name} is missing, or its manifest names another file")
    raw, ends = path.read_bytes(), [0, *(piece["end"] for piece in info["pieces"])]
    need(
        [piece["start"] for piece in info["pieces"]] == ends[:-1], f"{path.name}: its pieces do not follow one another"
    )
    need(ends[-1] == info["size_bytes"] == len(raw), f"{path.name}: its pieces do not cover it")
    for piece in info["pieces"]:
        holds = sha(raw[piece["start"] : piece["end"]]).hex() == piece["sha256"]
        need(holds, f"{path.name}: the hash of the piece at {piece['start']} does not hold")
    return pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True)


def check_manifest(attempt: Attempt, name: str, rank: int, files: list[SegmentFile], info: dict[str, Any]) -> None:
    """Refuse a manifest that is not of its place, or of other seals than those that are there."""
    place = {"run_id": attempt.run.info["run_id"], "attempt": attempt.number, "attempt_sha256": attempt.sha256}
    replaced = []
    for file in files:
        if file.seal is None:
            raise Refused(f"{name}: file {file.number} is not sealed")
        data = file.seal["data"]["sha256"]
        replaced.append({"file_number": file.number, "seal_sha256": file.seal_sha256, "data_sha256": data})
    expect(name, info, place | {"format": "kiseki-compaction-v1", "dp_rank": rank, "replaced": replaced})


def read_compaction(
    attempt: Attempt, name: str, rank: int, files: list[SegmentFile], believed: dict[int, list[Record]]
) -> list[Frame]:
    """The step and note frames of the files that a compaction replaced."""
    info, _ = read_json(attempt.path / f"{name}.compacted.json")
    check_manifest(attempt, name, rank, files, info)
    frames = read_pieces(attempt.path / f"{name}.frames.parquet", info["frames"])
    rows = read_pieces(attempt.path / f"{name}.rows.parquet", info["rows"])
    check_columns(frames.schema_arrow, FRAME_COLUMNS)
    check_columns(rows.schema_arrow, "attempt int32|dp_rank int32|" + COLUMNS[attempt.layout])
    need(rows.num_row_groups + 1 == len(info["rows"]["pieces"]), f"{name}: its pieces are not its row groups")
    sizes = [rows.metadata.row_group(group).num_rows for group in range(rows.num_row_groups)]
    held = rows_of(rows.read())
    places = all(row.pop("attempt") == attempt.number and row.pop("dp_rank") == rank for row in held)
    need(places, f"{name}: rows of another place")
    listed, result, done = frames.read().to_pylist(), [], 0
    records = [(f.number, r) for f in files for r in believed[f.number] if r.kind in (STEP, NOTE)]
    for (number, record), entry in zip(records, listed, strict=True):
        expected = {"file_number": number, "frame_number": record.number, "num_rows": record.rows}
        expect(f"{name}, frames", entry, expected)
        begin = sum(sizes[: entry["row_group"]]) + entry["first_row"]
        need(not record.rows or begin == done, f"{name}: its rows are not in the order of their frames")
        result.append(Frame(record, held[done : done + record.rows], (entry["step_records"] or "").encode()))
        done += record.rows
    need(done == len(held), f"{name}: rows of no frame")
    return result


def read_writer(attempt: Attempt, rank: int, names: list[str]) -> Writer:
    """What is believed of one writer."""
    found: dict[int, dict[str, Path]] = {}
    for match in filter(None, map(SEGMENT_NAME.fullmatch, names)):
        if int(match[1]) == rank:
            found.setdefault(int(match[2]), {})[match[3] + (match[4] or "")] = attempt.path / match[0]
    need(sorted(found) == list(range(len(found))), f"a file of writer {rank} is missing, and a later one is there")
    files = [open_file(attempt, f"rows-r{rank:05}-{n:05}", n, found[n]) for n in sorted(found)]
    believed = believe(attempt, rank, files)
    check_seals(attempt, rank, files, believed)
    newest: dict[tuple[int, int], tuple[int, str]] = {}
    for match in filter(None, map(MANIFEST_NAME.fullmatch, names)):
        if int(match[2]) == rank:
            span = int(match[3]), int(match[4])
            newest[span] = max(newest.get(span, (-1, "")), (int(match[5] or 0), match[1]))
    frames, number = [], 0
    for (first, last), (_, name) in [*sorted(newest.items()), ((len(files), len(files)), (0, ""))]:
        need(number <= first <= last <= len(files), f"{name}: it overlaps another, or its files are missing")
        frames += [f for file in files[number:first] for f in read_data(attempt, rank, file, believed[file.number])]
        frames += read_compaction(attempt, name, rank, files[first : last + 1], believed) if name else []
        number = last + 1
    sealed = {r.step: f.seal is not None for f in files for r in believed[f.number] if r.kind == STEP}
    steps = [frame.record.step for frame in frames if frame.record.kind == STEP]
    start = attempt.info["resume_step"] + 1
    need(steps == list(range(start, start + len(steps))), f"the steps of writer {rank} do not follow one another")
    return Writer(rank, frames, sealed)
