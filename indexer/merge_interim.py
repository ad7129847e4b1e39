from collections.abc import Sequence
from dataclasses import dataclass
import numpy as np
from indexer.spans.search import find, maximal_spans, count


@dataclass
class MergedSpans:
    start: object
    end: object
    count: object
    lo: object
    hi: object


def spans_over_shards(shards, query, min_length, filters):
    best = {}
    for a, f in zip(shards, filters):
        sp = maximal_spans(a, query, min_length, f)
        for s, e in zip(sp.start.tolist(), sp.end.tolist()):
            best[s] = max(best.get(s, 0), e)
    out = []
    last = -1
    for s in sorted(best):
        if best[s] > last:
            out.append((s, best[s]))
            last = best[s]
    lo = np.zeros((len(out), len(shards)), np.int64)
    hi = lo.copy()
    c = np.zeros(len(out), np.int64)
    for i, (s, e) in enumerate(out):
        for j, (a, f) in enumerate(zip(shards, filters)):
            l, h = find(a, query[s:e])
            n = count(a, l, h, f)
            if n:
                lo[i, j], hi[i, j] = l, h
            c[i] += n
    return MergedSpans(np.array([s for s, _ in out], np.int64), np.array([e for _, e in out], np.int64), c, lo, hi)
