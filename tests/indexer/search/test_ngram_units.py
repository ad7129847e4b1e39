"""Which stretches of a shard hold a token n-gram, against a look at every one of them."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.spans.arrays import SpanArrays
from indexer.storage.shard import SegmentUnits
from indexer.trace.ngrams import units_of_ngram
from tests.indexer.search.conftest import Searched
from tests.indexer.spans.shards import build


def units_by_hand(spans: SpanArrays, units: SegmentUnits, ids: Sequence[int], begin: int, end: int) -> list[int]:
    found = []
    for unit in range(len(units.ordinal)):
        first, last = units.extent(unit)
        tokens = spans.tokens[first:last].tolist()
        holds = any(tokens[at : at + len(ids)] == list(ids) for at in range(len(tokens) - len(ids) + 1))
        if holds and begin <= units.ordinal[unit] < end:
            found.append(unit)
    return found


@st.composite
def cut_sequences(draw: st.DrawFn) -> tuple[SpanArrays, SegmentUnits]:
    """Sequences of few different tokens, cut anywhere."""
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    token = st.integers(0, draw(st.integers(0, 2)))
    spans = build([draw(st.lists(token, min_size=n, max_size=n)) for n in lengths])
    first = spans.sequence_starts
    places = st.sets(st.integers(0, spans.num_tokens - 1), min_size=1, max_size=draw(st.sampled_from([3, 12])))
    cuts = np.unique([*first[:-1].tolist(), *(draw(places) - {int(end) - 1 for end in first[1:]})])
    ordinal = np.searchsorted(first, cuts, side="right") - 1
    starts = np.append(cuts, spans.num_tokens).astype(np.int64)
    return spans, SegmentUnits(starts=starts, ordinal=ordinal, segment=np.full(len(cuts), -1))


@settings(max_examples=300)
@given(made=cut_sequences(), data=st.data())
def test_units_of_made_sequences(made: tuple[SpanArrays, SegmentUnits], data: st.DataObject) -> None:
    tokens, num = made[0].tokens[:-1].tolist(), made[0].num_sequences
    at, length = data.draw(st.integers(0, len(tokens) - 1)), data.draw(st.integers(1, 4))
    begin, end = data.draw(st.just((0, num)) | st.tuples(st.integers(0, num), st.integers(0, num)).map(sorted))
    asked = (*made, tokens[at : at + length], begin, end)
    assert units_of_ngram(*asked).tolist() == units_by_hand(*asked)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_units_of_a_run(searched: Searched, length: int) -> None:
    chance = random.Random(length)
    for shard in searched.reader.shards:
        for _ in range(6):
            tokens = shard.tokens(chance.randrange(shard.info.num_sequences)).tolist()
            at, begin = (
                chance.randrange(len(tokens) - length),
                chance.choice([0, chance.randrange(shard.info.num_sequences)]),
            )
            asked = (shard.spans, shard.units, tokens[at : at + length], begin, shard.info.num_sequences)
            assert units_of_ngram(*asked).tolist() == units_by_hand(*asked)
