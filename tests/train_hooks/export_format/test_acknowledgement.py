"""Acknowledgement records: their bytes, and the chain that they form."""

import dataclasses
import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_hooks.export_format.acknowledgement import ACK_SIZE, Ack, AckKind, decode_acks, file_identity, well_formed
from train_hooks.export_format.records import StepStatus

IDENTITY = file_identity("run", 2, "c0ffee", 3, 0, None)


def chain(count: int) -> list[Ack]:
    acks: list[Ack] = []
    for number in range(count):
        previous = acks[-1].sha256 if acks else IDENTITY
        start = acks[-1].end if acks else 0
        kind = AckKind.STEP if number else AckKind.SCHEMA
        acks.append(
            Ack(
                kind=kind, number=number, start=start, end=start + 10 * number + 1, global_step=number, num_rows=number,
                status=StepStatus.RERUN if number else None, frame_sha256=bytes([number]) * 32,
                root=bytes([255 - number]) * 32, previous=previous, unix_time_us=-5 + number,
            )
        )  # fmt: skip
    return acks


def encoded(acks: list[Ack]) -> bytes:
    return b"".join(ack.encode() for ack in acks)


def test_a_record_has_the_bytes_of_the_format() -> None:
    record = chain(3)[2].encode()

    assert len(record) == ACK_SIZE == 160
    assert record[:8] == b"KACK" + struct.pack("<HH", 1, 1)
    assert struct.unpack("<QQQqI", record[8:44]) == (2, 12, 33, 2, 2)
    assert record[44:52] == bytes([4]) + bytes(7)
    assert record[52:84] == b"\x02" * 32
    assert record[84:116] == b"\xfd" * 32
    assert record[116:148] == chain(2)[1].sha256
    assert struct.unpack("<qI", record[148:]) == (-3, zlib.crc32(record[:156]))


def test_identity_is_the_hash_of_seven_lines() -> None:
    text = "kiseki-segment-file-v1\nrun\n2\nc0ffee\n3\n1\n" + "ab" * 32 + "\n"

    assert file_identity("run", 2, "c0ffee", 3, 1, b"\xab" * 32) == hashlib.sha256(text.encode()).digest()
    assert hashlib.sha256(b"kiseki-segment-file-v1\nrun\n2\nc0ffee\n3\n0\n-\n").digest() == IDENTITY


def test_a_chain_comes_back() -> None:
    acks = chain(5)

    assert decode_acks(encoded(acks), IDENTITY) == (acks, None)
    assert decode_acks(b"", IDENTITY) == ([], None)


@given(st.integers(0, 5 * ACK_SIZE))
def test_of_a_cut_chain_the_whole_records_come_back(size: int) -> None:
    acks, torn = decode_acks(encoded(chain(5))[:size], IDENTITY)

    assert acks == chain(5)[: size // ACK_SIZE]
    assert (torn is None) == (size % ACK_SIZE == 0)


@given(st.integers(0, 5 * ACK_SIZE * 8 - 1))
def test_a_flipped_bit_ends_the_chain_at_its_record(bit: int) -> None:
    data = bytearray(encoded(chain(5)))
    data[bit // 8] ^= 1 << bit % 8
    acks, torn = decode_acks(bytes(data), IDENTITY)

    assert acks == chain(5)[: bit // 8 // ACK_SIZE]
    assert torn is not None


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1], [0, 2], [0, 2, 1], [1, 2]])
def test_records_that_were_moved_doubled_or_left_out_end_the_chain(order: list[int]) -> None:
    acks, torn = decode_acks(encoded([chain(3)[index] for index in order]), IDENTITY)

    assert len(acks) < len(order)
    assert torn is not None
    assert "does not follow" in torn


def test_another_files_chain_does_not_begin_here() -> None:
    acks, torn = decode_acks(encoded(chain(2)), file_identity("run", 2, "c0ffee", 3, 1, None))

    assert acks == []
    assert torn == "acknowledgement record 0 does not follow the one before it"


def test_a_place_that_is_not_the_next_frames_ends_the_chain() -> None:
    wrong = dataclasses.replace(chain(1)[0], start=1, end=2)

    assert (
        decode_acks(wrong.encode(), IDENTITY)[1] == "acknowledgement record 0 names another place than the next frame's"
    )


def test_a_record_is_known_wherever_it_stands() -> None:
    assert well_formed(chain(3)[2].encode())
    assert not well_formed(bytes(ACK_SIZE))
    assert not well_formed(b"")
