"""Compiled leaves of the span index: packing, fingerprints, comparing, and looking into the suffix array.

Rules:

1. Positions, ranks and lengths are i64. Indexes are cast to u64 where that spares numba its check for negative ones.
2. `query` has the dtype of `tokens` and holds no separator. As the tokens end with a separator, a comparison ends at the
   latest there and never reads past the end.
3. Arrays are believed as far as an answer goes, not as far as memory goes: a position that damage moved out of the shard
   is taken for its last one. What is returned is checked against its leaf by the caller.
4. A range of ranks that these functions narrow always keeps every suffix that was asked for. Fingerprints are hashes:
   strangers with the same one may stand before, between and after, and whoever needs certainty compares tokens.
5. A shard is the tuple (tokens, suffix_array, fingerprints, prefix_table, block_range, superblock_range,
   sequence_starts); a filter is (first position, end position, bitmap or empty, marked stretches, log2 of a stretch).
6. `work` i64 [3] counts what was done: table searches, tokens compared, ranks scanned. Tests bound it; nothing reads it
   back.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.jit import array_at, jit, jit_inline
from indexer.spans.arrays import BLOCK, GRAM, RANGE, SUPERBLOCK

Tokens: TypeAlias = NDArray[Any]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
U16: TypeAlias = NDArray[np.uint16]
U64: TypeAlias = NDArray[np.uint64]
U8: TypeAlias = NDArray[np.uint8]
Chosen: TypeAlias = tuple[int, int, U8, U8, int]
Shard: TypeAlias = tuple[Tokens, I32, U16, U64, I32, I32, I64]

SEARCHES, COMPARED, SCANNED = 0, 1, 2
LANE = 16
MIX = 0x9E3779B97F4A7C15
SHORT_BITS: U64 = np.array([0, 0, 0xFFFFFFFF00000000, 0, 0], np.uint64)
"""By the words of a packed gram: the bits of the last word that belong to the first SHORT tokens."""
ALIKE = 32
"""Fingerprints that differ by less than this in their bits agree about the first SHORT tokens."""
ZERO: I64 = np.zeros(1, np.int64)
"""int(ZERO[0]) is a zero that numba takes for a variable: for a literal it would compile the callee once more."""


@jit_inline
def opened(row: I64, sample: Tokens) -> Shard:
    """The arrays behind `SpanArrays.row`; `sample` is any array of their token dtype."""
    tokens = array_at(row[0], (row[7],), sample.dtype)
    starts = array_at(row[1], (row[8],), np.int64)
    suffix_array = array_at(row[2], (row[9],), np.int32)
    fingerprints = array_at(row[3], (row[10],), np.uint16)
    table = array_at(row[4], (row[11], row[14]), np.uint64)
    block_range = array_at(row[5], (row[12], 2), np.int32)
    superblock_range = array_at(row[6], (row[13], 2), np.int32)
    return tokens, suffix_array, fingerprints, table, block_range, superblock_range, starts


@jit_inline
def chosen_of(row: I64) -> Chosen:
    """The filter behind a `filter_row`."""
    passing = array_at(row[2], (row[3],), np.uint8)
    return row[0], row[1], passing, array_at(row[4], (row[5],), np.uint8), row[6]


@jit_inline
def pack_whole(tokens: Tokens, at: np.uint64, key: U64) -> None:
    """Pack the GRAM tokens from `at` on, all of which there are."""
    if len(key) == 2:
        for word in range(2):
            first, second = np.uint64(tokens[at]), np.uint64(tokens[at + np.uint64(1)])
            third, fourth = np.uint64(tokens[at + np.uint64(2)]), np.uint64(tokens[at + np.uint64(3)])
            high = (first << np.uint64(16)) | second
            key[word] = (high << np.uint64(32)) | (third << np.uint64(16)) | fourth
            at += np.uint64(4)
    else:
        for word in range(4):
            key[word] = (np.uint64(tokens[at]) << np.uint64(32)) | np.uint64(tokens[at + np.uint64(1)])
            at += np.uint64(2)


@jit_inline
def pack(tokens: Tokens, position: int, length: int, padding: int, key: U64) -> None:
    """Pack tokens[position:position+length] into the words of key, first token highest; the rest of GRAM is padding."""
    if length >= GRAM and position + GRAM <= len(tokens):
        pack_whole(tokens, np.uint64(position), key)
        return
    per_word = GRAM // len(key)
    bits = np.uint64(64 // per_word)
    for word in range(len(key)):
        packed = np.uint64(0)
        for j in range(word * per_word, (word + 1) * per_word):
            token = np.uint64(padding)
            if j < length and position + j < len(tokens):
                token = np.uint64(tokens[position + j])
            packed = (packed << bits) | token
        key[word] = packed


@jit_inline
def fingerprint(key: U64) -> np.uint16:
    """Hash of a packed gram: its upper 11 bits are of the first SHORT tokens, its lower 5 of all. Multiply and fold."""
    mixed, last = np.uint64(0), key[len(key) - 1]
    for word in range(len(key) - 1):
        mixed = (mixed ^ key[word]) * np.uint64(MIX)
        mixed ^= mixed >> np.uint64(32)
    mixed = (mixed ^ (last & SHORT_BITS[len(key)])) * np.uint64(MIX)
    mixed ^= mixed >> np.uint64(32)
    whole = (mixed ^ last) * np.uint64(MIX)
    whole ^= whole >> np.uint64(32)
    short = (mixed * np.uint64(MIX)) >> np.uint64(48)
    return np.uint16((short & np.uint64(0xFFE0)) | ((whole * np.uint64(MIX)) >> np.uint64(59)))


@jit_inline
def begins_alike(table: U64, row: int, key: U64) -> bool:
    """Whether a row of packed grams and a key agree in their first SHORT tokens; not so beyond the table."""
    if row >= len(table):
        return False
    for word in range(len(key) - 1):
        if table[np.uint64(row), np.uint64(word)] != key[word]:
            return False
    last = len(key) - 1
    return bool((table[np.uint64(row), np.uint64(last)] ^ key[last]) & SHORT_BITS[len(key)] == 0)


@jit
def fill_side_arrays(tokens: Tokens, suffix_array: I32, fingerprints: U16, table: U64, ranges: I32) -> None:
    """Fill fingerprints [n], prefix table [blocks, words] and block ranges [ranges, 2] from the suffix array."""
    key = np.empty(table.shape[1], np.uint64)
    for rank in range(len(suffix_array)):
        position = int(suffix_array[rank])
        pack(tokens, position, GRAM, 0, key)
        fingerprints[rank] = fingerprint(key)
        at = rank // RANGE
        if rank % BLOCK == 0:
            for word in range(len(key)):
                table[rank // BLOCK, word] = key[word]
        if rank % RANGE == 0:
            ranges[at, 0] = ranges[at, 1] = position
        ranges[at, 0] = min(ranges[at, 0], position)
        ranges[at, 1] = max(ranges[at, 1], position)


@jit
def keep_aligned(byte_ranks: I32, itemsize: int) -> int:
    """Keep the suffixes of a byte view that begin at a token, as token positions, in place; returns how many."""
    kept = 0
    for rank in range(len(byte_ranks)):
        position = byte_ranks[rank]
        byte_ranks[kept] = position // itemsize
        kept += position % itemsize == 0
    return kept


@jit
def table_bound(table: U64, first: int, key: U64, after_equal: bool) -> int:
    """First row from `first` on that is not below key (after_equal: above key)."""
    lo, hi = first, len(table)
    while lo < hi:
        mid = (lo + hi) >> 1
        order = 0
        for word in range(len(key)):
            row = table[np.uint64(mid), np.uint64(word)]
            if row != key[word]:
                order = -1 if row < key[word] else 1
                break
        if order < 0 or (after_equal and order == 0):
            lo = mid + 1
        else:
            hi = mid
    return lo


@jit_inline
def least_difference(fingerprints: U16, lo: int, hi: int, wanted: np.uint16) -> np.uint16:
    """Smallest `fingerprint ^ wanted` in ranks [lo, hi): 0 where the gram may be, below ALIKE where its first SHORT tokens
    may be. No early end: the compiler turns this into vector operations."""
    least = np.uint16(0xFFFF)
    for rank in range(lo, hi):
        least = min(least, np.uint16(fingerprints[np.uint64(rank)] ^ wanted))
    return least


@jit_inline
def common_prefix(tokens: Tokens, position: int, query: Tokens, start: int, known: int, limit: int, work: I64) -> int:
    """Tokens that tokens[position:] and query[start:start+limit] have in common, of which `known` are known."""
    k = known
    room = min(limit, len(tokens) - position)
    short = min(room, known + 8)
    while k < short and tokens[np.uint64(position + k)] == query[np.uint64(start + k)]:
        k += 1
    if k == short:
        while k + LANE <= room:
            different = tokens[np.uint64(position + k)] ^ query[np.uint64(start + k)]
            for j in range(1, LANE):
                different |= tokens[np.uint64(position + k + j)] ^ query[np.uint64(start + k + j)]
            if different:
                break
            k += LANE
        while k < room and tokens[np.uint64(position + k)] == query[np.uint64(start + k)]:
            k += 1
    work[COMPARED] += k - known + 1
    return k


@jit_inline
def common_suffix(tokens: Tokens, position: int, query: Tokens, start: int, limit: int, work: I64) -> int:
    """Tokens before tokens[position] and before query[start] that agree, at most `limit`."""
    k, room = 0, min(limit, position)
    while k < room and tokens[np.uint64(position - k - 1)] == query[np.uint64(start - k - 1)]:
        k += 1
    work[COMPARED] += k + 1
    return k


@jit_inline
def suffix_at(tokens: Tokens, suffix_array: I32, rank: int) -> int:
    """Position of the suffix of that rank; the last one where the entry points out of the shard."""
    position = np.uint64(suffix_array[np.uint64(rank)])
    return int(min(position, np.uint64(len(tokens) - 1)))


@jit_inline
def insertion(
    tokens: Tokens, suffix_array: I32, lo: int, hi: int, query: Tokens, start: int, limit: int, work: I64
) -> tuple[int, int, int]:
    """First rank in [lo, hi) whose suffix is not below query[start:start+limit], or hi.

    Also how much the suffix before it and the suffix at it share with the query (0 where it is out of the range). A
    comparison begins where the two bounds are known to agree (Manber and Myers 1993, section 3).
    """
    below, above = 0, 0
    while lo < hi:
        mid = (lo + hi) >> 1
        position = suffix_at(tokens, suffix_array, mid)
        k = common_prefix(tokens, position, query, start, min(below, above), limit, work)
        if k == limit or tokens[np.uint64(position + k)] > query[np.uint64(start + k)]:
            hi, above = mid, k
        else:
            lo, below = mid + 1, k
    return lo, below, above


@jit
def run_edge(
    tokens: Tokens, suffix_array: I32, outside: int, inside: int, query: Tokens, start: int, length: int, work: I64
) -> int:
    """Outermost rank from `inside` towards `outside` (never reached) that shares query[start:start+length].

    Gallops outward, then bisects; what a rank outside shares, every rank further in shares too.
    """
    step = -1 if outside < inside else 1
    jump, known, galloping = 1, 0, True
    while abs(outside - inside) > 1:
        probe = inside + step * jump if galloping else (inside + outside) >> 1
        if galloping and (outside - probe) * step <= 0:
            galloping = False
            continue
        position = suffix_at(tokens, suffix_array, probe)
        k = common_prefix(tokens, position, query, start, known, length, work)
        if k == length:
            inside = probe
            jump *= 2
        else:
            outside, known, galloping = probe, k, False
    return inside


@jit
def short_ranks(shard: Shard, query: Tokens, start: int, length: int, work: I64) -> tuple[int, int]:
    """Ranks [lo, hi) of exactly the suffixes that begin with query[start:start+length], 1 <= length <= GRAM."""
    tokens, suffix_array, table = shard[0], shard[1], shard[3]
    work[SEARCHES] += 1
    key, zero = np.empty(table.shape[1], np.uint64), int(ZERO[0])
    pack(query, start, length, zero, key)
    first = table_bound(table, zero, key, False)
    pack(query, start, length, (1 << (64 * len(key) // GRAM)) - 1, key)
    last = table_bound(table, first, key, True)
    lo, hi = max(first - 1, 0) * BLOCK, min(last * BLOCK, len(suffix_array))
    lo, _, shared = insertion(tokens, suffix_array, lo, hi, query, start, length, work)
    if lo == hi or shared < length:
        return lo, lo
    return lo, run_edge(tokens, suffix_array, hi, lo, query, start, length, work) + 1


@jit_inline
def advance_pairs(table: U64, keys: U64, num: int, half: int, firsts: I64) -> None:
    """A step of `table_bounds` for rows of two words; as a loop over words it takes thrice as long."""
    for k in range(num):
        row = np.uint64(firsts[k] + half - 1)
        value, wanted = table[row, np.uint64(0)], keys[k, 0]
        below = (value < wanted) | ((value == wanted) & (table[row, np.uint64(1)] < keys[k, 1]))
        firsts[k] += half if below else 0


@jit_inline
def advance(table: U64, keys: U64, num: int, half: int, firsts: I64) -> None:
    """A step of `table_bounds` for rows of any width."""
    for k in range(num):
        row, below = np.uint64(firsts[k] + half - 1), False
        for word in range(table.shape[1] - 1, -1, -1):
            value, wanted = table[row, np.uint64(word)], keys[k, word]
            below = (value < wanted) | ((value == wanted) & below)
        firsts[k] += half if below else 0


@jit_inline
def table_bounds(table: U64, keys: U64, num: int, firsts: I64) -> None:
    """The first row that is not below each of keys[:num], into firsts.

    All searches advance together, without branches, so that their cache misses overlap.
    """
    for k in range(num):
        firsts[k] = 0
    size = len(table)
    while size > 0:
        half = (size + 1) >> 1
        if table.shape[1] == 2:
            advance_pairs(table, keys, num, half, firsts)
        else:
            advance(table, keys, num, half, firsts)
        size -= half


@jit_inline
def ranks_of_gram(shard: Shard, key: U64, first: int, present: bool, after: int) -> tuple[int, int]:
    """Ranks [lo, hi) that hold every suffix beginning with a packed gram; often no other.

    `first` is the first row of the prefix table not below the gram, `after` the first one above it, `present` whether the
    block before `first` has its fingerprint.
    """
    fingerprints, wanted = shard[2], fingerprint(key)
    lo, hi = max(first - 1, 0) * BLOCK, min(after * BLOCK, len(fingerprints))
    if present:
        while fingerprints[np.uint64(lo)] != wanted:
            lo += 1
    else:
        lo = min(lo + BLOCK, hi)
    while hi > lo and fingerprints[np.uint64(hi - 1)] != wanted:
        hi -= 1
    return lo, hi


@jit
def gram_ranks(shard: Shard, query: Tokens, start: int, work: I64) -> tuple[int, int]:
    """Ranks [lo, hi) that hold every suffix beginning with the GRAM tokens at query[start]; often no other.

    An empty range is certain; in another one strangers are possible. One search of the table, and a look at the
    fingerprints of the first and last block.
    """
    fingerprints, table = shard[2], shard[3]
    key = np.empty(table.shape[1], np.uint64)
    pack(query, start, GRAM, 0, key)
    work[SEARCHES] += 1
    first = table_bound(table, int(ZERO[0]), key, False)
    after = table_bound(table, first, key, True) if first < len(table) and table[first, 0] == key[0] else first
    lo = max(first - 1, 0) * BLOCK
    present = least_difference(fingerprints, lo, min(lo + BLOCK, len(fingerprints)), fingerprint(key)) == 0
    return ranks_of_gram(shard, key, first, present, after)


@jit
def ordinal_at(sequence_starts: I64, position: int) -> int:
    """Ordinal of the sequence at a position: a guess as if all were of one length, a gallop, a bisection."""
    num_sequences = len(sequence_starts) - 1
    lo = int(position * (num_sequences / sequence_starts[num_sequences]))
    lo = min(max(lo, 0), num_sequences - 1)
    hi, step = lo + 1, 1
    while sequence_starts[lo] > position:
        hi = lo
        lo = max(lo - step, 0)
        step *= 2
    while hi < num_sequences and sequence_starts[hi] <= position:
        lo = hi
        hi = min(hi + step, num_sequences)
        step *= 2
    while hi - lo > 1:
        mid = (lo + hi) >> 1
        if sequence_starts[mid] <= position:
            lo = mid
        else:
            hi = mid
    return lo


@jit
def mark_stretches(sequence_starts: I64, passing: U8, shift: int) -> U8:
    """Which stretches of 2^shift positions hold a position of a passing sequence, u8 [ceil(n / 2^shift)]."""
    marks = np.zeros(((sequence_starts[-1] - 1) >> shift) + 1, np.uint8)
    for ordinal in range(len(passing)):
        if passing[ordinal]:
            first, last = sequence_starts[ordinal] >> shift, (sequence_starts[ordinal + 1] - 1) >> shift
            for stretch in range(max(0, first), min(last + 1, len(marks))):
                marks[stretch] = 1
    return marks


@jit
def skip_blocks(block_range: I32, superblock_range: I32, rank: int, first: int, end: int) -> int:
    """The first rank from `rank` on whose block reaches into the positions [first, end); may be beyond the array."""
    while rank < len(block_range) * RANGE:
        block, large = rank // RANGE, rank // SUPERBLOCK
        if block_range[block, 1] >= first and block_range[block, 0] < end:
            break
        if superblock_range[large, 1] < first or superblock_range[large, 0] >= end:
            rank = (large + 1) * SUPERBLOCK
        else:
            rank = (block + 1) * RANGE
    return rank


@jit
def skip_blocks_down(block_range: I32, superblock_range: I32, rank: int, first: int, end: int) -> int:
    """The last rank up to `rank` whose block reaches into the positions [first, end), or -1."""
    while rank >= 0:
        block, large = rank // RANGE, rank // SUPERBLOCK
        if block_range[block, 1] >= first and block_range[block, 0] < end:
            break
        if superblock_range[large, 1] < first or superblock_range[large, 0] >= end:
            rank = large * SUPERBLOCK - 1
        else:
            rank = block * RANGE - 1
    return rank
