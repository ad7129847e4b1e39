"""Acknowledgement records: the sidecar that says which bytes of a segment file are to be believed.

A segment file is a sequence of *frames*: the Arrow schema message, then one record batch message for each committed
step, then the end-of-stream marker. Each frame has one record in the `.acks` file: 200 bytes in attempts of format 3,
160 in older ones. `docs/export_format.md` has both layouts byte for byte.

Each record contains the SHA-256 of the one before, and the first one the identity of its file, which names the last
record of the writer's file before. So all records of a writer form one chain, in which none can be changed, moved,
doubled or left out unseen.

`AckTable` keeps the records as they are in the file and makes an `Ack` of one when it is asked for: 200 bytes a record.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.records import RunInfo, StepStatus

__all__ = [
    "EMPTY_SHA256",
    "Ack",
    "AckKind",
    "AckTable",
    "Counts",
    "ack_size",
    "decode_acks",
    "decode_sealed_acks",
    "file_identity",
    "status_of_code",
    "well_formed",
]

EMPTY_SHA256 = hashlib.sha256(b"").digest()
Counts = tuple[int, int, int]
_NO_COUNTS: Counts = (0, 0, 0)
_GAP, _LOSSES = 1, 2
_LAYOUT = struct.Struct("<4sBBBBQqqIII3I3I32s32s32s32s")
_OLD_LAYOUT = struct.Struct("<4sHHQQQqIB3xI32s32s32sq")
_CRC = struct.Struct("<I")
_STATUSES = (None, StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE, StepStatus.SKIPPED_DATA, StepStatus.RERUN)
_DTYPE = np.dtype(
    [
        ("magic", "S4"), ("version", "u1"), ("flags", "u1"), ("kind", "u1"), ("status", "u1"), ("end", "<u8"),
        ("global_step", "<i8"), ("unix_time_us", "<i8"), ("number", "<u4"), ("num_rows", "<u4"), ("num_tokens",
        "<u4"), ("evidence", "<u4", (3,)), ("matched", "<u4", (3,)), ("frame_sha256", "V32"), ("root", "V32"),
        ("record", "V32"), ("previous", "V32"), ("crc", "<u4"),
    ]
)  # fmt: skip
_OLD_DTYPE = np.dtype(
    [
        ("magic", "S4"), ("version", "<u2"), ("kind", "<u2"), ("number", "<u8"), ("start", "<u8"), ("end", "<u8"),
        ("global_step", "<i8"), ("num_rows", "<u4"), ("status", "u1"), ("zeros", "u1", (3,)), ("num_tokens", "<u4"),
        ("frame_sha256", "V32"), ("root", "V32"), ("previous", "V32"), ("unix_time_us", "<i8"), ("crc", "<u4"),
    ]
)  # fmt: skip
assert (_DTYPE.itemsize, _OLD_DTYPE.itemsize) == (200, 160)


def ack_size(format_version: int) -> int:
    """Bytes of a record in an attempt of that format."""
    return _dtype(format_version).itemsize


def status_of_code(code: int) -> StepStatus | None:
    """The status that a record's number stands for."""
    return _STATUSES[code]


def _dtype(format_version: int) -> "np.dtype[np.void]":
    return _DTYPE if format_version >= 3 else _OLD_DTYPE


class AckKind(IntEnum):
    """What a frame holds."""

    SCHEMA = 0
    STEP = 1
    NOTE = 2
    END = 3


