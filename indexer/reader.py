"""The one door to an index for everything that asks: read-only handles on one generation, from start to end."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from indexer.selection.rows import SelectedShard, Selection, select_of_shard
from indexer.selection.tombstones import TombstoneFile
from indexer.selection.visibility import EVERYTHING, Visibility, VisibleShard, visible_shard
from indexer.storage.catalog import connect_catalog, rows_of_catalog
from indexer.storage.generations import Generation, published
from indexer.storage.lru_cache import LruCache
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import OldShard, Shard, ShardDamage
from indexer.tokenizer.tokenizer import RunTokenizer
from train_hooks.export_format.errors import DamageError, IncompleteError, QueryError
from train_hooks.export_format.lineage import StepInterval, lineage
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.reading.summaries import EvidenceShares
from train_hooks.export_format.records import RunInfo, Segment, SequenceAddress

if TYPE_CHECKING:
    import duckdb

    from indexer.spans.group import SpanGroup

__all__ = ["IndexReader", "PackedSequence"]

MANY_SHARDS = 8
NUM_VISIBLE, NUM_FREQUENCIES = 256, 16
HIDDEN = "\u2588"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSequence:
    """One packed sequence as the index holds it."""

    address: SequenceAddress
    shard: Shard
    ordinal: int
    tokens: npt.NDArray[np.unsignedinteger]
    segments: Sequence[Segment]


class IndexReader:
    """One generation of one run's index. Safe to share between threads."""

    def __init__(
        self, run: RunReader, paths: IndexPaths, generation: Generation, before: "IndexReader | None" = None
    ) -> None:
        """`before`: a reader of an earlier generation, whose shards serve where they are the same."""
        self.run, self.paths, self.generation = run, paths, generation
        self.shards: list[Shard] = []
        self.failed: list[str] = []
        self._tombstones = TombstoneFile(paths)
        self._visible: LruCache[tuple[str, Visibility], VisibleShard | None] = LruCache(NUM_VISIBLE)
        self._frequencies: LruCache[Visibility, npt.NDArray[np.float64]] = LruCache(NUM_FREQUENCIES)
        known = {} if before is None else before.shards_by_manifest()
        for name, manifest in generation.shards.items():
            try:
                self.shards.append(known.get((name, manifest)) or Shard(paths.shard_dir(name), manifest))
            except OldShard as error:
                raise IncompleteError(
                    f"{paths.index} was built by another version of kiseki; run `kiseki index {paths.run_dir}` to build it "
                    "again from the export"
                ) from error
            except ShardDamage as error:
                self.failed.append(f"{name}: {error}")
        self._opened = tuple(self.shards)
        if not self.shards:
            raise DamageError(f"no shard of {paths.index} can be opened: {'; '.join(self.failed)}")

    def shards_by_manifest(self) -> dict[tuple[str, str], Shard]:
        """The shards that answer, by name and SHA-256 of their manifest."""
        return {(shard.info.name, self.generation.shards[shard.info.name]): shard for shard in self.shards}

    def _leave_out(self, damage: ShardDamage) -> None:
        """Ask a damaged shard no more; answers say that it is missing. Raises `damage` where it was the last one."""
        left = [shard for shard in self.shards if shard.info.name != damage.shard]
        if not left:
            raise damage
        self.shards = left
        self.failed = [*self.failed, f"{damage.shard}: {damage}"]

    def retry_without_damaged(self, answer: Callable[[], T]) -> T:
        """`answer()`, again without each shard that turns out to be damaged. Raises ShardDamage for the last one."""
        while True:
            try:
                return answer()
            except ShardDamage as damage:
                self._leave_out(damage)

    @classmethod
    def open(cls, run_dir: Path | str) -> Self:
        """The published generation. Raises RunError for no run, IncompleteError where nothing is indexed yet."""
        run = RunReader(run_dir)
        paths = IndexPaths(run.paths.run_dir)
        generation = published(paths)
        if generation is None:
            raise IncompleteError(f"{run.paths.run_dir} is not indexed yet; run `kiseki index {run.paths.run_dir}`")
        return cls(run, paths, generation)

    @property
    def info(self) -> RunInfo:
        """The run's `run.json`."""
        return self.run.info

    @cached_property
    def tokenizer(self) -> RunTokenizer:
        """The run's tokenizer. Raises RunError where the run has none."""
        return RunTokenizer(self.run)

    @cached_property
    def _secret(self) -> bytes | None:
        """What the leaves are salted with; None where the export was handed on without it, and no leaf can be checked."""
        return self.run.secret() if self.run.file_system.exists(self.run.paths.secret) else None

    @cached_property
    def canonical(self) -> dict[int, StepInterval]:
        """The canonical interval of each attempt that has one."""
        if self.generation.canonical_attempt is None:
            return {}
        attempts = [attempt.info for attempt in self.run.attempts()]
        return {interval.attempt: interval for interval in lineage(attempts, self.generation.canonical_attempt)}

    @cached_property
    def span_group(self) -> "SpanGroup":
        """All shards that could be opened, for one search; also those that failed since, whom nobody asks."""
        from indexer.spans.group import span_group  # it loads numba, which only who looks for spans needs

        return span_group([shard.spans for shard in self._opened])

    @cached_property
    def group_numbers(self) -> dict[str, int]:
        """Number in the `span_group` by shard name."""
        return {shard.info.name: number for number, shard in enumerate(self._opened)}

    @cached_property
    def executor(self) -> Executor | None:
        """Threads to search shards side by side; None where they are too few to be worth it."""
        if len(self.shards) < MANY_SHARDS:
            return None
        return ThreadPoolExecutor(min(len(self.shards), os.cpu_count() or 1), thread_name_prefix="kiseki-search")

    def visible_under(self, visibility: Visibility) -> Visibility:
        """What may be seen of this run: under `visibility`, and without what is taken down."""
        return visibility & self._tombstones.visibility()

    def visible_shard(self, shard: Shard, visibility: Visibility) -> VisibleShard | None:
        """What of a shard is visible; None where all of it is. `visibility` is as `visible_under` gave it."""
        if visibility == EVERYTHING:
            return None
        return self._visible.get((shard.info.name, visibility), lambda: visible_shard(shard, visibility))

    def visible_tokens(self, sequence: PackedSequence, visibility: Visibility) -> npt.NDArray[np.bool_]:
        """Whether each token of a sequence may be seen, bool [length]; `visibility` is as `visible_under` gave it."""
        visible = self.visible_shard(sequence.shard, visibility)
        if visible is None:
            return np.ones(len(sequence.tokens), np.bool_)
        begin = int(sequence.shard.spans.sequence_starts[sequence.ordinal])
        return visible.mask(begin, begin + len(sequence.tokens))

    def visible_sizes(self, visibility: Visibility) -> tuple[int, int]:
        """(sequences of which something may be seen, tokens that may be), of all steps."""
        visibility, num_sequences, num_tokens = self.visible_under(visibility), 0, 0
        for shard in self.shards:
            visible = self.visible_shard(shard, visibility)
            if visible is None:
                num_sequences += shard.info.num_sequences
                num_tokens += shard.info.num_tokens
            else:
                ordinals, lengths = visible.visible_lengths(shard.spans.sequence_starts)
                num_sequences += len(np.unique(ordinals))
                num_tokens += int(lengths.sum())
        return num_sequences, num_tokens

    def evidence_shares(self, visibility: Visibility) -> EvidenceShares:
        """How the sequences are known of which something may be seen, of all steps."""
        visibility, found = self.visible_under(visibility), EvidenceShares()
        for shard in self.shards:
            visible = self.visible_shard(shard, visibility)
            if visible is None:
                found = found.combined_with(shard.evidence_shares)
            else:
                ordinals, _ = visible.visible_lengths(shard.spans.sequence_starts)
                found = found.combined_with(shard.evidence_shares_of(np.unique(ordinals)))
        return found

    def check_tombstones(self) -> None:
        """Raises DamageError where the tombstones cannot be read."""
        self._tombstones.visibility()

    def log_probabilities(self, visibility: Visibility) -> npt.NDArray[np.float64]:
        """Natural logarithm of each token id's frequency in what is visible, f64 [vocab_size]."""
        if visibility == EVERYTHING:
            return self.unigram_log_probabilities
        return self._frequencies.get(visibility, lambda: log_frequencies(self._visible_unigrams(visibility)))

    def _visible_unigrams(self, visibility: Visibility) -> npt.NDArray[np.int64]:
        counts = np.zeros(self.info.vocab_size, np.int64)
        for shard in self.shards:
            visible = self.visible_shard(shard, visibility)
            if visible is None:
                counts += shard.unigrams(self.info.vocab_size)
                continue
            tokens = shard.spans.tokens[visible.mask(0, shard.spans.num_tokens)]
            counts += np.bincount(tokens[tokens < self.info.vocab_size], minlength=self.info.vocab_size)
        return counts

    @cached_property
    def unigrams(self) -> npt.NDArray[np.int64]:
        """How often each token id occurs in the indexed data, i64 [vocab_size]."""
        counts = np.zeros(self.info.vocab_size, np.int64)
        for shard in self.shards:
            counts += shard.unigrams(self.info.vocab_size)
        return counts

    @cached_property
    def unigram_log_probabilities(self) -> npt.NDArray[np.float64]:
        """Natural logarithm of each token id's frequency, f64 [vocab_size]; half an occurrence where it has none."""
        return log_frequencies(self.unigrams)

    def select(self, selection: Selection) -> list[SelectedShard]:
        """The shards that `selection` takes something of, by attempt and step."""
        found, visibility = [], self.visible_under(selection.visibility)
        for shard in self.shards:
            chosen = select_of_shard(shard, selection, self.canonical, self.visible_shard(shard, visibility))
            if chosen is not None:
                found.append(chosen)
        return found

    def sequence(self, address: SequenceAddress | str) -> PackedSequence:
        """One packed sequence. Raises QueryError for an address that the index does not hold, DamageError as below."""
        return self.sequence_at(*self.locate(address))

    def locate(self, address: SequenceAddress | str) -> tuple[Shard, int]:
        """(shard, ordinal) of a sequence. Raises QueryError for an address that the index does not hold, DamageError where a
        shard that cannot be opened may hold it."""
        wanted = SequenceAddress.parse(address) if isinstance(address, str) else address
        if wanted.run_id == self.info.run_id:
            for shard in self.shards:
                if shard.info.first_step <= wanted.global_step <= shard.info.last_step:
                    ordinal = shard.ordinal_of(wanted)
                    if ordinal is not None:
                        return shard, ordinal
        if self.failed:
            raise DamageError(f"no shard that can be opened holds {wanted}; the others: {'; '.join(self.failed)}")
        raise QueryError(f"run {self.info.run_id} (generation {self.generation.number}) holds no sequence {wanted}")

    def sequence_at(self, shard: Shard, ordinal: int) -> PackedSequence:
        """One packed sequence by its place in the index. Raises DamageError where it does not match its leaf."""
        if self._secret is not None:
            shard.check_sequence(ordinal, self._secret)
        return PackedSequence(
            address=shard.address(ordinal),
            shard=shard,
            ordinal=ordinal,
            tokens=shard.tokens(ordinal),
            segments=shard.segments_of(ordinal),
        )

    def describe(self, sequence: PackedSequence, visibility: Visibility = EVERYTHING) -> dict[str, Any]:
        """A sequence as plain data: its tokens, and its segments with their text where the run has a tokenizer.

        What is hidden is null, and U+2588 for each token in the text; so are segments of which nothing is visible.
        """
        visible = self.visible_tokens(sequence, self.visible_under(visibility))
        segments = [self.describe_segment(sequence, segment, visible) for segment in sequence.segments]
        return {
            "address": str(sequence.address),
            "generation": self.generation.number,
            "token_ids": [
                token if shown else None
                for token, shown in zip(sequence.tokens.tolist(), visible.tolist(), strict=True)
            ],
            "text": self._text(sequence.tokens, visible),
            "segments": segments,
            "redacted": not bool(visible.all()),
        }

    def describe_segment(
        self, sequence: PackedSequence, segment: Segment, visible: npt.NDArray[np.bool_]
    ) -> dict[str, Any]:
        """A segment as `describe` has it; `visible` as `visible_tokens` gives it."""
        place = slice(segment.start, segment.start + segment.length)
        if segment.length and not visible[place].any():
            hidden = dict.fromkeys(("source", "document_id", "document_token_offset", "text"))
            return {"start": segment.start, "length": segment.length, **hidden, "redacted": True}
        text = self._text(sequence.tokens[place], visible[place])
        names = ("start", "length", "source", "document_id", "document_token_offset")
        known = {name: getattr(segment, name) for name in names}
        return {**known, "text": text, "redacted": not bool(visible[place].all())}

    def _text(self, tokens: npt.NDArray[np.unsignedinteger], visible: npt.NDArray[np.bool_]) -> str | None:
        if self.info.tokenizer_file is None:
            return None
        edges = [0, *(np.flatnonzero(np.diff(visible)) + 1).tolist(), len(tokens)]
        return "".join(
            self.tokenizer.decode(tokens[begin:end]) if visible[begin] else HIDDEN * (end - begin)
            for begin, end in itertools.pairwise(edges)
            if begin < end
        )

    @cached_property
    def has_late_losses(self) -> bool:
        """Whether losses of sequences came after their step was written: those are in the catalog alone."""
        return bool(self.sql("SELECT 1 FROM late_loss_table WHERE segment IS NULL LIMIT 1"))

    def catalog(self) -> "duckdb.DuckDBPyConnection":
        """A read-only connection of the caller's own to this generation's catalog."""
        return connect_catalog(self.paths, self.generation.number)

    def sql(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a trusted query over the catalog. Raises QueryError where it does not run."""
        return rows_of_catalog(self.paths, self.generation.number, statement, parameters)


def log_frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Natural logarithm of each frequency, f64 [n]; half an occurrence where there is none."""
    return np.log(np.maximum(counts, 0.5) / max(1, int(counts.sum())))
