"""Every exposure of a document: when, where, and how much of it.

Rules:

1. A shard that does not have the document costs two binary searches in its document index; metadata is read of the others.
2. Exposures stand in address order. A page begins behind its cursor, which holds the address and the start of the last
   exposure before it: that means the same in every generation.
3. Segments that are listed are compared with the hashed metadata, and with text hashed against their leaf.
4. What is hidden (`Selection.visibility`) is in no number, and its text is U+2588 for each token.
5. The export does not say how long a document is: `end_token` is how far it was seen, not its end.
6. Segments at an offset of -1, whose place the export does not know, are exposures and count as seen, but are in no range and
   bring no new tokens.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.answers.coverage import Coverage, coverage_of
from indexer.answers.cursor import CursorError, decode_cursor, encode_cursor
from indexer.answers.not_found import document_not_found_error
from indexer.answers.plain_data import plain_data
from indexer.documents.token_ranges import covered, overlap, times_covered
from indexer.limits import MAX_LIMIT
from indexer.reader import IndexReader
from indexer.selection.rows import Selection, select_of_shard
from indexer.selection.visibility import Visibility
from indexer.storage.document_index import document_key
from indexer.storage.shard import Shard, ShardDamage
from train_hooks.export_format.errors import InputError, QueryError
from train_hooks.export_format.records import Segment, SequenceAddress

__all__ = ["DocumentHistory", "Exposure", "document_history"]

MAX_RANGES = 1000
CURSOR_NAME, CURSOR_VERSION = "document", 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """A segment of the document in one sequence.

    canonical: on the canonical lineage. status: of its step. num_new_tokens: tokens of the segment that no segment of an
    earlier exposure had; 0 for a mere repeat. text: None where the run has no tokenizer, or none was asked for.
    """

    address: SequenceAddress
    segment: Segment
    status: str
    canonical: bool
    num_new_tokens: int
    text: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentHistory(Coverage):
    """What training saw of a document, in the selected steps; `exposures` is one page of `num_exposures`.

    truncated: exposures follow this page, or token ranges are left out. num_steps: a step that a later attempt ran again
    counts twice, if both are selected. num_tokens_seen: with repeats; num_tokens_distinct: tokens of the document seen at
    least once. end_token: the end of the furthest part seen. ranges: token ranges [start, end) of the document that were
    seen, the first MAX_RANGES of them. times_seen: (how often, number of tokens seen so often). next: cursor of the next
    page, None after the last.
    """

    source: str
    document_id: str
    selection: Selection
    num_exposures: int
    num_steps: int
    first_step: int
    last_step: int
    dp_ranks: tuple[int, ...]
    num_tokens_seen: int
    num_tokens_distinct: int
    end_token: int
    ranges: tuple[tuple[int, int], ...]
    times_seen: tuple[tuple[int, int], ...]
    exposures: tuple[Exposure, ...]
    next: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain data; sequence addresses are texts."""
        document: dict[str, Any] = plain_data(dataclasses.replace(self, selection=Selection()))
        del document["selection"]
        for exposure, plain in zip(self.exposures, document["exposures"], strict=True):
            plain["global_step"], plain["dp_rank"] = exposure.address.global_step, exposure.address.dp_rank
            del plain["segment"]["loss"]  # it is in the catalog
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """The selected segments of one shard, of dtype document_index.PLACE, the visible token ranges of those whose place in the
    document is known, and how many visible tokens all of them have."""

    shard: Shard
    places: npt.NDArray[np.void]
    ranges: npt.NDArray[np.int64]
    num_tokens: int


def document_history(
    reader: IndexReader,
    source: str,
    document_id: str,
    *,
    selection: Selection | None = None,
    limit: int = 100,
    after: str | None = None,
    with_text: bool = True,
) -> DocumentHistory:
    """The exposures of a document. A damaged shard is left out and named.

    Raises QueryError for a document that is not there, which names near ones, or that is in none of the selected steps;
    for a limit that is not in [0, 1000] and a cursor that is none; ShardDamage where no shard is left.
    """
    if not 0 <= limit <= MAX_LIMIT:
        raise QueryError(f"limit: expected a number from 0 to {MAX_LIMIT}, found {limit}")
    started = time.perf_counter()
    chosen = dataclasses.replace(selection or Selection(), source=None, document_id=None)
    cursor = None if after is None else _parse_cursor(after)
    named = (source, document_id)
    return reader.retry_without_damaged(lambda: _history(reader, named, chosen, limit, cursor, with_text, started))