_KINDS = tuple(AckKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """One acknowledged frame of a segment file. num_tokens: of its rows; None in format 1, where `tokens_in` tells
    them. record: the record commitment. evidence: rows whose tokens are known from the forward, the loader, a
    declaration; matched: rows that are whole, a slice, counted. has_gap, has_losses: whether its step records hold a
    gap, or losses that came late. None of these four is in older formats.
    """

    kind: AckKind
    number: int
    start: int
    end: int
    global_step: int
    num_rows: int
    status: StepStatus | None
    frame_sha256: bytes
    root: bytes
    previous: bytes
    unix_time_us: int
    num_tokens: int | None = None
    format_version: int = 3
    record: bytes = EMPTY_SHA256
    evidence: Counts = _NO_COUNTS
    matched: Counts = _NO_COUNTS
    has_gap: bool = False
    has_losses: bool = False

    def tokens_in(self, run: RunInfo) -> int:
        """How many tokens its rows have."""
        return self.num_rows * run.sequence_length if self.num_tokens is None else self.num_tokens

    def encode(self) -> bytes:
        """The record as it is in the file."""
        status = _STATUSES.index(self.status)
        if self.format_version >= 3:
            flags = _GAP * self.has_gap | _LOSSES * self.has_losses
            body = _LAYOUT.pack(
            b"KACK", self.format_version, flags, self.kind, status, self.end, self.global_step, self.unix_time_us,
                self.number, self.num_rows, self.num_tokens or 0, *self.evidence, *self.matched, self.frame_sha256,
                self.root, self.record, self.previous,
            )  # fmt: skip
        else:
            body = _OLD_LAYOUT.pack(
                b"KACK", self.format_version, self.kind, self.number, self.start, self.end,
            self.global_step, self.num_rows, status, self.num_tokens or 0,
            self.frame_sha256, self.root, self.previous, self.unix_time_us,
        )  # fmt: skip
        return body + _CRC.pack(zlib.crc32(body))

    @property
    def sha256(self) -> bytes:
        """What the next record names as its previous one."""
        return hashlib.sha256(self.encode()).digest()


class AckTable(Sequence[Ack]):
    """Records of one file, from its first on. `records` are their fields as arrays, by the names in `Ack`."""

    __slots__ = ("format_version", "records")

    def __init__(self, records: npt.NDArray[np.void], format_version: int) -> None:
        self.records, self.format_version = records, format_version

    @classmethod
    def empty(cls, format_version: int) -> "AckTable":
        """No records."""
        return cls(np.empty(0, _dtype(format_version)), format_version)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Ack: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Ack]: ...
    def __getitem__(self, index: int | slice) -> Ack | Sequence[Ack]:
        if isinstance(index, slice):
            return [self._ack(each) for each in range(*index.indices(len(self)))]
        return self._ack(range(len(self))[index])

    def __iter__(self) -> Iterator[Ack]:
        data, size, start = self.records.tobytes(), self.records.dtype.itemsize, 0
        for at in range(0, len(data), size):
            ack = _decoded(data[at : at + size], start, self.format_version)
            start = ack.end
            yield ack

    def first(self, num_records: int) -> "AckTable":
        """The first records alone."""
        return AckTable(self.records[:num_records], self.format_version)

    def indices_of(self, kind: AckKind) -> npt.NDArray[np.int64]:
        """Which records are of a kind."""
        return np.flatnonzero(self.records["kind"] == kind)

    def sha256(self, index: int) -> bytes:
        """What the record after this one names as its previous one."""
        return hashlib.sha256(self.records[index].tobytes()).digest()

    def encode(self) -> bytes:
        """The records as they are in the file."""
        return self.records.tobytes()

    @property
    def size_bytes(self) -> int:
        """How much of the data they cover."""
        return int(self.records["end"][-1]) if len(self) else 0

    def num_tokens(self, run: RunInfo) -> npt.NDArray[np.int64]:
        """Tokens of each record's rows."""
        if self.format_version == 1:
            return self.records["num_rows"].astype(np.int64) * run.sequence_length
        return self.records["num_tokens"].astype(np.int64)

    def _ack(self, index: int) -> Ack:
        size = self.records.dtype.itemsize
        start = int(self.records["end"][index - 1]) if index else 0
        return _decoded(self.records[index : index + 1].tobytes()[:size], start, self.format_version)


def _decoded(record: bytes, start: int, format_version: int) -> Ack:
    if format_version < 3:
        return _decoded_old(record, format_version)
    (
        _, version, flags, kind, status, end, step, time_us, number, num_rows, num_tokens, forward, loader, declared,
        whole, part, count, frame, root, commitment, previous,
    ) = _LAYOUT.unpack(record[:-4])  # fmt: skip
    return Ack(
        kind=_KINDS[kind], number=number, start=start, end=end, global_step=step, num_rows=num_rows,
        status=_STATUSES[status], frame_sha256=frame, root=root, previous=previous, unix_time_us=time_us,
        num_tokens=num_tokens, format_version=version, record=commitment, evidence=(forward, loader, declared),
        matched=(whole, part, count), has_gap=bool(flags & _GAP), has_losses=bool(flags & _LOSSES),
    )  # fmt: skip


def _decoded_old(record: bytes, format_version: int) -> Ack:
    _, version, kind, number, start, end, step, num_rows, status, num_tokens, frame, root, previous, time_us = (
        _OLD_LAYOUT.unpack(record[:-4])
    )
    return Ack(
        kind=_KINDS[kind], number=number, start=start, end=end, global_step=step, num_rows=num_rows,
        status=_STATUSES[status], frame_sha256=frame, root=root, previous=previous, unix_time_us=time_us,
        num_tokens=None if version == 1 else num_tokens, format_version=format_version,
    )  # fmt: skip


