"""Leaves of both versions against fixed answers and second implementations, from the document; roots against RFC 6962."""

import dataclasses
import hashlib
import hmac
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.leaf import EMPTY_ROOT, RowLeaf, merkle_path, merkle_root, root_of_path, row_salt
from train_hooks.export_format.records import Segment, TensorRecord

SECRET = bytes(range(32))
ADDRESS = "run/a1/s120/r3/m0/q5"
# transparency-dev/merkle testonly/constants.go: leaf inputs, and the roots of the trees of the first 0 … 8 of them
LEAF_INPUTS = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    bytes(range(0x50, 0x58)),
    bytes(range(0x60, 0x70)),
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaf_hash(
    secret: bytes,
    address: str,
    sample_index: int | None,
    tokens: npt.NDArray[np.unsignedinteger],
    segments: Sequence[Segment],
    tensors: Sequence[TensorRecord],
    format_version: int = 3,
) -> bytes:
    row = RowLeaf(row_salt(secret, address), address, tokens, segments, format_version)
    return row.hash(sample_index, tensors)


def second_leaf_v1(
    secret: bytes,
    address: str,
    sample_index: int | None,
    tokens: npt.NDArray[np.unsignedinteger],
    segments: Sequence[Segment],
    tensors: Sequence[TensorRecord],
) -> bytes:
    row_salt = hmac.new(secret, address.encode(), hashlib.sha256).digest()

    def salt(kind: int, index: int) -> bytes:
        return hashlib.sha256(row_salt + bytes([kind]) + index.to_bytes(4, "little")).digest()[:16]

    def text(value: str) -> bytes:
        return len(value.encode()).to_bytes(4, "little") + value.encode()

    size = tokens.dtype.itemsize
    data = b"".join(int(token).to_bytes(size, "little") for token in tokens)
    chunks = [data[at : at + 256 * size] for at in range(0, len(data), 256 * size)]
    hashed = [hashlib.sha256(b"\x11" + salt(0x11, i) + chunk).digest() for i, chunk in enumerate(chunks)]
    tokens_part = hashlib.sha256(b"\x10" + len(chunks).to_bytes(4, "little") + b"".join(hashed)).digest()
    packed = b"".join(
        struct.pack("<IIq", s.start, s.length, s.document_token_offset) + text(s.source) + text(s.document_id)
        for s in segments
    )
    segments_part = hashlib.sha256(b"\x12" + salt(0x12, 0) + len(segments).to_bytes(4, "little") + packed).digest()
    packed = b"".join(
        text(t.name) + text(t.dtype) + text(t.encoding) + len(t.shape).to_bytes(4, "little")
        + b"".join(n.to_bytes(4, "little") for n in t.shape) + len(t.data).to_bytes(4, "little") + t.data
        for t in tensors
    )  # fmt: skip
    tensors_part = hashlib.sha256(b"\x13" + salt(0x13, 0) + len(tensors).to_bytes(4, "little") + packed).digest()
    entry = b"kiseki-leaf-v1" + len(address.encode()).to_bytes(2, "little") + address.encode()
    entry += (-1 if sample_index is None else sample_index).to_bytes(8, "little", signed=True)
    entry += len(tokens).to_bytes(4, "little") + bytes([size]) + tokens_part + segments_part + tensors_part
    return hashlib.sha256(b"\x00" + entry).digest()


