"""One shard: an immutable directory that answers for a contiguous range of steps of one attempt.

    spans.bin           tokens, suffix array, fingerprints (indexer.spans)
    sequences.parquet   one row a sequence, by ordinal: address, sample_index, status, loss, leaf, evidence, statistics
    segments.parquet    one row a segment: ordinal, segment, start, length, source, document_id, document_token_offset, loss
    records.parquet     step records: metrics and gaps, one row a number
    statuses.parquet    status of each step
    unigrams.npy        how often each token id occurs, i64
    document_*.npy      segments by document (indexer.storage.document_index)
    anchors.npy         Bloom filter of a sample of token n-grams, u64 (indexer.statistics.anchors)
    text/               full text (indexer.fulltext.engine)
    shard.json          the manifest: what it covers, and SHA-256 and size of every other file; written last

A shard is built under a `.building` name and renamed when it is whole and synced, so one that has its name is whole.
Its name says what it covers, so building the same steps twice gives the same name, and the second time nothing is
done.
"""

import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.durable import sha256_of, sha256_of_file
from indexer.fulltext.engine import FullTextDamage, FullTextIndex
from indexer.spans.arrays import SpanArrays, open_span_arrays
from indexer.storage.arrow_columns import equals, numbers_of
from indexer.storage.distinct import distinct
from indexer.storage.document_index import DocumentIndex, build_document_index, open_document_index
from indexer.storage.step_range import StepRange
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.leaf import RowLeaf, row_salt
from train_hooks.export_format.reading.summaries import EvidenceShares
from train_hooks.export_format.records import Segment, SequenceAddress

__all__ = [
    "OldShard",
    "Shard",
    "ShardDamage",
    "ShardInfo",
    "manifest_sha256",
    "range_of_name",
    "shard_name",
]

SHARD_FORMAT = "kiseki-shard-v4"
MANIFEST, SEQUENCES, SEGMENTS, TEXT = "shard.json", "sequences.parquet", "segments.parquet", "text"
UNIGRAMS, ANCHORS, RECORDS, STATUSES = "unigrams.npy", "anchors.npy", "records.parquet", "statuses.parquet"
_NAME = re.compile(r"a(\d{6,})-s(\d{9,})-s(\d{9,})")


class ShardDamage(DamageError):
    """A shard that must not be believed. `shard` is its name; `kiseki index --verify` builds it again."""

    def __init__(self, shard: str, what: str, do: str = "run `kiseki index --verify` to build the shard again") -> None:
        super().__init__(f"{what}; {do}")
        self.shard = shard


class OldShard(ShardDamage):
    """A shard of another format, which `kiseki index` builds again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """A file of a shard as its manifest lists it."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """What a shard covers: steps `first_step` to `last_step`, both included, of one attempt.

    num_applied: sequences of steps whose update was applied. export_version: the format of its attempt.
    """

    name: str
    run_id: str
    attempt: int
    first_step: int
    last_step: int
    num_sequences: int
    num_applied: int
    num_segments: int
    num_tokens: int
    token_dtype: str
    has_text: bool
    export_version: int
    files: tuple[ShardFile, ...]

    @classmethod
    def read(cls, directory: Path, sha256: str | None = None) -> "ShardInfo":
        """The manifest of a shard. Raises ShardDamage where it is missing, is none, or has another hash than `sha256`."""
        path = directory / MANIFEST
        try:
            data = path.read_bytes()
            if sha256 is not None and sha256_of(data) != sha256:
                raise ValueError("another SHA-256")
            document = json.loads(data)
            files = tuple(ShardFile(**file) for file in document["files"])
            if (found := document.pop("format")) != SHARD_FORMAT:
                what = f"{path}: expected format {SHARD_FORMAT}, found {found}"
                raise OldShard(directory.name, what, "run `kiseki index` to build the shard again")
            return cls(**{**document, "files": files})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardDamage(directory.name, f"{path}: expected the manifest of a shard ({error})") from error


def shard_name(steps: StepRange) -> str:
    """Name of the shard of a step range."""
    return f"a{steps.attempt:06d}-s{steps.first_step:09d}-s{steps.last_step:09d}"


def range_of_name(name: str) -> tuple[int, int, int] | None:
    """(attempt, first step, last step) of a shard's name, or None where it is not one."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def manifest_sha256(directory: Path) -> str:
    """What a generation says of a shard's manifest."""
    return sha256_of_file(directory / MANIFEST)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentUnits:
    """A shard's token positions cut into k stretches of one segment, or none, each.

    starts i64 [k + 1]: first position of each, the last is the number of positions; ordinal i64 [k]: its sequence;
    segment i64 [k]: its row in `segments`, -1 for none.
    """

    starts: npt.NDArray[np.int64]
    ordinal: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]

    @property
    def bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First position of each stretch, and the one after its last, without the separator that ends a sequence."""
        is_last = np.append(self.ordinal[1:] != self.ordinal[:-1], [True])[: len(self.ordinal)]
        return self.starts[:-1], self.starts[1:] - is_last

    def extent(self, unit: int) -> tuple[int, int]:
        """`bounds` of one stretch."""
        is_last = unit + 1 == len(self.ordinal) or self.ordinal[unit + 1] != self.ordinal[unit]
        return int(self.starts[unit]), int(self.starts[unit + 1]) - bool(is_last)


def segment_units(segments: pa.Table, sequence_starts: npt.NDArray[np.int64]) -> SegmentUnits:
    """Sequences, each with its separator, cut at every segment's start and end. sequence_starts i64 [n + 1]."""
    ordinals, starts, lengths = (numbers_of(segments.column(name)) for name in ("ordinal", "start", "length"))
    starts = sequence_starts[ordinals] + starts
    ends = starts + lengths
    cuts = distinct(np.concatenate([starts, ends, sequence_starts[:-1]]))
    cuts = cuts[cuts < sequence_starts[-1]]
    segment = np.searchsorted(starts, cuts, side="right") - 1
    inside = (segment >= 0) & (cuts < ends[np.maximum(segment, 0)]) if len(ends) else np.zeros(len(cuts), np.bool_)
    return SegmentUnits(
        starts=np.append(cuts, sequence_starts[-1]).astype(np.int64),
        ordinal=np.searchsorted(sequence_starts, cuts, side="right") - 1,
        segment=np.where(inside, segment, -1),
    )