def file_identity(run_id: str, attempt: int, claim: str, dp_rank: int, number: int, previous: bytes | None) -> bytes:
    """32 bytes that begin a segment file's chain; `previous` is the last record's hash of the file before."""
    hex_previous = "-" if previous is None else previous.hex()
    text = f"kiseki-segment-file-v1\n{run_id}\n{attempt}\n{claim}\n{dp_rank}\n{number}\n{hex_previous}\n"
    return hashlib.sha256(text.encode("utf-8")).digest()


def well_formed(record: bytes, format_version: int) -> bool:
    """Whether these bytes are a record, wherever it belongs."""
    size = ack_size(format_version)
    return (
        len(record) == size
        and _crc_holds(record)
        and bool(_are_records(_array(record, format_version), format_version)[0])
    )


def decode_acks(data: bytes, identity: bytes, format_version: int) -> tuple[AckTable, str | None]:
    """The longest valid chain that begins with `identity`, and why it ends before the data does (None: it does not)."""
    records, size = _array(data, format_version), ack_size(format_version)
    if len(records) and _crc_holds(data[:size]) and records["previous"][0].tobytes() != identity:
        return AckTable(records[:0], format_version), "acknowledgement record 0 does not follow the one before it"
    pieces = [data[at : at + size] for at in range(0, size * len(records), size)]
    crcs = np.fromiter((zlib.crc32(piece[:-4]) for piece in pieces), np.uint32, len(pieces))
    chain = b"".join([identity, *(hashlib.sha256(piece).digest() for piece in pieces)])[: 32 * len(pieces)]
    expected = np.frombuffer(chain, np.uint8).reshape(-1, 32)
    previous = np.ascontiguousarray(records["previous"]).view(np.uint8).reshape(-1, 32)
    checks = (
        (_are_records(records, format_version) & (crcs == records["crc"]), "is cut or damaged"),
        ((expected == previous).all(axis=1), "does not follow the one before it"),
        (_in_place(records, format_version), "names another place than the next frame's"),
    )
    bad = np.flatnonzero(~np.logical_and.reduce([holds for holds, _ in checks]))
    if len(bad):
        index = int(bad[0])
        reason = next(text for holds, text in checks if not holds[index])
        return AckTable(records[:index], format_version), f"acknowledgement record {index} {reason}"
    torn = f"acknowledgement record {len(records)} is cut or damaged" if len(data) % size else None
    return AckTable(records, format_version), torn


def decode_sealed_acks(data: bytes, format_version: int) -> AckTable | None:
    """All records of a sealed file whose bytes have the hash that the seal names, so that the chain needs no second
    look.

    None where they are no records all the same.
    """
    records = _array(data, format_version)
    whole = not len(data) % ack_size(format_version) and bool(_are_records(records, format_version).all())
    return AckTable(records, format_version) if whole and _in_place(records, format_version).all() else None


def _array(data: bytes, format_version: int) -> npt.NDArray[np.void]:
    dtype = _dtype(format_version)
    return np.frombuffer(data, dtype, len(data) // dtype.itemsize)


def _crc_holds(record: bytes) -> bool:
    return bool(_CRC.unpack(record[-4:])[0] == zlib.crc32(record[:-4]))


def _are_records(records: npt.NDArray[np.void], format_version: int) -> npt.NDArray[np.bool_]:
    holds: Any = (records["magic"] == b"KACK") & (records["version"] == format_version)
    holds &= (records["kind"] <= AckKind.END) & (records["status"] < len(_STATUSES))
    if format_version >= 3:
        return np.asarray(holds & (records["flags"] <= (_GAP | _LOSSES)))
    if format_version == 1:
        holds &= records["num_tokens"] == 0
    return np.asarray(holds & ~records["zeros"].any(axis=1))


def _in_place(records: npt.NDArray[np.void], format_version: int) -> npt.NDArray[np.bool_]:
    """Whether each record is of the frame that follows the one before."""
    ends = records["end"]
    starts = np.concatenate([np.zeros(1, ends.dtype), ends[:-1]]) if len(ends) else ends
    holds = (records["number"] == np.arange(len(records), dtype=records["number"].dtype)) & (ends >= starts)
    return np.asarray(holds if format_version >= 3 else holds & (records["start"] == starts))
