"""The built arrays against plain definitions, and what a build refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray
from pydivsufsort import divsufsort
from threadpoolctl import threadpool_info

from indexer.spans import build
from indexer.spans.arrays import BLOCK, RANGE, SUPERBLOCK, SpanArrays, SpanIndexError, open_span_arrays
from tests.indexer.spans import shards


@pytest.mark.parametrize("dtype", shards.DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_suffixes_stand_in_numeric_order(dtype: DTypeLike, data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(dtype))
    arrays = shards.build(sequences, dtype)
    text = [token for sequence in sequences for token in [*sequence, arrays.separator]]
    assert arrays.tokens.tolist() == text
    assert arrays.suffix_array.tolist() == sorted(range(len(text)), key=lambda at: text[at:])
    assert np.diff(arrays.sequence_starts).tolist() == [len(sequence) + 1 for sequence in sequences]


@pytest.mark.parametrize(("dtype", "words"), [(np.uint16, 2), (np.uint32, 4)])
def test_side_arrays_describe_the_suffix_array(tmp_path: Path, dtype: DTypeLike, words: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, (70, 1000))
    arrays = build.build_span_arrays(tokens, dtype, tmp_path)
    check_side_arrays(arrays, words)


def test_the_sort_takes_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is one CPU's work; what else the node has belongs to the training."""
    found: list[int] = []

    def watched(text: NDArray[np.uint8]) -> Any:
        found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")
        return divsufsort(text)

    monkeypatch.setattr("indexer.spans.build.divsufsort", watched)
    build.build_span_arrays(np.arange(100).reshape(2, 50), np.uint16, tmp_path)
    assert set(found) == {1}


def check_side_arrays(arrays: SpanArrays, words: int) -> None:
    padded = np.append(arrays.tokens, np.zeros(8, arrays.tokens.dtype)).astype(object)
    bits = 8 * words
    for block, rank in enumerate(range(0, arrays.num_tokens, BLOCK)):
        at = int(arrays.suffix_array[rank])
        packed = sum(int(token) << (bits * (7 - j)) for j, token in enumerate(padded[at : at + 8]))
        found = sum(int(word) << (64 * (words - 1 - j)) for j, word in enumerate(arrays.prefix_table[block]))
        assert found == packed
    for block, rank in enumerate(range(0, arrays.num_tokens, RANGE)):
        positions = arrays.suffix_array[rank : rank + RANGE]
        assert arrays.block_range[block].tolist() == [positions.min(), positions.max()]
    for block, rank in enumerate(range(0, arrays.num_tokens, SUPERBLOCK)):
        positions = arrays.suffix_array[rank : rank + SUPERBLOCK]
        assert arrays.superblock_range[block].tolist() == [positions.min(), positions.max()]
    grams: dict[bytes, int] = {}
    for rank, position in enumerate(arrays.suffix_array):
        gram = arrays.tokens[position : position + 8].tobytes()
        assert grams.setdefault(gram, int(arrays.fingerprints[rank])) == arrays.fingerprints[rank]
    assert len(set(grams.values())) > len(grams) * 0.6


def test_array_and_list_give_the_same_file(tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, 9, (30, 20)).astype(np.uint8)
    for name, sequences in (("array", tokens), ("list", list(tokens)), ("generator", (row for row in tokens))):
        (tmp_path / name).mkdir()
        build.build_span_arrays(sequences, np.uint16, tmp_path / name)
    files = {(tmp_path / name / "spans.bin").read_bytes() for name in ("array", "list", "generator")}
    assert len(files) == 1


def test_array_is_cut_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BATCH_TOKENS", 50)
    tokens = np.arange(40 * 7).reshape(40, 7)
    arrays = build.build_span_arrays(tokens, np.uint16, tmp_path)
    assert np.array_equal(arrays.tokens.reshape(40, 8)[:, :7], tokens)


def test_arrays_are_read_only(tmp_path: Path) -> None:
    arrays = build.build_span_arrays([np.arange(5)], np.uint16, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        arrays.tokens[0] = 1


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one sequence"),
        (np.zeros((0, 5), np.uint16), "at least one sequence"),
        (np.zeros(5, np.uint16), r"array of shape \[5\]"),
        ([np.zeros((2, 2), np.uint16)], r"sequence 0: .* shape \[2, 2\]"),
        ([np.zeros(3), np.zeros(3)], "sequence 0: .* float64"),
        ([np.array([1, 2]), np.array([3, 65535])], "sequence 1, offset 1: .* found 65535; use uint32"),
        (np.array([[1, 2], [3, 70000]]), "sequence 1, offset 1: .* found 70000"),
        ([np.array([1, -1])], "sequence 0, offset 1: .* found -1"),
    ],
)
def test_refused_sequences(tmp_path: Path, sequences: Any, message: str) -> None:
    with pytest.raises(SpanIndexError, match=message):
        build.build_span_arrays(sequences, np.uint16, tmp_path)
    with pytest.raises(SpanIndexError, match="did not finish"):
        open_span_arrays(tmp_path)


def test_separator_of_u32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpanIndexError, match="found 4294967295"):
        build.build_span_arrays([np.array([2**32 - 1])], np.uint32, tmp_path)
    arrays = build.build_span_arrays([np.array([2**32 - 2])], np.uint32, tmp_path)
    assert arrays.tokens.tolist() == [2**32 - 2, 2**32 - 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.uint64])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: DTypeLike) -> None:
    with pytest.raises(SpanIndexError, match="expected uint16 or uint32"):
        build.build_span_arrays([np.arange(3)], dtype, tmp_path)


def test_too_many_tokens_are_refused_before_the_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (build.max_tokens(np.uint16), build.max_tokens(np.uint32)) == (2**30 - 1, 2**29 - 1)
    monkeypatch.setattr(build, "max_tokens", lambda _: 20)
    taken = []

    def sequences() -> Iterator[NDArray[np.int64]]:
        for ordinal in range(100):
            taken.append(ordinal)
            yield np.arange(9)

    with pytest.raises(SpanIndexError, match=r"at most 20 tokens.* from sequence 2 on"):
        build.build_span_arrays(sequences(), np.uint16, tmp_path)
    assert taken == [0, 1, 2]


def test_the_header_is_written_after_everything_else_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before the last sync leaves a file that does not open."""
    seen: list[bool] = []

    def fsync(_: int) -> None:
        page = (tmp_path / "spans.bin").read_bytes()[:4096]
        seen.append(page.startswith(b"{"))

    monkeypatch.setattr("os.fsync", fsync)
    build.build_span_arrays([np.arange(9)], np.uint16, tmp_path)
    assert seen == [False, True, True]


def test_rebuilding_overwrites(tmp_path: Path) -> None:
    build.build_span_arrays([np.arange(5000)], np.uint16, tmp_path)
    arrays = build.build_span_arrays([np.arange(3)], np.uint16, tmp_path)
    assert arrays.num_tokens == 4
    assert open_span_arrays(tmp_path).tokens.tolist() == [0, 1, 2, 65535]
