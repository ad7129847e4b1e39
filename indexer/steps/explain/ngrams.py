"""Token n-grams of orders 1 to 5 that a step holds more often than the window before it lets expect.

Measured by the log-likelihood ratio G² (Dunning 1993) of the two counts. Of n-grams that say the same (parts and shifts of
one another) the strongest is listed alone.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.steps.explain.kernels import count_ngrams, num_rows_with, table_size
from indexer.steps.explain.reading import Rows
from indexer.steps.explain.records import OverusedNgram

__all__ = ["g2", "overused_ngrams"]

ORDERS = (1, 2, 3, 4, 5)
MIN_COUNT, MIN_G2, KEPT = 3, 10.83, 400  # 10.83: one in a thousand by chance, for one n-gram


def g2(
    count: npt.ArrayLike, total: int, other: npt.ArrayLike, other_total: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(G², expected count) of `count` among `total` against `other` among `other_total`; element by element."""
    here, there = np.asarray(count, np.float64), np.asarray(other, np.float64)
    both = here + there
    expected = both * total / (total + other_total)
    parts = np.zeros(np.broadcast(here, there).shape)
    for observed, wanted in ((here, expected), (there, both - expected)):
        parts += np.where(observed > 0, observed * np.log(np.maximum(observed, 1) / np.maximum(wanted, 1e-300)), 0.0)
    return 2 * parts, expected


def overused_ngrams(
    step: Rows, window: Rows, limit: int, decode: Callable[[Sequence[int]], str] | None
) -> tuple[OverusedNgram, ...]:
    """The `limit` most over-represented n-grams, the strongest first."""
    candidates: list[tuple[float, float, int, int, npt.NDArray[Any]]] = []
    for order in ORDERS:
        candidates += _candidates(step, window, order)
    chosen: list[tuple[float, float, int, int, npt.NDArray[Any]]] = []
    tokens: set[int] = set()
    pairs: set[tuple[int, ...]] = set()
    for candidate in sorted(candidates, key=lambda item: -item[0]):
        ids = candidate[4].tolist()
        own = set(itertools.pairwise(ids))
        if len(chosen) < limit and not (own <= pairs if own else ids[0] in tokens):
            chosen.append(candidate)
        tokens.update(ids)
        pairs |= own
    return tuple(
        OverusedNgram(
            token_ids=tuple(ids.tolist()),
            text=decode(ids.tolist()) if decode is not None else None,
            count=count,
            expected=expected,
            window_count=other,
            num_sequences=num_rows_with(step.tokens, step.starts, ids),
            g2=strength,
        )
        for strength, expected, count, other, ids in chosen
    )


def _candidates(step: Rows, window: Rows, order: int) -> list[tuple[float, float, int, int, npt.NDArray[Any]]]:
    """(G², expected, count, window count, token ids) of the strongest n-grams of one order."""
    size = table_size(len(step.tokens))
    keys, firsts, counts = np.zeros(size, np.uint64), np.zeros(size, np.int64), np.zeros(size, np.int32)
    total = count_ngrams(step.tokens, step.starts, order, keys, firsts, counts, True)
    others = np.zeros(size, np.int32)
    other_total = count_ngrams(window.tokens, window.starts, order, keys, firsts, others, False)
    slots = np.flatnonzero(counts >= MIN_COUNT)
    if not len(slots) or not other_total:
        return []
    strength, expected = g2(counts[slots], total, others[slots], other_total)
    strength = np.where(counts[slots] > expected, strength, 0.0)
    best = np.argsort(-strength, kind="stable")[:KEPT]
    return [
        (
            float(strength[at]), float(expected[at]), int(counts[slots[at]]), int(others[slots[at]]),
            step.tokens[firsts[slots[at]] : firsts[slots[at]] + order],
        )
        for at in best.tolist()
        if strength[at] >= MIN_G2
    ]  # fmt: skip
