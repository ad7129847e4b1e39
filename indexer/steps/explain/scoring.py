"""How unusual a number is among those of the window, in bits, and in words.

A value at least as extreme as c of the N rows of the window has log2((N + 1) / (c + 1)) bits. Beyond all of them it gets
log2(1 + distance / spread) on top, spread being what lies between the window's median and its 5th or 95th percentile, and at
least the feature's floor. One row in 20 is no news: bits above log2(20) count.

Company weighs more: k of the step's m rows that are news, and as unusual as t of the window's each, are as surprising together
as -log2(C(m, k) t^k) bits, an upper bound of chance. Each of them gets that, at most COMPANY times its own bits: so a fault of
many rows comes before a row that is rare in several ways, and a step whose mixture is new does not drown all else.

Features that say one fact in several ways (that the text is new, or in which script) count once in a row's score.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.steps.explain.records import Feature, Reason

__all__ = ["FEATURES", "NEWS_BITS", "Measure", "feature_of", "in_company", "reasons_of", "score_of"]

NEWS_BITS = float(np.log2(20))
COMPANY = 4
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A feature of rows. floor: differences below it do not matter. low: whether small values are news as well.

    fact: features of the same one say the same in several ways; by default its name.
    """

    name: str
    floor: float
    low: bool
    text: Callable[[float], str]
    fact: str = ""


def _percent(what: str) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.0f}% {what}"


FEATURES: tuple[Measure, ...] = (
    Measure(name="loss", floor=0.1, low=False, text=lambda value: f"loss {value:.3f}" if value < np.inf else "no finite loss"),
    Measure(
        name="surprisal", floor=0.1, low=True, text=lambda value: f"{value:.1f} bits a token, by the window's tokens",
        fact="newness",
    ),
    Measure(
        name="new_pair_share", floor=0.02, low=False, text=_percent("of its token pairs are in no row of the window"),
        fact="newness",
    ),
    Measure(name="twin_share", floor=0.05, low=False, text=_percent("of its tokens stand in another row of the step too")),
    Measure(name="repeated_share", floor=0.05, low=False, text=_percent("of its tokens are in 8-grams it repeats")),
    Measure(name="compression_ratio", floor=0.1, low=True, text=lambda value: f"compresses {value:.2f} times"),
    Measure(name="seen_share", floor=0.05, low=False, text=_percent("of its tokens were seen at an earlier step")),
    Measure(name="again_share", floor=0.05, low=False, text=_percent("of its tokens are of document parts seen again")),
    Measure(name="source_surprise", floor=0.2, low=False, text=lambda value: f"{value:.1f} bits for its sources"),
    Measure(name="num_documents", floor=2.0, low=False, text=lambda value: f"{value:.0f} documents"),
    *(
        Measure(name=f"{name}_share", floor=0.05, low=False, text=_percent(f"of its characters are {words}"), fact="script")
        for name, words in (
            ("latin", "Latin letters"), ("han", "Han"), ("kana", "kana"), ("hangul", "hangul"), ("cyrillic", "Cyrillic"),
            ("other_letter", "letters of other scripts"), ("digit", "digits"), ("symbol", "punctuation and symbols"),
        )
    ),
)  # fmt: skip


FACTS = {measure.name: measure.fact or measure.name for measure in FEATURES}


def reasons_of(measure: Measure, values: Floats, window: Floats) -> list[Reason | None]:
    """For each of `values` (f64, NaN for none) why it is news among `window`, or None where it is not."""
    known = np.sort(window[np.isfinite(window)])
    if not len(known):
        return [None] * len(values)
    percentiles = np.percentile(known, [5, 50, 95])
    bits, is_low = _bits_of(measure, values, known, percentiles)
    is_news = bits > NEWS_BITS
    weights, company = np.zeros(len(values)), np.zeros(len(values), np.int64)
    for side in (is_low, ~is_low):
        weights[side], company[side] = in_company(np.where(is_news[side], bits[side], 0), len(values))
    reasons: list[Reason | None] = [None] * len(values)
    for row in np.flatnonzero(is_news).tolist():
        with_others = (float(weights[row]), int(company[row]))
        reasons[row] = _reason(
            measure, float(values[row]), float(percentiles[1]), float(bits[row]), len(known), with_others,
            low=bool(is_low[row]),
        )  # fmt: skip
    return reasons


