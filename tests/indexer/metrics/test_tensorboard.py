"""Event files that real writers made, against what tensorboard's own reader found in them; and damage."""

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.metrics.crc32c import crc32c, masked_crc32c
from indexer.metrics.rows import MetricRows
from indexer.metrics.tensorboard import looks_like_events, read_events

FILES = Path(__file__).parent / "event_files"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
Scalar = tuple[int, float | None, str, str]


def scalars(rows: MetricRows) -> list[Scalar]:
    """Comparable: NaN is equal to itself."""
    return [
        (step, time, name, repr(value))
        for step, time, name, value in zip(rows.steps, rows.times, rows.names, rows.values, strict=True)
    ]


def expected(name: str) -> list[Scalar]:
    return [(step, time, tag, repr(value)) for step, time, tag, value in EXPECTED[name]]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E), (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)  # fmt: skip
def test_crc32c_is_that_of_rfc_3720(data: bytes, value: int) -> None:
    assert crc32c(data) == value


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_scalars_are_those_that_tensorboard_finds(name: str) -> None:
    rows = read_events(FILES / name)
    assert scalars(rows) == expected(name) and (rows.problems, rows.notes) == ([], [])
    assert looks_like_events(FILES / name) and not looks_like_events(FILES / "expected.json")


def test_both_forms_are_in_the_files() -> None:
    found = {tag: value for _, _, tag, value in EXPECTED["torch.tfevents"]}
    assert found["train/loss"] == 0.625 and found["exact"] == 1 / 3 + 8 and math.isnan(found["not finite"])
    assert {step for step, _, _, _ in EXPECTED["tensorboard.tfevents"]} == {0, 1, 7, 1 << 40}


def test_a_cut_leaves_whole_records_and_a_note(tmp_path: Path) -> None:
    data, whole = (FILES / "tensorboardx.tfevents").read_bytes(), expected("tensorboardx.tfevents")
    path, ends = tmp_path / "cut", set()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        rows = read_events(path)
        assert scalars(rows) == whole[: len(rows.steps)] and not rows.problems
        if not rows.notes:
            ends.add(length)
    assert {0} < ends and len(ends) == len(_record_starts(data))


def _record_starts(data: bytes) -> list[int]:
    starts, place = [], 0
    while place < len(data):
        starts.append(place)
        place += 16 + struct.unpack_from("<Q", data, place)[0]
    return starts


def test_a_flipped_bit_is_never_a_number(tmp_path: Path) -> None:
    data, whole = (FILES / "tensorboardx.tfevents").read_bytes(), expected("tensorboardx.tfevents")
    path = tmp_path / "flipped.tfevents"
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        rows = read_events(path)
        assert rows.num_problems == 1 and f"{path.name} byte " in rows.problems[0]
        assert [scalar for scalar in whole if scalar in scalars(rows)] == scalars(
            rows
        )  # some are missing, none is another


def record(data: bytes) -> bytes:
    header = struct.pack("<Q", len(data))
    return header + struct.pack("<I", masked_crc32c(header)) + data + struct.pack("<I", masked_crc32c(data))


@given(st.lists(st.binary(max_size=40), max_size=5), st.booleans())
def test_any_bytes_are_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], nested: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tfevents"
    bodies = [b"\x2a" + bytes([len(part)]) + part if nested else part for part in parts]  # as field 5, or as the event
    path.write_bytes(
        b"".join(record(body) for body in bodies) + record(b"\x10\x07\x2a\x09\x0a\x07\x0a\x00\x15\x00\x00\x80\x3f")
    )
    rows = read_events(path)
    assert scalars(rows)[-1] == (7, None, "", "1.0")
    assert rows.num_problems <= len(parts)
