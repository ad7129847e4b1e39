"""Acknowledgement records: the sidecar that says which bytes of a segment file are to be believed.

A segment file is a sequence of *frames*: the Arrow schema message, then one record batch message for each committed
step, then the end-of-stream marker. Each frame has one record of 160 bytes in the `.acks` file (little-endian):

    offset size
       0    4   "KACK"
       4    2   u16 version: 1, or 2 where the rows of the run may be shorter than its sequence_length
       6    2   u16 kind: 0 schema, 1 step, 2 note (step records alone), 3 end
       8    8   u64 number of the frame in this file, from 0
      16    8   u64 start   24  8  u64 end          byte range of the frame in the segment file
      32    8   i64 global_step (0 for schema and end)
      40    4   u32 num_rows
      44    1   u8 status: 0 none, 1 applied, 2 skipped_update, 3 skipped_data, 4 rerun      45  3  zero
      48    4   u32 num_tokens of the rows in version 2; zero in version 1, where each row has sequence_length tokens
      52   32   SHA-256 of the frame's bytes
      84   32   RFC 6962 root hash over the leaves of its rows
     116   32   SHA-256 of the record before; for the first one, of the file's identity (below)
     148    8   i64 unix time in microseconds (for people; nothing is ordered by it)
     156    4   CRC-32 of bytes [0, 156)

Identity: SHA-256 of the UTF-8 text of seven lines, each ended by a line feed: "kiseki-segment-file-v1", run_id, attempt,
claim, dp_rank, number of the file, previous; where previous is the hex SHA-256 of the last record of this writer's file
before, or "-". So all records of a writer form one chain, in which none can be changed, moved, doubled or left out unseen.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from train_hooks.export_format.records import RunInfo, StepStatus

__all__ = ["ACK_SIZE", "Ack", "AckKind", "decode_acks", "file_identity", "well_formed"]

ACK_SIZE = 160
_LAYOUT = struct.Struct("<4sHHQQQqIB3xI32s32s32sq")
_CRC = struct.Struct("<I")
_STATUSES = (None, StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE, StepStatus.SKIPPED_DATA, StepStatus.RERUN)


class AckKind(IntEnum):
    """What a frame holds."""

    SCHEMA = 0
    STEP = 1
    NOTE = 2
    END = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """One acknowledged frame of a segment file. num_tokens: of its rows; None in version 1, `tokens_in` tells them."""

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

    def tokens_in(self, run: RunInfo) -> int:
        """How many tokens its rows have."""
        return self.num_rows * run.sequence_length if self.num_tokens is None else self.num_tokens

    def encode(self) -> bytes:
        """The record's 160 bytes."""
        body = _LAYOUT.pack(
            b"KACK", 1 if self.num_tokens is None else 2, self.kind, self.number, self.start, self.end,
            self.global_step, self.num_rows, _STATUSES.index(self.status), self.num_tokens or 0,
            self.frame_sha256, self.root, self.previous, self.unix_time_us,
        )  # fmt: skip
        return body + _CRC.pack(zlib.crc32(body))

    @property
    def sha256(self) -> bytes:
        """What the next record names as its previous one."""
        return hashlib.sha256(self.encode()).digest()


def file_identity(run_id: str, attempt: int, claim: str, dp_rank: int, number: int, previous: bytes | None) -> bytes:
    """32 bytes that begin a segment file's chain; `previous` is the last record's hash of the file before."""
    hex_previous = "-" if previous is None else previous.hex()
    text = f"kiseki-segment-file-v1\n{run_id}\n{attempt}\n{claim}\n{dp_rank}\n{number}\n{hex_previous}\n"
    return hashlib.sha256(text.encode("utf-8")).digest()


def _decode(data: bytes) -> Ack | None:
    if len(data) != ACK_SIZE or _CRC.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
        return None
    magic, version, kind, number, start, end, step, num_rows, status, num_tokens, frame, root, previous, time_us = (
        _LAYOUT.unpack(data[:-4])
    )
    if magic != b"KACK" or kind > AckKind.END or status >= len(_STATUSES) or any(data[45:48]):
        return None
    if version not in (1, 2) or (version == 1 and num_tokens):
        return None
    return Ack(
        kind=AckKind(kind), number=number, start=start, end=end, global_step=step, num_rows=num_rows,
        status=_STATUSES[status], frame_sha256=frame, root=root, previous=previous, unix_time_us=time_us,
        num_tokens=None if version == 1 else num_tokens,
    )  # fmt: skip


def well_formed(record: bytes) -> bool:
    """Whether 160 bytes are a record, wherever it belongs."""
    return _decode(record) is not None


def decode_acks(data: bytes, identity: bytes) -> tuple[Sequence[Ack], str | None]:
    """The longest valid chain that begins with `identity`, and why it ends before the data does (None: it does not)."""
    acks: list[Ack] = []
    previous, position = identity, 0
    for offset in range(0, len(data), ACK_SIZE):
        record = data[offset : offset + ACK_SIZE]
        ack = _decode(record)
        where = f"acknowledgement record {offset // ACK_SIZE}"
        if ack is None:
            return acks, f"{where} is cut or damaged"
        if ack.previous != previous:
            return acks, f"{where} does not follow the one before it"
        if ack.number != len(acks) or ack.start != position or ack.end < ack.start:
            return acks, f"{where} names another place than the next frame's"
        acks.append(ack)
        previous, position = hashlib.sha256(record).digest(), ack.end
    return acks, None