def second_leaf_v2(
    secret: bytes,
    address: str,
    sample_index: int | None,
    tokens: npt.NDArray[np.unsignedinteger],
    segments: Sequence[Segment],
    tensors: Sequence[TensorRecord],
) -> bytes:
    row_salt = hmac.new(secret, address.encode(), hashlib.sha256).digest()
    size = tokens.dtype.itemsize

    def salt(i: int) -> bytes:
        return hashlib.shake_256(row_salt).digest(16 * i + 16)[16 * i :]

    def text(value: str) -> bytes:
        return len(value.encode()).to_bytes(4, "little") + value.encode()

    parts: list[tuple[int, int, bytes]] = []
    owner = [
        next((i for i, s in enumerate(segments) if s.start <= at < s.start + s.length), -1) for at in range(len(tokens))
    ]
    at = 0
    while at < len(tokens):
        end = at
        while end < len(tokens) and owner[end] == owner[at]:
            end += 1
        names = b"\0"
        if owner[at] >= 0:
            s = segments[owner[at]]
            names = b"\1" + struct.pack("<q", s.document_token_offset) + text(s.source) + text(s.document_id)
        parts.append((at, end, names))
        at = end
    hashes, chunk = [], 0
    for number, (start, end, names) in enumerate(parts):
        entry = b"kiseki-part-v2" + salt(1 + number) + struct.pack("<II", start, end - start) + names
        for begin in range(start, end, 256):
            data = b"".join(int(token).to_bytes(size, "little") for token in tokens[begin : min(begin + 256, end)])
            entry += hashlib.sha256(b"\x11" + salt(1 + len(parts) + chunk) + data).digest()
            chunk += 1
        hashes.append(hashlib.sha256(b"\0" + entry).digest())
    packed = b"".join(
        text(t.name) + text(t.dtype) + text(t.encoding) + bytes([t.whole]) + len(t.shape).to_bytes(4, "little")
        + b"".join(n.to_bytes(4, "little") for n in t.shape) + len(t.data).to_bytes(4, "little") + t.data
        for t in tensors
    )  # fmt: skip
    tensors_part = hashlib.sha256(b"\x13" + salt(0) + len(tensors).to_bytes(4, "little") + packed).digest()
    entry = b"kiseki-leaf-v2" + len(address.encode()).to_bytes(2, "little") + address.encode()
    entry += (-1 if sample_index is None else sample_index).to_bytes(8, "little", signed=True)
    entry += len(tokens).to_bytes(4, "little") + bytes([size]) + len(parts).to_bytes(4, "little")
    return hashlib.sha256(b"\0" + entry + recursive_root(hashes) + tensors_part).digest()


def recursive_root(part: Sequence[bytes]) -> bytes:
    if not part:
        return hashlib.sha256(b"").digest()
    if len(part) == 1:
        return part[0]
    split = 1 << ((len(part) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + recursive_root(part[:split]) + recursive_root(part[split:])).digest()


SEGMENT = Segment(start=0, length=300, source="日本", document_id="d/1", document_token_offset=9)
TENSOR = TensorRecord(name="labels", dtype="<i8", shape=(300,), encoding="next", data=b"\x01" * 8)


@pytest.mark.parametrize(
    ("dtype", "sample_index", "segments", "tensors", "expected"),
    [
        (np.uint16, None, (), (), "abb9280628244db8a32f39ec34b044a9bca45d7d44699f3183fa24d3ba64512e"),
        (np.uint32, 7, (SEGMENT,), (TENSOR,), "06b46ad91179f4f50b21b86fb98275fb71c51d0ae39373183f73053111ebec6e"),
    ],
)
def test_known_answers(
    dtype: type, sample_index: int | None, segments: Sequence[Segment], tensors: Sequence[TensorRecord], expected: str
) -> None:
    tokens: npt.NDArray[np.unsignedinteger] = np.arange(300, dtype=dtype)

    assert leaf_hash(SECRET, ADDRESS, sample_index, tokens, segments, tensors, 1).hex() == expected


@given(
    st.lists(st.integers(0, 65_535), max_size=600),
    st.sampled_from([np.uint16, np.uint32]),
    st.one_of(st.none(), st.integers(0, 2**63 - 1)),
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3),
    st.lists(st.binary(max_size=9), max_size=3),
)
def test_a_second_implementation_agrees(
    tokens: list[int], dtype: type, sample_index: int | None, names: list[tuple[str, str]], contents: list[bytes]
) -> None:
    array: npt.NDArray[np.unsignedinteger] = np.array(tokens, dtype)
    segments = [
        Segment(start=i, length=i + 1, source=source, document_id=name, document_token_offset=-i)
        for i, (source, name) in enumerate(names)
    ]
    tensors = [
        TensorRecord(name=f"t{i}", dtype="<f4", shape=(2, i), encoding="zlib", data=content)
        for i, content in enumerate(contents)
    ]

    ours = leaf_hash(SECRET, ADDRESS, sample_index, array, segments, tensors, 1)
    assert ours == second_leaf_v1(SECRET, ADDRESS, sample_index, array, segments, tensors)