def _bits_of(
    measure: Measure, values: Floats, known: Floats, percentiles: Floats
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(bits of each value, whether it is a low one) among `known`, ascending, with its 5th, 50th and 95th percentiles."""
    low, median, high = percentiles
    finite = np.where(np.isfinite(values), values, median)
    bits = np.maximum(0, _bits_above(finite, known, median, max(high - median, measure.floor), measure.floor))
    is_low = np.zeros(len(values), np.bool_)
    if measure.low:
        below = _bits_above(-finite, -known[::-1], -median, max(median - low, measure.floor), measure.floor)
        is_low, bits = below > bits, np.maximum(bits, below)
    bits[np.isposinf(values)] = 2 * np.log2(len(known) + 1)
    return bits, is_low


def _bits_above(values: Floats, known: Floats, median: float, spread: float, floor: float) -> Floats:
    """Bits of each value that is `floor` or more above the median of `known`, which ascend; 0 of the others."""
    as_extreme = len(known) - np.searchsorted(known, values, "left")
    rarity = np.log2((len(known) + 1) / (as_extreme + 1))
    beyond_all = np.log2(1 + np.maximum(0, values - known[-1]) / spread)
    return np.where(values - median < floor, 0.0, rarity + beyond_all)


def in_company(bits: Floats, num_rows: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(what each weighs, how many have its bits or more) of some rows of a step of `num_rows`, by their own bits f64 [n].

    Whoever has more bits weighs no less.
    """
    order = np.argsort(bits, kind="stable")
    ranked = bits[order]
    together = len(bits) - np.searchsorted(ranked, ranked, "left")
    choices = np.array(
        [
            (math.lgamma(num_rows + 1) - math.lgamma(k + 1) - math.lgamma(num_rows - k + 1)) / math.log(2)
            for k in together
        ]
    )
    weights, company = np.zeros(len(bits)), np.zeros(len(bits), np.int64)
    weights[order] = np.clip(np.maximum.accumulate(together * ranked - choices), ranked, COMPANY * ranked)
    company[order] = together
    return weights, company


def _reason(
    measure: Measure, value: float, median: float, bits: float, num: int, company: tuple[float, int], *, low: bool
) -> Reason:
    where = f"{'less' if low else 'more'} than in all {num:,} rows before"
    if bits < np.log2(num + 1):
        where = f"as in 1 of {2**bits:,.0f} rows before"
    weight, others = company[0], company[1] - 1
    like = "" if others < 1 else f"; so {'has one other' if others == 1 else f'have {others:,} others'} of the step"
    text = f"{measure.text(value)}; {where}, median {_short(median)}{like}"
    return Reason(feature=measure.name, value=value, median=median, bits=weight, text=text)


def score_of(reasons: Iterable[Reason]) -> float:
    """Bits of a row: the strongest reason of each fact, together."""
    strongest: dict[str, float] = {}
    for reason in reasons:
        fact = FACTS[reason.feature]
        strongest[fact] = max(strongest.get(fact, 0.0), reason.bits)
    return sum(strongest.values())


def _short(value: float) -> str:
    return f"{value:.3g}"


def feature_of(measure: Measure, values: Floats, window: Floats, window_steps: npt.NDArray[np.int64]) -> Feature | None:
    """The mean over the step's rows beside the means of the window's steps; None where a side has no values."""
    known = np.isfinite(window)
    own = values[np.isfinite(values)]
    if not known.any() or not len(own):
        return None
    _, places = np.unique(window_steps[known], return_inverse=True)
    means = np.bincount(places, weights=window[known]) / np.bincount(places)
    low, median, high = np.percentile(means, [5, 50, 95])
    spread = 1.4826 * float(np.median(np.abs(means - median)))
    deviations = (float(own.mean()) - float(median)) / max(spread, measure.floor / np.sqrt(len(own)))
    return Feature(
        name=measure.name,
        value=float(own.mean()),
        median=float(median),
        low=float(low),
        high=float(high),
        deviations=deviations,
    )
