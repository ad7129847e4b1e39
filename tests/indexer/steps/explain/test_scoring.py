"""A row's score: company of the same kind weighs more, one fact counts once."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.steps.explain.records import Reason
from indexer.steps.explain.scoring import FEATURES, in_company, reasons_of, score_of


def chance(together: int, num_rows: int, share: float) -> float:
    """Probability that `together` or more of the rows are of the rarest `share`, term by term."""
    return sum(math.comb(num_rows, k) * share**k * (1 - share) ** (num_rows - k) for k in range(together, num_rows + 1))


@settings(deadline=None)
@given(bits=st.lists(st.floats(0, 20), min_size=1, max_size=12), more=st.integers(0, 20))
def test_company_is_never_weighed_beyond_chance(bits: list[float], more: int) -> None:
    own = np.array(bits)
    weights, company = in_company(own, len(own) + more)
    for found, weight, k in zip(own, weights, company, strict=True):
        assert k == (own >= found).sum()
        assert found <= weight <= 4 * found
        surprise = [-math.log2(chance(int((own >= other).sum()), len(own) + more, 2.0**-other)) for other in own]
        assert weight <= max(found, *(bits for bits, other in zip(surprise, own, strict=True) if other <= found)) + 1e-6
    order = np.argsort(own)
    assert np.all(np.diff(weights[order]) >= -1e-9)


def test_four_alike_weigh_more_than_one_and_less_than_without_end() -> None:
    weights, _ = in_company(np.array([8.0, 8.0, 8.0, 8.0]), 8)
    assert weights == pytest.approx([4 * 8 - math.log2(70)] * 4)
    weights, _ = in_company(np.full(12, 8.0), 12)
    assert weights == pytest.approx([4 * 8.0] * 12)
    weights, _ = in_company(np.array([5.0, 5.0]), 8)
    assert weights == pytest.approx([2 * 5 - math.log2(28)] * 2)
    assert in_company(np.array([8.0]), 8)[0] == pytest.approx([8.0])


def test_one_fact_counts_once() -> None:
    def reason(feature: str, bits: float) -> Reason:
        return Reason(feature=feature, value=0, median=0, bits=bits, text="")

    assert (
        score_of([reason("han_share", 8), reason("kana_share", 7), reason("surprisal", 5), reason("new_pair_share", 6)])
        == 14
    )
    assert score_of([]) == 0


def test_garbage_in_company_comes_before_a_rare_language() -> None:
    """Eight rows: four spoilt alike, beyond all 400; one in a script that few of them have; three like any other."""
    rng = np.random.default_rng(2)
    features = {measure.name: measure for measure in FEATURES}
    han = np.zeros(400)
    han[:4] = 0.4
    columns = [
        reasons_of(
            features["new_pair_share"],
            np.array([0.9, 0.95, 0.99, 1.0, 0.6, 0.15, 0.15, 0.15]),
            rng.normal(0.15, 0.02, 400),
        ),
        reasons_of(
            features["compression_ratio"], np.array([1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5]), rng.normal(1.5, 0.1, 400)
        ),
        reasons_of(features["han_share"], np.array([0, 0, 0, 0, 0.38, 0, 0, 0]), han),
    ]
    scores = [score_of(reason for column in columns if (reason := column[row])) for row in range(8)]
    assert min(scores[:4]) > scores[4] > 0 == scores[5]
    first = columns[1][0]
    assert first is not None
    assert "so have 3 others of the step" in first.text


def test_a_document_in_half_of_the_rows_comes_before_a_row_that_is_rare_in_many_ways() -> None:
    """Sixteen rows: eight hold the same Japanese tokens, as one of 800 before; a ninth is Japanese of a rare source.

    The eight have some Han too, which is no news, and no company for the ninth, which has more.
    """
    features = {measure.name: measure for measure in FEATURES}
    names = ("twin_share", "kana_share", "han_share", "source_surprise", "surprisal")
    window = {name: np.zeros(800) for name in names}
    window["twin_share"][:1], window["kana_share"][:16] = 1.0, 0.7
    window["han_share"][:60], window["han_share"][:2] = 0.2, 0.4
    window["surprisal"][:60], window["surprisal"][:16] = 3.0, 4.0
    window["source_surprise"][:2] = 5.5
    step = {name: np.zeros(16) for name in names}
    step["twin_share"][:8], step["kana_share"][:9], step["han_share"][:8] = 1.0, 0.65, 0.15
    step["surprisal"][:8], step["surprisal"][8] = 3.0, 4.0
    step["han_share"][8], step["source_surprise"][8] = 0.4, 5.5
    columns = [reasons_of(features[name], step[name], window[name]) for name in names]
    scores = [score_of(reason for column in columns if (reason := column[row])) for row in range(16)]
    assert min(scores[:8]) > scores[8] > 0 == max(scores[9:])
    han = columns[names.index("han_share")]
    assert [reason is not None for reason in han] == [False] * 8 + [True] + [False] * 7
    assert han[8] is not None and han[8].bits == pytest.approx(math.log2(801 / 3)) and "of the step" not in han[8].text
