"""What an export says of its documents: a claim for each segment, kept on disk, found by document.

A claim is a segment's place in the export, its place in the document, and a hash of its tokens, 61 bytes whatever its length.
Claims are spread over files by the hash of their document, each file is sorted and mapped, so memory does not grow with the
run: a corpus can then be read once, in its own order, whatever order training had.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.corpora.layouts import positional_id
from indexer.storage.document_index import document_key
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, StepFrame, WriterLog
from train_hooks.export_format.records import Row

__all__ = ["CLAIM", "DIFFERENT", "EQUAL", "UNSEEN", "ClaimedFrames", "Claims", "tokens_digest"]

NUM_FILES, CLAIMS_AT_ONCE = 64, 1 << 18
UNSEEN, EQUAL, DIFFERENT = 0, 1, 2
CLAIM = np.dtype(
    [
        ("key", "<u8"), ("offset", "<i8"), ("length", "<i4"), ("first", "<u4"), ("last", "<u4"), ("digest", "V16"),
        ("frame", "<u4"), ("row", "<u4"), ("segment", "<u4"), ("state", "u1"),
    ]
)  # fmt: skip
"""A claim: key of its document; offset -1 where the export does not know it; first and last token; frame, row, segment: where
it stands in the export; state: UNSEEN, EQUAL or DIFFERENT."""


def _key(source: str, document_id: str) -> np.uint64:
    """RedPajama-V2's ids have several forms, of which trainers may have used any."""
    return document_key(source, positional_id(document_id) or document_id)


def tokens_digest(tokens: npt.NDArray[np.unsignedinteger]) -> bytes:
    """16 bytes that stand for a segment's tokens, which have the run's dtype."""
    return hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    attempt: int
    dp_rank: int
    global_step: int


class ClaimedFrames:
    """The frames that claims name by number, and the way back to their rows. Keeps the last frame that it read."""

    def __init__(self, run: RunReader) -> None:
        self._run = run
        self._places: list[_Place] = []
        self._attempts: dict[int, tuple[AttemptReader, dict[int, WriterLog]]] = {}
        self._last: tuple[int, list[Row]] = (-1, [])

    def add(self, attempt: int, dp_rank: int, global_step: int) -> int:
        """The number of one more frame."""
        self._places.append(_Place(attempt=attempt, dp_rank=dp_rank, global_step=global_step))
        return len(self._places) - 1

    def row(self, claim: np.void) -> Row:
        """The row of a claim, read again from the export."""
        number = int(claim["frame"])
        if self._last[0] != number:
            place = self._places[number]
            if place.attempt not in self._attempts:
                reader = self._run.attempt(place.attempt)
                self._attempts[place.attempt] = (reader, reader.writers())
            reader, writers = self._attempts[place.attempt]
            file, ack = next(
                item for item in writers[place.dp_rank].steps() if item[1].global_step == place.global_step
            )
            self._last = (number, reader.rows(reader.frame(file, ack)))
        return self._last[1][int(claim["row"])]


class Claims:
    """The claims of a run, below `directory`. First `collect`, then `of`."""

    def __init__(self, directory: Path, run: RunReader) -> None:
        self._directory = directory
        self._dtype = np.dtype(run.info.token_dtype).newbyteorder("<")
        self.frames = ClaimedFrames(run)
        self.num_claims = self.num_unnamed = 0
        self._files = [(directory / f"{number:02d}").open("wb") for number in range(NUM_FILES)]
        self._waiting: list[npt.NDArray[np.void]] = []
        self._claims: list[npt.NDArray[np.void]] = []
        self._keys: list[npt.NDArray[np.uint64]] = []

    def add_frame(self, attempt: AttemptReader, frame: StepFrame) -> None:
        """The segments of a frame that name a document; the others are counted in `num_unnamed`."""
        number = self.frames.add(attempt.info.attempt, frame.dp_rank, frame.ack.global_step)
        found = [(number, *claim) for claim in self._claims_of(frame.batch)]
        if not found:
            return
        claims = np.zeros(len(found), CLAIM)
        names = ("frame", "row", "segment", "key", "offset", "length", "first", "last")
        for name, column in zip(names, zip(*(claim[:-1] for claim in found), strict=True), strict=True):
            claims[name] = column
        claims["digest"] = np.frombuffer(b"".join(claim[-1] for claim in found), "V16")
        self.num_claims += len(claims)
        self._waiting.append(claims)
        if sum(map(len, self._waiting)) >= CLAIMS_AT_ONCE:
            self._spread()

    def _claims_of(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, np.uint64, int, int, int, int, bytes]]:
        tokens_of_rows = batch.column(batch.schema.get_field_index("tokens"))
        for row, segments in enumerate(batch.column(batch.schema.get_field_index("segments")).to_pylist()):
            tokens = np.frombuffer(tokens_of_rows[row].as_buffer(), self._dtype)
            for index, segment in enumerate(segments):
                start, length = segment["start"], segment["length"]
                if not segment["document_id"]:
                    self.num_unnamed += 1
                    continue
                part = tokens[start : start + length]
                if not len(part):
                    raise DamageError(
                        f"a segment of {segment['document_id']} has no tokens; `kiseki export verify` says more"
                    )
                key = _key(segment["source"], segment["document_id"])
                offset = segment["document_token_offset"]
                yield row, index, key, offset, length, int(part[0]), int(part[-1]), tokens_digest(part)

    def _spread(self) -> None:
        claims, self._waiting = np.concatenate(self._waiting), []
        numbers = claims["key"] % NUM_FILES
        for number in np.unique(numbers).tolist():
            claims[numbers == number].tofile(self._files[number])

    def finish(self) -> None:
        """No more frames: sort and map the files."""
        if self._waiting:
            self._spread()
        for file in self._files:
            file.close()
            path = Path(file.name)
            claims = np.fromfile(path, CLAIM)
            claims = claims[np.argsort(claims["key"], kind="stable")]
            keys = path.with_suffix(".keys")
            claims.tofile(path)
            claims["key"].tofile(keys)
            empty = not len(claims)
            self._claims.append(claims if empty else np.memmap(path, CLAIM, mode="r+"))
            self._keys.append(np.zeros(0, np.uint64) if empty else np.memmap(keys, "<u8", mode="r"))

    def of(self, source: str, document_id: str) -> npt.NDArray[np.void]:
        """The claims about a document, writable."""
        key = _key(source, document_id)
        number = int(key) % NUM_FILES
        first, last = (int(np.searchsorted(self._keys[number], key, side=side)) for side in ("left", "right"))
        return self._claims[number][first:last]

    def files(self) -> Iterator[npt.NDArray[np.void]]:
        """All claims, sorted by document in each file."""
        yield from self._claims