@given(
    st.lists(st.integers(0, 65_535), min_size=1, max_size=900),
    st.sampled_from([np.uint16, np.uint32]),
    st.one_of(st.none(), st.integers(0, 2**63 - 1)),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 600), st.text(max_size=5), st.text(max_size=5)), max_size=5),
    st.lists(st.tuples(st.binary(max_size=9), st.booleans()), max_size=3),
)
def test_a_second_implementation_of_leaf_v2_agrees(
    tokens: list[int],
    dtype: type,
    sample_index: int | None,
    names: list[tuple[int, int, str, str]],
    contents: list[tuple[bytes, bool]],
) -> None:
    array: npt.NDArray[np.unsignedinteger] = np.array(tokens, dtype)
    segments, position = [], 0
    for gap, length, source, name in names:
        start = position + gap
        length = min(length, len(tokens) - start)
        if length < 1:
            break
        segments.append(
            Segment(start=start, length=length, source=source, document_id=name, document_token_offset=gap - 1)
        )
        position = start + length
    tensors = [
        TensorRecord(name=f"t{i}", dtype="bfloat16", shape=(2, i), encoding="zlib", data=content, whole=whole)
        for i, (content, whole) in enumerate(contents)
    ]

    ours = leaf_hash(SECRET, ADDRESS, sample_index, array, segments, tensors)
    assert ours == second_leaf_v2(SECRET, ADDRESS, sample_index, array, segments, tensors)


def test_a_leaf_depends_on_all_that_it_covers() -> None:
    tokens = np.arange(300, dtype=np.uint16)
    base = (SECRET, ADDRESS, 7, tokens, (SEGMENT,), (TENSOR,))
    others: list[tuple[object, ...]] = [
        (*base[:5], (dataclasses.replace(TENSOR, whole=True),)),
        (*base[:4], (dataclasses.replace(SEGMENT, length=299),), base[5]),
        (*base, 1),
        (b"x" * 32, *base[1:]),
        (SECRET, "run/a1/s120/r3/m0/q6", *base[2:]),
        (*base[:2], 8, *base[3:]),
        (*base[:3], tokens[::-1].copy(), *base[4:]),
        (*base[:3], tokens.astype(np.uint32), *base[4:]),
        (*base[:4], (), base[5]),
        (*base[:5], ()),
    ]

    assert len({leaf_hash(*base), *(leaf_hash(*other) for other in others)}) == len(others) + 1  # type: ignore[arg-type]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_rfc_6962(size: int) -> None:
    leaves = [hashlib.sha256(b"\x00" + data).digest() for data in LEAF_INPUTS[:size]]

    assert merkle_root(leaves).hex() == ROOTS[size]


def test_the_root_of_no_leaves() -> None:
    assert hashlib.sha256(b"").digest() == EMPTY_ROOT


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70))
def test_roots_agree_with_the_recursive_definition(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == recursive_root(leaves)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40), st.data())
def test_a_path_leads_from_its_leaf_to_the_root_and_no_other(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = merkle_path(leaves, index)

    assert root_of_path(leaves[index], index, len(leaves), path) == merkle_root(leaves)
    assert root_of_path(b"x" * 32, index, len(leaves), path) != merkle_root(leaves)
    for wrong in (path[1:], [*path, b"x" * 32]):
        if wrong != path:
            with pytest.raises(InputError):
                root_of_path(leaves[index], index, len(leaves), wrong)
