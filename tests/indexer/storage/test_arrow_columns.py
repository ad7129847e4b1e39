"""What pyarrow itself makes of the same columns, and no pandas."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from indexer.storage.arrow_columns import equals, is_among, numbers_of

KINDS = [pa.bool_(), pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("cuts", [[], [[]], [[1, 0, 3]], [[1], [], [0, 3]]], ids=str)
def test_as_pyarrow_has_them(kind: pa.DataType, cuts: list[list[int]]) -> None:
    column = pa.chunked_array([pa.array(cut, pa.int64()).cast(kind) for cut in cuts], kind)
    found = numbers_of(column)
    assert found.dtype == column.to_numpy().dtype
    assert found.tolist() == column.to_pylist()
    for begin in range(len(column) + 1):
        assert numbers_of(column.slice(begin, 2)).tolist() == column.slice(begin, 2).to_pylist()


def test_an_array_is_a_column_too() -> None:
    many = pa.array(np.arange(100) % 3 == 0)
    assert numbers_of(many.slice(11, 70)).tolist() == many.slice(11, 70).to_pylist()


def test_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a column without nulls, found 1 among 2"):
        numbers_of(pa.array([1, None]))
    with pytest.raises(ValueError, match="without nulls"):
        equals(pa.array(["a", None]), "a")


@pytest.mark.parametrize("text", ["a", "", "ä本", "b\0"])
def test_texts_are_compared(text: str) -> None:
    column = pa.chunked_array([["a", "", "ä本"], ["b\0", "a"]])
    assert equals(column, text).tolist() == pc.equal(column, text).to_pylist()


@pytest.mark.parametrize("texts", [[], ["a"], ["ä本", "", "none"]], ids=str)
def test_texts_are_looked_for(texts: list[str]) -> None:
    column = pa.chunked_array([["a", "", "ä本", None], ["b", "a"]])
    assert is_among(column, texts).tolist() == pc.is_in(column, value_set=pa.array(texts, pa.string())).to_pylist()


def test_no_pandas() -> None:
    code = """
import sys
import numpy as np, pyarrow as pa
from indexer.storage.arrow_columns import equals, is_among, numbers_of
numbers = pa.Array.from_buffers(pa.int64(), 3, [None, pa.py_buffer(np.arange(3))])
assert numbers_of(pa.table([numbers], names=["a"]).column("a")).sum() == 3
texts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"a")])
assert equals(texts, "a").all() and is_among(texts, ["a"]).all()
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
