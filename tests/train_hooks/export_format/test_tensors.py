"""Tensors come back bit for bit, whatever their dtype and shape; each encoding is reached."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.records import Segment, TensorRecord
from train_hooks.export_format.tensors import decode_tensor, encode_tensor

LENGTH = 12
TOKENS = np.array([5, 6, 7, 8, 9, 300, 5, 5, 2, 1, 40, 3], np.uint16)


def segment(start: int, length: int) -> Segment:
    return Segment(start=start, length=length, source="s", document_id="d", document_token_offset=0)


SEGMENTS = (segment(0, 5), segment(5, 7))
Array = npt.NDArray[np.generic]


def assert_exact(value: Array, tokens: Array = TOKENS, segments: tuple[Segment, ...] = SEGMENTS) -> TensorRecord:
    record = encode_tensor("x", value, tokens, segments)  # type: ignore[arg-type]
    back = decode_tensor(record, tokens, segments)  # type: ignore[arg-type]
    little = value.dtype.newbyteorder("<")
    assert back.dtype == little
    assert back.shape == np.shape(value)
    assert back.tobytes() == np.asarray(value, little).tobytes()
    return record


def next_in_segment(mask: int) -> Array:
    value = np.append(TOKENS[1:], 77).astype(np.int64)
    value[4] = mask
    return value


@pytest.mark.parametrize(
    ("encoding", "value", "size"),
    [
        ("tokens", TOKENS.astype(np.int64), 0),
        ("tokens", TOKENS.astype(np.int32), 0),
        ("next", np.append(TOKENS[1:], 9).astype(np.int64), 8),
        ("next", np.append(TOKENS[1:].astype(np.int64), -100), 8),
        ("next-in-segment", next_in_segment(-100), 16),
        ("constant", np.ones(LENGTH, np.float32), 4),
        ("constant", np.full((3, 4), np.nan), 8),
        ("constant", np.ones(LENGTH, bool), 1),
        ("constant", np.array(7, np.int16), 2),
        ("arange", np.arange(LENGTH), 0),
        ("arange-segment", np.r_[np.arange(5), np.arange(7)].astype(np.int32), 0),
        ("segment-index", np.r_[np.zeros(5), np.ones(7)].astype(np.uint8), 0),
        ("zlib", np.arange(LENGTH)[::-1].copy(), None),
        ("zlib", np.array([0.0, -0.0, np.nan, np.inf]), None),
        ("zlib", np.zeros((0, 3), np.float16), None),
    ],
)
def test_each_encoding_is_reached(encoding: str, value: Array, size: int | None) -> None:
    record = assert_exact(value)

    assert record.encoding == encoding
    assert size is None or len(record.data) == size


@given(
    npst.arrays(
        st.one_of(
            npst.integer_dtypes(),
            npst.unsigned_integer_dtypes(),
            npst.floating_dtypes(),
            npst.boolean_dtypes(),
            npst.complex_number_dtypes(sizes=(64, 128)),
        ),
        st.one_of(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), st.just((LENGTH,))),
    )
)
def test_any_tensor_comes_back(value: Array) -> None:
    assert_exact(value)


@given(st.data())
def test_tensors_that_resemble_the_tokens_come_back(data: st.DataObject) -> None:
    """One element of a derivable tensor is changed, so that no encoding may be chosen by its looks."""
    length = data.draw(st.integers(1, 20))
    dtype = data.draw(st.sampled_from([np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64]))
    tokens = np.array(data.draw(st.lists(st.integers(0, 65_535), min_size=length, max_size=length)), np.uint16)
    cut = data.draw(st.integers(0, length))
    segments = tuple(segment(a, b - a) for a, b in ((0, cut), (cut, length)) if b > a)
    derived = data.draw(
        st.sampled_from(
            [tokens, np.roll(tokens, -1), np.arange(length), np.r_[np.arange(cut), np.arange(length - cut)]]
        )
    ).astype(dtype)
    if data.draw(st.booleans()):
        derived[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 100))

    assert_exact(derived, tokens, segments)


def test_big_endian_tensors_are_kept_as_little_endian() -> None:
    assert assert_exact(np.array([1.5, 2.5], ">f8")).dtype == "<f8"


def test_strided_tensors_are_kept() -> None:
    assert_exact(np.arange(24).reshape(4, 6)[::2, ::3])


@pytest.mark.parametrize(
    ("dtype", "encoding", "data"),
    [
        ("<i8", "next", b""),
        ("<i8", "next-in-segment", b"\0" * 8),
        ("<i8", "constant", b""),
        ("<i8", "zlib", b"not zlib"),
        ("<i8", "newer", b""),
        ("no dtype", "tokens", b""),
    ],
)
def test_what_cannot_be_a_tensor_is_damage(dtype: str, encoding: str, data: bytes) -> None:
    record = TensorRecord(name="x", dtype=dtype, shape=(LENGTH,), encoding=encoding, data=data)

    with pytest.raises(DamageError, match="'x'"):
        decode_tensor(record, TOKENS, SEGMENTS)
