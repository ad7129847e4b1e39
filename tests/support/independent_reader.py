"""A reader of exports, written from docs/export_format.md alone.

It shares no code with the software that writes exports.
It reads a whole run into memory, so it is for small runs.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.independent_files import MANIFEST_NAME, SEGMENT_NAME, Writer, expect, read_json, read_writer
from tests.support.independent_rows import (
    EVIDENCE,
    GAP_FLAG,
    LOSSES_FLAG,
    MATCHED,
    NOTE,
    STATUS,
    Attempt,
    Frame,
    ReadRow,
    ReadSegment,
    ReadTensor,
    Refused,
    Run,
    merkle_root,
    need,
    read_row,
    record_commitment,
    sha,
)

__all__ = ["ReadAttempt", "ReadRow", "ReadRun", "ReadSegment", "ReadTensor", "Refused", "read_run"]

V3 = "kiseki-attempt-v3; needs kiseki 0.2.0 or newer"
BARRIER_NAME = re.compile(r"barrier-(\d{9}|[1-9]\d{9,})\.json", re.ASCII)
ATTEMPT_NAME = re.compile(r"a(\d{6}|[1-9]\d{6,})", re.ASCII)


@dataclass(frozen=True)
class ReadAttempt:
    """All that is believed of one attempt, also of steps that are not committed."""

    number: int
    version: int
    committed_steps: tuple[int, ...]
    final_step: int | None
    rows: dict[str, ReadRow]
    records: tuple[tuple[int, dict[str, Any]], ...]


@dataclass(frozen=True)
class ReadRun:
    """A run; `canonical` holds the attempt and number of each committed step of the canonical lineage."""

    run_id: str
    attempts: tuple[ReadAttempt, ...]
    canonical: tuple[tuple[int, int], ...]


def float32(loss: Any) -> float | None:
    """A loss of a step record of kind `losses`."""
    return None if loss is None else float(np.float32(loss))


def add_losses(rows: dict[str, ReadRow], address: str, losses: list[Any]) -> None:
    """Give the rows of a step the losses that came later."""
    for microbatch, slot, loss, parts in losses:
        row = rows.get(f"{address}/m{microbatch}/q{slot}")
        if row is None:
            raise Refused(f"losses of {address}/m{microbatch}/q{slot}, which is no row")
        if loss is not None:
            need(row.loss is None, f"{row.address}: two losses")
            row = replace(row, loss=float32(loss))
        if parts is not None:
            need(len(parts) == len(row.segments), f"{row.address}: losses of {len(parts)} segments")
            need(all(part.loss is None for part in row.segments), f"{row.address}: two losses of a segment")
            both = zip(row.segments, parts, strict=True)
            row = replace(row, segments=tuple(replace(part, loss=float32(one)) for part, one in both))
        rows[row.address] = row


def check_frame(attempt: Attempt, rank: int, frame: Frame, rows: list[ReadRow], kinds: set[str]) -> None:
    """Refuse a frame that does not agree with its acknowledgement record."""
    record, address = frame.record, attempt.step_address(frame.record.step, rank)
    tokens = 0 if attempt.version == 1 else sum(len(row.tokens) for row in rows)
    need((len(rows), tokens) == (record.rows, record.tokens), f"{address}: other rows or tokens than its record says")
    places = [(row["microbatch"], row["slot"]) for row in frame.rows]
    need(all(row["global_step"] == record.step for row in frame.rows), f"{address}: rows of another step")
    need(places == sorted(set(places)), f"{address}: its rows are out of order")
    need(all(row.status == STATUS[record.status] for row in rows), f"{address}: a row of another status")
    need(merkle_root([row.leaf for row in rows]) == record.root, f"{address}: its root hash does not hold")
    need("losses" not in kinds or record.kind == NOTE, f"{address}: losses outside of a note")
    if attempt.version == 3:
        known, tied = Counter(row.evidence for row in rows), Counter(row.matched for row in rows)
        need(set(known) <= set(EVIDENCE) and set(tied) <= set(MATCHED), f"{address}: unknown evidence")
        counts = tuple(known[word] for word in EVIDENCE[1:]), tuple(tied[word] for word in MATCHED[1:])
        need(counts == (record.evidence, record.matched), f"{address}: its record counts other evidence")
        flags = GAP_FLAG * ("gap" in kinds) + LOSSES_FLAG * ("losses" in kinds)
        need(flags == record.flags, f"{address}: its record has other flags")
        secret = attempt.run.secret
        holds = secret is None or record_commitment(attempt, rank, frame, secret) == record.commitment
        need(holds, f"{address}: its record commitment does not hold")


def read_rows(attempt: Attempt, writer: Writer) -> tuple[dict[str, ReadRow], list[tuple[int, dict[str, Any]]]]:
    """The rows of a writer by their addresses, and its step records."""
    rows: dict[str, ReadRow] = {}
    records: list[tuple[int, dict[str, Any]]] = []
    for frame in writer.frames:
        address = attempt.step_address(frame.record.step, writer.rank)
        own = [read_row(attempt, f"{address}/m{row['microbatch']}/q{row['slot']}", row) for row in frame.rows]
        held = json.loads(frame.step_records or b"[]")
        check_frame(attempt, writer.rank, frame, own, {record["kind"] for record in held})
        rows |= {row.address: row for row in own}
        for record in held:
            if record["kind"] == "losses":
                add_losses(rows, attempt.step_address(record["global_step"], writer.rank), record["rows"])
        records += [(writer.rank, record) for record in held]
    return rows, records


def read_barriers(attempt: Attempt, names: list[str]) -> int:
    """The newest step that a barrier record covers; 0 where there is none."""
    newest, writers = 0, attempt.info["num_writers"]
    for match in filter(None, map(BARRIER_NAME.fullmatch, names)):
        info, _ = read_json(attempt.path / match[0])
        place = {"run_id": attempt.run.info["run_id"], "attempt": attempt.number, "global_step": int(match[1])}
        place |= {"format": "kiseki-barrier-v1", "attempt_sha256": attempt.sha256, "num_writers": writers}
        expect(match[0], info, place)
        newest = max(newest, int(match[1]))
    return newest


def read_attempt(attempt: Attempt) -> ReadAttempt:
    """All that is believed of an attempt."""
    names = sorted(path.name for path in attempt.path.iterdir())
    ranks = {int(match[1]) for match in map(SEGMENT_NAME.fullmatch, names) if match}
    ranks |= {int(match[2]) for match in map(MANIFEST_NAME.fullmatch, names) if match}
    need(all(rank < attempt.info["num_writers"] for rank in ranks), f"attempt {attempt.number}: files of no writer")
    writers = [read_writer(attempt, rank, names) for rank in range(attempt.info["num_writers"])]
    barrier, start = read_barriers(attempt, names), attempt.info["resume_step"]
    committed = sorted(set.intersection(*(set(writer.steps) for writer in writers)))
    need(barrier <= max(committed, default=start), f"attempt {attempt.number}: a step before a barrier was lost")
    final = None
    for step in committed:
        if step > barrier and not all(writer.steps[step] for writer in writers):
            break
        final = step
    read = [read_rows(attempt, writer) for writer in writers]
    rows = {address: row for part, _ in read for address, row in part.items()}
    records = tuple(record for _, part in read for record in part)
    return ReadAttempt(attempt.number, attempt.version, tuple(committed), final, rows, records)


def open_run(export: Path) -> Run:
    """What `run.json` and the secret say."""
    need((export / "run.json").exists(), f"{export} holds no run.json")
    info, sha256 = read_json(export / "run.json")
    version = info["format_version"]
    need(info["format"] == "kiseki-export" and version in (1, 2, 3), f"unknown format_version {version!r}")
    need(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", info["run_id"]) is not None, f"run_id {info['run_id']!r}")
    secret = export / "run_secret.hex"
    raw = secret.read_bytes() if secret.exists() else None
    if raw is not None:
        whole = re.fullmatch(rb"[0-9a-f]{64}\n", raw) and sha(raw).hex() == info["secret_sha256"]
        need(bool(whole), "run_secret.hex is not the secret of this run")
    tokenizer = export / "tokenizer" / (info["tokenizer_file"] or "")
    if info["tokenizer_file"] is not None:
        holds = tokenizer.exists() and sha(tokenizer.read_bytes()).hex() == info["tokenizer_sha256"]
        need(holds, "the tokenizer is not that of this run")
    shorter = info["shorter_rows"] if version == 3 else version == 2
    key = bytes.fromhex(raw.decode().strip()) if raw else None
    return Run(info, sha256, key, shorter, {"uint16": 2, "uint32": 4}[info["token_dtype"]])


def open_attempt(run: Run, path: Path, number: int, earlier: dict[int, Attempt]) -> Attempt | None:
    """What `attempt.json` says; None where the attempt died before it wrote anything."""
    if not (path / "attempt.json").exists():
        need(
            not any(file.name.startswith(("rows-", "barrier-")) for file in path.iterdir()),
            f"{path} has no attempt.json",
        )
        return None
    info, sha256 = read_json(path / "attempt.json")
    need(info["format"] in ("kiseki-attempt-v1", V3), f"attempt {number}: unknown format {info['format']!r}")
    version = 3 if info["format"] == V3 else run.info["format_version"]
    ordered = (info["format"] == V3) == (version == 3) and all(other.version <= version for other in earlier.values())
    need(ordered, f"attempt {number}: its version is below that of the run, or of an earlier attempt")
    parent = info["parent_attempt"]
    need(parent is None or parent in earlier, f"attempt {number}: its parent {parent} is no earlier attempt")
    need(parent is not None or info["resume_step"] == 0, f"attempt {number}: it resumes without a parent")
    place = {"run_id": run.info["run_id"], "attempt": number, "run_sha256": run.sha256}
    expect(path.name, info, place | {"parent_sha256": None if parent is None else earlier[parent].sha256})
    return Attempt(run, path, number, version, info, sha256)


def canonical_steps(attempts: dict[int, Attempt], read: dict[int, ReadAttempt]) -> tuple[tuple[int, int], ...]:
    """The committed steps of the canonical lineage, in order."""
    number = max((number for number in read if read[number].committed_steps), default=None)
    steps: list[tuple[int, int]] = []
    newest = read[number].committed_steps[-1] if number is not None else 0
    while number is not None:
        start = attempts[number].info["resume_step"]
        steps[:0] = [(number, step) for step in read[number].committed_steps if start < step <= newest]
        number, newest = attempts[number].info["parent_attempt"], min(newest, start)
    return tuple(steps)


def read_everything(export: Path) -> ReadRun:
    run = open_run(export)
    folder = export / "attempts"
    found = {p.name: p for p in folder.iterdir() if ATTEMPT_NAME.fullmatch(p.name)} if folder.exists() else {}
    by_number = {int(name[1:]): path for name, path in found.items()}
    need(sorted(by_number) == list(range(1, len(by_number) + 1)), "an attempt is missing")
    attempts: dict[int, Attempt] = {}
    for number in sorted(by_number):
        attempt = open_attempt(run, by_number[number], number, attempts)
        if attempt is not None:
            attempts[number] = attempt
    read = {number: read_attempt(attempt) for number, attempt in attempts.items()}
    return ReadRun(run.info["run_id"], tuple(read.values()), canonical_steps(attempts, read))


def read_run(run_dir: Path) -> ReadRun:
    """Read and check a whole run."""
    wrong = (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, zlib.error, pa.ArrowException)
    try:
        return read_everything(run_dir / "export")
    except OSError as error:
        if error.errno is not None:  # Arrow raises OSError without a number for bytes that it cannot parse
            raise
        raise Refused(f"something is not as the document says: {error!r}") from error
    except wrong as error:
        raise Refused(f"something is not as the document says: {error!r}") from error
