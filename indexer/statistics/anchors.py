"""Anchors: a thin, content-defined sample of a shard's token n-grams, so that a shard can say cheaply what it lacks.

An anchor is the 32-gram with the smallest hash among 19 neighbours (a minimizer; Schleimer, Wilkerson and Aiken 2003).
Any 50 tokens hold 19 32-grams and thus an anchor, and equal 50-grams hold the same one: if none of the anchors of a text
occurs in a shard, no 50-gram of it does. About every tenth position is an anchor. A shard keeps the hashes of its anchors
in a Bloom filter of 20 bits each (0.3 bytes a token), whose words are in the order of the hashes: sorted questions read
it from front to back.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.jit import jit
from indexer.storage.distinct import distinct

__all__ = ["SEEN_LENGTH", "anchors", "bloom_filter", "in_bloom_filter"]

SEEN_LENGTH = 50
GRAM = 32
WINDOW = SEEN_LENGTH - GRAM + 1
BITS_PER_ANCHOR = 20
BASE = 0x9E3779B97F4A7C15
MIX = 0xD6E8FEB86659FD93


def anchors(tokens: NDArray[Any], starts: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(hashes, positions of the first token) of the anchors of all sequences, in order of position.

    Sequence i is tokens[starts[i]:starts[i + 1]]; an anchor lies within one. One shorter than 50 tokens has none.
    """
    room = int(np.maximum(np.diff(starts) - SEEN_LENGTH + 1, 0).sum())
    hashes, positions = np.empty(room, np.uint64), np.empty(room, np.int64)
    count = _find_anchors(tokens, starts, hashes, positions)
    return hashes[:count].copy(), positions[:count].copy()


def bloom_filter(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A filter that knows `hashes`, u64 [at least 1]."""
    known = distinct(hashes)
    words = np.zeros(len(known) * BITS_PER_ANCHOR // 64 + 1, np.uint64)
    _add(words, known)
    return words


def in_bloom_filter(words: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of `hashes` the filter may know; those it denies are certainly not among its own. Quick if sorted."""
    found = np.empty(len(hashes), np.bool_)
    _look_up(words, hashes, found)
    return found


@jit
def _find_anchors(
    tokens: NDArray[Any], starts: NDArray[np.int64], hashes: NDArray[np.uint64], positions: NDArray[np.int64]
) -> int:
    base, mix = np.uint64(BASE), np.uint64(MIX)
    top = np.uint64(1)
    for _ in range(GRAM - 1):
        top *= base
    recent = np.empty(WINDOW, np.uint64)
    count = 0
    for sequence in range(len(starts) - 1):
        start, length = starts[sequence], starts[sequence + 1] - starts[sequence]
        if length < SEEN_LENGTH:
            continue
        rolling = np.uint64(0)
        for k in range(GRAM - 1):
            rolling = rolling * base + np.uint64(tokens[start + k]) + np.uint64(1)
        best, last = -1, -1
        for place in range(length - GRAM + 1):
            rolling = rolling * base + np.uint64(tokens[start + place + GRAM - 1]) + np.uint64(1)
            mixed = (rolling ^ (rolling >> np.uint64(29))) * mix
            mixed ^= mixed >> np.uint64(32)
            recent[place % WINDOW] = mixed
            if best <= place - WINDOW:
                best = place - WINDOW + 1
                for other in range(best + 1, place + 1):
                    if recent[other % WINDOW] < recent[best % WINDOW]:
                        best = other
            elif best < 0 or mixed < recent[best % WINDOW]:
                best = place
            if place >= WINDOW - 1 and best != last:
                smallest = recent[best % WINDOW] * base  # small ones are chosen: spread them over all values again
                hashes[count], positions[count] = smallest ^ (smallest >> np.uint64(31)), start + best
                count += 1
                last = best
            rolling -= (np.uint64(tokens[start + place]) + np.uint64(1)) * top
    return count


@jit
def _bits_of(hashed: np.uint64) -> np.uint64:
    """Five of 64 bits, from the low half of the hash."""
    one, six = np.uint64(1), np.uint64(63)
    bits = np.uint64(0)
    for shift in range(0, 30, 6):
        bits |= one << ((hashed >> np.uint64(shift)) & six)
    return bits


@jit
def _add(words: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> None:
    size = np.uint64(len(words))
    for hashed in hashes:
        words[((hashed >> np.uint64(32)) * size) >> np.uint64(32)] |= _bits_of(hashed)


@jit
def _look_up(words: NDArray[np.uint64], hashes: NDArray[np.uint64], found: NDArray[np.bool_]) -> None:
    size = np.uint64(len(words))
    for k in range(len(hashes)):
        bits = _bits_of(hashes[k])
        found[k] = words[((hashes[k] >> np.uint64(32)) * size) >> np.uint64(32)] & bits == bits