def _history(
    reader: IndexReader,
    document: tuple[str, str],
    selection: Selection,
    limit: int,
    cursor: tuple[SequenceAddress, int] | None,
    with_text: bool,
    started: float,
) -> DocumentHistory:
    visibility = reader.visible_under(selection.visibility)
    found = list(_find(reader, document, selection, visibility))
    if not found:
        _raise_not_found(reader, document, selection, visibility)
    skipped = 0 if cursor is None else _num_before(found, cursor)
    total = sum(len(item.places) for item in found)
    ranges = np.concatenate([item.ranges for item in found])
    union = covered(ranges)
    steps = [item.shard.steps[item.places["ordinal"]] for item in found]
    ranks = [item.shard.dp_ranks[item.places["ordinal"]] for item in found]
    page = _page(found, skipped, limit)
    exposures = tuple(_exposures(reader, document, page, _seen_before(found, skipped), visibility, with_text))
    last = exposures[-1] if exposures else None
    are_more = skipped + len(exposures) < total
    after = _cursor_after(last) if are_more and last is not None else None
    truncated = are_more or len(union) > MAX_RANGES
    return DocumentHistory(
        source=document[0],
        document_id=document[1],
        selection=selection,
        num_exposures=total,
        num_steps=sum(len(np.unique(of_shard)) for of_shard in steps),
        first_step=min(int(of_shard.min()) for of_shard in steps),
        last_step=max(int(of_shard.max()) for of_shard in steps),
        dp_ranks=tuple(np.unique(np.concatenate(ranks)).tolist()),
        num_tokens_seen=sum(item.num_tokens for item in found),
        num_tokens_distinct=int((union[:, 1] - union[:, 0]).sum()),
        end_token=int(union[-1, 1]) if len(union) else 0,
        ranges=tuple((start, end) for start, end in union[:MAX_RANGES].tolist()),
        times_seen=times_covered(ranges),
        exposures=exposures,
        next=after,
        **coverage_of(reader, shards_searched=len(reader.shards), truncated=truncated, started_s=started).fields(),
    )


def _find(
    reader: IndexReader, document: tuple[str, str], selection: Selection, visibility: Visibility
) -> Iterator[_Found]:
    key = document_key(*document)
    for shard in reader.shards:
        places = shard.documents.find(key)
        if len(places):
            item = _selected(reader, shard, places, selection, visibility)
            if len(item.places):
                yield item


def _selected(
    reader: IndexReader, shard: Shard, places: npt.NDArray[np.void], selection: Selection, visibility: Visibility
) -> _Found:
    chosen = select_of_shard(shard, selection, reader.canonical)
    if chosen is None:
        return _Found(shard=shard, places=places[:0], ranges=np.zeros((0, 2), np.int64), num_tokens=0)
    taken = (places["ordinal"] >= chosen.filter.first) & (places["ordinal"] < (chosen.filter.last or 0))
    if chosen.filter.passing is not None:
        taken &= np.asarray(chosen.filter.passing)[places["ordinal"]].astype(np.bool_)
    places = places[taken]
    visible = reader.visible_shard(shard, visibility)
    if visible is None:
        return _Found(shard=shard, places=places, ranges=_ranges(places), num_tokens=int(places["length"].sum()))
    num_tokens = 0
    kept: list[int] = []
    ranges: list[tuple[int, int]] = []
    for index, place in enumerate(places):
        begin = int(shard.spans.sequence_starts[place["ordinal"]]) + int(place["start"])
        shown = np.flatnonzero(np.diff(visible.mask(begin, begin + int(place["length"])), prepend=False, append=False))
        if len(shown):
            kept.append(index)
            num_tokens += int(np.diff(shown.reshape(-1, 2), axis=1).sum())
            if place["document_token_offset"] >= 0:
                ranges += [tuple(pair) for pair in (shown.reshape(-1, 2) + place["document_token_offset"]).tolist()]
    found = np.array(ranges, np.int64).reshape(-1, 2)
    return _Found(shard=shard, places=places[kept], ranges=found, num_tokens=num_tokens)


