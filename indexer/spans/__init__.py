"""The span index: does a token sequence of any length occur in the training data, how often, and where exactly.

Stored for each shard, in one file of seven arrays (`arrays.SpanArrays`, written by `build`):

    tokens         A B C D E | C D E F |           each sequence, then a separator (|), the largest value of the dtype
    suffix array   0 1 6 2 7 3 8 4 9 ...           positions, sorted by the text that starts there; an index into it is a *rank*
    fingerprints   f0 f1 f2 f3 f4 f5 ...           by rank: a hash of the first 8 tokens (a *gram*), u16
    prefix table   row 0         row 1 ...         the gram of every 128th rank: a row for each block of 128 fingerprints
    block ranges   [min, max]    [min, max] ...    smallest and largest position of each block of 256 ranks, and of 65,536

All suffixes that begin with the same tokens are neighbours. So the hits of an n-gram are one range of ranks [lo, hi), and its
count is hi - lo. A span is *maximal* if it occurs, but no longer part of the query around it does. If query[s:e] occurs, so
does query[s+1:e]: a span is maximal exactly if it ends beyond all spans that start before it.

A query, tokenized, with a `min_length` of 12. A new span must get to `reach` (|) = max(last end + 1, start + min_length):

    query      a b c d e x f g h i j k l m n o p q r s x t u  x occurs nowhere, f … s somewhere
    start a    ^       [8 tokens     ] |                      e-l is absent: next start behind e
    start x              ^       [8 tokens     ] |            i-p is present; 4 back, x-l is absent
    start f                ^       [8 tokens     ] |          j-q and f-m are present: compare tokens
    start g                  ^           [8 tokens     ] |    n-x is absent: next start behind n

1. The gram that ends at `reach` is looked up first. If it is absent, no span starts at or before its first token. Most of a
   text that does not occur is passed like that, at one look-up for several tokens.
2. If it is present, grams further back are looked up, 4 tokens apart, down to the one at reach - min_length (`further_back`).
3. If all are present, tokens are compared: what is the first start from which a match gets to `reach`, and how long is the
   longest match there? That is the next span, here f-s. `start` moves one on, and `reach` goes behind the span.

The way of a search, with the module of each step:

    search.as_tokens          ids that no training token can equal become separators, which cut the query into *pieces*
    group.spans_of_group      shards, each under its filter, are put together in parts of 64
    parallel.search_spans     one thread, then perhaps several
      kernels.group             the loop above: start, reach, repetition
        kernels.grams             which shards have a gram. Look-up = row of the prefix table + block of fingerprints
          kernels.table             that row in all shards by one search
        first_reaching            which shard has the match that starts first; then ranks and counts of all shards that have it
          kernels.matches           the same in one shard: longest match, earliest start
            kernels.packing           binary search in the suffix array, comparing tokens
        kernels.hits              counts the ranks that pass a filter. Also first and last hit, histogram, pages (`search`)

*Several shards.* A shard is cut between sequences, so that each hit lies in one shard. The prefix tables of a group are merged
into one sorted table (`SpanGroup`): one search of it gives every shard's row. The shards share `start` and `reach`. A shard
that has a long copy moves `reach` behind it, and no other shard is asked inside. `following` keeps what each shard has
excluded, so that a shard is only asked about starts that are still possible there. A span's count is the sum over the shards.

*Threads.* `parallel` starts with the asking thread. If look-ups take as long as reads of a disk, 16 threads go on; if many
look-ups are left, one for each core does. They claim *stretches* of starts, each searched as a query of its own. What is
maximal only in its stretch lies in a span of an earlier stretch, and `gathered` drops it.

*Separators* end each sequence. Nothing equals one, so that no match crosses from a sequence into the next, and a comparison
stops there at the latest.

*Filters* (`filters`, made ready by `prepare`) allow a range of sequences, a bitmap over them, or both. A suffix passes if its
sequence does. Sequences are contiguous in the tokens, so that a step range is a range of positions: two comparisons a hit, and
whole blocks pass or fail by their block range. "Occurs" then means: in a suffix that passes. `longest` looks at the
passing suffixes nearest to the query's place in the suffix array; a long range of ranks in vain is kept in `barren`.

*Hidden rows* are not known here. `selection.rows` gives a filter, and for hidden parts of rows a `SpanArrays` whose
`sequence_starts` are cut at their edges too, so that the bitmap can leave them out by where a hit begins. `trace.visible_spans`
then shortens the spans of which no hit is visible to its end.

*Where the cost is.* In memory a look-up is a few cache misses: the merged table, and the fingerprints of each shard. New text
costs about one look-up for min_length - 7 tokens in each shard, and little else. A copy costs its tokens once. On a cold disk
each look-up is a page in each shard. That is why misses are overlapped (prefetch, look-ahead, `will_need`), why fingerprints
are read before tokens, and why the prefix table is read as a whole when a shard is opened. To count a frequent span under a
filter costs the blocks that the filter cuts. Spans of a query that repeats itself are copied, not searched.

Everything is exact: fingerprints and summaries only save work. `reference` is the same search, slow and plain, in numpy: the
oracle of the tests. To change a kernel: the rules that its module opens with, then `pytest tests/indexer/spans`, then
`bench/spans.py`. numba keeps compiled kernels in __pycache__; `indexer.jit` removes those that are older than what they call.

Nothing is imported here, so that `arrays`, `filters` and `reference` stay light.
"""
