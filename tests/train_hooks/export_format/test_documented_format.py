"""A reader written from docs/export_format.md alone, with the standard library and pyarrow, gives the same rows."""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.example_exports import begin_attempt, begin_run, write_export, write_steps
from train_hooks.export_format.compact import compact
from train_hooks.export_format.reader import RunReader

END = bytes.fromhex("ffffffff00000000")
Record = dict[str, Any]


def load(path: Path) -> Record:
    data = path.read_bytes()
    head, digest = data[:-68], data[-68:-4].decode()
    assert data[-4:] == b'"\n}\n'
    assert hashlib.sha256(head + b"0" * 64 + data[-4:]).hexdigest() == digest
    document: Record = json.loads(data)
    return document


def records(raw: bytes, identity: bytes, run: Record) -> list[Record]:
    found: list[Record] = []
    previous, position = identity, 0
    for at in range(0, len(raw) - 159, 160):
        record = raw[at : at + 160]
        magic, version, kind, number, start, end, step, rows, _, tokens = struct.unpack("<4sHHQQQqIB3xI", record[:52])
        assert version == run["format_version"] and (version == 2 or tokens == 0)
        holds = magic == b"KACK" and struct.unpack("<I", record[156:])[0] == zlib.crc32(record[:156])
        if not holds or record[116:148] != previous or number != len(found) or start != position:
            break
        previous, position = hashlib.sha256(record).digest(), end
        found.append(
            {
                "kind": kind,
                "range": (start, end),
                "step": step,
                "rows": rows,
                "tokens": tokens if version == 2 else rows * run["sequence_length"],
                "sha256": record[52:84],
                "own": previous,
            }
        )
    return found


def writer_files(directory: Path, attempt: Record, rank: int, run: Record) -> list[tuple[Path, list[Record]]]:
    numbers = sorted(
        {int(m[1]) for p in directory.iterdir() if (m := re.fullmatch(rf"rows-r{rank:05d}-(\d+)\.acks.*", p.name))}
    )
    files: list[tuple[Path, list[Record]]] = []
    for number in numbers:
        stem = directory / f"rows-r{rank:05d}-{number:05d}"
        path = next(p for p in (Path(f"{stem}.acks"), Path(f"{stem}.acks.inprogress")) if p.exists())
        places = [
            (i, n, files[i][1][n - 1]["own"].hex()) for i in range(len(files)) for n in range(1, len(files[i][1]) + 1)
        ]
        found: list[Record] = []
        for index, count, previous in [*reversed(places), (-1, 0, "-")]:
            lines = [
                "kiseki-segment-file-v1",
                attempt["run_id"],
                attempt["attempt"],
                attempt["claim"],
                rank,
                number,
                previous,
            ]
            identity = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).digest()
            if found := records(path.read_bytes(), identity, run):
                files = [(p, r[: count if i == index else 0] if i >= index else r) for i, (p, r) in enumerate(files)]
                break
        files.append((stem, found))
    return files


def piece_of(path: Path, part: Record) -> bytes:
    data = path.read_bytes()
    for piece in part["pieces"]:
        assert hashlib.sha256(data[piece["start"] : piece["end"]]).hexdigest() == piece["sha256"]
    return data


def batches(stem: Path, found: list[Record]) -> Iterator[tuple[Record, list[Record]]]:
    data = next((p for p in (Path(f"{stem}.arrows"), Path(f"{stem}.arrows.inprogress")) if p.exists()), None)
    if data is None:
        yield from compacted_batches(stem, found)
        return
    frames = []
    for record in found:
        frame = data.read_bytes()[slice(*record["range"])]
        assert hashlib.sha256(frame).digest() == record["sha256"]
        frames.append(frame)
    for record, frame in zip(found, frames, strict=True):
        if record["kind"] == 1:
            yield record, pa.ipc.open_stream(frames[0] + frame + END).read_next_batch().to_pylist()


def compacted_batches(stem: Path, found: list[Record]) -> Iterator[tuple[Record, list[Record]]]:
    number = int(stem.name[-5:])
    for path in stem.parent.glob(f"{stem.name[:-6]}-*.compacted.json"):
        manifest = load(path)
        if number in [item["file_number"] for item in manifest["replaced"]]:
            rows = pq.ParquetFile(pa.BufferReader(piece_of(path.parent / manifest["rows"]["name"], manifest["rows"])))
            frames = pq.read_table(
                pa.BufferReader(piece_of(path.parent / manifest["frames"]["name"], manifest["frames"]))
            )
            for place in frames.to_pylist():
                record = found[place["frame_number"]]
                if place["file_number"] == number and record["kind"] == 1:
                    group = rows.read_row_group(place["row_group"]).to_pylist() if place["num_rows"] else []
                    yield record, group[place["first_row"] : place["first_row"] + place["num_rows"]]


def read(run_dir: Path) -> dict[str, tuple[bytes, bytes]]:
    run = load(run_dir / "export" / "run.json")
    assert run["format"] == "kiseki-export" and run["format_version"] in (1, 2)
    fewest = {1: run["sequence_length"], 2: 1}[run["format_version"]]
    found = {}
    for directory in sorted((run_dir / "export" / "attempts").iterdir()):
        attempt = load(directory / "attempt.json")
        for rank in range(attempt["num_writers"]):
            for stem, believed in writer_files(directory, attempt, rank, run):
                for record, rows in batches(stem, believed):
                    lengths = [len(row["tokens"]) // 2 for row in rows]
                    assert (len(rows), sum(lengths)) == (record["rows"], record["tokens"])
                    assert all(fewest <= length <= run["sequence_length"] for length in lengths)
                    for row in rows:
                        place = f"s{record['step']}/r{rank}/m{row['microbatch']}/q{row['slot']}"
                        found[f"{run['run_id']}/a{attempt['attempt']}/{place}"] = (row["tokens"], row["leaf"])
    return found


def expected(run: RunReader) -> dict[str, tuple[bytes, bytes]]:
    return {
        str(row.address): (row.tokens.tobytes(), row.leaf)
        for attempt in run.attempts()
        for frame in attempt.frames(1, 99)
        for row in attempt.rows(frame)
    }


@pytest.mark.parametrize("shorter_rows", [False, True])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_finished_export(tmp_path: Path, compacted: bool, shorter_rows: bool) -> None:
    run = write_export(tmp_path, shorter_rows=shorter_rows)
    if compacted:
        compact(run, row_group_bytes=500)

    assert len(expected(run)) == 64
    assert read(tmp_path) == expected(run)


def test_an_export_whose_writers_died(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    write_steps(
        tmp_path, run, begin_attempt(tmp_path, run, num_writers=2), [1, 2, 3], roll_size_bytes=6000, close=False
    )
    for path in (tmp_path / "export").rglob("*.inprogress"):
        path.write_bytes(path.read_bytes() + b"torn")

    assert len(expected(RunReader(tmp_path))) == 24
    assert read(tmp_path) == expected(RunReader(tmp_path))


def test_the_document_names_every_key_and_column() -> None:
    from train_hooks.export_format.compacted import CompactionManifest
    from train_hooks.export_format.records import AttemptInfo, RunInfo
    from train_hooks.export_format.schema import ROW_FIELDS
    from train_hooks.export_format.seals import Seal

    text = (Path(__file__).parents[3] / "docs" / "export_format.md").read_text(encoding="utf-8")
    names = [name for kind in (AttemptInfo, CompactionManifest, RunInfo, Seal) for name in kind.__slots__]

    assert [name for name in [*names, *(field.name for field in ROW_FIELDS)] if f"`{name}`" not in text] == []