def _ranges(places: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Token ranges [start, end) of the document, i64 [k, 2], of places that the export knows."""
    known = places[places["document_token_offset"] >= 0]
    starts = known["document_token_offset"]
    return np.stack([starts, starts + known["length"]], axis=1)


def _raise_not_found(
    reader: IndexReader, document: tuple[str, str], selection: Selection, visibility: Visibility
) -> None:
    everywhere = Selection(lineage="all", visibility=selection.visibility)
    elsewhere = sum(len(item.places) for item in _find(reader, document, everywhere, visibility))
    if elsewhere:
        raise QueryError(
            f"document {document[0]} / {document[1]} is in none of the selected steps, and {elsewhere:,} times in others; "
            "choose more steps, or all (--all-steps)"
        )
    raise document_not_found_error(reader, document, visibility)


def _cursor_after(exposure: Exposure) -> str:
    return encode_cursor(CURSOR_NAME, CURSOR_VERSION, (str(exposure.address), exposure.segment.start))


def _parse_cursor(text: str) -> tuple[SequenceAddress, int]:
    address, start = decode_cursor(text, CURSOR_NAME, CURSOR_VERSION, [(str, int)])
    try:
        return SequenceAddress.parse(str(address)), int(start)
    except InputError as error:
        raise CursorError(f"cursor: {error}") from error


def _num_before(found: Sequence[_Found], cursor: tuple[SequenceAddress, int]) -> int:
    """How many exposures stand at the cursor or before it."""
    address, start = cursor
    if address.run_id != found[0].shard.info.run_id:
        raise CursorError(f"cursor: expected one of run {found[0].shard.info.run_id}, found one of {address}")
    total = 0
    for item in found:
        info, ordinals = item.shard.info, item.places["ordinal"]
        if (info.attempt, info.last_step) < (address.attempt, address.global_step):
            total += len(ordinals)
        elif info.attempt == address.attempt and info.first_step <= address.global_step:
            ordinal = item.shard.ordinal_of(address)
            if ordinal is None:
                raise CursorError(f"cursor: run {info.run_id} holds no sequence {address}")
            total += int(
                np.count_nonzero((ordinals < ordinal) | ((ordinals == ordinal) & (item.places["start"] <= start)))
            )
    return total


def _page(found: Sequence[_Found], skipped: int, limit: int) -> list[tuple[Shard, npt.NDArray[np.void]]]:
    page = []
    for item in found:
        taken = item.places[skipped : skipped + limit]
        skipped, limit = max(0, skipped - len(item.places)), limit - len(taken)
        if len(taken):
            page.append((item.shard, taken))
    return page


def _seen_before(found: Sequence[_Found], skipped: int) -> npt.NDArray[np.int64]:
    """Token ranges of the exposures before the page, joined, i64 [k, 2]."""
    places = np.concatenate([item.places for item in found])[:skipped]
    return covered(_ranges(places))


def _exposures(
    reader: IndexReader,
    document: tuple[str, str],
    page: Sequence[tuple[Shard, npt.NDArray[np.void]]],
    seen: npt.NDArray[np.int64],
    visibility: Visibility,
    with_text: bool,
) -> Iterator[Exposure]:
    for shard, places in page:
        interval = reader.canonical.get(shard.info.attempt)
        for row, ordinal in zip(places["row"].tolist(), places["ordinal"].tolist(), strict=True):
            segment, address = shard.segment_at(row), shard.address(ordinal)
            if (segment.source, segment.document_id) != document:
                raise ShardDamage(shard.info.name, f"{shard.directory}: the index of documents points elsewhere")
            part = (segment.document_token_offset, segment.document_token_offset + segment.length)
            text = None
            if with_text and reader.info.tokenizer_file is not None:
                sequence = reader.sequence_at(shard, ordinal)
                shown = reader.visible_tokens(sequence, visibility)
                text = reader.describe_segment(sequence, segment, shown)["text"]
            yield Exposure(
                address=address,
                segment=segment,
                status=shard.sequences.column("status")[ordinal].as_py(),
                canonical=interval is not None and interval.holds(address.attempt, address.global_step),
                num_new_tokens=segment.length - overlap(seen, *part) if part[0] >= 0 else 0,
                text=text,
            )
            if part[0] >= 0:
                seen = covered(np.concatenate([seen, np.array([part], np.int64)]))
