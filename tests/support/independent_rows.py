"""The rows of an export: their tensors, hashes and commitments, written from docs/export_format.md alone.

`independent_reader` finds the rows and hands them over.
It shares no code with the software that writes exports.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOTHING = hashlib.sha256().digest()
SCHEMA, STEP, NOTE, END = range(4)
GAP_FLAG, LOSSES_FLAG = 1, 2
CHUNK = 256
STATUS = ("none", "applied", "skipped_update", "skipped_data", "rerun")
EVIDENCE = (None, "forward", "loader", "declared")
MATCHED = (None, "whole", "slice", "count")
OLD_BITS_NAME = re.compile(r"(.*):(bfloat16|complex32|float8_\w+)")


class Refused(Exception):
    """What the document says that a reader must refuse; the text says what."""


@dataclass(frozen=True)
class ReadTensor:
    """A recorded tensor; `raw` holds its elements, little-endian, in C order."""

    name: str
    dtype: str
    whole: bool
    evidence: str | None
    shape: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True)
class ReadSegment:
    """A stretch of a row that came from one document."""

    start: int
    length: int
    source: str
    document_id: str
    document_token_offset: int
    loss: float | None


@dataclass(frozen=True)
class ReadRow:
    """One packed sequence; losses that came later are in it, and the defaults of its attempt were applied."""

    address: str
    tokens: tuple[int, ...]
    segments: tuple[ReadSegment, ...]
    tensors: tuple[ReadTensor, ...]
    sample_index: int | None
    status: str
    loss: float | None
    evidence: str | None
    matched: str | None
    relation: str | None
    leaf: bytes
    removed: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Run:
    """What every attempt needs of the run."""

    info: dict[str, Any]
    sha256: str
    secret: bytes | None
    shorter_rows: bool
    token_bytes: int


@dataclass(frozen=True)
class Attempt:
    """An attempt as its `attempt.json` describes it."""

    run: Run
    path: Path
    number: int
    version: int
    info: dict[str, Any]
    sha256: str

    @property
    def layout(self) -> int:
        """3, or 1 for the layout that versions 1 and 2 share."""
        return 3 if self.version == 3 else 1

    def step_address(self, step: int, rank: int) -> str:
        return f"{self.run.info['run_id']}/a{self.number}/s{step}/r{rank}"


@dataclass(frozen=True)
class Record:
    """An acknowledgement record; `own` is its hash, `before` is the hash that it names."""

    number: int
    kind: int
    status: int
    flags: int
    start: int
    end: int
    step: int
    time_us: int
    rows: int
    tokens: int
    evidence: tuple[int, ...]
    matched: tuple[int, ...]
    frame: bytes
    root: bytes
    commitment: bytes
    before: bytes
    own: bytes
    well_formed: bool


@dataclass(frozen=True)
class Frame:
    """The content of a step or note frame; each loss in `rows` is the four bytes of its float32, or None."""

    record: Record
    rows: list[dict[str, Any]]
    step_records: bytes


@dataclass(frozen=True)
class Removal:
    """What a row says that lost tokens."""

    ranges: list[tuple[int, int]]
    chunks: dict[int, bytes]
    tensors: bytes
    evidence: list[str | None]


def need(holds: bool, text: str) -> None:
    """Refuse with `text` where a condition does not hold."""
    if not holds:
        raise Refused(text)


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return u32(len(raw)) + raw


def merkle_root(hashes: list[bytes]) -> bytes:
    """The root of RFC 6962 section 2.1 over leaf hashes."""
    if len(hashes) < 2:
        return hashes[0] if hashes else NOTHING
    half = 1 << ((len(hashes) - 1).bit_length() - 1)
    return sha(b"\1", merkle_root(hashes[:half]), merkle_root(hashes[half:]))


def removal_of(row: dict[str, Any]) -> Removal | None:
    """What a row lost; None where it lost nothing."""
    tensors = row["tensors"]
    if all(tensor["encoding"] != "removed" for tensor in tensors):
        return None
    need(len(tensors) == 1, "a row that lost tokens has other tensors")
    info = json.loads(tensors[0]["data"])
    ranges = [(start, end) for start, end in info["ranges"]]
    flat = [place for pair in ranges for place in pair]
    apart = all(a < b for a, b in pairwise(flat))
    need(not flat or (apart and flat[0] >= 0), f"the removed ranges {ranges} are not ascending and apart")
    chunks = {int(number): bytes.fromhex(digest) for number, digest in info["chunks"].items()}
    return Removal(ranges, chunks, bytes.fromhex(info["tensors"]), info.get("evidence", []))


def element_size(dtype: str) -> int:
    named = {"bfloat16": 2, "complex32": 4}
    return 1 if dtype.startswith("float8_") else named[dtype] if dtype in named else np.dtype(dtype).itemsize


def computed_values(
    encoding: str, data: list[int], tokens: NDArray[np.int64], segments: list[dict[str, Any]]
) -> tuple[NDArray[np.int64], dict[int, int]]:
    """The values of an encoding, and by position the number of the element of `data` that is there instead."""
    size = len(tokens)
    values, stored = np.zeros(size, np.int64), dict[int, int]()
    if encoding == "tokens":
        values = tokens
    elif encoding in ("next", "next-in-segment"):
        values, stored = np.roll(tokens, -1), {size - 1: 0}
        if encoding == "next-in-segment":
            stored |= {part["start"] + part["length"] - 1: 1 for part in segments[:-1]}
    elif encoding == "arange":
        values = np.arange(size)
    elif encoding in ("arange-segment", "segment-index"):
        for number, part in enumerate(segments):
            start, end = part["start"], part["start"] + part["length"]
            values[start:end] = np.arange(end - start) if encoding == "arange-segment" else number
    else:
        raise Refused(f"unknown encoding {encoding!r}")
    wanted = {"next": 1, "next-in-segment": 2}.get(encoding, 0)
    need(len(data) == wanted, f"the encoding {encoding} has {len(data)} stored elements")
    return values, stored


def decode(tensor: dict[str, Any], tokens: NDArray[np.int64], segments: list[dict[str, Any]]) -> bytes:
    """The elements of a tensor, little-endian, in C order."""
    count: int = math.prod(tensor["shape"])
    size = element_size(tensor["dtype"])
    encoding, data = tensor["encoding"], tensor["data"]
    if encoding == "zlib":
        raw = zlib.decompress(data)
        need(len(raw) == count * size, f"{tensor['name']}: {len(raw)} bytes for {count} elements")
        return raw
    if encoding == "constant":
        need(len(data) == size, f"{tensor['name']}: a constant of {len(data)} bytes")
        return bytes(data) * count
    dtype = np.dtype(tensor["dtype"]).newbyteorder("<")
    need(dtype.kind in "iu" and count == len(tokens), f"{tensor['name']}: not integers of the shape of the tokens")
    elements = np.frombuffer(data, dtype)
    values, stored = computed_values(encoding, list(elements), tokens, segments)
    result = values.astype(dtype)
    for position, number in stored.items():
        result[position] = elements[number]
    return result.tobytes()


def tensor_evidence(attempt: Attempt, row: dict[str, Any], removal: Removal | None) -> list[str | None]:
    """The evidence of each tensor, of a row that lost tokens as its tensors had it."""
    own = removal.evidence if removal else [tensor.get("evidence") for tensor in row["tensors"]]
    return [word if word is not None else attempt.info.get("default_tensor_evidence") for word in own]


def read_tensors(attempt: Attempt, row: dict[str, Any], tokens: NDArray[np.int64]) -> tuple[ReadTensor, ...]:
    """The tensors of a row that lost nothing; those of versions 1 and 2 with the names of version 3."""
    result = []
    for tensor, evidence in zip(row["tensors"], tensor_evidence(attempt, row, None), strict=True):
        name, dtype, whole = tensor["name"], tensor["dtype"], tensor.get("whole", False)
        if attempt.layout == 1:
            whole, name = name.startswith("microbatch/"), name.removeprefix("microbatch/")
            bits = OLD_BITS_NAME.fullmatch(name)
            name, dtype = (bits[1], bits[2]) if bits else (name, dtype)
        need(not whole or row["slot"] == 0, f"{name} belongs to the micro-batch, and is in slot {row['slot']}")
        raw = decode(tensor, tokens, row["segments"])
        result.append(ReadTensor(name, dtype, whole, evidence, tuple(tensor["shape"]), raw))
    return tuple(result)


def chunk_hashes(spans: list[tuple[int, int]], row: dict[str, Any], salts: Any, removal: Removal | None) -> list[bytes]:
    """The commitment of each chunk, from the removal record where a removed range touches it."""
    width = len(row["tokens"]) // row["length"]
    ranges = removal.ranges if removal else []
    touched = {c for c, (start, end) in enumerate(spans) if any(start < last and first < end for first, last in ranges)}
    kept = removal.chunks if removal else {}
    need(
        touched == set(kept), f"the removal record names the chunks {sorted(kept)}, its ranges touch {sorted(touched)}"
    )
    data = [row["tokens"][start * width : end * width] for start, end in spans]
    return [kept[c] if c in touched else sha(b"\x11", salts(c), piece) for c, piece in enumerate(data)]


def chunks_of(start: int, length: int) -> list[tuple[int, int]]:
    end = start + length
    return [(place, min(place + CHUNK, end)) for place in range(start, end, CHUNK)]


def parts_of(row: dict[str, Any]) -> list[tuple[int, int, bytes]]:
    """Start, length and names of each part of a row."""
    parts, done = [], 0
    for part in row["segments"]:
        if part["start"] > done:
            parts.append((done, part["start"] - done, b"\0"))
        names = struct.pack("<Bq", 1, part["document_token_offset"]) + text(part["source"]) + text(part["document_id"])
        parts.append((part["start"], part["length"], names))
        done = part["start"] + part["length"]
    if done < row["length"]:
        parts.append((done, row["length"] - done, b"\0"))
    return parts


def tensors_commitment(row: dict[str, Any], salt: bytes, removal: Removal | None) -> bytes:
    if removal:
        return removal.tensors
    content = [b"\x13", salt, u32(len(row["tensors"]))]
    for tensor in row["tensors"]:
        content += [text(tensor["name"]), text(tensor["dtype"]), text(tensor["encoding"])]
        content += [bytes([tensor["whole"]])] if "whole" in tensor else []
        content += [u32(len(tensor["shape"])), *map(u32, tensor["shape"]), text(tensor["data"])]
    return sha(*content)


def leaf_start(version: int, address: str, row: dict[str, Any]) -> bytes:
    """What the leaves of both versions have before their commitments."""
    sample, width = row["sample_index"], len(row["tokens"]) // row["length"]
    start = struct.pack("<H", len(address.encode())) + address.encode()
    numbers = struct.pack("<qIB", -1 if sample is None else sample, row["length"], width)
    return b"\0kiseki-leaf-v" + str(version).encode() + start + numbers


def leaf_v1(address: str, row: dict[str, Any], row_salt: bytes, removal: Removal | None) -> bytes:
    def salt(kind: int, number: int) -> bytes:
        return sha(row_salt, bytes([kind]), u32(number))[:16]

    chunks = chunk_hashes(chunks_of(0, row["length"]), row, lambda c: salt(0x11, c), removal)
    segments = [
        struct.pack("<IIq", part["start"], part["length"], part["document_token_offset"])
        + text(part["source"])
        + text(part["document_id"])
        for part in row["segments"]
    ]
    return sha(
        leaf_start(1, address, row),
        sha(b"\x10", u32(len(chunks)), *chunks),
        sha(b"\x12", salt(0x12, 0), u32(len(segments)), *segments),
        tensors_commitment(row, salt(0x13, 0), removal),
    )


def leaf_v2(address: str, row: dict[str, Any], row_salt: bytes, removal: Removal | None) -> bytes:
    def salt(number: int) -> bytes:
        return hashlib.shake_256(row_salt).digest(16 * number + 16)[16 * number :]

    parts = parts_of(row)
    spans = [chunks_of(start, length) for start, length, _ in parts]
    flat = [span for part in spans for span in part]
    chunks = chunk_hashes(flat, row, lambda c: salt(1 + len(parts) + c), removal)
    hashes, done = [], 0
    for number, (start, length, names) in enumerate(parts):
        own = chunks[done : done + len(spans[number])]
        hashes.append(sha(b"\0kiseki-part-v2", salt(1 + number), u32(start), u32(length), names, *own))
        done += len(own)
    commitments = u32(len(parts)), merkle_root(hashes), tensors_commitment(row, salt(0), removal)
    return sha(leaf_start(2, address, row), *commitments)


def loss_bytes(loss: bytes | None) -> bytes:
    return b"\0" if loss is None else b"\1" + loss


def record_commitment(attempt: Attempt, rank: int, frame: Frame, secret: bytes) -> bytes:
    """The record commitment of version 3."""
    record, info = frame.record, attempt.info
    content = [b"kiseki-record-v3", text(attempt.step_address(record.step, rank))]
    content += [bytes([record.kind, record.status]), u32(len(frame.rows))]
    for row in frame.rows:
        known, tied = row["evidence"] or info["default_evidence"], row["matched"] or info["default_matched"]
        content += [bytes([EVIDENCE.index(known), MATCHED.index(tied)]), text(row["relation"] or "")]
        content += [loss_bytes(row["loss"]), u32(len(row["segments"]))]
        content += [loss_bytes(part["loss"]) for part in row["segments"]]
        tensors = tensor_evidence(attempt, row, removal_of(row))
        content += [u32(len(tensors)), bytes(EVIDENCE.index(word) for word in tensors)]
    joined = b"\x20" + b"".join([*content, text(frame.step_records)])
    return sha(b"\x20", hmac.digest(secret, joined, "sha256")[:16], joined[1:])


def check_segments(row: dict[str, Any]) -> None:
    done = 0
    for part in row["segments"]:
        need(part["start"] >= done and part["length"] >= 0, "segments overlap, or are out of order")
        done = part["start"] + part["length"]
    need(done <= row["length"], "a segment reaches beyond its row")


def float_of(loss: bytes | None) -> float | None:
    return None if loss is None else float(struct.unpack("<f", loss)[0])


def read_row(attempt: Attempt, address: str, row: dict[str, Any]) -> ReadRow:
    """A row, after everything about it was checked that its frame does not say."""
    run = attempt.run
    tokens = np.frombuffer(row["tokens"], f"<u{run.token_bytes}").astype(np.int64)
    length, longest = len(tokens), run.info["sequence_length"]
    need(length == longest or (run.shorter_rows and 0 < length < longest), f"{address}: {length} tokens")
    need(int(tokens.max()) < run.info["vocab_size"], f"{address}: a token is not in the vocabulary")
    row["length"] = length
    check_segments(row)
    removal = removal_of(row)
    ranges = removal.ranges if removal else []
    zero = all(end <= length and not tokens[start:end].any() for start, end in ranges)
    need(zero, f"{address}: a removed range reaches beyond the row, or holds another token than 0")
    if run.secret is not None:
        row_salt = hmac.digest(run.secret, address.encode(), "sha256")
        leaf = leaf_v2 if attempt.version == 3 else leaf_v1
        need(leaf(address, row, row_salt, removal) == row["leaf"], f"{address}: its leaf does not hold")
    segments = [ReadSegment(**{"loss": None} | part | {"loss": float_of(part.get("loss"))}) for part in row["segments"]]
    return ReadRow(
        *(address, tuple(tokens.tolist()), tuple(segments), () if removal else read_tensors(attempt, row, tokens)),
        *(row["sample_index"], row["status"], float_of(row["loss"])),
        evidence=row.get("evidence") or attempt.info.get("default_evidence"),
        matched=row.get("matched") or attempt.info.get("default_matched"),
        relation=row.get("relation"),
        leaf=row["leaf"],
        removed=tuple(ranges),
    )
