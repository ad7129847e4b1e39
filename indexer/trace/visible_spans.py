"""Maximal spans of which every token is visible, from those that merely begin where it is.

A visible match lies inside a span that the search lists under the filter of beginnings. So a listed span with a hit that is
visible to its end is maximal as it is; of any other one the longest visible matches inside are looked for, from each of
its starts: ends never fall as starts rise, hence two pointers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.answers.deadline import check_deadline
from indexer.selection.rows import SelectedShard
from indexer.spans.group import Spans
from indexer.spans.search import count, find, page

__all__ = ["visible_spans"]

FEW_HITS = 4096
Ids = npt.NDArray[np.int64]


def visible_spans(selected: Sequence[SelectedShard], token_ids: Ids, spans: Spans, min_length: int) -> Spans:
    """The spans again, or parts of them of at least `min_length`, counted over hits that are visible to their end."""
    if all(item.visible is None for item in selected):
        return spans
    kept: list[tuple[int, int]] = []
    furthest = 0
    for start, end in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
        for begin, stop in _visible_inside(selected, token_ids, start, end, min_length):
            if stop > furthest:
                kept.append((begin, stop))
                furthest = stop
    ranks = [[find(item.spans, token_ids[begin:stop]) for item in selected] for begin, stop in kept]
    counts = [
        [_count(item, lo, hi, stop - begin) for item, (lo, hi) in zip(selected, of_span, strict=True)]
        for (begin, stop), of_span in zip(kept, ranks, strict=True)
    ]
    shape = (len(kept), len(selected))
    edges = np.array(ranks, np.int64).reshape(*shape, 2)
    by_shard = np.array(counts, np.int64).reshape(shape)
    return Spans(
        start=np.array([begin for begin, _ in kept], np.int64),
        end=np.array([stop for _, stop in kept], np.int64),
        count=by_shard.sum(axis=1),
        shard_lo=edges[:, :, 0],
        shard_hi=np.where(by_shard > 0, edges[:, :, 1], edges[:, :, 0]),
        shard_count=by_shard,
        work=spans.work,
    )


def _visible_inside(
    selected: Sequence[SelectedShard], token_ids: Ids, start: int, end: int, min_length: int
) -> list[tuple[int, int]]:
    if _is_visible(selected, token_ids[start:end]):
        return [(start, end)]
    found: list[tuple[int, int]] = []
    stop = start
    for begin in range(start, end - min_length + 1):
        stop = max(stop, begin)
        while stop < end and _is_visible(selected, token_ids[begin : stop + 1]):
            stop += 1
        if stop - begin >= min_length and (not found or stop > found[-1][1]):
            found.append((begin, stop))
        if stop == end:
            break
    return found


def _is_visible(selected: Sequence[SelectedShard], ids: Ids) -> bool:
    check_deadline()
    return any(_count(item, *find(item.spans, ids), len(ids)) > 0 for item in selected)


def _count(item: SelectedShard, lo: int, hi: int, length: int) -> int:
    """Hits at suffix ranks [lo, hi) that are visible to their end; few of them are looked at one by one."""
    if item.visible is not None and hi - lo <= FEW_HITS:
        positions = page(item.spans, lo, hi, item.filter, limit=hi - lo)
        return int(item.visible.are_visible(positions, length).sum())
    whole = item.for_hits_of_length(length)
    return count(whole.spans, lo, hi, whole.filter)
