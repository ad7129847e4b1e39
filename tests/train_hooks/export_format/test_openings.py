"""One part of a row is opened: it leads to the leaf, and nothing of its neighbours can be computed from what is given."""

import dataclasses
import hashlib

import numpy as np
import pytest

from tests.train_hooks.export_format.upkeep.test_takedown import made_row
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.leaf import chunk_hash, part_hash
from train_hooks.export_format.openings import PartOpening, open_part
from train_hooks.export_format.records import Row, Segment
from train_hooks.export_format.removal import without_tokens

SECRET = b"\x07" * 32
SEGMENTS = tuple(
    Segment(start=start, length=length, source="web", document_id=name, document_token_offset=0)
    for start, length, name in ((0, 3, "theirs/1"), (3, 300, "ours"), (303, 5, "theirs/2"), (310, 90, "theirs/3"))
)


@pytest.fixture
def row() -> Row:
    return made_row(np.random.default_rng(5).integers(1, 60_000, 420).astype("<u2"), SECRET, SEGMENTS)


def test_every_part_opens_to_the_leaf(row: Row) -> None:
    openings = [open_part(SECRET, row, part) for part in range(6)]

    assert all(opening.leaf() == row.leaf for opening in openings)
    assert [(opening.start, opening.length) for opening in openings] == [
        (0, 3), (3, 300), (303, 5), (308, 2), (310, 90), (400, 20),
    ]  # fmt: skip
    assert [opening.segment for opening in openings] == [*SEGMENTS[:3], None, SEGMENTS[3], None]
    with pytest.raises(InputError, match="a part from 0 to 5"):
        open_part(SECRET, row, 6)


def test_what_is_changed_leads_to_another_leaf(row: Row) -> None:
    opening = open_part(SECRET, row, 1)
    second = opening.chunks[1]
    assert not isinstance(second, bytes)
    salt, tokens = second
    other = dataclasses.replace(SEGMENTS[1], document_id="another")
    for changed in (
        {"chunks": (opening.chunks[0], (salt, tokens[::-1].copy()))}, {"segment": other}, {"segment": None},
        {"part": 2}, {"num_parts": 7}, {"sample_index": None}, {"num_tokens": 421}, {"part_salt": b"x" * 16},
        {"address": "example/a1/s1/r0/m0/q1"}, {"tensors_commitment": b"x" * 32},
    ):  # fmt: skip
        assert dataclasses.replace(opening, **changed).leaf() != row.leaf, changed
    with pytest.raises(InputError, match="a chunk for each 256"):
        dataclasses.replace(opening, chunks=opening.chunks[:1]).leaf()


def test_bytes_cannot_move_from_a_salt_to_what_it_salts(row: Row) -> None:
    """Salt and content are hashed side by side, so their lengths are a part of what is checked."""
    opening = open_part(SECRET, row, 1)
    first, second = opening.chunks
    assert not isinstance(first, bytes)
    salt, tokens = first
    for changed in (
        {"chunks": ((salt + tokens[:2].tobytes(), tokens[2:]), second)},
        {"chunks": ((salt[:12], np.concatenate([np.frombuffer(salt[12:], "<u2"), tokens])), second)},
        {"chunks": ((salt, tokens.view("<u4")), second)},
        {"chunks": (b"x" * 31, second)},
        {"segment": dataclasses.replace(SEGMENTS[1], start=50)},
        {"segment": dataclasses.replace(SEGMENTS[1], length=77)},
        {"start": 4}, {"length": 299}, {"start": 400, "segment": None}, {"part_salt": opening.part_salt + b"x"},
        {"tensors_commitment": b""}, {"token_size_bytes": 3},
    ):  # fmt: skip
        with pytest.raises(InputError, match="expected"):
            dataclasses.replace(opening, **changed).leaf()


def test_a_part_that_lost_tokens_still_opens(row: Row) -> None:
    cut = without_tokens(SECRET, row, [(10, 20), (304, 305)])
    opening = open_part(SECRET, cut, 1)

    assert isinstance(opening.chunks[0], bytes)
    assert not isinstance(opening.chunks[1], bytes)
    assert opening.leaf() == row.leaf
    assert open_part(SECRET, cut, 4).leaf() == row.leaf


def test_a_row_of_an_older_format_says_why_not() -> None:
    with pytest.raises(InputError, match="format 3 is needed"):
        open_part(SECRET, made_row(np.arange(9, dtype="<u2"), SECRET, format_version=1), 0)


def given(opening: PartOpening) -> tuple[set[bytes], set[bytes]]:
    """(hashes, salts) that an opening discloses, or that follow from it by the rules of the format."""
    opened = [chunk for chunk in opening.chunks if not isinstance(chunk, bytes)]
    chunks = [chunk_hash(salt, tokens.tobytes()) for salt, tokens in opened]
    own = part_hash(opening.part_salt, opening.start, opening.length, opening.segment, chunks)
    hashes = {*opening.path, *chunks, own, opening.tensors_commitment, opening.leaf()}
    salts = {opening.part_salt, *(salt for salt, _ in opened)}
    for value in [*hashes, *salts]:
        salts |= {value[:16], value[-16:], hashlib.shake_256(value).digest(16)}
    return hashes, salts


def last_bytes_that_fit(row: Row, of: Segment, salts: set[bytes], hashes: set[bytes]) -> list[int]:
    """Values of the last byte of a part with which some of these salts give one of these hashes, all else being known."""
    data, found = bytearray(row.tokens[of.start : of.start + of.length].tobytes()), []
    for value in range(256):
        data[-1] = value
        chunks = [chunk_hash(salt, bytes(data[(len(data) - 1) // 512 * 512 :])) for salt in salts]
        parts = (part_hash(salt, of.start, of.length, of, [chunk]) for salt in salts for chunk in chunks)
        fits = any(each in hashes for each in (*chunks, *parts))
        found += [value] if fits else []
    return found


def test_neighbours_cannot_be_guessed_from_all_that_is_given(row: Row) -> None:
    """Whoever has the opening of one part, and knows all of another but its last byte, cannot find that byte.

    He tries every value of it with every salt that he has or can make. The same search finds the byte of the opened part, and
    that of a neighbour whose salts the run's secret gives: so it could succeed.
    """
    hashes, salts = given(open_part(SECRET, row, 1))
    right = {segment.document_id: int(row.tokens[segment.start + segment.length - 1]) >> 8 for segment in SEGMENTS}

    assert last_bytes_that_fit(row, SEGMENTS[1], salts, hashes) == [right["ours"]]
    for part, neighbour in ((0, SEGMENTS[0]), (2, SEGMENTS[2]), (4, SEGMENTS[3])):
        assert last_bytes_that_fit(row, neighbour, salts, hashes) == []
        own, _ = given(open_part(SECRET, row, part))
        _, own_salts = given(open_part(SECRET, row, part))
        assert last_bytes_that_fit(row, neighbour, own_salts, own) == [right[neighbour.document_id]]
