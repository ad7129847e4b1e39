"""File names parse back, and no two names mean the same file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_hooks.export_format.paths import CompactionName, ExportPaths, SegmentFileName

NUMBERS = st.integers(0, 999_999_999)


@given(NUMBERS, NUMBERS)
def test_segment_file_names_come_back(dp_rank: int, number: int) -> None:
    name = SegmentFileName(dp_rank=dp_rank, number=number)

    assert SegmentFileName.parse(name.data) == (name, "arrows", False)
    assert SegmentFileName.parse(name.acks + ".inprogress") == (name, "acks", True)
    assert SegmentFileName.parse(name.seal) == (name, "seal.json", False)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_compaction_names_come_back(dp_rank: int, first: int, last: int) -> None:
    name = CompactionName(dp_rank=dp_rank, first_number=first, last_number=last)

    assert CompactionName.parse(name.manifest) == (name, "compacted.json", False)
    assert CompactionName.parse(name.rows + ".inprogress") == (name, "rows.parquet", True)
    assert SegmentFileName.parse(name.frames) is None


@pytest.mark.parametrize(
    "name",
    [
        "rows-r000003-00000.arrows",
        "rows-r3-00000.arrows",
        "rows-r00003-00000.arrow",
        "rows-r00003-00000.arrows.inprogress.inprogress",
        "rows-r00003-00000 (1).arrows",
        "rows-r0000٣-00000.arrows",
        "attempt.json",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    assert SegmentFileName.parse(name) is None


@pytest.mark.parametrize(
    ("name", "number"),
    [("a000002", 2), ("a1234567", 1_234_567), ("a0000002", None), ("a02", None), ("b000002", None), ("a00000٢", None)],
)
def test_attempt_directories(name: str, number: int | None) -> None:
    assert ExportPaths.attempt_number(name) == number