class Shard:
    """A shard opened for reading. The span arrays are mapped; metadata is loaded when first asked for."""

    def __init__(self, directory: Path, manifest_sha256: str | None = None) -> None:
        """Raises ShardDamage where the shard is not whole by name and size; `check_hashes` reads every byte."""
        self.directory = directory
        self.info = ShardInfo.read(directory, manifest_sha256)
        self._checked: set[int] = set()
        for file in self.info.files:
            path = directory / file.name
            found = path.stat().st_size if path.exists() else None
            if found != file.size_bytes:
                raise ShardDamage(directory.name, f"{path}: expected {file.size_bytes} bytes, found {found}")
        try:
            self.spans: SpanArrays = open_span_arrays(directory)
        except (OSError, ValueError) as error:
            raise ShardDamage(directory.name, str(error)) from error
        if self.spans.num_sequences != self.info.num_sequences:
            raise ShardDamage(directory.name, f"{directory}: the span index and the manifest disagree")

    @cached_property
    def sequences(self) -> pa.Table:
        """`sequences.parquet`."""
        return self._read(SEQUENCES)

    @cached_property
    def segments(self) -> pa.Table:
        """`segments.parquet`."""
        return self._read(SEGMENTS)

    @cached_property
    def steps(self) -> npt.NDArray[np.int64]:
        """global_step by ordinal, ascending, i64 [num_sequences]."""
        return numbers_of(self.sequences.column("global_step"))

    @cached_property
    def dp_ranks(self) -> npt.NDArray[np.int32]:
        """dp_rank by ordinal, i32 [num_sequences]."""
        return numbers_of(self.sequences.column("dp_rank"))

    @cached_property
    def _microbatches_and_slots(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """microbatch and slot by ordinal, i32 [num_sequences] each."""
        return numbers_of(self.sequences.column("microbatch")), numbers_of(self.sequences.column("slot"))

    @cached_property
    def applied(self) -> npt.NDArray[np.bool_]:
        """Whether the step's update was applied, by ordinal."""
        return equals(self.sequences.column("status"), "applied")

    @cached_property
    def evidence_shares(self) -> EvidenceShares:
        """How its sequences are known."""
        return self.evidence_shares_of(None)

    def evidence_shares_of(self, ordinals: npt.NDArray[np.int64] | None) -> EvidenceShares:
        """How these sequences are known; None: all."""
        columns = self.sequences.select(["evidence", "matched"])
        columns = columns if ordinals is None else columns.take(pa.array(ordinals))
        counted = itertools.chain.from_iterable(pc.value_counts(column).to_pylist() for column in columns.columns)
        known = {item["values"]: item["counts"] for item in counted if item["values"] is not None}
        return EvidenceShares(num_rows=columns.num_rows, **known)

    def unigrams(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """How often each token id occurs, i64 [vocab_size]."""
        counts = np.asarray(np.load(io.BytesIO(self._checked_bytes(UNIGRAMS))))
        return np.pad(counts, (0, max(0, vocab_size - len(counts))))[:vocab_size]

    def anchors(self) -> npt.NDArray[np.uint64]:
        """Bloom filter of the anchors of the shard's sequences (indexer.statistics.anchors), u64, mapped."""
        return np.asarray(np.load(self.directory / ANCHORS, mmap_mode="r"))

    def records(self) -> pa.Table:
        """`records.parquet`: step records, one row a number."""
        return self._read(RECORDS)

    def statuses(self) -> pa.Table:
        """`statuses.parquet`: global_step, status."""
        return self._read(STATUSES)

    @cached_property
    def documents(self) -> DocumentIndex:
        """Segments by document."""
        return open_document_index(self.directory) or build_document_index(self.segments)

    @cached_property
    def _segment_firsts(self) -> npt.NDArray[np.int64]:
        ordinals = numbers_of(self.segments.column("ordinal"))
        return np.searchsorted(ordinals, np.arange(self.info.num_sequences + 1))

    @cached_property
    def units(self) -> "SegmentUnits":
        """The shard cut at every segment's start and end."""
        return segment_units(self.segments, np.asarray(self.spans.sequence_starts))

    @cached_property
    def full_text(self) -> FullTextIndex:
        """Full text. Raises ShardDamage where they do not open."""
        try:
            return FullTextIndex(self.directory / TEXT)
        except FullTextDamage as error:
            raise ShardDamage(self.info.name, str(error)) from error

    def address(self, ordinal: int) -> SequenceAddress:
        """Address of a sequence."""
        microbatches, slots = self._microbatches_and_slots
        return SequenceAddress(
            run_id=self.info.run_id, attempt=self.info.attempt, global_step=int(self.steps[ordinal]),
            dp_rank=int(self.dp_ranks[ordinal]), microbatch=int(microbatches[ordinal]), slot=int(slots[ordinal]),
        )  # fmt: skip

    def ordinal_of(self, address: SequenceAddress) -> int | None:
        """Ordinal of a sequence, or None where the shard does not hold it."""
        if address.attempt != self.info.attempt:
            return None
        first, last = (int(x) for x in np.searchsorted(self.steps, [address.global_step, address.global_step + 1]))
        microbatches, slots = self._microbatches_and_slots
        same = (
            (self.dp_ranks[first:last] == address.dp_rank)
            & (microbatches[first:last] == address.microbatch)
            & (slots[first:last] == address.slot)
        )
        found = np.flatnonzero(same)
        return first + int(found[0]) if len(found) else None

    def tokens(self, ordinal: int) -> npt.NDArray[np.unsignedinteger]:
        """Tokens of a sequence, without its separator."""
        starts = self.spans.sequence_starts
        return np.asarray(self.spans.tokens[int(starts[ordinal]) : int(starts[ordinal + 1]) - 1])

    def segments_of(self, ordinal: int) -> Sequence[Segment]:
        """Segments of a sequence, in order."""
        first, last = int(self._segment_firsts[ordinal]), int(self._segment_firsts[ordinal + 1])
        columns = self._segment_columns
        return [
            Segment(start=start, length=length, source=source, document_id=document_id, document_token_offset=offset)
            for start, length, source, document_id, offset in zip(
                *(column[first:last].to_pylist() for column in columns), strict=True
            )
        ]

    def segment_at(self, row: int) -> Segment:
        """The segment of a row of `segments`."""
        start, length, source, document_id, offset = (column[row].as_py() for column in self._segment_columns)
        return Segment(start=start, length=length, source=source, document_id=document_id, document_token_offset=offset)

    @cached_property
    def _segment_columns(self) -> tuple[pa.Array, ...]:
        names = ("start", "length", "source", "document_id", "document_token_offset")
        return tuple(self.segments.column(name).chunk(0) if self.segments.num_rows else pa.array([]) for name in names)

    def check_sequence(self, ordinal: int, secret: bytes) -> None:
        """Hash a sequence against the leaf that the export recorded. Raises ShardDamage where they differ."""
        if ordinal in self._checked:
            return
        leaf, commitment, sample_index = (
            self.sequences.column(name)[ordinal].as_py() for name in ("leaf", "tensors_commitment", "sample_index")
        )
        if commitment is None:
            return
        address = str(self.address(ordinal))
        salt, segments = row_salt(secret, address), self.segments_of(ordinal)
        row = RowLeaf(salt, address, self.tokens(ordinal), segments, self.info.export_version)
        found = row.hash(sample_index, commitment)
        if found != leaf:
            raise ShardDamage(self.info.name, f"{self.directory}: sequence {address} does not match its leaf")
        self._checked.add(ordinal)

    def check_hashes(self) -> None:
        """Read every byte. Raises ShardDamage that names the file which does not match the manifest."""
        for file in self.info.files:
            path = self.directory / file.name
            if (found := sha256_of_file(path)) != file.sha256:
                raise ShardDamage(self.info.name, f"{path}: expected SHA-256 {file.sha256}, found {found}")

    def _read(self, name: str) -> pa.Table:
        """A metadata table; its bytes are hashed before they are parsed."""
        return pq.ParquetFile(pa.BufferReader(self._checked_bytes(name))).read().combine_chunks()

    def _checked_bytes(self, name: str) -> bytes:
        path = self.directory / name
        expected = next((file.sha256 for file in self.info.files if file.name == name), None)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ShardDamage(self.info.name, f"{path} does not read: {error}") from error
        if (found := sha256_of(data)) != expected:
            raise ShardDamage(self.info.name, f"{path}: expected SHA-256 {expected}, found {found}")
        return data
