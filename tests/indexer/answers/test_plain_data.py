"""Plain data against `dataclasses.asdict`, and what it must not copy."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.answers.plain_data import finite_data, plain_data
from train_hooks.export_format.records import SequenceAddress, StepStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    base: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree(Base):
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    pairs: list[tuple[int, int]]
    status: StepStatus | None


NUMBERS = st.floats(allow_nan=False)
LEAVES = st.builds(Leaf, name=st.text(max_size=5), values=st.lists(NUMBERS, max_size=4).map(tuple))
TREES = st.builds(
    Tree,
    base=st.integers(),
    leaves=st.lists(LEAVES, max_size=4).map(tuple),
    by_name=st.dictionaries(st.text(max_size=3), LEAVES, max_size=3),
    pairs=st.lists(st.tuples(st.integers(), st.integers()), max_size=3),
    status=st.none() | st.sampled_from(StepStatus),
)


@given(TREES)
def test_it_is_the_json_of_asdict(tree: Tree) -> None:
    assert json.dumps(plain_data(tree)) == json.dumps(dataclasses.asdict(tree))
    assert plain_data([tree, tree]) == [plain_data(tree)] * 2


def test_addresses_are_texts_and_other_values_are_not_copied() -> None:
    address = SequenceAddress(run_id="r", attempt=1, global_step=2, dp_rank=3, microbatch=4, slot=5)
    array, path = np.arange(3), Path("x")
    found: list[Any] = plain_data((address, array, path))
    assert found[0] == "r/a1/s2/r3/m4/q5" and found[1] is array and found[2] is path


def test_numbers_that_json_lacks_become_text() -> None:
    leaf = Leaf(name="n", values=(math.inf, -math.inf, math.nan, 1.5))
    assert finite_data((leaf,)) == [{"name": "n", "values": ["inf", "-inf", "nan", 1.5]}]
