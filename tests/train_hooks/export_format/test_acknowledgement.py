"""Acknowledgement records: their bytes, and the chain that they form."""

import dataclasses
import hashlib
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_hooks.export_format.acknowledgement import (
    Ack,
    AckKind,
    ack_size,
    decode_acks,
    decode_sealed_acks,
    file_identity,
    well_formed,
)
from train_hooks.export_format.records import StepStatus

OLD, NEW = 160, 200
IDENTITY = file_identity("run", 2, "c0ffee", 3, 0, None)


def chain(count: int, version: int = 3) -> list[Ack]:
    acks: list[Ack] = []
    for number in range(count):
        previous = acks[-1].sha256 if acks else IDENTITY
        start = acks[-1].end if acks else 0
        kind = AckKind.STEP if number else AckKind.SCHEMA
        acks.append(
            Ack(
                kind=kind, number=number, start=start, end=start + 10 * number + 1, global_step=number, num_rows=number,
                status=StepStatus.RERUN if number else None, frame_sha256=bytes([number]) * 32,
                root=bytes([255 - number]) * 32, previous=previous, unix_time_us=-5 + number, format_version=version,
                **(({"num_tokens": 7 * number} if version > 1 else {}) | (new_fields(number) if version > 2 else {})),
            )
        )  # fmt: skip
    return acks


def new_fields(number: int) -> dict[str, Any]:
    return {
        "record": bytes([7 * number]) * 32, "evidence": (number, 1, 2), "matched": (3, number, 4),
        "has_gap": number % 2 == 1, "has_losses": number % 3 == 2,
    }  # fmt: skip


def encoded(acks: list[Ack]) -> bytes:
    return b"".join(ack.encode() for ack in acks)


def test_a_record_has_the_bytes_of_the_format() -> None:
    record = chain(3)[2].encode()

    assert len(record) == ack_size(3) == NEW
    assert record[:8] == b"KACK" + bytes([3, 2, 1, 4])
    assert struct.unpack("<Qqq", record[8:32]) == (33, 2, -3)
    assert struct.unpack("<9I", record[32:68]) == (2, 2, 14, 2, 1, 2, 3, 2, 4)
    assert record[68:100] == b"\x02" * 32
    assert record[100:132] == b"\xfd" * 32
    assert record[132:164] == b"\x0e" * 32
    assert record[164:196] == chain(2)[1].sha256
    assert struct.unpack("<I", record[196:]) == (zlib.crc32(record[:196]),)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_record_has_the_bytes_of_its_format(version: int) -> None:
    record = chain(3, version)[2].encode()

    assert len(record) == ack_size(version) == OLD
    assert record[:8] == b"KACK" + struct.pack("<HH", version, 1)
    assert struct.unpack("<QQQqI", record[8:44]) == (2, 12, 33, 2, 2)
    assert record[44:48] == bytes([4]) + bytes(3)
    assert struct.unpack("<I", record[48:52]) == ({1: 0, 2: 14}[version],)
    assert record[52:84] == b"\x02" * 32
    assert record[84:116] == b"\xfd" * 32
    assert record[116:148] == chain(2, version)[1].sha256
    assert struct.unpack("<qI", record[148:]) == (-3, zlib.crc32(record[:156]))


def test_identity_is_the_hash_of_seven_lines() -> None:
    text = "kiseki-segment-file-v1\nrun\n2\nc0ffee\n3\n1\n" + "ab" * 32 + "\n"

    assert file_identity("run", 2, "c0ffee", 3, 1, b"\xab" * 32) == hashlib.sha256(text.encode()).digest()
    assert hashlib.sha256(b"kiseki-segment-file-v1\nrun\n2\nc0ffee\n3\n0\n-\n").digest() == IDENTITY


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_chain_comes_back(version: int) -> None:
    acks = chain(5, version)
    found, torn = decode_acks(encoded(acks), IDENTITY, version)

    assert (list(found), torn) == (acks, None)
    assert [found[index] for index in range(5)] == acks
    assert found[-1] == acks[-1]
    assert list(found[1:3]) == acks[1:3]
    assert found.encode() == encoded(acks)
    assert [found.sha256(index) for index in range(5)] == [ack.sha256 for ack in acks]
    assert list(decode_acks(b"", IDENTITY, version)[0]) == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_records_whose_bytes_a_seal_vouches_for_come_back_without_a_chain(version: int) -> None:
    acks = chain(5, version)
    found = decode_sealed_acks(encoded(acks), version)

    assert found is not None
    assert list(found) == acks
    assert decode_sealed_acks(encoded(acks)[:-1], version) is None
    assert decode_sealed_acks(encoded([acks[0], acks[2]]), version) is None
    assert decode_sealed_acks(bytes(ack_size(version)), version) is None


@given(st.integers(0, 5 * NEW), st.sampled_from([1, 2, 3]))
def test_of_a_cut_chain_the_whole_records_come_back(size: int, version: int) -> None:
    acks, torn = decode_acks(encoded(chain(5, version))[:size], IDENTITY, version)
    size = min(size, 5 * ack_size(version))

    assert list(acks) == chain(5, version)[: size // ack_size(version)]
    assert (torn is None) == (size % ack_size(version) == 0)


@given(st.integers(0, 5 * OLD * 8 - 1), st.sampled_from([1, 2, 3]))
def test_a_flipped_bit_ends_the_chain_at_its_record(bit: int, version: int) -> None:
    data = bytearray(encoded(chain(5, version)))
    data[bit // 8] ^= 1 << bit % 8
    acks, torn = decode_acks(bytes(data), IDENTITY, version)

    assert list(acks) == chain(5, version)[: bit // 8 // ack_size(version)]
    assert torn is not None


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1], [0, 2], [0, 2, 1], [1, 2]])
def test_records_that_were_moved_doubled_or_left_out_end_the_chain(order: list[int]) -> None:
    acks, torn = decode_acks(encoded([chain(3)[index] for index in order]), IDENTITY, 3)

    assert len(acks) < len(order)
    assert torn is not None
    assert "does not follow" in torn


def test_another_files_chain_does_not_begin_here() -> None:
    acks, torn = decode_acks(encoded(chain(2)), file_identity("run", 2, "c0ffee", 3, 1, None), 3)

    assert list(acks) == []
    assert torn == "acknowledgement record 0 does not follow the one before it"


def test_a_place_that_is_not_the_next_frames_ends_the_chain() -> None:
    message = "acknowledgement record 0 names another place than the next frame's"
    for wrong, version in (
        (dataclasses.replace(chain(1, 1)[0], start=1, end=2), 1),
        (dataclasses.replace(chain(1)[0], number=1), 3),
    ):
        assert decode_acks(wrong.encode(), IDENTITY, version)[1] == message


@pytest.mark.parametrize(("at", "value"), [(0, b"X"), (4, b"\2"), (4, b"\4"), (5, b"\4"), (6, b"\4"), (7, b"\5")])
def test_a_record_of_something_else_is_none(at: int, value: bytes) -> None:
    record = bytearray(chain(1)[0].encode())
    record[at : at + 1] = value
    record[196:] = struct.pack("<I", zlib.crc32(record[:196]))

    assert decode_acks(bytes(record), IDENTITY, 3)[1] == "acknowledgement record 0 is cut or damaged"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_record_is_known_wherever_it_is(version: int) -> None:
    assert well_formed(chain(3, version)[2].encode(), version)
    assert not well_formed(bytes(ack_size(version)), version)
    assert not well_formed(b"", version)
    assert not any(well_formed(chain(3, other)[2].encode(), version) for other in {1, 2, 3} - {version})
